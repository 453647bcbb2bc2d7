"""Checkpoints: which are kept, and that a damaged or hostile one is named before a tensor of it is used."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import PLAIN, assert_same_run, flip, go_on, log_of, refusal, saved_steps, small, snapshot, train, truncate
from support import checkpoint as folder_of

from gpt2lab.errors import InputError
from gpt2lab.files import read_checked_json, sha256_of, write_checked_json
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint, loop
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.config import TrainConfig

Copied = tuple[Run, TrainConfig]
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
DAMAGE = {"truncated": truncate, "flipped": flip, "emptied": lambda path: path.write_bytes(b""), "missing": os.remove}


@pytest.mark.parametrize(
    ("losses", "options", "kept", "best"),
    [
        ([3.0], {"eval_every": 24, "keep_last": 3}, [16, 20, 24], 24),
        ([3.0, 2.0, 2.5, 2.5, 2.5], {"keep_last": 2}, [10, 20, 24], 10),  # though checkpoints are due every 4
        ([3.0, 2.0, 2.5, 1.0, 1.5], {"keep_last": 1, "checkpoint_every": 100}, [20, 24], 20),
        ([], {"keep_last": 2}, [20, 24], 24),
    ],
    ids=["the last few", "the best", "a better best replaces it", "without validation the last is the best"],
)
def test_which_checkpoints_are_kept(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    losses: list[float], options: dict[str, int], kept: list[int], best: int,
) -> None:  # fmt: skip
    given = iter(losses)
    monkeypatch.setattr(loop, "validation_loss", lambda *_: next(given))
    data = request.getfixturevalue("data" if losses else "without_val")
    run = train(small(data, tmp_path / "run", **({"model": PLAIN, "eval_every": 5} | options)))
    assert saved_steps(run) == kept
    found = checkpoint.find(run, "best")
    assert (found.step, found.val_loss) == (best, min(losses, default=None))
    assert [checkpoint.find(run, which).step for which in ("last", str(kept[0]))] == [24, kept[0]]


def test_the_files_are_plain_tensors_and_json(finished: Run) -> None:
    folder = folder_of(finished, 24)
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    weights = load_file(folder / "model.safetensors")
    state = load_file(folder / "optimizer.safetensors")
    assert state.keys() == {f"{name}.{key}" for name in weights for key in ("exp_avg", "exp_avg_sq", "step")}
    assert all(state[f"{name}.step"] == 24 for name in weights)
    assert weights["wte.weight"].shape == (320, 16)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name, listed in manifest["files"].items():
        assert listed == {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
    model, found = load_model(finished, "last")
    assert found.step == 24
    assert not model.training
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert load_model(finished)[1].step == checkpoint.find(finished, "best").step


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_before_use(copied: Copied, name: str, damage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = copied
    damage(folder_of(run, 16) / name)
    monkeypatch.setattr(checkpoint, "load_tensors", lambda path: pytest.fail(f"{path} was loaded"))
    before = snapshot(run.path)
    for read in (lambda: go_on(config, 16), lambda: load_model(run, "16")):
        refusal(read, name.replace(".", r"\."))
    assert snapshot(run.path) == before


@pytest.mark.parametrize("name", FILES)
def test_automatic_resume_falls_back_to_a_sound_one_with_a_warning(copied: Copied, finished: Run, name: str) -> None:
    run, config = copied
    flip(folder_of(run, 24) / name)
    truncate(folder_of(run, 20) / name)
    go_on(config)
    warnings = [line for line in log_of(run).splitlines() if "skipped a damaged checkpoint" in line]
    assert len(warnings) == 2 and all(name in line for line in warnings)
    assert "step 16 of 24" in log_of(run)
    assert_same_run(run, finished)
    assert (run.checkpoints / "step_00000024.before_resume_at_16").is_dir()  # the damaged one is not thrown away


def test_every_flipped_bit_of_a_checkpoint_is_noticed(copied: Copied) -> None:
    run, _ = copied
    found = checkpoint.find(run, "24")
    for name in FILES:
        path = found.path / name
        whole = path.read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 40)):
            changed = bytearray(whole)
            changed[position] ^= 1 << (position % 8)
            path.write_bytes(changed)
            if name == "manifest.json" and _same_json(whole, bytes(changed)):
                continue
            with pytest.raises(InputError):
                checkpoint.verify(found)
        path.write_bytes(whole)
    checkpoint.verify(found)


def _same_json(a: bytes, b: bytes) -> bool:
    """Whether only white space between values differs."""
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def another_architecture(path: Path) -> None:
    weights = load_file(path)
    weights["wpe.weight"] = torch.zeros(8, 16)
    weights["h.7.more"] = weights.pop("ln_f.weight")
    save_file(weights, path)


def without_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors["wpe.weight.exp_avg"]
    save_file(tensors, path)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb(path.with_name("hit"))))


def saved_by_torch(path: Path) -> None:
    torch.save({"wte.weight": Bomb(path.with_name("hit"))}, path)


HOSTILE: list[tuple[str, Callable[[Path], None], str]] = [
    *((name, write, f"{name}: not a safetensors file") for name in FILES[:2] for write in (pickled, saved_by_torch)),
    (FILES[0], another_architecture, r"of another architecture: h\.7\.more, ln_f\.weight, wpe\.weight"),
    (FILES[1], without_a_tensor, r"optimizer\.safetensors lacks wpe\.weight\.exp_avg"),
]


@pytest.mark.parametrize(("name", "write", "said"), HOSTILE)
def test_hostile_content_is_not_executed(copied: Copied, name: str, write: Callable[[Path], None], said: str) -> None:
    run, config = copied
    folder = folder_of(run, 16)
    write(folder / name)
    manifest = read_checked_json(folder / "manifest.json")
    manifest["files"][name] = {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
    write_checked_json(folder / "manifest.json", manifest)
    refusal(lambda: go_on(config, 16), said)
    assert not (folder / "hit").exists()


def test_a_full_disk_loses_nothing(data: Path, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, calls = small(data, tmp_path / "run"), []

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) == 6:  # the third checkpoint's second file
            path.write_bytes(b"as much as went in")
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    refusal(lambda: train(config), r"step_00000012 cannot be written \(.*No space left.*; free space")
    run = Run(tmp_path / "run")
    assert saved_steps(run) == [4, 8]
    assert not list(run.checkpoints.glob(".*"))
    go_on(config)
    assert_same_run(run, finished)


def test_one_that_exists_is_never_overwritten(copied: Copied) -> None:
    run, _ = copied
    model, found = load_model(run, "16")
    optimizer = torch.optim.AdamW(model.parameters())
    before = snapshot(run.path)
    state = {"step": 16, "val_loss": None}
    refusal(lambda: checkpoint.save(run, model, optimizer, state), "step_00000016 cannot be written")
    assert snapshot(run.path) == before
    checkpoint.verify(found)
