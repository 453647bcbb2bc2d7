"""What a run resolves to and starts from: length, micro-batch, device, weights, with the reasons; what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support import PLAIN, SMALL, copy_of, flip, go_on, plan, refusal, saved_steps, small, snapshot, train
from support import checkpoint as folder_of

from gpt2lab import runtime
from gpt2lab.cli.main import main
from gpt2lab.cli.train import Train
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.config import INTERVALS, OptimConfig, TrainConfig, flags, saved_config
from gpt2lab.training.distributed import MODES, Communicator, process_group
from gpt2lab.training.loop import validation_loss
from gpt2lab.training.memory import Shape
from gpt2lab.training.session import save_imported
from gpt2lab.training.setup import choose_micro_batch, explain_out_of_memory, resolve

UNSET = dict.fromkeys(INTERVALS)


@pytest.mark.parametrize(
    ("steps", "log_every", "eval_every", "checkpoint_every"),
    [(1, 1, 1, 1), (19, 1, 1, 1), (100, 5, 10, 10), (1_000, 10, 100, 100), (10_000, 10, 250, 1_000)],
)
def test_a_short_run_has_a_curve_and_a_long_one_the_usual_intervals(
    data: Path, steps: int, log_every: int, eval_every: int, checkpoint_every: int
) -> None:
    config = plan(data, **UNSET, steps=steps).config
    assert (config.log_every, config.eval_every, config.checkpoint_every) == (log_every, eval_every, checkpoint_every)
    assert plan(data, **(UNSET | {"eval_every": 7}), steps=steps).config.eval_every == 7


def test_intervals_are_kept_by_a_resumed_run(data: Path, tmp_path: Path) -> None:
    config = small(data, tmp_path / "run", model=PLAIN, **UNSET, steps=20)
    run = train(config)
    assert [row["step"] for row in run.metrics() if row["val_loss"]] == list(range(2, 21, 2))
    assert {name: run.config[name] for name in INTERVALS} == {"log_every": 1, "eval_every": 2, "checkpoint_every": 2}
    go_on(config, steps=100)
    assert (run.config["steps"], run.config["eval_every"], run.config["log_every"]) == (100, 2, 1)
    go_on(config, steps=110, eval_every=50)
    assert (run.config["eval_every"], run.config["log_every"]) == (50, 1)


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 1.0}, 10),  # 75 windows, 8 a step
        ({"epochs": 2.0}, 19),
        ({"epochs": 0.01}, 1),
        ({"epochs": 1.0, "seq_len": 8, "batch_tokens": 64}, 19),  # 151 windows
        ({"max_tokens": 128}, 1),
        ({"max_tokens": 1000}, 7),
        ({"max_tokens": 1024}, 8),
        ({"max_tokens": 1024, "grow_batch": "0.5"}, 11),  # 6 x 64 and 5 x 128
        ({"max_tokens": 1024, "grow_batch": "4:6"}, 12),  # 4 x 32, 2 x 64 and 6 x 128
        ({"epochs": 1.0, "grow_batch": "0.5"}, 13),  # 75 windows: 7 x 4 and 6 x 8 are 76
        ({}, 1000),
    ],
    ids=str,
)
def test_the_length_in_steps(data: Path, length: dict[str, Any], steps: int) -> None:
    assert plan(data, **({"steps": None} | length)).config.steps == steps


@pytest.mark.parametrize(("batch", "expected"), [(128, 8), (16 * 7, 7), (16 * 256, 256), (16 * 257, 1), (8192, 256)])
def test_the_automatic_micro_batch_is_the_largest_that_divides_the_step(data: Path, batch: int, expected: int) -> None:
    chosen = plan(data, micro_batch="auto", batch_tokens=batch).config.micro_batch
    assert chosen == expected  # 4,096 tokens per pass are 256 sequences of 16


def test_the_automatic_micro_batch_fits_into_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(PRESETS["gpt2"], 1024, 1, "fp32", "cpu", micro_steps=2)
    chosen = []
    for free in (2**40, 2**34, 0):
        monkeypatch.setattr(runtime, "available_memory", lambda device, free=free: free)
        chosen.append(choose_micro_batch(shape, 4096, torch.device("cpu")))
    assert chosen == [4, 2, 1]


def test_every_auto_is_resolved_and_written_down_with_its_reason(data: Path, tmp_path: Path) -> None:
    auto = {"micro_batch": "auto", "precision": "auto", "compile": "auto", "device": "auto", "steps": 2}
    config = saved_config(train(small(data, tmp_path / "run", **auto)))
    assert "auto" not in (config.micro_batch, config.precision, config.compile, config.device)
    planned = plan(data)
    assert config.model == planned.config.model == dataclasses.replace(SMALL, vocab_size=257)  # the tokenizer's
    notes = "\n".join(planned.notes)
    for said in ("device cpu", "precision fp32: asked for", "compile off: asked for", "= 2 x 4 sequences of 16"):
        assert said in notes


ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_out_of_memory_is_explained(
    data: Path, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: object) -> None:
        raise error

    monkeypatch.setattr(GPT, "forward", forward)
    said = r"^out of memory with 4 sequences of 16 tokens per pass; .* lower --micro-batch"
    refusal(lambda: train(small(data, tmp_path / "run")), said)


def test_out_of_memory_on_a_cpu_is_recognized_and_other_errors_pass_unchanged(data: Path) -> None:
    config = plan(data).config

    def allocate() -> None:
        with explain_out_of_memory(config):
            torch.empty(2**55, dtype=torch.uint8)

    refusal(allocate, "out of memory")
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(config):
        raise RuntimeError("shapes do not fit")


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
    (
        "other_tokenizer",
        {"init": "finished"},
        "made with tokenizer .*; prepare the data with --tokenizer .*run, or with what gpt2lab tokenizer add-special",
    ),
    ("data", {"init": "emptied"}, "model.safetensors has 0 bytes"),
    ("data", {"init": "finished", "model": GPTConfig(2, 2, 16, 32, vocab_size=257)}, r"n_ctx 32 \(there 16\)$"),
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


def test_exit_code_of_refusals(finished: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (["--init", str(finished.path), "--preset", "nano"], "both determine the model"),
        (["--init", "nowhere"], "nowhere does not exist"),
        (["--init", str(finished.path), "--model.n-layer", "3"], "n_layer 3 (there 2)"),
    ):
        assert main(["train", *options, "--data", str(data), "--out", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_position_table_is_trained_further_with_a_longer_context(data: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(SMALL, position="rope", vocab_size=257)
    short = train(small(data, tmp_path / "short", model=model, steps=2))
    longer = {"n_ctx": 32, "rope_scaling": "yarn", "rope_factor": 2.0, "rope_original_ctx": 16}
    changes = [f"--model.{name.replace('_', '-')}={value}" for name, value in longer.items()]
    command = ["train", "--init", str(short.path), "--data", str(data), "--out", str(tmp_path / "long")]
    assert main([*command, *changes, "--steps", "2", "--batch-tokens", "64"]) == 0
    assert Run.open(tmp_path / "long").config["model"]["rope_scaling"] == "yarn"


def became(name: str, before: object, after: object) -> str:
    return f"^{name} was {before} when the run started and cannot be {after} when it resumes; leave it out"


TO_RESUME: list[tuple[dict[str, Any], str | int, str]] = [
    ({"optim": OptimConfig(lr=2e-2, warmup_steps=4)}, 8, became("optim.lr", 0.01, 0.02)),
    ({"model": GPTConfig(2, 2, 32, 16)}, 8, became("model.n_embd", 16, 32)),
    ({"model": GPTConfig(3, 2, 16, 16)}, 8, became("model.n_layer", 2, 3)),
    ({"seed": 1}, 8, became("seed", 1337, 1)),
    ({"batch_tokens": 256}, 8, became("batch_tokens", 128, 256)),
    ({"seq_len": 8}, 8, became("seq_len", 16, 8)),
    ({"sampling": "random"}, 8, became("sampling", "permutation", "random")),
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


TWO = Communicator(0, 2, 0, "a launch")


@pytest.mark.parametrize(
    ("asked", "comm", "expected"),
    [
        ("auto", Communicator(), "none"),
        ("auto", TWO, "ddp"),
        ("fsdp", TWO, "fsdp"),
        ("none", TWO, "parallel is none, but torchrun started 2 processes"),
        ("ddp", Communicator(), "parallel ddp needs torchrun: torchrun --standalone"),
        ("auto", 3, r"3 processes cannot share the 8 sequences of a step evenly; start 2 or 4, .* such as 144"),
        ("auto", 7, r"start 4 or 8, the nearest that can"),
        ("auto", 9, r"9 processes, but a step of 128 tokens has only 8 sequences of 16; start at most 8"),
    ],
)
def test_the_mode_fits_the_processes_and_they_fit_the_batch(
    data: Path, tmp_path: Path, asked: str, comm: Communicator | int, expected: str
) -> None:
    comm = dataclasses.replace(TWO, world_size=comm) if isinstance(comm, int) else comm
    each = small(data, tmp_path / "run", micro_batch=1, parallel=asked)
    if expected in MODES:
        assert resolve(each, TokenDataset(data), comm).config.parallel == expected
    else:
        refusal(lambda: resolve(each, TokenDataset(data), comm), expected)


INVALID_SECONDS = {
    seconds: f'^GPT2LAB_RENDEZVOUS_SECONDS is "{seconds}"; give a number of seconds above 0 and at most 86400'
    for seconds in ("abc", "0", "nan", "inf")
}
RENDEZVOUS = {None: "RANK is set, but another variable of torchrun is missing or invalid"} | INVALID_SECONDS
RENDEZVOUS |= {"1": r"rank 1 of 2 could not reach the other ranks at 127\.0\.0\.1:1 within 1 s"}


@pytest.mark.parametrize(("seconds", "expected"), RENDEZVOUS.items())
def test_processes_that_cannot_meet_say_so(monkeypatch: pytest.MonkeyPatch, seconds: str | None, expected: str) -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    if seconds is not None:
        environment |= {"MASTER_PORT": "1", "GPT2LAB_RENDEZVOUS_SECONDS": seconds}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refusal(lambda: process_group("cpu").__enter__(), expected)


STILL = OptimConfig(lr=1e-9, min_lr=0.0, warmup_steps=0, weight_decay=0.0)
"""A step so small that fp32 weights stay what they were, to 1e-8."""


def tuned(finished: Run, data: Path, out: Path, **changes: object) -> TrainConfig:
    """A few steps from the weights of the finished run."""
    return small(data, out, **{"init": finished.path, "model": None, "optim": STILL, "steps": 2, **changes})


def test_training_begins_from_the_best_weights_with_other_dropout(finished: Run, data: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(saved_config(finished).model, dropout=0.3)
    run = train(tuned(finished, data, tmp_path / "run", eval_tokens=0, model=model))
    assert saved_config(run).model.dropout == 0.3
    before, after = (load_model(r)[0].state_dict() for r in (finished, run))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-7, rtol=0, msg=name)
    loss = validation_loss(load_model(finished)[0], TokenDataset(data).stream("val"), 16, 0)
    assert run.metrics()[-1]["val_loss"] == pytest.approx(loss, abs=1e-6)


def test_a_fine_tuned_run_resumes_from_its_own_checkpoint(finished: Run, data: Path, tmp_path: Path) -> None:
    run = train(tuned(finished, data, tmp_path / "run", optim=OptimConfig(lr=1e-3), checkpoint_every=1))
    assert saved_config(run).init == finished.path.resolve()
    again, config = copy_of(run, tmp_path / "again")
    resumed, whole = (load_model(r)[0].state_dict() for r in (go_on(config, 1), run))
    assert resumed.keys() == whole.keys()
    for name, weight in resumed.items():
        assert torch.equal(weight, whole[name]), name
    assert saved_config(again).init == finished.path.resolve()


def test_an_imported_model_is_fine_tuned(finished: Run, data: Path, tmp_path: Path) -> None:
    model, _ = load_model(finished)
    imported = save_imported(model, Tokenizer.load(finished.tokenizer), tmp_path / "imported", "a friend")
    run = train(tuned(imported, data, tmp_path / "run", optim=OptimConfig(lr=1e-2), steps=10))
    losses = [row["train_loss"] for row in run.metrics()]
    assert losses[-1] is not None and losses[0] is not None and losses[-1] < losses[0] < 4.0  # random weights give 5.5


def test_the_architecture_is_the_runs_and_the_optimizer_is_that_of_fine_tuning(finished: Run, data: Path) -> None:
    config = TrainConfig(data=data, init=finished.path, steps=7)
    found = config.essentials()
    assert found.model == saved_config(finished).model
    assert found.model.n_layer == SMALL.n_layer
    assert (found.optim.lr, found.batch_tokens) == (5e-5, 8_192)
    assert Train.parse(flags(config), "gpt2lab train").train_config == config.filled_in()


def test_the_command_line(finished: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--init", str(finished.path), "--data", str(data), "--out", str(tmp_path / "run")]
    assert main(["train", *files, "--steps", "2", "--batch-tokens", "128", "--model.dropout", "0"]) == 0
    assert "fine-tuning: " in capsys.readouterr().out
    assert Run.open(tmp_path / "run").config["optim"]["lr"] == 5e-5
