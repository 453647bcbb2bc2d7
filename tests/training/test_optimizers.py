"""The learning rate against its formula worked by hand, and the updates against PyTorch's optimizers."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SMALL

from gpt2lab.model.gpt import GPT
from gpt2lab.training.config import OptimConfig
from gpt2lab.training.optim import (
    adamw,
    learning_rate,
    make_optimizer,
    orthogonal,
    parameter_groups,
    set_learning_rate,
    warmup_steps,
)

BATCH = 128
WSD: dict[str, Any] = {"lr": 0.5, "schedule": "wsd"}
BY_HAND: dict[str, tuple[dict[str, Any], list[float]]] = {
    "cosine": (
        {"lr": 0.5, "min_lr": 0.1, "warmup_steps": 4},
        [0.125, 0.25, 0.375, 0.5, 0.5, 0.3 + 0.2 * math.sqrt(0.5), 0.3, 0.3 - 0.2 * math.sqrt(0.5), 0.1],
    ),
    "linear": (
        {"lr": 0.5, "min_lr": 0.1, "warmup_steps": 2, "schedule": "linear"},
        [0.25, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1],
    ),
    "constant": ({"lr": 0.5, "warmup_steps": 2, "schedule": "constant"}, [0.25, 0.5, 0.5, 0.5, 0.5]),
    "warm-up, stable, decay": (
        WSD | {"min_lr": 0.1, "warmup_steps": 2, "decay_fraction": 0.5},
        [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1],
    ),
    "the decay begins after the warm-up": (
        WSD | {"min_lr": 0.0, "warmup_steps": 6, "decay_fraction": 1.0},
        [0.5 * (i + 1) / 6 for i in range(6)] + [0.5, 0.0],
    ),
    "a warm-up as long as the run": ({"lr": 0.5, "warmup_steps": 100}, [0.1, 0.2, 0.3, 0.4, 0.5]),
}


def rates(config: OptimConfig, steps: int) -> list[float]:
    return [learning_rate(config, step, steps, BATCH) for step in range(steps)]


@pytest.mark.parametrize(("options", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_schedules_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    assert rates(OptimConfig(**options), len(expected)) == pytest.approx(expected)


@given(st.integers(1, 3000), st.none() | st.integers(0, 300), st.none() | st.floats(0, 0.01))
def test_it_rises_in_a_line_to_the_peak_and_then_falls(steps: int, warmup: int | None, min_lr: float | None) -> None:
    config = OptimConfig(lr=0.01, warmup_steps=warmup, min_lr=min_lr)
    W, found = warmup_steps(config, steps, BATCH), rates(config, steps)
    assert found[:W] == pytest.approx([0.01 * (i + 1) / W for i in range(W)])
    assert max(found) == pytest.approx(0.01)
    decay = found[W:]
    assert all(a >= b for a, b in pairwise(decay))
    if len(decay) > 1:
        assert (decay[0], decay[-1]) == pytest.approx((0.01, 0.001 if min_lr is None else min_lr))


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        *(
            ({}, steps, expected)
            for steps, expected in ((10, 0), (100, 5), (1_000, 50), (40_000, 2_000), (10**6, 2_000))
        ),
        ({"warmup_steps": 100}, 10, 10),
        *(({"warmup_tokens": n}, 40, expected) for n, expected in ((0, 0), (1, 1), (256, 2), (257, 3), (10**9, 40))),
    ],
)
def test_the_length_of_the_warm_up(options: dict[str, Any], steps: int, expected: int) -> None:
    assert warmup_steps(OptimConfig(**options), steps, BATCH) == expected


def test_until_its_decay_the_stable_rate_does_not_depend_on_the_length() -> None:
    config = OptimConfig(warmup_steps=3, **WSD)
    assert rates(config, 20)[:16] == rates(config, 1000)[:16]
    assert rates(config, 20)[-1] == pytest.approx(0.05)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(SMALL)


def test_matrices_decay_vectors_do_not_and_what_is_frozen_is_left_alone(model: GPT) -> None:
    model.wpe.weight.requires_grad_(False)
    decayed, plain = parameter_groups(list(model.parameters()), 0.25)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.25, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with_decay, without = ([names[id(p)] for p in group["params"]] for group in (decayed, plain))
    assert sorted([*with_decay, *without, "wpe.weight"]) == sorted(names.values())
    assert all(name.endswith("bias") or "ln_" in name for name in without)
    assert not any(name.endswith("bias") or "ln_" in name for name in with_decay)
    assert {"wte.weight", "h.1.attn.c_attn.weight", "h.0.mlp.c_proj.weight"} <= set(with_decay)


def test_updates_equal_the_plain_optimizer(model: GPT) -> None:
    plain = copy.deepcopy(model)
    ours = adamw(list(model.parameters()), OptimConfig(lr=3e-3, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.3))
    groups = [
        {"params": [p for p in plain.parameters() if p.dim() == dim], "weight_decay": decay}
        for dim, decay in ((2, 0.3), (1, 0.0))
    ]
    theirs = torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.9), eps=1e-6, fused=False, foreach=False)
    tokens = torch.randint(SMALL.vocab_size, (2, 17))
    for _ in range(5):
        for net, optimizer in ((model, ours), (plain, theirs)):
            net.eval()
            optimizer.zero_grad()
            loss = net(tokens[:, :-1], tokens[:, 1:]).loss
            assert loss is not None
            loss.backward()
            optimizer.step()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_muon_trains_the_blocks_matrices_and_adamw_the_rest(model: GPT) -> None:
    config = OptimConfig(name="muon", lr=1e-2, muon_lr=0.05, weight_decay=0.25)
    plain = copy.deepcopy(model)
    named = dict(plain.named_parameters())
    ours = make_optimizer(model, config)
    hidden = {name for name, p in named.items() if name.startswith("h.") and p.dim() == 2}
    assert {name.split(".", 2)[2] for name in hidden} == {
        "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight",
    }  # fmt: skip
    muon = torch.optim.Muon([named[n] for n in sorted(hidden)], lr=0.05, weight_decay=0.25, momentum=0.95)
    rest = adamw([p for name, p in named.items() if name not in hidden], config)
    for seed in range(3):
        for net in (model, plain):
            torch.manual_seed(seed)
            for parameter in net.parameters():
                parameter.grad = torch.randn_like(parameter)
        for optimizer in (ours, muon, rest):
            optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, named[name]), name


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_muon_in_fp32_follows_the_iteration_in_fp64(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = orthogonal(matrix.double(), torch.float64)
    torch.testing.assert_close(orthogonal(matrix, torch.float32).double(), expected, atol=1e-5, rtol=1e-4)
    assert (orthogonal(matrix).double() - expected).abs().max() > 1e-4  # bf16, the default, is coarser
    assert 0.6 < torch.linalg.svdvals(expected).min() <= torch.linalg.svdvals(expected).max() < 1.3


@pytest.mark.parametrize(("name", "expected"), [("adamw", [5e-4, 5e-4]), ("muon", [0.01, 5e-4, 5e-4])])
def test_the_rate_is_set_in_every_group_and_muons_in_proportion(model: GPT, name: Any, expected: list[float]) -> None:
    optimizer = make_optimizer(model, OptimConfig(name=name, lr=1e-3))
    set_learning_rate(optimizer, 5e-4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)
