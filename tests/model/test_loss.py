from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.model.loss import CHUNK_ROWS, chunk_rows, fused_loss, fused_losses, plain_loss, token_losses


def inputs(N: int, C: int, V: int, padding: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (N, C) in a dtype, weight (V + padding, C) in fp32 with garbage in the padding, targets (N,)."""
    generator = torch.Generator().manual_seed(N * 7 + V)
    x = torch.randn(N, C, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V + padding, C, generator=generator).requires_grad_()
    with torch.no_grad():
        weight[V:] = 50.0
    return x, weight, torch.randint(V, (N,), generator=generator)


def loss_and_gradients(
    loss: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grad_x, grad_weight = torch.autograd.grad(loss * scale, (x, weight))
    return loss.detach(), grad_x, grad_weight


def assert_near(found: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    """The distance is small beside the length: entries near 0 may be off by more than a share of themselves."""
    assert found.dtype == expected.dtype
    distance = (found.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12)
    assert distance <= relative, f"off by {float(distance):.2e} of its length"


# Rows are taken 512 at a time, and of a wide vocabulary some 40 at a time.
BORDERS = [(N, 70, 58) for N in (1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 33)]
WIDE = [(N, 50257, 47) for N in (1, 32, 33, 41, 42, 100)]


@pytest.mark.parametrize(("N", "V", "padding"), [*BORDERS, *WIDE])
def test_the_fused_loss_equals_the_plain_one_at_the_borders_of_its_chunks(N: int, V: int, padding: int) -> None:
    x, weight, targets = inputs(N, 16, V, padding, torch.float32)
    found = loss_and_gradients(fused_loss(x, weight, targets, V), x, weight)
    expected = loss_and_gradients(plain_loss(x, weight, targets, V), x, weight)
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b, 2e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 20),
    st.integers(2, 130),
    st.integers(0, 63),
    st.sampled_from([None, 1.0, 30.0]),
    st.sampled_from([0.0, 1e-4, 0.1]),
)
def test_the_fused_loss_equals_the_plain_one_for_any_shape(
    N: int, C: int, V: int, padding: int, softcap: float | None, z_loss: float
) -> None:
    x, weight, targets = inputs(N, C, V, padding, torch.float32)
    targets[1::3] = -100
    found = loss_and_gradients(fused_loss(x, weight, targets, V, softcap, z_loss), x, weight)
    expected = loss_and_gradients(plain_loss(x, weight, targets, V, softcap, z_loss), x, weight)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert (found[2][V:] == 0).all(), "the padding, whatever it holds, has no probability and no gradient"


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_compiled_it_is_the_same_loss() -> None:
    x, weight, targets = inputs(100, 16, 70, 58, torch.bfloat16)
    targets[::3] = -100
    options = (x, weight, targets, 70, 30.0, 1e-2)
    found = loss_and_gradients(fused_losses(*options, compiled=True)[0], x, weight)
    expected = loss_and_gradients(fused_losses(*options)[0], x, weight)
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b, 1e-4)  # now and then a probability is rounded to the neighbor


def test_a_gpu_holds_as_many_logits_as_memory_allows() -> None:
    assert [chunk_rows("cpu", V) for V in (64, 50304, 10**6)] == [512, 512, 512]
    assert [chunk_rows("cuda", V) for V in (64 * 1024, 50304, 10**6)] == [2048, 2560, 512]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("N", [33, CHUNK_ROWS + 100])
def test_narrow_inputs_give_an_fp32_loss_and_gradients_near_the_plain_ones(N: int, dtype: torch.dtype) -> None:
    x, weight, targets = inputs(N, 64, 300, 20, dtype)
    found = loss_and_gradients(fused_loss(x, weight, targets, 300), x, weight)
    expected = loss_and_gradients(plain_loss(x, weight, targets, 300), x, weight)
    assert found[0].dtype == torch.float32
    for a, b, relative in zip(found, expected, (1e-5, 1e-2, 1e-2), strict=True):
        assert_near(a, b, relative)


def test_fp16_keeps_small_gradients_for_the_scaler() -> None:
    """At 65,536 times the loss, as a gradient scaler starts, nothing overflows, and no small probability is lost."""
    N, V = 2048, 4000
    x, weight, targets = inputs(N, 8, V, 0, torch.float16)
    with torch.no_grad():
        weight.mul_(0.01)  # a fresh model: every probability is about 1/V, each gradient about 1/(N V) = 1e-7
    _, _, found = loss_and_gradients(fused_loss(x, weight, targets, V), x, weight, 65536.0)
    _, _, expected = loss_and_gradients(plain_loss(x.float(), weight, targets, V), x, weight, 65536.0)
    assert_near(found, expected, 2e-3)


def test_the_loss_by_hand() -> None:
    x = torch.tensor([[1.0], [0.0]])
    weight = torch.tensor([[0.0], [math.log(3.0)]])  # row 0: probabilities 1/4, 3/4; row 1: 1/2, 1/2
    targets = torch.tensor([1, 0])
    each = torch.tensor([math.log(4 / 3), math.log(2)])
    torch.testing.assert_close(token_losses(x, weight, targets, 2), each)
    torch.testing.assert_close(fused_loss(x, weight, targets, 2), each.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_by_position_average_to_the_loss(dtype: torch.dtype) -> None:
    x, weight, targets = inputs(CHUNK_ROWS + 70, 16, 90, 38, dtype)
    each = token_losses(x, weight, targets, 90)
    assert each.shape == (CHUNK_ROWS + 70,)
    assert each.dtype == torch.float32
    expected = F.cross_entropy((x @ weight.to(dtype).T)[:, :90].float(), targets, reduction="none")
    torch.testing.assert_close(each, expected.detach())
    torch.testing.assert_close(each.mean(), fused_loss(x, weight, targets, 90).detach())


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    x, weight, targets = inputs(20, 8, 10, 0, torch.float32)
    fused_loss(x.detach(), weight, targets, 10).backward()
    assert weight.grad is not None
    assert x.grad is None


@pytest.mark.parametrize("N", [9, CHUNK_ROWS + 70])
def test_ignored_targets_have_no_part_in_loss_and_gradients(N: int) -> None:
    x, weight, targets = inputs(N, 16, 90, 38, torch.float32)
    targets[::3] = -100
    targets[1] = -100
    found = loss_and_gradients(fused_loss(x, weight, targets, 90), x, weight)
    expected = loss_and_gradients(plain_loss(x, weight, targets, 90), x, weight)
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b, 2e-6)
    assert (found[1][targets == -100] == 0).all()
    with torch.no_grad():
        torch.testing.assert_close(fused_loss(x, weight, targets, 90), expected[0])
    each = F.cross_entropy(x @ weight[:90].T, targets, reduction="none")
    torch.testing.assert_close(token_losses(x, weight, targets, 90), each.detach())


def test_without_any_target_loss_and_gradients_are_0() -> None:
    x, weight, targets = inputs(9, 16, 90, 38, torch.float32)
    targets[:] = -100
    for number in loss_and_gradients(fused_loss(x, weight, targets, 90), x, weight):
        assert (number == 0).all()
    with torch.no_grad():
        assert fused_loss(x, weight, targets, 90) == 0


def test_autocast_around_it_changes_nothing() -> None:
    x, weight, targets = inputs(50, 16, 90, 38, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fused_loss(x, weight, targets, 90)
    assert torch.equal(inside, fused_loss(x, weight, targets, 90))
