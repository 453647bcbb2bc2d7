"""Watching over a run; and what saves memory or repeats bits changes none."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import assert_same_run, go_on, rows, saved_steps, small, train

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.loader import Loader
from gpt2lab.errors import InputError
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.training import loop
from gpt2lab.training.config import OptimConfig, TrainConfig
from gpt2lab.training.loop import Hooks, StepReport
from gpt2lab.training.monitoring import SPIKE_FROM, SPIKE_WINDOW, find_spike, remember

RECENT = [3.0 + 0.1 * (-1) ** n for n in range(50)]


def test_the_z_score_by_hand() -> None:
    spike = find_spike(4.0, RECENT, 6.0)
    assert spike is not None
    assert spike == pytest.approx((3.0, (4.0 - statistics.fmean(RECENT)) / statistics.pstdev(RECENT)))


@pytest.mark.parametrize(
    ("loss", "threshold", "spikes"), [(3.59, 6.0, False), (3.61, 6.0, True), (3.59, 5.5, True), (2.0, 6.0, False)]
)
def test_only_what_lies_far_above_is_a_spike(loss: float, threshold: float, spikes: bool) -> None:
    assert (find_spike(loss, RECENT, threshold) is not None) == spikes


def test_too_little_to_compare_to_and_a_plateau() -> None:
    assert find_spike(9.0, RECENT[: SPIKE_FROM - 1], 6.0) is None
    assert find_spike(3.1, [3.0] * 50, 6.0) is None
    assert find_spike(3.3, [3.0] * 50, 6.0) is not None


def test_a_level_that_stays_becomes_the_new_normal() -> None:
    recent = [*RECENT]
    spikes = []
    for _ in range(20):
        spikes.append(find_spike(6.0, recent, 6.0) is not None)
        remember(6.0, recent)
    assert spikes[0] and not spikes[-1]
    for _ in range(200):
        remember(6.0, recent)
    assert recent == [6.0] * SPIKE_WINDOW


def spiking(out: Path, data: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> TrainConfig:
    """A run whose loss is ten times as high in step 23, by gradients ten times as large."""
    forward, sequences = GPT.forward, iter(range(10_000))

    def spoilt(self: GPT, *inputs: Any) -> Any:
        found = forward(self, *inputs)
        if found.loss is not None and next(sequences) // 2 + 1 == 23:  # two micro-steps each
            return found._replace(loss=found.loss * 10)
        return found

    monkeypatch.setattr(GPT, "forward", spoilt)
    return small(data, out, **changes)


@pytest.mark.parametrize("on_spike", ["warn", "skip", "off"])
def test_a_spike_is_warned_of_or_skipped_as_configured(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, on_spike: Any
) -> None:
    weights: list[torch.Tensor] = []

    def hooks(run: Run) -> Hooks:
        return Hooks(sample=lambda model, step: weights.append(model.wte.weight.detach().clone()))

    config = spiking(tmp_path / "run", data, monkeypatch, on_spike=on_spike, sample_every=1)
    run = train(config, hooks)
    log = (run.path / "train.log").read_text(encoding="utf-8")
    said = f"step 23: loss {run.metrics()[-1]['train_loss'] or 0:.0f}"[:9]
    assert (said in log and "deviations above the mean of the last steps" in log) == (on_spike != "off")
    assert ("its update is skipped" in log) == (on_spike == "skip")
    assert torch.equal(weights[21], weights[22]) == (on_spike == "skip")
    assert not torch.equal(weights[22], weights[23])


def test_a_resumed_run_skips_the_same_updates(data: Path, tmp_path: Path) -> None:
    # Losses of single sequences hop about, and the bar is low: the window's bits decide what is skipped.
    optim = OptimConfig(lr=1e-4)
    noisy: dict[str, Any] = {"batch_tokens": 16, "micro_batch": 1, "optim": optim, "spike_z": 0.05}
    config = small(data, tmp_path / "run", steps=40, on_spike="skip", **noisy)
    unbroken = train(dataclasses.replace(config, out=tmp_path / "unbroken"))
    skipped = re.findall(r"step (\d+): .* its update is skipped", (unbroken.path / "train.log").read_text("utf-8"))
    assert skipped and int(skipped[-1]) > 24
    train(config)
    assert_same_run(go_on(config, 24), unbroken, 40)


def windows_of(data: Path, config: TrainConfig, step: int, micro_step: int) -> np.ndarray:
    """The windows of a micro-step, from the loader's batches: their first tokens are looked up in the stream."""
    loader = Loader(TokenDataset(data).stream("train"), 16, 8, 4, config.seed)
    stream = TokenDataset(data).stream("train")
    whole = stream.read(np.array([0]), len(stream))[0]
    rows_ = loader.batch(step, micro_step).tokens.numpy()
    found = [
        next(k for k in range(loader.windows_per_epoch) if (whole[16 * k : 16 * k + 16] == row).all()) for row in rows_
    ]
    return np.array(found)


