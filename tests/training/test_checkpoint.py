"""Checkpoints: which are kept, and that a damaged or hostile one is named before a tensor of it is used."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import assert_same_run, go_on, saved_steps, small, snapshot, train
from support import checkpoint as folder_of

from gpt2lab.errors import InputError
from gpt2lab.files import sha256_of
from gpt2lab.runs import Run
from gpt2lab.training import checkpoint, loop
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.config import TrainConfig, saved_config

Copied = tuple[Run, TrainConfig]
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def with_losses(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """Let validation give these losses, one after another."""
    given = iter(losses)
    monkeypatch.setattr(loop, "validation_loss", lambda *_: next(given))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE = {"truncated": truncate, "flipped": flip, "emptied": lambda path: path.write_bytes(b""), "missing": os.remove}


def test_the_last_few_are_kept(data: Path, tmp_path: Path) -> None:
    run = train(small(data, tmp_path / "run", eval_every=100, keep_last=3))
    assert saved_steps(run) == [16, 20, 24]


def test_the_best_is_kept_though_it_is_not_among_the_last(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_losses(monkeypatch, 3.0, 2.0, 2.5, 2.5, 2.5)
    run = train(small(data, tmp_path / "run", eval_every=5, keep_last=2))
    assert saved_steps(run) == [10, 20, 24]  # at step 10 though checkpoints are due every 4
    best = checkpoint.find(run, "best")
    assert (best.step, best.val_loss) == (10, 2.0)
    assert checkpoint.find(run, "last").step == 24
    assert checkpoint.find(run, "20").step == 20


def test_without_validation_the_last_is_the_best(without_val: Path, tmp_path: Path) -> None:
    run = train(small(without_val, tmp_path / "run", keep_last=2))
    assert saved_steps(run) == [20, 24]
    assert checkpoint.find(run, "best").step == 24


def test_a_better_best_replaces_the_old_one(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_losses(monkeypatch, 3.0, 2.0, 2.5, 1.0, 1.5)
    run = train(small(data, tmp_path / "run", eval_every=5, keep_last=1, checkpoint_every=100))
    assert saved_steps(run) == [20, 24]


def test_the_files_are_plain_tensors_and_json(finished: Run) -> None:
    folder = folder_of(finished, 24)
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    weights = load_file(folder / "model.safetensors")
    checkpoint = load_file(folder / "optimizer.safetensors")
    assert checkpoint.keys() == {f"{name}.{key}" for name in weights for key in ("exp_avg", "exp_avg_sq", "step")}
    assert all(checkpoint[f"{name}.step"] == 24 for name in weights)
    assert weights["wte.weight"].shape == (320, 16)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name, listed in manifest["files"].items():
        assert listed == {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}


def test_the_model_of_a_run_is_the_one_that_was_trained(data: Path, tmp_path: Path) -> None:
    run = train(small(data, tmp_path / "run"))
    model, found = load_model(run, "last")
    assert found.step == 24
    assert not model.training
    weights = load_file(folder_of(run, 24) / "model.safetensors")
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert load_model(run)[1].step == checkpoint.find(run, "best").step


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_named_before_a_tensor_is_loaded(
    copied: Copied, name: str, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = copied
    damage(folder_of(run, 16) / name)
    for reader in (checkpoint, checkpoint):
        monkeypatch.setattr(reader, "load_tensors", lambda path: pytest.fail(f"{path} was loaded"))
    before = snapshot(run.path)
    for read in (lambda: go_on(config, 16), lambda: load_model(run, "16")):
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            read()
    assert snapshot(run.path) == before


@pytest.mark.parametrize("name", FILES)
def test_automatic_resume_falls_back_to_a_sound_one_with_a_warning(
    copied: Copied, finished: Run, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, config = copied
    flip(folder_of(run, 24) / name)
    truncate(folder_of(run, 20) / name)
    go_on(config)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert all("skipped a damaged checkpoint" in w and name in w for w in warnings[:2])
    assert "step 16 of 24" in (run.path / "train.log").read_text(encoding="utf-8")
    assert "skipped a damaged" in (run.path / "train.log").read_text(encoding="utf-8")
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


def test_all_damaged_is_an_error(copied: Copied) -> None:
    run, config = copied
    for step in saved_steps(run):
        flip(folder_of(run, step) / "state.json")
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        go_on(config)


@pytest.mark.parametrize("text", ["[]", "null", '{"format": 1}', '{"format": 1, "files": []}', '{"format": 9}', "{"])
def test_a_manifest_that_is_none_is_named(copied: Copied, text: str) -> None:
    run, config = copied
    (folder_of(run, 24) / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"manifest\.json"):
        go_on(config, 24)


def test_a_renamed_checkpoint_is_noticed(copied: Copied) -> None:
    run, config = copied
    folder_of(run, 8).rename(folder_of(run, 9))
    with pytest.raises(InputError, match="holds step 8: it was renamed"):
        go_on(config, 9)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_pickle_is_refused_and_not_executed(copied: Copied, tmp_path: Path, name: str) -> None:
    run, config = copied
    for write in (lambda path: path.write_bytes(pickle.dumps(Bomb(tmp_path / "hit"))), _torch_save(tmp_path / "hit")):
        write(folder_of(run, 16) / name)
        _sign(folder_of(run, 16))
        with pytest.raises(InputError, match=f"{name}: not a safetensors file"):
            go_on(config, 16)
        assert not (tmp_path / "hit").exists()


def _torch_save(hit: Path) -> Any:
    return lambda path: torch.save({"wte.weight": Bomb(hit)}, path)


def _sign(folder: Path) -> None:
    """Write the manifest that belongs to the files, as somebody with bad intentions would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name in manifest["files"]:
        manifest["files"][name] = {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_the_weights_of_another_architecture_are_named(copied: Copied) -> None:
    run, config = copied
    path = folder_of(run, 16) / "model.safetensors"
    weights = load_file(path)
    weights["wpe.weight"] = torch.zeros(8, 16)
    weights["h.7.more"] = weights.pop("ln_f.weight")
    save_file(weights, path)
    _sign(folder_of(run, 16))
    with pytest.raises(InputError, match=r"of another architecture: h\.7\.more, ln_f\.weight, wpe\.weight"):
        go_on(config, 16)


def test_an_optimiser_that_lacks_a_moment_is_named(copied: Copied) -> None:
    run, config = copied
    path = folder_of(run, 16) / "optimizer.safetensors"
    checkpoint = load_file(path)
    del checkpoint["wpe.weight.exp_avg"]
    save_file(checkpoint, path)
    _sign(folder_of(run, 16))
    with pytest.raises(InputError, match=r"optimizer\.safetensors lacks wpe\.weight\.exp_avg"):
        go_on(config, 16)


def test_a_full_disk_leaves_the_checkpoints_that_there_are(
    data: Path, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, calls = small(data, tmp_path / "run"), []

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) == 6:  # the third checkpoint's second file
            path.write_bytes(b"as much as went in")
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(InputError, match=r"step_00000012 cannot be written \(.*No space left.*; free space"):
        train(config)
    run = Run(tmp_path / "run")
    assert saved_steps(run) == [4, 8]
    assert not list(run.checkpoints.glob(".*"))
    go_on(config)
    assert_same_run(run, finished)


def test_one_that_exists_is_never_overwritten(copied: Copied) -> None:
    run, _ = copied
    model, found = load_model(run, "16")
    before = snapshot(run.path)
    with pytest.raises(InputError, match="step_00000016 cannot be written"):
        checkpoint.save(run, model, torch.optim.AdamW(model.parameters()), {"step": 16, "val_loss": None})
    assert snapshot(run.path) == before
    assert saved_config(run).model == model.config
    checkpoint.verify(found)
