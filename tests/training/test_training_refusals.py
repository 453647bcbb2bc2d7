"""What training refuses: one line says why, no run is created, and a run that exists stays as it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support import checkpoint as folder_of
from support import copy_of, flip, go_on, refusal, saved_steps, small, snapshot, train

from gpt2lab.cli.main import main
from gpt2lab.model.config import GPTConfig
from gpt2lab.runs import Run
from gpt2lab.training.config import OptimConfig, TrainConfig

OTHER = GPTConfig(1, 2, 32, 16, vocab_size=257, dropout=0.0)
LONG: dict[str, Any] = {"model": GPTConfig(1, 2, 16, 4096), "micro_batch": 1}
TO_START: list[tuple[str, dict[str, Any], str]] = [
    ("data", {"steps": None, "max_tokens": 100}, "max_tokens is 100, less than the 128 of one step"),
    ("data", {"micro_batch": 3}, r"batch_tokens 128 .* micro_batch 3 x seq_len 16 .*: 96 or 144, or a micro_b"),
    ("data", {"batch_tokens": 130}, r"batch_tokens 130 is not a multiple .*nearest that fit: 128 or 192"),
    ("data", {"batch_tokens": 130, "micro_batch": "auto"}, r"130 is not a multiple .*nearest that fit: 128 or 144"),
    (
        "data",
        {"model": GPTConfig(1, 2, 16, 16, vocab_size=300)},
        r"vocab_size is 300, but .* tokenizer has 257 entries",
    ),
    ("data", {"device": "cuda:99"}, 'there is no device "cuda:99" here; this machine has cpu'),
    ("data", {"precision": "fp16"}, r"precision fp16 is for GPUs; on this CPU use (bf16|fp32)"),
    ("data", {"precision": "tf32"}, "precision tf32 needs CUDA and Ampere or later, this is cpu"),
    ("data", {"profile_steps": "20:25"}, "profile_steps is 20:25, but the run ends after step 24"),
    ("data", LONG | {"batch_tokens": 4096}, "fewer than one window of seq_len 4096"),
    ("data", LONG | {"batch_tokens": 800, "seq_len": 800}, r"\(val\): .* tokens, fewer"),
    ("without_val", {"patience": 3}, "patience is 3, but .* has no val split"),
    ("nowhere", {}, "no such directory of prepared data"),
    ("damaged", {}, r"train_\d+\.bin.*changed since it was written"),
    ("data", {"init": Path("nowhere")}, "nowhere does not exist"),
    ("other_tokenizer", {"init": "finished"}, "made with tokenizer .*; prepare the data with --tokenizer .*run"),
    ("data", {"init": "emptied"}, "model.safetensors has 0 bytes"),
    ("data", {"init": "finished", "model": OTHER}, r"n_layer 1 \(there 2\), n_embd 32 \(there 16\)$"),
]


@pytest.fixture
def damaged(data: Path, tmp_path: Path) -> Path:
    """Data whose training shard has a flipped bit."""
    folder = Path(shutil.copytree(data, tmp_path / "damaged"))
    flip(next(folder.glob("train*.bin")), -2)
    return folder


@pytest.fixture
def emptied(finished: Run, tmp_path: Path) -> Run:
    """A run whose checkpoints have lost their weights."""
    run, _ = copy_of(finished, tmp_path / "emptied")
    for folder in run.checkpoints.iterdir():
        (folder / "model.safetensors").write_bytes(b"")
    return run


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """A directory that does not exist."""
    return tmp_path / "nowhere"


@pytest.mark.parametrize(("folder", "changes", "said"), TO_START, ids=lambda value: str(value)[:40])
def test_refused_before_a_run_is_created(
    request: pytest.FixtureRequest, tmp_path: Path, folder: str, changes: dict[str, Any], said: str
) -> None:
    source = request.getfixturevalue(folder)
    if isinstance(changes.get("init"), str):
        changes = {"model": None} | changes | {"init": request.getfixturevalue(changes["init"]).path}
    refusal(lambda: train(small(source, tmp_path / "run", **changes)), said)
    assert not (tmp_path / "run").exists()


def test_the_command_line_refuses_with_2(
    finished: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, said in (
        (["--init", str(finished.path), "--preset", "nano"], "both determine the model"),
        (["--init", "nowhere"], "nowhere does not exist"),
        (["--init", str(finished.path), "--model.n-layer", "3"], "n_layer 3 (there 2)"),
    ):
        assert main(["train", *options, "--data", str(data), "--out", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def became(name: str, before: object, after: object) -> str:
    return f"^{name} was {before} when the run started and cannot be {after} when it resumes; leave it out"


TO_RESUME: list[tuple[dict[str, Any], str | int, str]] = [
    ({"optim": OptimConfig(lr=2e-2, warmup_steps=4)}, 8, became("optim.lr", 0.01, 0.02)),
    ({"model": GPTConfig(2, 2, 32, 16)}, 8, became("model.n_embd", 16, 32)),
    ({"model": GPTConfig(3, 2, 16, 16)}, 8, became("model.n_layer", 2, 3)),
    ({"seed": 1}, 8, became("seed", 1337, 1)),
    ({"batch_tokens": 256}, 8, became("batch_tokens", 128, 256)),
    ({"seq_len": 8}, 8, became("seq_len", 16, 8)),
    ({"mask_documents": True}, 8, became("mask_documents", False, True)),
    ({"data": "other_data"}, 8, r"the data given is not the run's: its fingerprint is \w{16}, .* \w{16};"),
    ({"data": "other_tokenizer"}, 8, r"the tokenizer given is not the run's: its fingerprint is \w{16}, .* \w{16};"),
    ({"steps": 20}, "last", "the run is at step 24, past the 20 asked for"),
    ({"profile_steps": "5:9"}, 8, "profile_steps is 5:9, but the run resumes after step 8; give later steps"),
    ({}, 5, 'has no checkpoint "5"; choose best, last or a step: 4, 8, 12, 16, 20, 24'),
    ({"out": None}, "last", "--resume needs --out RUN"),
]


@pytest.mark.parametrize(("changes", "which", "said"), TO_RESUME, ids=lambda value: str(value)[:40])
def test_refused_to_resume(
    request: pytest.FixtureRequest, data: Path, finished: Run, changes: dict[str, Any], which: str | int, said: str
) -> None:
    if "data" in changes:
        changes = {"data": request.getfixturevalue(changes["data"])}
    before = snapshot(finished.path)
    refusal(lambda: go_on(small(data, finished.path), which, **changes), said)
    assert snapshot(finished.path) == before


def test_what_is_not_there_is_not_resumed(copied: tuple[Run, TrainConfig], data: Path, tmp_path: Path) -> None:
    refusal(lambda: go_on(small(data, tmp_path / "none")), "none does not exist")
    (tmp_path / "empty").mkdir()
    refusal(lambda: go_on(small(data, tmp_path / "empty")), r"holds no run \(config.json is missing\)")
    run, config = copied
    refusal(lambda: train(config), "exists; give another --out, or --resume")
    for step in saved_steps(run):
        flip(folder_of(run, step) / "state.json")
    refusal(lambda: go_on(config), "every checkpoint is damaged")
    shutil.rmtree(run.checkpoints)
    for which in ("last", "best", "4"):
        refusal(lambda which=which: go_on(config, which), "has no checkpoint yet")


@pytest.mark.parametrize("text", ["[]", "null", '{"format": 1}', '{"format": 1, "files": []}', '{"format": 9}', "{"])
def test_a_manifest_that_is_none_is_named(copied: tuple[Run, TrainConfig], text: str) -> None:
    run, config = copied
    (folder_of(run, 24) / "manifest.json").write_text(text, encoding="utf-8")
    refusal(lambda: go_on(config, 24), r"manifest\.json")


def test_a_renamed_checkpoint_is_noticed(copied: tuple[Run, TrainConfig]) -> None:
    run, config = copied
    folder_of(run, 8).rename(folder_of(run, 9))
    refusal(lambda: go_on(config, 9), "holds step 8: it was renamed")