def test_a_loss_that_is_not_finite_names_step_rank_and_windows(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, passes = GPT.forward, iter(range(10_000))

    def spoilt(self: GPT, *inputs: Any) -> Any:
        found = forward(self, *inputs)
        if found.loss is not None and next(passes) == 2 * 4 + 1:
            return found._replace(loss=found.loss * math.nan)
        return found

    monkeypatch.setattr(GPT, "forward", spoilt)
    config = small(data, tmp_path / "run")
    named = ", ".join(map(str, windows_of(data, config, 4, 1)))
    with pytest.raises(InputError, match=rf"step 5: loss nan.* on rank 0 in micro-step 2, windows {named}: training "):
        train(config)
    assert saved_steps(Run(tmp_path / "run")) == [4]


def test_rows_come_with_the_share_of_time_spent_waiting_for_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Mapping[str, float | None]] = []
    clock = iter(range(10_000))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))  # every look at it takes a second
    run = train(small(data, tmp_path / "run"), lambda run: Hooks(on_row=told.append))
    assert [{k: v for k, v in row.items() if k != "data_wait"} for row in told] == run.metrics()
    assert all(0 < (row["data_wait"] or 0) < 1 for row in told)
    assert told[0]["data_wait"] == pytest.approx(10 / (5 * 5 + 1), abs=0.1)  # 5 steps, 2 batches each, a second a batch
    assert f"data {100 * (told[0]['data_wait'] or 0):.1f} %" in (run.path / "train.log").read_text(encoding="utf-8")


def test_a_trace_of_the_steps_asked_for(data: Path, tmp_path: Path) -> None:
    run = train(small(data, tmp_path / "run", profile_steps="3:4"))
    trace = json.loads((run.path / "trace_3-4.json").read_text(encoding="utf-8"))
    updates = [e for e in trace["traceEvents"] if str(e.get("name")).startswith("Optimizer.step#")]
    assert len(updates) == 2
    assert run.config["profile_steps"] is None  # of this start only
    assert not list(run.path.glob(".*"))


def test_an_interrupted_trace_is_written(data: Path, tmp_path: Path) -> None:
    def on_step(report: StepReport) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(data, tmp_path / "run", profile_steps="2:9"), lambda run: Hooks(on_step=on_step))
    assert (tmp_path / "run" / "trace_2-9.json").stat().st_size


def test_a_trace_past_the_end_or_of_steps_that_are_done(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="profile_steps is 20:25, but the run ends after step 24"):
        train(small(data, tmp_path / "run", profile_steps="20:25"))
    assert not (tmp_path / "run").exists()
    config = small(data, tmp_path / "run")
    train(config)
    with pytest.raises(InputError, match="profile_steps is 5:9, but the run goes on after step 8; name later ones"):
        go_on(config, 8, profile_steps="5:9")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_changes_no_bit(data: Path, tmp_path: Path, precision: Any) -> None:
    plain = train(small(data, tmp_path / "plain", precision=precision))
    run = train(small(data, tmp_path / "run", precision=precision, activation_checkpointing=True))
    assert_same_run(run, plain)  # with dropout


def test_activation_checkpointing_keeps_less(data: Path, tmp_path: Path) -> None:
    def kept_by(**changes: Any) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        config = small(data, tmp_path / f"run{len(changes)}", steps=1, **changes)
        trainer = _trainer(config)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer._backward(0, 0)
        return sum(kept.values())

    assert kept_by(activation_checkpointing=True) < 0.7 * kept_by()


def _trainer(config: TrainConfig) -> loop.Trainer:
    from gpt2lab.training.setup import resolve

    dataset = TokenDataset(config.data)
    plan = resolve(config, dataset)
    return loop.Trainer(plan, loop.Data.open(dataset, plan.config), Run(config.out or Path()), Hooks())


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore")  # of torch's own, while it compiles
def test_activation_checkpointing_compiled_changes_no_bit(data: Path, tmp_path: Path) -> None:
    plain = train(small(data, tmp_path / "plain", compile="on"))
    assert_same_run(train(small(data, tmp_path / "run", compile="on", activation_checkpointing=True)), plain)


def test_deterministic_mode_changes_no_bit_on_a_cpu_and_ends_with_the_run(data: Path, tmp_path: Path) -> None:
    seen: list[bool] = []

    def hooks(run: Run) -> Hooks:
        return Hooks(on_step=lambda report: seen.append(torch.are_deterministic_algorithms_enabled()))

    run = train(small(data, tmp_path / "run", deterministic=True), hooks)
    assert seen == [True] * 24
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same_run(run, train(small(data, tmp_path / "plain")))


def test_every_schedule_trains_and_resumes(data: Path, tmp_path: Path) -> None:
    for schedule in ("linear", "constant", "wsd"):
        optim = OptimConfig(lr=1e-2, warmup_tokens=4 * 128, schedule=schedule)  # type: ignore[arg-type]
        config = small(data, tmp_path / schedule, optim=optim)
        unbroken = train(dataclasses.replace(config, out=tmp_path / f"{schedule} unbroken"))
        train(config)
        assert_same_run(go_on(config, 12), unbroken)
        assert float(rows(unbroken)[0]["lr"]) == pytest.approx(1e-2, rel=0.3)


def test_precisions_that_a_cpu_cannot_do(data: Path, tmp_path: Path) -> None:
    for precision, said in (
        ("fp16", "precision fp16 is for GPUs"),
        ("tf32", "tf32 needs CUDA and Ampere or later, this is"),
    ):
        with pytest.raises(InputError, match=said):
            train(small(data, tmp_path / "run", precision=precision))
    assert not (tmp_path / "run").exists()
