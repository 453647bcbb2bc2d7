"""Spikes, losses that are not finite, and traces; and that what saves memory or repeats bits changes none."""

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
from support import PLAIN, Doing, assert_same_run, at_step, go_on, hidden, log_of, refusal, saved_steps, small, train

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.loader import Loader
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.training import loop
from gpt2lab.training.config import OptimConfig, TrainConfig
from gpt2lab.training.loop import SPIKE_FROM, SPIKE_WINDOW, Data, Hooks, find_spike
from gpt2lab.training.setup import resolve

RECENT = [3.0 + 0.1 * (-1) ** n for n in range(50)]


def test_the_z_score_by_hand() -> None:
    spike = find_spike(4.0, [*RECENT], 6.0)
    assert spike is not None
    assert spike == pytest.approx((3.0, (4.0 - statistics.fmean(RECENT)) / statistics.pstdev(RECENT)))


@pytest.mark.parametrize(
    ("loss", "recent", "threshold", "spikes"),
    [
        (3.59, RECENT, 6.0, False),
        (3.61, RECENT, 6.0, True),
        (3.59, RECENT, 5.5, True),
        (2.0, RECENT, 6.0, False),
        (9.0, RECENT[: SPIKE_FROM - 1], 6.0, False),  # too little to compare to
        (3.1, [3.0] * 50, 6.0, False),  # a plateau
        (3.3, [3.0] * 50, 6.0, True),
    ],
)
def test_only_what_lies_far_above_is_a_spike(loss: float, recent: list[float], threshold: float, spikes: bool) -> None:
    assert (find_spike(loss, [*recent], threshold) is not None) == spikes


def test_a_level_that_stays_becomes_the_new_normal() -> None:
    recent = [*RECENT]
    spikes = [find_spike(6.0, recent, 6.0) is not None for _ in range(220)]
    assert spikes[0] and not spikes[19]
    assert recent == [6.0] * SPIKE_WINDOW


def spoil_loss(monkeypatch: pytest.MonkeyPatch, step: int, micro_step: int | None, factor: float) -> None:
    """Multiply the loss of a step, or of one of its two micro-steps, and with it its gradient."""
    forward, passes = GPT.forward, iter(range(10_000))

    def spoiled(self: GPT, *inputs: Any) -> Any:
        found = forward(self, *inputs)
        if found.loss is None:
            return found
        at, part = divmod(next(passes), 2)
        hit = at + 1 == step and micro_step in (None, part)
        return found._replace(loss=found.loss * factor) if hit else found

    monkeypatch.setattr(GPT, "forward", spoiled)


@pytest.mark.parametrize("on_spike", ["warn", "skip", "off"])
def test_a_spike_is_warned_of_or_skipped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_spike: Any
) -> None:
    weights: list[torch.Tensor] = []
    hooks = Doing(sample=lambda model, step: weights.append(model.wte.weight.detach().clone()))
    spoil_loss(monkeypatch, 23, None, 10)
    run = train(small(data, tmp_path / "run", on_spike=on_spike, sample_every=1), hooks)
    assert bool(re.search(r"step 23: loss \d.* deviations above the mean of the last steps", log_of(run))) == (
        on_spike != "off"
    )
    assert ("its update is skipped" in log_of(run)) == (on_spike == "skip")
    assert torch.equal(weights[21], weights[22]) == (on_spike == "skip")
    assert not torch.equal(weights[22], weights[23])


def test_a_resumed_run_skips_the_same_updates(data: Path, tmp_path: Path) -> None:
    # Losses of single sequences hop about, and the bar is low: the window's bits decide what is skipped.
    noisy: dict[str, Any] = {"batch_tokens": 16, "micro_batch": 1, "optim": OptimConfig(lr=1e-4), "spike_z": 0.05}
    config = small(data, tmp_path / "run", model=PLAIN, steps=40, on_spike="skip", **noisy)
    unbroken = train(dataclasses.replace(config, out=tmp_path / "unbroken"))
    skipped = re.findall(r"step (\d+): .* its update is skipped", log_of(unbroken))
    assert skipped and int(skipped[-1]) > 24
    train(config)
    assert_same_run(go_on(config, 24), unbroken, 40)


