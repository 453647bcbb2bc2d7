"""The estimate of memory against what torch's allocator is asked for in a step of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import small

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.training.loop import Hooks, Trainer
from gpt2lab.training.memory import FRAGMENTATION, LIBRARY_BYTES, Shape, estimate, largest_micro_batch, parameter_shapes
from gpt2lab.training.setup import Data, resolve

MODEL: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 64, "n_ctx": 256, "vocab_size": 257, "dropout": 0.1}
WINDOW: dict[str, Any] = {"mask": "window", "window": 32}
BANDED: dict[str, Any] = WINDOW | {"kernel": "banded"}
CASES: dict[str, dict[str, Any]] = {
    "fp32, plain attention with dropout": {"seq_len": 64},
    "fp32, SDPA without a fused kernel": {"seq_len": 256, "micro_batch": 2},
    "fp32, fused SDPA": {"seq_len": 256, "micro_batch": 4, "model": {"dropout": 0.0}},
    "bf16": {"seq_len": 64, "precision": "bf16"},
    "bf16 without dropout": {"seq_len": 128, "precision": "bf16", "model": {"dropout": 0.0}},
    "grouped heads": {"seq_len": 64, "precision": "bf16", "model": {"n_kv_head": 2, "n_layer": 4}},
    "checkpointed": {"seq_len": 128, "activation_checkpointing": True, "model": {"n_layer": 6}},
    "checkpointed in bf16": {"seq_len": 128, "activation_checkpointing": True, "precision": "bf16"},
    "banded": {"seq_len": 256, "micro_batch": 4, "model": BANDED | {"dropout": 0.0}},
    "banded with dropout": {"seq_len": 256, "micro_batch": 4, "model": BANDED},
    "banded, grouped, in bf16": {
        "seq_len": 256,
        "micro_batch": 4,
        "precision": "bf16",
        "model": BANDED | {"n_kv_head": 2, "mask": "global", "prefix": 8},
    },
    "banded, checkpointed": {
        "seq_len": 256,
        "micro_batch": 4,
        "activation_checkpointing": True,
        "model": BANDED | {"n_layer": 6},
    },
    "a window by SDPA": {"seq_len": 256, "micro_batch": 2, "model": WINDOW | {"kernel": "sdpa", "dropout": 0.0}},
    "a window by SDPA with dropout in bf16": {
        "seq_len": 128,
        "micro_batch": 4,
        "precision": "bf16",
        "model": WINDOW | {"kernel": "sdpa", "n_kv_head": 2},
    },
    "rotary and grouped, fused": {
        "seq_len": 256,
        "micro_batch": 4,
        "precision": "bf16",
        "model": {"n_kv_head": 1, "position": "rope", "kernel": "sdpa", "dropout": 0.0},
    },
    "rotary, plain products": {"seq_len": 128, "model": {"position": "rope", "kernel": "matmul", "dropout": 0.0}},
    "reference in bf16": {"seq_len": 128, "precision": "bf16", "model": {"kernel": "reference"}},
    "reference without dropout": {
        "seq_len": 128,
        "precision": "bf16",
        "model": {"kernel": "reference", "dropout": 0.0},
    },
    "narrow feed-forward": {"seq_len": 256, "micro_batch": 4, "model": {"n_inner": 32, "kernel": "matmul"}},
    "one block": {"seq_len": 256, "micro_batch": 4, "model": {"n_layer": 1, "kernel": "matmul", "dropout": 0.0}},
    "wide, checkpointed": {
        "seq_len": 64,
        "activation_checkpointing": True,
        "model": {"n_layer": 4, "n_embd": 256, "dropout": 0.0},
    },
    "accumulated": {"seq_len": 64, "batch_tokens": 64 * 16},
}


def asked_of_the_allocator(trainer: Trainer) -> int:
    """The most bytes of tensors that were alive at once in a step, weights and moments included."""
    trainer.update()  # makes the optimiser's state
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        trainer.update()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()  # type: ignore[attr-defined]
        most = max(most, live)
    state = [t for kept in trainer.optimizer.state.values() for t in kept.values() if isinstance(t, torch.Tensor)]
    return most + sum(t.nbytes for t in [*trainer.model.parameters(), *state])


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_a_step_takes_what_is_estimated(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    options = {"micro_batch": 8, **changes, "model": GPTConfig(**(MODEL | changes.get("model", {})))}
    options.setdefault("batch_tokens", options["micro_batch"] * options["seq_len"])
    dataset = TokenDataset(data)
    plan = resolve(small(data, tmp_path, **options), dataset)
    trainer = Trainer(plan, Data.open(dataset, plan.config), Run(tmp_path), Hooks())
    config = plan.config
    shape = Shape(
        *(config.model, config.seq_len, config.micro_batch, config.precision, "cpu", config.activation_checkpointing),
        micro_steps=trainer.loader.micro_steps,
    )
    estimated = (estimate(shape).peak - LIBRARY_BYTES) / FRAGMENTATION
    assert estimated == pytest.approx(asked_of_the_allocator(trainer), rel=0.05)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_parameters_are_those_of_the_model_unmade(preset: str) -> None:
    shapes = parameter_shapes(PRESETS[preset])
    if preset in ("nano", "tiny"):
        assert shapes == {name: p.shape for name, p in GPT(PRESETS[preset]).named_parameters()}
    memory = estimate(Shape(PRESETS[preset], 1024 if preset not in ("nano", "tiny") else 128, 1))
    total = sum(shape.numel() for shape in shapes.values())
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * total, 4 * total, 8 * total)


def test_shared_out_over_ranks_the_state_is_a_share() -> None:
    whole = estimate(Shape(PRESETS["gpt2-xl"], 1024, 1))
    share = estimate(Shape(PRESETS["gpt2-xl"], 1024, 1, shards=8))
    assert share.weights == pytest.approx(whole.weights / 8, abs=4)
    assert share.optimizer == pytest.approx(whole.optimizer / 8, abs=8)
    assert share.activations < whole.activations  # gathered weights take the place of autocast's copies
    accumulated = estimate(Shape(PRESETS["gpt2-xl"], 1024, 1, shards=8, micro_steps=2))
    assert accumulated.gradients == whole.gradients  # shared out in the last micro-step only
    assert share.peak < whole.peak - 0.6 * (whole.weights + whole.gradients + whole.optimizer)


def test_blocks_of_16_bits_as_korthikanti_et_al_count_them() -> None:
    # 34 BTC + 5 BHTT bytes without their fused kernels: here q, k and v once, no copy of the products' inputs less.
    model = GPTConfig(n_layer=10, dropout=0.1, kernel="matmul")
    one = estimate(Shape(model, 512, 4, "bf16", "cpu")).activations
    none = estimate(Shape(GPTConfig(n_layer=5, dropout=0.1, kernel="matmul"), 512, 4, "bf16", "cpu")).activations
    block = (one - none) / 5
    weights = 2 * 12 * 768**2  # bf16 copies
    ours = 4 * 512 * (18 * 768 * 2 + 3 * 12 * 512 * 2 + 2 * 2 * 768 - 4 * 768 + 16)
    assert block - weights == pytest.approx(ours, rel=0.02)


def test_the_largest_micro_batch_is_the_last_that_fits() -> None:
    shape = Shape(PRESETS["gpt2"], 1024, 1)
    room = 80 * 10**9
    most = largest_micro_batch(shape, room)
    peaks = [estimate(Shape(PRESETS["gpt2"], 1024, B)).peak for B in (most, most + 1)]
    assert peaks[0] <= room < peaks[1]
    assert largest_micro_batch(shape, 10**9) == 0
