from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gpt2lab.errors import InputError
from gpt2lab.model import banded
from gpt2lab.model.attention import KERNELS, AttentionPattern, CausalSelfAttention, attend
from gpt2lab.model.cache import KVCache
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.model.masks import Mask, as_mask, causal, causal_tensor, sliding_window

CPU = torch.device("cpu")
B, H, D = 2, 3, 8
FAST = ["auto", "matmul", "sdpa"]


def random_mask(*shape: int, empty: tuple[int, ...] = ()) -> torch.Tensor:
    """A random mask in which every query reads its own place, except the empty ones, which read nothing."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.5
    mask |= torch.eye(*shape[-2:], dtype=torch.bool)
    mask[..., list(empty), :] = False
    return mask


def attend_by(
    kernel: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | Mask, dropout: float = 0.0
) -> torch.Tensor:
    """Attention of the last T of S places, by one kernel."""
    (B, H, T), S = q.shape[:3], k.shape[2]
    keys = torch.arange(S)
    pattern = AttentionPattern(mask, B, H, keys[S - T :], keys)
    return attend(q, k, v, pattern.bias(kernel, q.dtype, training=q.requires_grad), dropout)


def run(kernel: str, T: int, S: int, mask: torch.Tensor | None, dtype: torch.dtype) -> list[torch.Tensor]:
    """The output and the gradients of q, k and v, in fp32."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, H, n, D, generator=generator).to(dtype).requires_grad_() for n in (T, S, S))
    out = attend_by(kernel, q, k, v, causal() if mask is None else mask)
    weights = torch.randn(out.shape, generator=generator)
    gradients = torch.autograd.grad((out.float() * weights).sum(), (q, k, v))
    return [out.detach().float(), *(gradient.float() for gradient in gradients)]


MASKS = {
    "causal": None,
    "(T, S)": random_mask(9, 9),
    "(B, T, S)": random_mask(B, 9, 9),
    "(B, H, T, S)": random_mask(B, H, 9, 9),
    "empty rows": random_mask(B, 9, 9, empty=(0, 4)),
    "all empty": torch.zeros(9, 9, dtype=torch.bool),
}


CASES = [(9, mask, torch.float32, 2e-6, 1e-5) for mask in MASKS]
CASES += [(9, mask, torch.bfloat16, 0.05, 0.05) for mask in MASKS]
CASES += [(S, "causal", torch.float32, 1e-5, 1e-4) for S in (257, 600)]


@pytest.mark.parametrize(("S", "mask", "dtype", "atol", "rtol"), CASES)
@pytest.mark.parametrize("kernel", FAST)
def test_kernels_equal_the_reference_in_fp32_forward_and_backward(
    kernel: str, S: int, mask: str, dtype: torch.dtype, atol: float, rtol: float
) -> None:
    expected = run("reference", S, S, MASKS[mask], torch.float32)
    for a, b in zip(run(kernel, S, S, MASKS[mask], dtype), expected, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=rtol)


