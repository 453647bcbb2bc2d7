"""Attention within a window, in time and memory that grow with T * W and not with T * T.

Queries are processed in blocks. A block of b queries reads at most W - 1 + b keys, and the leading ones that every
query attends to. Its scores are a small matrix of whole rows, so an ordinary softmax suffices.

    keys      0 1 2 3 4 5 6 7 8 ...          W = 3, b = 4
    block 0   . . . .
    block 1       . . . . . .
    block 2               . . . . . .

Only the output of a block is kept. The backward pass recomputes its scores (after Dao et al. 2022, section 3.1) and
accumulates the gradients of the keys that the block read. It is plain PyTorch and runs on every device. The window is
that of Beltagy et al. 2020, section 3.1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from gpt2lab.model.masks import Mask, additive, dense, on_pairs, without_empty_rows
from gpt2lab.model.positions import ScoreBias

BLOCK = 128
"""Queries in a block: larger blocks read more masked keys, smaller ones make slow products, as measured."""


class Band(NamedTuple):
    """A block of queries, start to end, and its keys: the ``leading`` ones and those from first to end."""

    start: int
    end: int
    leading: int
    first: int
    bias: torch.Tensor
    """0 or what is added to a score, or -inf, broadcastable to (B, H, end - start, leading + end - first)."""


def cut(mask: Mask, T: int) -> list[tuple[int, int, int, int]]:
    """Return start, end, leading and first of each band of a mask of limited reach over T positions."""
    blocks = [(start, min(T, start + BLOCK), max(0, start - mask.span + 1)) for start in range(0, T, BLOCK)]
    return [(start, end, min(mask.leading, first), first) for start, end, first in blocks]


def make_bands(
    mask: Mask, score_bias: ScoreBias | None, B: int, H: int, T: int, device: torch.device, dtype: torch.dtype
) -> tuple[tuple[Band, ...], torch.Tensor | None]:
    """Cut a mask of limited reach over T positions into bands; also return the queries without keys, if any."""
    bands, empty = [], []
    for start, end, leading, first in cut(mask, T):
        positions = torch.arange(end, device=device)
        queries, keys = positions[start:], torch.cat([positions[:leading], positions[first:]])
        allowed, none = without_empty_rows(dense(mask, B, H, queries, keys))
        scores = None if score_bias is None else on_pairs(score_bias, B, H, queries, keys)
        bands.append(Band(start, end, leading, first, additive(allowed, dtype, scores)))
        empty.append(none)
    if all(none is None for none in empty):
        return tuple(bands), None
    flags = [
        torch.zeros_like(band.bias[..., :1], dtype=torch.bool) if none is None else none
        for band, none in zip(bands, empty, strict=True)
    ]
    return tuple(bands), torch.cat(flags, dim=2)


def banded(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bands: tuple[Band, ...], dropout: float) -> torch.Tensor:
    """Attend within bands: q (B, H, T, D), k (B, K, T, D) and v (B, K, T, E), K dividing H, to (B, H, T, E)."""
    return _Banded.apply(q, k, v, bands, dropout)


class _Banded(torch.autograd.Function):
    """The loop over bands, forward and backward. Inside, heads are folded to (B * K, G, T, D)."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bands: tuple[Band, ...], dropout: float
    ) -> torch.Tensor:
        B, H, T, D = q.shape
        K = k.shape[1]
        out = torch.empty(B * K, H // K, T, v.shape[-1], dtype=q.dtype, device=q.device)
        folded = q.reshape(B * K, H // K, T, D), k.reshape(B * K, T, D), v.reshape(B * K, T, -1)
        kept = []  # the weights that dropout keeps
        for band in bands:
            weights = _weights(band, folded[0], folded[1], B)
            if dropout:
                kept.append(torch.empty_like(weights, dtype=torch.bool).bernoulli_(1.0 - dropout))
                weights = _dropped(weights, kept[-1], dropout)
            y = torch.bmm(weights, _keys(band, folded[2]))
            out[:, :, band.start : band.end] = y.view(B * K, H // K, band.end - band.start, -1)
        ctx.save_for_backward(*folded, *kept)  # kept as attributes, masks would outlive activation checkpointing
        ctx.bands, ctx.dropout, ctx.B = bands, dropout, B
        return out.view(B, H, T, -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        BK, G, T, D = q.shape
        grad_out = grads[0].reshape(BK, G, T, -1)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for index, band in enumerate(ctx.bands):
            g = grad_out[:, :, band.start : band.end].reshape(BK, -1, v.shape[-1])
            weights = _weights(band, q, k, ctx.B)  # (B * K, G * b, S)
            grad_weights = torch.bmm(g, _keys(band, v).transpose(1, 2))
            dropped = weights
            if ctx.dropout:
                dropped, grad_weights = (_dropped(x, kept[index], ctx.dropout) for x in (weights, grad_weights))
            _add(band, grad_v, torch.bmm(dropped.transpose(1, 2), g))
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            del weights, grad_weights, dropped  # before the next band's are made
            grad_scores /= math.sqrt(D)
            grad_q[:, :, band.start : band.end] = torch.bmm(grad_scores, _keys(band, k)).view(BK, G, -1, D)
            queries = q[:, :, band.start : band.end].reshape(BK, -1, D)
            _add(band, grad_k, torch.bmm(grad_scores.transpose(1, 2), queries))
            del grad_scores
        by_head = (grad.view(ctx.B, -1, T, grad.shape[-1]) for grad in (grad_q, grad_k, grad_v))
        return *by_head, None, None


def _weights(band: Band, q: torch.Tensor, k: torch.Tensor, B: int) -> torch.Tensor:
    """Return the attention weights (B * K, G * b, S) of a band."""
    BK, G, _, D = q.shape
    queries = q[:, :, band.start : band.end].reshape(BK, -1, D)
    keys = _keys(band, k).transpose(1, 2)
    scores = torch.baddbmm(fold_bias(band.bias, B, BK // B, G), queries, keys, alpha=1.0 / math.sqrt(D))
    return F.softmax(scores, dim=-1)


def _dropped(x: torch.Tensor, kept: torch.Tensor, dropout: float) -> torch.Tensor:
    """Return x, in its own dtype, with 0 where it is not kept and the rest scaled up."""
    return x * kept / (1.0 - dropout)


def _keys(band: Band, x: torch.Tensor) -> torch.Tensor:
    """Return the rows of x (B * K, T, D) that a band reads."""
    near = x[:, band.first : band.end]
    return torch.cat([x[:, : band.leading], near], dim=1) if band.leading else near


def _add(band: Band, total: torch.Tensor, part: torch.Tensor) -> None:
    """Add a band's part of a gradient to the rows that it read."""
    if band.leading:
        total[:, : band.leading] += part[:, : band.leading]
    total[:, band.first : band.end] += part[:, band.leading :]


def fold_bias(bias: torch.Tensor, B: int, K: int, G: int) -> torch.Tensor:
    """Return an additive mask that broadcasts to (B, H, T, S) for queries folded to (B * K, G * T, D)."""
    T, S = bias.shape[-2:]
    if bias.numel() == T * S:
        return bias.view(T, S) if G == 1 else bias.view(T, S).repeat(G, 1)
    return bias.expand(B, K * G, T, S).reshape(B * K, G * T, S)
