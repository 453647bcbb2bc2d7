"""Which parameters decay, and the update against PyTorch's plain AdamW."""

from __future__ import annotations

import copy

import pytest
import torch
from support import SMALL

from gpt2lab.errors import InputError
from gpt2lab.model.gpt import GPT
from gpt2lab.training.config import OptimConfig
from gpt2lab.training.optim import adamw, make_optimizer, orthogonal, parameter_groups, set_learning_rate


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(SMALL)


def test_matrices_decay_and_vectors_do_not(model: GPT) -> None:
    decayed, plain = parameter_groups(list(model.parameters()), 0.25)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.25, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with_decay = [names[id(p)] for p in decayed["params"]]
    without = [names[id(p)] for p in plain["params"]]
    assert sorted(with_decay + without) == sorted(names.values())
    assert all(name.endswith("bias") or "ln_" in name for name in without)
    assert not any(name.endswith("bias") or "ln_" in name for name in with_decay)
    assert {"wte.weight", "wpe.weight", "h.1.attn.c_attn.weight", "h.0.mlp.c_proj.weight"} <= set(with_decay)


def test_what_is_frozen_is_left_alone(model: GPT) -> None:
    model.wpe.weight.requires_grad_(False)
    groups = parameter_groups(list(model.parameters()), 0.1)
    assert not any(parameter is model.wpe.weight for group in groups for parameter in group["params"])


def test_updates_equal_the_plain_optimiser(model: GPT) -> None:
    config = OptimConfig(lr=3e-3, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.3)
    plain = copy.deepcopy(model)
    ours = adamw(list(model.parameters()), config)
    matrices = [p for p in plain.parameters() if p.dim() == 2]
    vectors = [p for p in plain.parameters() if p.dim() == 1]
    theirs = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}],
        lr=3e-3, betas=(0.8, 0.9), eps=1e-6, fused=False, foreach=False,
    )  # fmt: skip
    tokens = torch.randint(SMALL.vocab_size, (2, 17))
    for _ in range(5):
        for net, optimiser in ((model, ours), (plain, theirs)):
            net.eval()
            optimiser.zero_grad()
            loss = net(tokens[:, :-1], tokens[:, 1:]).loss
            assert loss is not None
            loss.backward()
            optimiser.step()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_the_learning_rate_is_set_in_every_group(model: GPT) -> None:
    optimiser = adamw(list(model.parameters()), OptimConfig())
    set_learning_rate(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.5]


def test_muon_trains_the_blocks_matrices_and_adamw_the_rest(model: GPT) -> None:
    config = OptimConfig(name="muon", lr=1e-2, muon_lr=0.05, weight_decay=0.25)
    plain = copy.deepcopy(model)
    ours = make_optimizer(model, config)
    hidden = {name for name, p in plain.named_parameters() if name.startswith("h.") and p.dim() == 2}
    assert {name.split(".", 2)[2] for name in hidden} == {
        "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight",
    }  # fmt: skip
    named = dict(plain.named_parameters())
    muon = torch.optim.Muon([named[n] for n in sorted(hidden)], lr=0.05, weight_decay=0.25, momentum=0.95)
    rest = adamw([p for name, p in plain.named_parameters() if name not in hidden], config)
    for seed in range(3):
        for net in (model, plain):
            torch.manual_seed(seed)
            for parameter in net.parameters():
                parameter.grad = torch.randn_like(parameter)
        ours.step()
        muon.step()
        rest.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, named[name]), name


@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_muon_in_fp32_follows_the_iteration_in_fp64(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = orthogonal(matrix.double(), torch.float64)
    torch.testing.assert_close(orthogonal(matrix, torch.float32).double(), expected, atol=1e-5, rtol=1e-4)
    assert (orthogonal(matrix).double() - expected).abs().max() > 1e-4  # bf16, the default, is coarser
    assert 0.6 < torch.linalg.svdvals(expected).min() <= torch.linalg.svdvals(expected).max() < 1.3


def test_muons_rate_follows_the_schedule_in_proportion(model: GPT) -> None:
    optimiser = make_optimizer(model, OptimConfig(name="muon", lr=1e-3))
    set_learning_rate(optimiser, 5e-4)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0.01, 5e-4, 5e-4])


def test_a_rate_for_muon_without_muon_is_refused() -> None:
    with pytest.raises(InputError, match=r"optim.name is adamw; it must be muon where optim.muon_lr is given"):
        OptimConfig(muon_lr=0.01)
