"""A run that stopped and went on is, bit for bit, the run that never stopped."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from pathlib import Path

import pytest
import torch
from support import assert_same_run, at_step, checkpoint, digests, go_on, rows, saved_steps, small, snapshot, train

from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.runs import Run
from gpt2lab.runtime import can_compile
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config
from gpt2lab.training.distributed import Interrupted

Copied = tuple[Run, TrainConfig]


def copy_of(run: Run, folder: Path) -> tuple[Run, TrainConfig]:
    shutil.copytree(run.path, folder)
    return Run(folder), dataclasses.replace(saved_config(run), out=folder)


@pytest.mark.parametrize("step", [4, 8, 16, 20], ids=lambda step: f"step{step}")
def test_going_on_from_any_checkpoint_ends_as_the_unbroken_run(unbroken: Run, tmp_path: Path, step: int) -> None:
    # Steps 4 and 16 lie between rows of metrics.csv; epochs end within steps 10 and 19; dropout is on.
    run, config = copy_of(unbroken, tmp_path / "run")
    go_on(config, step)
    assert_same_run(run, unbroken)


def test_going_on_several_times_ends_as_the_unbroken_run(unbroken: Run, tmp_path: Path) -> None:
    run, config = copy_of(unbroken, tmp_path / "run")
    for which, stop in (4, 10), ("last", 12), ("last", 17), (12, 13):
        with pytest.raises(Interrupted):
            go_on(config, which, at_step(stop, lambda: signal.raise_signal(signal.SIGTERM)))
    go_on(config)
    assert_same_run(run, unbroken)


def test_the_unbroken_run_repeats_itself(unbroken: Run, tmp_path: Path) -> None:
    assert_same_run(train(dataclasses.replace(saved_config(unbroken), out=tmp_path / "again")), unbroken)


def test_another_seed_is_another_run(finished: Run, data: Path, tmp_path: Path) -> None:
    other = train(small(data, tmp_path / "run", seed=7))
    assert digests(other) != digests(finished)
    assert rows(other)[0]["train_loss"] != rows(finished)[0]["train_loss"]


@pytest.mark.skipif(not can_compile(torch.device("cpu"))[0], reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, inside the compiler
def test_compiled_with_two_threads_on_data_that_repeats_tokens(data: Path, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    try:
        model = GPTConfig(n_layer=1, n_head=2, n_embd=32, n_ctx=16, dropout=0.1)
        config = small(data, tmp_path / "run", model=model, compile="on", batch_tokens=512, micro_batch=16, steps=16)
        unbroken, config = copy_of(train(config), tmp_path / "copy")
        run = go_on(config, 4)
        assert_same_run(run, Run(tmp_path / "run"), 16)
        assert saved_config(unbroken).compile == "on"
    finally:
        torch.set_num_threads(1)


def test_more_steps_go_on_from_the_end(copied: Copied) -> None:
    run, config = copied
    go_on(config, steps=32)
    assert [int(row["step"]) for row in rows(run)][-2:] == [30, 32]
    assert saved_config(run).steps == 32
    assert saved_steps(run)[-1] == 32


def test_more_steps_after_patience_ran_out(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 3.1, 3.2, 2.0, 2.1])
    monkeypatch.setattr("gpt2lab.training.loop.validation_loss", lambda *_: next(losses))
    config = small(data, tmp_path / "run", eval_every=4, patience=2)
    run = train(config)
    assert saved_steps(run)[-1] == 12
    before = snapshot(run.path)
    go_on(config)
    assert snapshot(run.path) == before
    go_on(config, patience=3, steps=20)
    assert saved_steps(run)[-1] == 20


def test_a_resumed_run_keeps_its_length_where_none_is_given(copied: Copied) -> None:
    run, config = copied
    go_on(config, 8, steps=None)
    assert saved_config(run).steps == 24
    assert saved_steps(run)[-1] == 24


@pytest.mark.parametrize("which", ["last", "24", "best"])
def test_a_finished_run_says_so_and_stays_as_it_is(
    copied: Copied, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    run, config = copied
    (run.checkpoints / ".step_00000025.1.tmp").mkdir()
    before = snapshot(run.path)
    with caplog.at_level("INFO", logger="gpt2lab"):
        go_on(config, which)
    assert "is finished (24 steps done): nothing to do" in caplog.text
    assert snapshot(run.path) == before


def test_later_checkpoints_are_kept_aside(copied: Copied) -> None:
    run, config = copied
    weights = (checkpoint(run, 24) / "model.safetensors").read_bytes()
    go_on(config, 16)
    aside = run.checkpoints / "step_00000024.before_resume_at_16"
    assert (aside / "model.safetensors").read_bytes() == weights
    go_on(config, 16)
    assert (run.checkpoints / "step_00000024.before_resume_at_16-2").is_dir()
    assert saved_steps(run) == [4, 8, 12, 16, 20, 24]


def test_going_on_removes_what_killed_processes_left(copied: Copied) -> None:
    run, config = copied
    half = run.checkpoints / ".step_00000099.12345.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (run.path / ".metrics.csv.12345.tmp").write_bytes(b"half")
    go_on(config, 20)
    assert not [p for p in run.path.rglob("*") if p.name.startswith(".")]


def test_rows_figures_and_samples_of_later_steps_are_dropped(copied: Copied) -> None:
    run, config = copied
    run.add_eval(8, "perplexity", "test", "p", "loss", 1.0)
    run.add_eval(24, "perplexity", "test", "p", "loss", 2.0)
    run.add_sample(8, "greedy", "", "early")
    run.add_sample(24, "greedy", "", "late")
    with (run.path / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("25,3200,2.6")  # cut off by a kill
    go_on(config, 12)
    assert [row["step"] for row in run.evals()] == ["8"]
    assert [sample["text"] for sample in run.samples()] == ["early"]
    assert [int(row["step"]) for row in rows(run)] == [5, 8, 10, 15, 16, 20, 24]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optim": OptimConfig(lr=2e-2, warmup_steps=4)}, "optim.lr was 0.01 when the run started and cannot be 0.02"),
        ({"model": GPTConfig(2, 2, 32, 16)}, "model.n_embd was 16 when the run started and cannot be 32"),
        ({"model": GPTConfig(3, 2, 16, 16)}, "model.n_layer was 2 when the run started and cannot be 3"),
        ({"seed": 1}, "seed was 1337 when the run started and cannot be 1"),
        ({"batch_tokens": 256}, "batch_tokens was 128 when the run started and cannot be 256"),
        ({"seq_len": 8}, "seq_len was 16 when the run started and cannot be 8"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_that_would_make_it_another_run_is_refused(copied: Copied, change: dict, said: str) -> None:
    run, config = copied
    before = snapshot(run.path)
    with pytest.raises(InputError, match=said):
        go_on(config, 8, **change)
    assert snapshot(run.path) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"micro_batch": 2}, "micro_batch was 4 and is 2: from here on equal to an unbroken run but for rounding"),
        ({"precision": "bf16"}, "precision was fp32 and is bf16: "),
    ],
    ids=["micro_batch", "precision"],
)
def test_a_run_may_move_to_another_machine_with_a_warning(
    copied: Copied, caplog: pytest.LogCaptureFixture, change: dict, said: str
) -> None:
    run, config = copied
    go_on(config, 20, **change)
    assert said in caplog.text
    assert saved_steps(run)[-1] == 24
    assert {name: getattr(saved_config(run), name) for name in change} == change


def test_what_is_left_at_auto_keeps_what_it_was_resolved_to(copied: Copied, finished: Run) -> None:
    run, config = copied
    go_on(config, 8, micro_batch="auto", precision="auto", device="auto", compile="auto")
    assert saved_config(run).micro_batch == 4
    assert_same_run(run, finished)


def test_intervals_may_change(copied: Copied) -> None:
    run, config = copied
    go_on(config, 20, log_every=1, checkpoint_every=2, keep_last=2, patience=5)
    assert [int(row["step"]) for row in rows(run)][-4:] == [21, 22, 23, 24]
    assert saved_config(run).patience == 5


def test_other_data_is_refused_with_both_fingerprints(copied: Copied, other_data: Path) -> None:
    run, config = copied
    before = snapshot(run.path)
    with pytest.raises(InputError, match=r"the data given is not the run's: its fingerprint is \w{16}, .* \w{16};"):
        go_on(config, 8, data=other_data)
    assert snapshot(run.path) == before


def test_another_tokenizer_is_refused_with_both_fingerprints(copied: Copied, other_tokenizer: Path) -> None:
    _, config = copied
    with pytest.raises(InputError, match="the tokenizer given is not the run's: its fingerprint is"):
        go_on(config, 8, data=other_tokenizer)


def test_data_that_moved_is_the_same_data(copied: Copied, data: Path, finished: Run, tmp_path: Path) -> None:
    run, config = copied
    shutil.copytree(data, tmp_path / "moved")
    go_on(config, 8, data=tmp_path / "moved")
    assert_same_run(run, finished)
    assert saved_config(run).data == tmp_path / "moved"


def test_fewer_steps_than_done_are_refused(copied: Copied) -> None:
    _, config = copied
    with pytest.raises(InputError, match="is at step 24, past the 20 asked for"):
        go_on(config, steps=20)


def test_no_checkpoint_yet_is_an_error(copied: Copied) -> None:
    run, config = copied
    shutil.rmtree(run.checkpoints)
    for which in ("last", "best", "4"):
        with pytest.raises(InputError, match="has no checkpoint yet"):
            go_on(config, which)


def test_a_step_without_checkpoint_names_those_there_are(copied: Copied) -> None:
    _, config = copied
    with pytest.raises(InputError, match='no checkpoint "5"; choose best, last or a step: 4, 8, 12, 16, 20, 24'):
        go_on(config, 5)


def test_resuming_needs_a_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        go_on(small(data, tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no run \(config.json is missing\)"):
        go_on(small(data, tmp_path / "empty"))
    with pytest.raises(InputError, match="--resume needs --out"):
        go_on(dataclasses.replace(small(data, tmp_path), out=None))


def test_starting_where_a_run_is_changes_nothing(copied: Copied) -> None:
    run, config = copied
    before = snapshot(run.path)
    with pytest.raises(InputError, match="exists; give another --out, or --resume"):
        train(config)
    assert snapshot(run.path) == before
