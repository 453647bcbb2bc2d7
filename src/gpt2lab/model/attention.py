"""Multi-head attention with grouped heads: one equation, five ways to compute it.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(D) + M) V        (Vaswani et al. 2017, section 3.2.1)

with M = 0 where a query may read a key and -inf elsewhere. ``reference`` is that line. Every other kernel must equal it
and exists only because it is faster somewhere; `view.choose_kernel` says where. A kernel is a function
``(q, k, v, mask, dropout) -> out`` with q (B, H, T, D), k and v (B, K, S, D), out (B, H, T, D), and the mask in the
form that `view.make_view` prepares for it; None is causal. K divides H: query head h reads key and value head
h // (H / K), so that K = H is multi-head, K = 1 multi-query (Shazeer 2019), and what lies between grouped-query
attention (Ainslie et al. 2023, section 2.2).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch._compile import _disable_dynamo
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from gpt2lab.errors import InputError
from gpt2lab.model.banded import BLOCK, Band, banded, fold_bias, make_bands
from gpt2lab.model.cache import LayerCache
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.masks import Mask, additive, as_mask, causal_tensor, dense, document, without_empty_rows

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the angles, each (T, D/2) or (B, 1, T, D/2)."""

SINUSOID_SCALE = 0.02
"""Vaswani et al. multiply the embedding, of standard deviation 1/sqrt(C), by sqrt(C) and add waves of amplitude 1. Ours
begins at 0.02, so the waves are scaled instead: their share is the same, and the stream begins as small as GPT-2's."""


def sinusoidal(positions: torch.Tensor, width: int) -> torch.Tensor:
    """Return the fixed embedding (.., C), fp32, of positions (..), times `SINUSOID_SCALE`."""
    pair = torch.arange(0, width, 2, device=positions.device)
    angles = positions[..., None] * torch.exp(pair * (-math.log(10_000.0) / width))  # (.., C/2)
    waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (.., C), one more where C is odd
    return SINUSOID_SCALE * waves[..., :width]


def rotation(positions: torch.Tensor, head_dim: int, base: float, dtype: torch.dtype) -> Rotation:
    """Return cosines and sines for positions (T,) or (B, T); computed in fp32, then of ``dtype``."""
    pair = torch.arange(0, head_dim, 2, device=positions.device)
    angles = positions[..., None] * torch.exp(pair * (-math.log(base) / head_dim))  # (.., T, D/2)
    angles = angles[:, None] if positions.dim() == 2 else angles
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, by: Rotation) -> torch.Tensor:
    """Turn each head of x (B, H, T, D) by its place's angles.

    Pair i is made of numbers i and i + D/2, as in GPT-NeoX and Llama, since halves are contiguous; the paper pairs 2i
    with 2i + 1. Either is a fixed permutation of the other, but weights do not carry over between them.
    """
    cos, sin = by
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


BANDED_FROM = 2
"""The banded kernel takes over where the sequence is this many times the keys that a band reads, as measured."""
MATMUL_TO = 512
"""On a CPU the gradient through plain products is faster than SDPA's up to this length, as measured."""


class View(NamedTuple):
    """A mask as its kernel takes it."""

    kernel: str = "sdpa"
    mask: torch.Tensor | BlockMask | tuple[Band, ...] | None = None
    """None: causal. A tensor broadcasts to (B, H, T, S): boolean, for matmul 0 and -inf."""
    empty: torch.Tensor | None = None
    """Queries that may read nothing, boolean, broadcastable to (B, H, T, 1); None: there are none."""


def choose_kernel(
    mask: Mask | torch.Tensor, device: torch.device, dtype: torch.dtype, T: int, S: int, training: bool
) -> tuple[str, str]:
    """Return the fastest kernel for T queries over S keys, as measured by benchmarks/attention.py, and why.

    Where a mask reaches back over a small part of the sequence, leaving out what is masked wins. SDPA wins wherever it
    has a fast backward. On a CPU its bf16 backward has none, so short training sequences go through plain products.
    """
    if isinstance(mask, Mask) and bandable(mask) and T == S:
        keys = mask.keys_per_query(S)
        if BANDED_FROM * (keys + BLOCK) <= S:
            return "banded", f"a query reads {keys:,} of {S:,} places"
    if device.type == "cpu" and training and (dtype == torch.bfloat16 or S < 256) and S <= MATMUL_TO:
        return "matmul", f"plain products have the fastest gradient on a CPU up to {MATMUL_TO:,} places"
    return "sdpa", "the fastest wherever no other is known to be faster"