def windows_of(data: Path, config: TrainConfig, step: int, micro_step: int) -> list[int]:
    """The windows of a micro-step, from the loader's batches: their tokens are looked up in the stream."""
    stream = TokenDataset(data).stream("train")
    loader = Loader(stream, 16, 8, 4, config.seed)
    whole = stream.read(np.array([0]), len(stream))[0]
    tokens = loader.batch(step, micro_step).tokens.numpy()
    windows = range(loader.windows_per_epoch)
    return [next(k for k in windows if (whole[16 * k : 16 * k + 16] == row).all()) for row in tokens]


def test_an_infinite_loss_names_rank_and_windows(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_loss(monkeypatch, 5, 1, math.nan)
    config = small(data, tmp_path / "run")
    named = ", ".join(map(str, windows_of(data, config, 4, 1)))
    refusal(lambda: train(config), rf"step 5: loss nan.* on rank 0 in micro-step 2, windows {named}: training ")
    assert saved_steps(Run(tmp_path / "run")) == [4]


def test_rows_have_the_fraction_of_waiting_for_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Mapping[str, float | None]] = []
    clock = iter(range(10_000))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))  # every look at it takes a second
    run = train(small(data, tmp_path / "run", model=PLAIN), Doing(on_row=told.append))
    assert [{k: v for k, v in row.items() if k != "data_wait"} for row in told] == run.metrics()
    assert all(0 < (row["data_wait"] or 0) < 1 for row in told)
    assert told[0]["data_wait"] == pytest.approx(10 / (5 * 5 + 1), abs=0.1)  # 5 steps, 2 batches each, a second a batch
    assert f"data {100 * (told[0]['data_wait'] or 0):.1f} %" in log_of(run)


def test_a_trace_of_the_steps_asked_for_is_written_even_if_interrupted(data: Path, tmp_path: Path) -> None:
    run = train(small(data, tmp_path / "run", model=PLAIN, profile_steps="3:4"))
    trace = json.loads((run.path / "trace_3-4.json").read_text(encoding="utf-8"))
    updates = [e for e in trace["traceEvents"] if str(e.get("name")).startswith("Optimizer.step#")]
    assert len(updates) == 2
    assert run.config["profile_steps"] is None  # of this start only
    assert not hidden(run)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(data, tmp_path / "other", model=PLAIN, profile_steps="2:9"), at_step(3, interrupt))
    assert (tmp_path / "other" / "trace_2-9.json").stat().st_size


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_changes_no_bit(data: Path, tmp_path: Path, precision: Any) -> None:
    options = {"precision": precision, "steps": 8}
    plain = train(small(data, tmp_path / "plain", **options))
    run = train(small(data, tmp_path / "run", activation_checkpointing=True, **options))
    assert_same_run(run, plain, 8)  # with dropout


def test_activation_checkpointing_keeps_less(data: Path, tmp_path: Path) -> None:
    def kept_by(checkpointing: bool) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        dataset = TokenDataset(data)
        plan = resolve(small(data, tmp_path, steps=1, activation_checkpointing=checkpointing), dataset)
        trainer = loop.Trainer(plan, Data.open(dataset, plan.config), Run(tmp_path), Hooks())
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer._backward(0, 0)
        return sum(kept.values())

    assert kept_by(True) < 0.7 * kept_by(False)


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore")  # of torch's own, while it compiles
def test_activation_checkpointing_compiled_changes_no_bit(data: Path, tmp_path: Path) -> None:
    plain = train(small(data, tmp_path / "plain", compile="on"))
    assert_same_run(train(small(data, tmp_path / "run", compile="on", activation_checkpointing=True)), plain)


def test_deterministic_mode_changes_no_bit_and_ends_with_the_run(data: Path, finished: Run, tmp_path: Path) -> None:
    seen: list[bool] = []
    hooks = Doing(on_step=lambda report: seen.append(torch.are_deterministic_algorithms_enabled()))
    run = train(small(data, tmp_path / "run", deterministic=True), hooks)
    assert seen == [True] * 24
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same_run(run, finished)