@pytest.mark.parametrize("kernel", ["reference", *FAST])
def test_a_query_that_may_read_nothing_gives_zeros_and_finite_gradients(kernel: str) -> None:
    out, *gradients = run(kernel, 9, 9, MASKS["empty rows"], torch.float32)
    assert (out[:, :, [0, 4]] == 0).all()
    assert (out[:, :, 1] != 0).all()
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert (gradients[0][:, :, [0, 4]] == 0).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kernel", ["reference", *FAST])
def test_the_layer_agrees_with_torch_multihead_attention(kernel: Any, masked: bool, bias: bool) -> None:
    torch.manual_seed(0)
    ours = CausalSelfAttention(GPTConfig(n_layer=1, n_head=4, n_embd=32, bias=bias, dropout=0.0, kernel=kernel))
    theirs = nn.MultiheadAttention(32, 4, bias=bias, batch_first=True)
    copies = {"in_proj_weight": ours.c_attn.weight, "out_proj.weight": ours.c_proj.weight}
    copies |= {"in_proj_bias": ours.c_attn.bias, "out_proj.bias": ours.c_proj.bias} if bias else {}
    theirs.load_state_dict({name: weight.detach() for name, weight in copies.items()})
    mask = random_mask(11, 11) if masked else causal_tensor(11, 11, CPU)
    x, y = (torch.randn(3, 11, 32, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    places = torch.arange(11)
    pattern = AttentionPattern(mask if masked else causal(), 3, 4, places, places)
    found = ours(x, pattern.bias(kernel, x.dtype, training=True))
    expected, _ = theirs(y, y, y, attn_mask=~mask, need_weights=False)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-4)
    for name, weight in copies.items():
        torch.testing.assert_close(weight.grad, theirs.get_parameter(name).grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", sorted(KERNELS.keys() - {"flex"}))
def test_dropout_takes_attention_weights_out_and_scales_the_rest(kernel: str) -> None:
    torch.manual_seed(0)
    q = torch.zeros(4, 8, 64, D)  # every weight of the last query is 1/64, every value 1
    v = torch.ones_like(q)
    mask = sliding_window(64) if kernel == "banded" else causal()
    last = attend_by(kernel, q, q, v, mask, 0.25)[:, :, -1]
    kept = last * 64 * 0.75  # how many of 64 weights stayed
    torch.testing.assert_close(kept, kept.round(), atol=1e-3, rtol=0)
    assert 40 < kept.mean() < 56
    assert kept.std() > 1


@pytest.mark.parametrize("K", [4, 2])
def test_the_banded_gradient_under_dropout_is_that_of_its_output(K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banded, "BLOCK", 4)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 10, 3, generator=generator, dtype=torch.float64).requires_grad_() for n in (4, K, K))

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)  # the same weights are dropped each time
        return attend_by("banded", q, k, v, sliding_window(3), 0.4)

    assert torch.autograd.gradcheck(attention, (q, k, v), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", sorted(KERNELS.keys() - {"flex"}))
def test_dropout_of_narrow_numbers_has_a_gradient_of_their_dtype(kernel: str, dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(B, H, 9, D, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = sliding_window(3) if kernel == "banded" else causal()
    attend_by(kernel, q, k, v, mask, 0.2).square().sum().backward()
    for x in (q, k, v):
        assert x.grad is not None and x.grad.dtype == dtype and bool(x.grad.isfinite().all())


def test_the_cache_says_its_size_and_refuses_what_does_not_fit() -> None:
    config = GPTConfig(n_layer=3, n_head=2, n_embd=8, n_ctx=10, vocab_size=5)
    cache = KVCache(config, 4, CPU, torch.bfloat16)
    assert cache.nbytes == 2 * 3 * 4 * 10 * 8 * 2  # keys and values, layers, batch, positions, width, bytes
    cache.require_room(10)
    cache.begin(7)
    for layer in cache.layers:
        layer.append(*torch.ones(2, 4, 2, 7, 4))
    cache.end(7)
    assert cache.length == 7
    with pytest.raises(InputError, match="the cache holds 7 of 10 positions and 4 more were asked for"):
        cache.require_room(4)
    cache.clear()
    cache.require_room(10)
    assert cache.length == 0


VARIANTS: list[dict[str, Any]] = [{}, {"n_kv_head": 2, "position": "rope"}, {"mask": "window", "window": 5}]


@pytest.mark.parametrize("change", VARIANTS, ids=str)
@torch.no_grad()
def test_reading_behind_copied_rows_is_reading_all_of_them(change: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=16, n_ctx=16, vocab_size=31, **change)).eval()
    contexts, endings = torch.randint(31, (2, 9)), torch.randint(31, (5, 4))
    rows = torch.tensor([1, 0, 0, 1, 1])
    behind = model.new_cache(2, room=9)
    model.hidden(contexts, cache=behind)
    cache = model.new_cache(5, room=13)
    cache.copy_rows(behind, rows)
    found = model.hidden(endings, cache=cache)
    expected = model.hidden(torch.cat([contexts[rows], endings], dim=1))[:, 9:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_that_do_not_fit_are_refused() -> None:
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, n_ctx=16, vocab_size=31)).eval()
    behind = model.new_cache(1, room=9)
    model.hidden(torch.zeros(1, 9, dtype=torch.long), cache=behind)
    with pytest.raises(InputError, match="0 of 8 positions and 9 more"):
        model.new_cache(1, room=8).copy_rows(behind, torch.tensor([0]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize(("shape", "seen"), [((4, 5), (4, 5)), ((2, 4, 5), (2, 1, 4, 5)), ((2, 3, 4, 5), (2, 3, 4, 5))])
def test_masks_of_zeros_and_ones_are_boolean_masks(shape: tuple[int, ...], seen: tuple[int, ...], dtype: Any) -> None:
    mask = random_mask(*shape)
    found = as_mask(mask.to(dtype), B=2, H=3, T=4, S=5)
    assert found.dtype == torch.bool
    assert found.shape == seen
    assert torch.equal(found.reshape(shape), mask)