def bandable(mask: Mask) -> bool:
    """Whether the banded kernel can take a mask."""
    return mask.reach is not None and not mask.looks_ahead


def batch_mask(
    mask: Mask, documents: torch.Tensor | None, positions: torch.Tensor | None, padding: torch.Tensor | None
) -> Mask:
    """Return the mask of a batch: within documents where these are given (B, T), and never the padding (B,).

    Places count from the beginning of the row; from the document's where its ``positions`` (B, T) are given too, and
    from the row's first token where it is padded.
    """
    if documents is not None:
        if positions is not None and not mask.is_causal:
            mask = _at_positions(mask, positions)
        mask = mask & document(documents)
    if padding is not None:
        mask = _after_padding(mask, padding)
    return mask


def _at_positions(mask: Mask, positions: torch.Tensor) -> Mask:
    """Count places by positions (B, T). Leading ones then lie anywhere in the row, so no reach is known."""
    reach = None if mask.leading else mask.reach
    return Mask(
        lambda b, h, q, k: mask.allows(b, h, positions[b, q], positions[b, k]), reach, looks_ahead=mask.looks_ahead
    )


def _after_padding(mask: Mask, padding: torch.Tensor) -> Mask:
    reach = None if mask.leading else mask.reach
    return Mask(
        lambda b, h, q, k: (k >= padding[b]) & mask.allows(b, h, q - padding[b], k - padding[b]),
        reach,
        looks_ahead=mask.looks_ahead,
    )


def tensor_mask(
    mask: torch.Tensor,
    documents: torch.Tensor | None,
    padding: torch.Tensor | None,
    B: int,
    H: int,
    queries: torch.Tensor,
    keys: torch.Tensor,
) -> torch.Tensor:
    """Return a user's tensor, checked, as boolean, broadcastable to (B, H, T, S), within documents and off the padding.

    Raises:
        InputError: Another shape, or another value than 0 and 1.
    """
    allowed = as_mask(mask, B, H, len(queries), len(keys))
    if documents is not None:
        allowed = allowed & dense(document(documents), B, H, queries, keys)
    if padding is not None:
        allowed = allowed & (keys >= padding[:, None, None, None])
    return allowed


def make_view(
    kernel: str,
    mask: Mask | torch.Tensor,
    B: int,
    H: int,
    queries: torch.Tensor,
    keys: torch.Tensor,
    dtype: torch.dtype,
    training: bool,
) -> View:
    """Return what every layer of a pass reads.

    Args:
        kernel: A kernel's name, or ``auto``.
        mask: Of the batch: a `Mask`, or a boolean tensor that broadcasts to (B, H, T, S).
        B: Rows.
        H: Query heads.
        queries: Places of the queries, (T,).
        keys: Places of the keys, (S,), in the order in which they are given.
        dtype: In which attention is computed.
        training: Whether gradients will be asked for.

    Raises:
        InputError: The kernel cannot take the mask, or not here.
    """
    T, S, device = len(queries), len(keys), queries.device
    if kernel == "auto":
        kernel, _ = choose_kernel(mask, device, dtype, T, S, training)
    whole = T == S > 1
    if kernel == "banded" and whole:
        return _banded(mask, B, H, T, device, dtype)
    if kernel == "flex" and whole:
        return _flex(mask, B, H, T, device, training)
    if kernel in ("banded", "flex"):
        kernel = "sdpa"  # behind a cache: a few queries, and keys that need not stand in order
    if isinstance(mask, torch.Tensor):
        allowed = mask
    elif not mask.is_causal:
        allowed = dense(mask, B, H, queries, keys)
    elif kernel == "sdpa" and T in (1, S):  # of others it would align the first query to the first key
        return View(kernel)
    else:
        allowed = causal_tensor(T, S, device)
    allowed, empty = without_empty_rows(allowed)
    return View(kernel, additive(allowed, dtype) if kernel == "matmul" else allowed, empty)


def _banded(mask: Mask | torch.Tensor, B: int, H: int, T: int, device: torch.device, dtype: torch.dtype) -> View:
    if isinstance(mask, torch.Tensor) or not bandable(mask):
        raise InputError("kernel banded takes masks of limited reach (window, global), not this one; use kernel auto")
    return View("banded", *make_bands(mask, B, H, T, device, dtype))


