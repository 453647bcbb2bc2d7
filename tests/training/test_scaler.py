"""fp16: gradients that overflow skip their step, and the scale is part of what a run goes on from.

A user's fp16 is for GPUs; the arithmetic is the same on a CPU, slow, so the trainer is made by hand here.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from support import digests, small

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.training import checkpoint
from gpt2lab.training.loop import Hooks, Trainer
from gpt2lab.training.setup import Data, resolve


def trainer(data: Path, out: Path) -> Trainer:
    dataset = TokenDataset(data)
    plan = resolve(small(data, out, steps=12), dataset)
    half = dataclasses.replace(plan, runtime=Runtime(torch.device("cpu"), "fp16"))
    run = Run(out) if out.exists() else Run.create(out, {}, {})
    return Trainer(half, Data.open(dataset, plan.config), run, Hooks())


def test_a_step_that_overflows_is_skipped_and_the_scale_halved(data: Path, tmp_path: Path) -> None:
    half = trainer(data, tmp_path / "run")
    half.scaler.load_state_dict(half.scaler.state_dict() | {"scale": 1e38})  # every gradient overflows
    before = [parameter.detach().clone() for parameter in half.model.parameters()]
    update = half.update()
    assert math.isfinite(update.loss)
    assert not math.isfinite(update.grad_norm)
    assert all(torch.equal(a, b) for a, b in zip(before, half.model.parameters(), strict=True))
    assert half.scaler.get_scale() == pytest.approx(5e37)
    assert half.progress.step == 1


def test_it_learns_and_goes_on_with_its_scale(data: Path, tmp_path: Path) -> None:
    unbroken = trainer(data, tmp_path / "unbroken")
    unbroken.fit()
    first = trainer(data, tmp_path / "run")
    for _ in range(5):
        first.update()
    first.save()
    second = trainer(data, tmp_path / "run")
    second.restore(checkpoint.find(second.run, "5"))
    assert second.scaler.state_dict() == first.scaler.state_dict()
    second.fit()
    assert (second.run.metrics()[-1]["train_loss"] or 9) < 4.5 < math.log(257)
    assert digests(second.run, 12) == digests(unbroken.run, 12)


def test_a_loss_that_is_not_finite_ends_the_run(data: Path, tmp_path: Path) -> None:
    half = trainer(data, tmp_path / "run")
    with torch.no_grad():
        half.model.get_parameter("ln_f.weight").fill_(math.inf)
    with pytest.raises(InputError, match="step 1: loss nan"):
        half.update()