def _flex(mask: Mask | torch.Tensor, B: int, H: int, T: int, device: torch.device, training: bool) -> View:
    if device.type == "cpu" and training:
        raise InputError("kernel flex has no gradient on a CPU; train there with kernel auto, sdpa, matmul or banded")
    if isinstance(mask, torch.Tensor):
        table = mask.expand(B, H, T, T)
        return View("flex", create_block_mask(lambda b, h, q, k: table[b, h, q, k], B, H, T, T, device=device))
    one = torch.zeros(1, dtype=torch.long, device=device)
    rows, heads = dense(mask, B, H, one, one).shape[:2]
    return View("flex", create_block_mask(mask.allows, rows, heads, T, T, device=device))


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """The equation as it stands, with the softmax in fp32."""
    T, S, G = q.shape[-2], k.shape[-2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(G, dim=1), v.repeat_interleave(G, dim=1)  # (B, H, S, D)
    scores = (q / math.sqrt(q.shape[-1]) @ k.transpose(-2, -1)).float()  # (B, H, T, S); scaled first for fp16's range
    allowed = causal_tensor(T, S, q.device) if mask is None else mask
    weights = F.softmax(scores.masked_fill(~allowed, -math.inf), dim=-1)
    return F.dropout(weights, dropout).to(v.dtype) @ v  # (B, H, T, D)


def matmul(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """The equation in the inputs' dtype with the mask, of 0 and -inf, added inside the first product.

    On a CPU in bf16 its backward is 2 to 5 times faster than SDPA's up to T = 512.
    """
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    mask = additive(causal_tensor(T, S, q.device), q.dtype) if mask is None else mask
    q, k, v = q.reshape(B * K, -1, D), k.reshape(B * K, S, D), v.reshape(B * K, S, D)  # a group's queries in one list
    scores = torch.baddbmm(fold_bias(mask, B, K, H // K), q, k.transpose(-2, -1), alpha=1.0 / math.sqrt(D))
    weights = F.dropout(F.softmax(scores, dim=-1), dropout)  # (B * K, G * T, S)
    return torch.bmm(weights, v).view(B, H, T, D)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """PyTorch's scaled_dot_product_attention: FlashAttention (Dao et al. 2022) where the device has it."""
    causal_ = mask is None and q.shape[-2] > 1
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal_, enable_gqa=grouped
    )


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, dropout: float) -> torch.Tensor:
    """FlexAttention (Dong et al. 2024): compiled for the mask, blocks that it rules out are skipped."""
    assert dropout == 0.0  # the configuration refuses it
    return _compiled_flex()(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])


@functools.cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    return torch.compile(flex_attention)


KERNELS: dict[str, Callable[..., torch.Tensor]] = {
    "reference": reference,
    "matmul": matmul,
    "sdpa": sdpa,
    # Its loop, and a gradient written by hand, would only be unrolled by a compiler. torch.compiler.disable would say
    # the same, and import the compiler here and now: more than a second, for commands that compile nothing.
    "banded": _disable_dynamo(banded),
    "flex": flex,
}


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, view: View, dropout: float) -> torch.Tensor:
    """Run the view's kernel; a query that may read nothing gives zeros, never NaN, and its gradient is finite."""
    out = KERNELS[view.kernel](q, k, v, view.mask, dropout)
    return out if view.empty is None else out.masked_fill(view.empty, 0.0)


CAUSAL = View()
"""The causal mask, by SDPA."""


class CausalSelfAttention(nn.Module):
    """Self-attention with GPT-2's two projections, ``c_attn`` (to q, then k, then v) and ``c_proj``.

    The rows of ``c_attn`` are the H query heads, then the K key heads, then the K value heads, D rows each.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.kv_heads, config.head_dim
        self.dropout = config.dropout
        width = (config.n_head + 2 * config.kv_heads) * config.head_dim
        self.c_attn = nn.Linear(config.n_embd, width, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def project(self, x: torch.Tensor, rotation: Rotation | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the queries (B, H, T, D), keys and values (B, K, T, D) of x (B, T, C), turned to their places."""
        H, K = self.n_head, self.n_kv_head
        heads = self.c_attn(x).view(*x.shape[:2], H + 2 * K, self.head_dim).transpose(1, 2)
        if rotation is None:
            q, k, v = heads.split((H, K, K), dim=1)
            return q, k, v
        turned, v = heads.split((H + K, K), dim=1)
        q, k = rotate(turned, rotation).split((H, K), dim=1)
        return q, k, v

    def forward(
        self,
        x: torch.Tensor,
        view: View = CAUSAL,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Map x (B, T, C) to (B, T, C); keys and values of earlier positions come from the cache."""
        B, T, C = x.shape
        q, k, v = self.project(x, rotation)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, K, S, D)
        y = attend(q, k, v, view, self.dropout if self.training else 0.0)  # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))
