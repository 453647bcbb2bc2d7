"""Multi-head attention with grouped heads: one equation, six ways to compute it.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(D) + M) V        (Vaswani et al. 2017, section 3.2.1)

with M = 0 where a query may attend to a key and -inf elsewhere; ALiBi adds to M what the distance costs.

``reference`` is that line; every other kernel must equal it and exists because it is faster somewhere. A kernel is a
function ``(q, k, v, mask, dropout) -> out`` with q (B, H, T, D), k and v (B, K, S, D) and out (B, H, T, D); v and out
may be wider or narrower than q and k. K divides H: query head h uses key and value head h // (H / K), so K = H is
multi-head attention, K = 1 multi-query attention (Shazeer 2019), and anything between grouped-query attention (Ainslie
et al. 2023, section 2.2).

    Mask or tensor, documents, padding      `AttentionPattern`    who may attend to whom in this pass
      -> kernel                             `choose_kernel`       the fastest for mask, device, dtype and length
      -> mask in the form of the kernel     `AttentionBias`       made once per pass, used by every layer
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
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
from gpt2lab.model.layers import make_norm
from gpt2lab.model.loss import soft_capped
from gpt2lab.model.masks import Mask, additive, as_mask, causal_tensor, dense, document, on_pairs, without_empty_rows
from gpt2lab.model.positions import Rotation, ScoreBias, make_rotate, rotations
from gpt2lab.runtime import key_compiled_code

# Kernels --------------------------------------------------------------------------------------------------------------


class Scores(NamedTuple):
    """What a layer does to its scores before the softmax; only `PLAIN` kernels can."""

    softcap: float | None = None
    """Scores become c tanh(score / c), before the mask is added (Gemma Team 2024, section 2)."""
    sinks: torch.Tensor | None = None
    """(H,): one more score for each query, whose value is 0, so that a head may attend to nothing (gpt-oss, 2025)."""

    def softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the weights of scores (B, H, T, S)."""
        if self.sinks is None:
            return F.softmax(scores, dim=-1)
        sinks = self.sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        return F.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1]


UNCHANGED = Scores()
"""GPT-2's."""


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    by: Scores = UNCHANGED,
) -> torch.Tensor:
    """The equation as it is written, with the softmax in fp32. The mask is boolean, or M itself; None is causal."""
    T, S, G = q.shape[-2], k.shape[-2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(G, dim=1), v.repeat_interleave(G, dim=1)  # (B, H, S, D)
    scores = (q / math.sqrt(q.shape[-1]) @ k.transpose(-2, -1)).float()  # (B, H, T, S); scaled first for fp16's range
    scores = soft_capped(scores, by.softcap)
    allowed = causal_tensor(T, S, q.device) if mask is None else mask
    boolean = allowed.dtype == torch.bool
    weights = by.softmax(scores.masked_fill(~allowed, -math.inf) if boolean else scores + allowed)
    return F.dropout(weights, dropout).to(v.dtype) @ v  # (B, H, T, D)


def matmul(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    by: Scores = UNCHANGED,
) -> torch.Tensor:
    """The equation in the inputs' dtype; the mask M is added inside the first product.

    On a CPU in bf16 its backward pass is 2 to 5 times faster than SDPA's up to T = 512.
    """
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    mask = additive(causal_tensor(T, S, q.device), q.dtype) if mask is None else mask
    q, k, v = q.reshape(B * K, -1, D), k.reshape(B * K, S, D), v.reshape(B * K, S, -1)  # a group's queries in one list
    bias, keys, scale = fold_bias(mask, B, K, H // K), k.transpose(-2, -1), 1.0 / math.sqrt(D)
    if by.softcap is None:
        scores = torch.baddbmm(bias, q, keys, alpha=scale)  # (B * K, G * T, S)
    else:
        scores = soft_capped(torch.bmm(q * scale, keys), by.softcap) + bias
    weights = by.softmax(scores.view(B, H, T, S)).reshape(scores.shape)
    return torch.bmm(F.dropout(weights, dropout), v).view(B, H, T, -1)


def rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    by: Scores = UNCHANGED,
) -> torch.Tensor:
    """`matmul` with a row that is the same to the last bit whatever the other rows are, for a `BatchCache` on a CPU.

    SDPA sums in another order if there are fewer rows than threads, and a product with several queries of a group if
    more keys are read. So each query of a group is multiplied by itself.
    """
    (B, H, T, _), (K, S) = q.shape, k.shape[1:3]
    G, sinks = H // K, by.sinks
    mask = (additive(causal_tensor(T, S, q.device), q.dtype) if mask is None else mask).expand(B, H, T, S)
    own = []
    for g in range(G):
        of_heads = by if sinks is None else by._replace(sinks=sinks[g::G])
        own.append(matmul(q[:, g::G], k, v, mask[:, g::G], dropout, of_heads))  # (B, K, T, D)
    return torch.stack(own, dim=2).flatten(1, 2)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """PyTorch's scaled_dot_product_attention: FlashAttention (Dao et al. 2022) where the device has it.

    That takes values as wide as the keys. Whichever are narrower are padded with zeros, which change nothing.
    """
    D, E = q.shape[-1], v.shape[-1]
    causal = mask is None and q.shape[-2] > 1
    grouped = q.shape[1] != k.shape[1]
    q, k, v = (x if x.shape[-1] == max(D, E) else F.pad(x, (0, abs(D - E))) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=1.0 / math.sqrt(D), enable_gqa=grouped
    )
    return out if D <= E else out[..., :E]


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, dropout: float) -> torch.Tensor:
    """FlexAttention (Dong et al. 2024), compiled for the mask: blocks that it rules out are skipped."""
    assert dropout == 0.0  # the configuration refuses it
    block_mask, score_mod = mask
    return _compiled_flex()(q, k, v, score_mod=score_mod, block_mask=block_mask, enable_gqa=q.shape[1] != k.shape[1])


@functools.cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    key_compiled_code()
    return torch.compile(flex_attention)


KERNELS: dict[str, Callable[..., torch.Tensor]] = {
    "reference": reference,
    "matmul": matmul,
    "rows": rows,
    "sdpa": sdpa,
    # A compiler would only unroll its loop and handwritten gradient. torch.compiler.disable would do the same, but
    # imports the compiler right away: more than a second, even for commands that compile nothing.
    "banded": _disable_dynamo(banded),
    "flex": flex,
}
PLAIN = ("reference", "matmul", "rows")
"""Kernels that can change the scores."""

# Which kernel, and the mask in its form -------------------------------------------------------------------------------

BANDED_FROM = 2
"""The banded kernel is used if the sequence is at least this many times the keys that a band reads, as measured."""
MATMUL_TO = 512
"""On a CPU the gradient of plain products is faster than SDPA's up to this length, as measured."""


def choose_kernel(
    mask: Mask | torch.Tensor,
    device: torch.device,
    dtype: torch.dtype,
    T: int,
    S: int,
    training: bool,
    changes_scores: bool = False,
) -> tuple[str, str]:
    """Return the fastest kernel for T queries over S keys, as measured by benchmarks/attention.py, and the reason.

    If a mask reaches back over a small part of the sequence, skipping masked keys wins. SDPA wins wherever it has a
    fast backward pass; on a CPU in bf16 it has none, so short training sequences use plain products.
    """
    if changes_scores:
        return "matmul", "the only fast kernel that has sinks and soft-capped scores"
    if isinstance(mask, Mask) and mask.is_bandable and T == S:
        keys = mask.keys_per_query(S)
        if BANDED_FROM * (keys + BLOCK) <= S:
            return "banded", f"a query attends to {keys:,} of {S:,} positions"
    if device.type == "cpu" and training and (dtype == torch.bfloat16 or S < 256) and S <= MATMUL_TO:
        return "matmul", f"plain products have the fastest gradient on a CPU up to {MATMUL_TO:,} positions"
    return "sdpa", "the fastest unless another kernel is known to be faster"


ScoreMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""What FlexAttention does to a score at row, head, query and key."""


class AttentionBias(NamedTuple):
    """The mask of one pass, in the form that its kernel expects."""

    kernel: str = "sdpa"
    mask: torch.Tensor | tuple[Band, ...] | tuple[BlockMask, ScoreMod | None] | None = None
    """None: causal. A tensor broadcasts to (B, H, T, S): boolean, or M itself for matmul and with a score bias."""
    empty: torch.Tensor | None = None
    """Queries that may attend to nothing, boolean, broadcastable to (B, H, T, 1), or None."""


CAUSAL = AttentionBias()
"""The causal mask, with SDPA."""


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: AttentionBias,
    dropout: float,
    scores: Scores = UNCHANGED,
) -> torch.Tensor:
    """Run the kernel; a query that may attend to nothing gives zeros, never NaN, and its gradient is finite."""
    if q.dtype != k.dtype:  # a cache may hold fp32, which autocast would round
        with torch.autocast(q.device.type, enabled=False):
            return attend(q.to(k.dtype), k, v, bias, dropout, scores).to(q.dtype)
    by = (scores,) if bias.kernel in PLAIN else ()
    out = KERNELS[bias.kernel](q, k, v, bias.mask, dropout, *by)
    return out if bias.empty is None else out.masked_fill(bias.empty, 0.0)


@dataclass(frozen=True)
class AttentionPattern:
    """Who may attend to whom in one pass of B rows and H heads.

    Raises:
        InputError: The mask is a tensor of another shape, or has values other than 0 and 1.
    """

    mask: Mask | torch.Tensor
    """The configuration's mask, or a user's tensor in its place: (T, S), (B, T, S) or (B, H, T, S)."""
    B: int
    H: int
    queries: torch.Tensor
    """Positions of the queries in the row, (T,), or (B, T) if rows differ."""
    keys: torch.Tensor
    """Positions of the keys, (S,) or (B, S), in the order in which they are given."""
    documents: torch.Tensor | None = None
    """Document of each token, (B, T): attention stays within documents."""
    positions: torch.Tensor | None = None
    """Positions within documents, (B, T): a mask of the configuration then counts from each document's first token."""
    padding: torch.Tensor | None = None
    """Empty positions before each row's first token, (B,): nothing attends to them."""
    score_bias: ScoreBias | None = None
    """Added to the scores by positions in the row."""
    changes_scores: bool = False
    """Whether the layers change their scores (`Scores`)."""

    def allowed(self) -> Mask | torch.Tensor:
        """Return everything above as one mask, or as a boolean tensor that broadcasts to (B, H, T, S)."""
        if isinstance(self.mask, torch.Tensor):
            allowed = as_mask(self.mask, self.B, self.H, len(self.queries), len(self.keys))
            if self.documents is not None:
                allowed = allowed & dense(document(self.documents), self.B, self.H, self.queries, self.keys)
            if self.padding is not None:
                allowed = allowed & (self.keys >= self.padding[:, None, None, None])
            return allowed
        mask, positions, padding = self.mask, self.positions, self.padding
        if self.documents is not None:
            if positions is not None and not mask.is_causal:
                mask = _moved(mask, lambda b, p: positions[b, p])
            mask = mask & document(self.documents)
        if padding is not None:
            after = _moved(mask, lambda b, p: p - padding[b])
            mask = Mask(
                lambda b, h, q, k: (k >= padding[b]) & after.allows(b, h, q, k),
                after.reach,
                looks_ahead=after.looks_ahead,
            )
        return mask

    def bias(self, kernel: str, dtype: torch.dtype, training: bool) -> AttentionBias:
        """Return the mask in the form of a kernel.

        Args:
            kernel: Name of a kernel, or ``auto``.
            dtype: Data type of the attention.
            training: Whether gradients will be computed.

        Raises:
            InputError: The kernel does not support the mask, or not on this device.
        """
        mask, device, T, S = self.allowed(), self.queries.device, self.queries.shape[-1], self.keys.shape[-1]
        if kernel == "auto":
            kernel, _ = choose_kernel(mask, device, dtype, T, S, training, self.changes_scores)
        if T == S > 1 and kernel == "banded":
            if isinstance(mask, torch.Tensor) or not mask.is_bandable:
                raise InputError(
                    "kernel banded supports masks of limited reach (window, global), not this one; use kernel auto"
                )
            return AttentionBias("banded", *make_bands(mask, self.score_bias, self.B, self.H, T, device, dtype))
        if T == S > 1 and kernel == "flex":
            return self._flex_bias(mask, T, device, training)
        if kernel in ("banded", "flex"):
            kernel = "sdpa"  # with a cache: few queries, and keys that need not be in order
        if kernel in ("sdpa", "matmul") and self.queries.dim() == 2 and device.type == "cpu":
            kernel = "rows"
        if isinstance(mask, torch.Tensor):
            allowed = mask
        elif not mask.is_causal or self.queries.dim() == 2:
            allowed = dense(mask, self.B, self.H, self.queries, self.keys)
        elif (
            kernel == "sdpa" and T in (1, S) and self.score_bias is None
        ):  # in other cases it would align the first query with the first key
            return AttentionBias(kernel)
        else:
            allowed = causal_tensor(T, S, device)
        allowed, empty = without_empty_rows(allowed)
        if self.score_bias is None:
            return AttentionBias(kernel, additive(allowed, dtype) if kernel in ("matmul", "rows") else allowed, empty)
        scores = on_pairs(self.score_bias, self.B, self.H, self.queries, self.keys)
        return AttentionBias(
            kernel, additive(allowed, torch.float32 if kernel == "reference" else dtype, scores), empty
        )

    def rotations(self, config: GPTConfig, dtype: torch.dtype) -> list[Rotation | None]:
        """Return the rotation of each layer's queries and keys."""
        return rotations(self.queries if self.positions is None else self.positions, config, dtype)

    def _flex_bias(self, mask: Mask | torch.Tensor, T: int, device: torch.device, training: bool) -> AttentionBias:
        if device.type == "cpu" and training:
            raise InputError(
                "kernel flex has no gradient on a CPU; train there with kernel auto, sdpa, matmul or banded"
            )
        if isinstance(mask, torch.Tensor):
            table = mask.expand(self.B, self.H, T, T)
            mask = Mask(lambda b, h, q, k: table[b, h, q, k])
        one = torch.zeros(1, dtype=torch.long, device=device)
        rows, heads = dense(mask, self.B, self.H, one, one).shape[:2]
        score_bias = self.score_bias
        added = None if score_bias is None else lambda score, b, h, q, k: score + score_bias(b, h, q, k)
        return AttentionBias("flex", (create_block_mask(mask.allows, rows, heads, T, T, device=device), added))


def _moved(mask: Mask, position: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Mask:
    """Let a mask count by other positions. Its leading ones may then be anywhere in the row, so no reach is known."""
    return Mask(
        lambda b, h, q, k: mask.allows(b, h, position(b, q), position(b, k)),
        None if mask.leading else mask.reach,
        looks_ahead=mask.looks_ahead,
    )


# The layer ------------------------------------------------------------------------------------------------------------


class OutputGate(nn.Module):
    """The output of the heads times sigmoid(x W), number by number (Qiu et al. 2025, section 2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_gate = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Gate y (B, T, C), the heads side by side, by the layer's input x (B, T, C)."""
        return y * torch.sigmoid(self.c_gate(x))


def ungated(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the output of the heads as it is, as in GPT-2."""
    return y


class FirstValues:
    """The values of the first layer in one pass, which a value residual adds to those of the others."""

    v: torch.Tensor


def without_residual(v: torch.Tensor, first: FirstValues | None) -> torch.Tensor:
    """Return the values as they are, as in GPT-2."""
    return v


def require_first(first: FirstValues | None) -> FirstValues:
    """Return the argument, which a block of a user's own may not have handed on."""
    if first is None:
        raise TypeError("value_residual needs the argument first; hand all arguments of forward on to attention")
    return first


def as_first(v: torch.Tensor, first: FirstValues | None) -> torch.Tensor:
    """Return the values of the first layer, and keep them for the others."""
    require_first(first).v = v
    return v


class ValueResidual(nn.Module):
    """lambda_1 v_1 + lambda_2 v with the values v_1 of the first layer (Zhou et al. 2024, Learnable-ResFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.lambdas = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, v: torch.Tensor, first: FirstValues | None) -> torch.Tensor:
        """Mix v (B, K, T, D) with those of the first layer."""
        of_first, own = self.lambdas.to(v.dtype).unbind()
        return of_first * require_first(first).v + own * v


def make_residual(config: GPTConfig, layer: int) -> Callable[[torch.Tensor, FirstValues | None], torch.Tensor]:
    """Return what a layer, from 0 on, does to its values."""
    if not config.value_residual:
        return without_residual
    return ValueResidual() if layer else as_first


class CausalSelfAttention(nn.Module):
    """Self-attention with GPT-2's two projections, ``c_attn`` (to q, then k, then v) and ``c_proj``.

    The rows of ``c_attn`` are the H query heads, then the K key heads, then the K value heads, D rows each.
    """

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.kv_heads, config.head_dim
        self.dropout, self.rotate = config.dropout, make_rotate(config)
        self.c_attn = nn.Linear(config.n_embd, config.c_attn_rows, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.q_norm, self.k_norm = (
            make_norm(config, self.head_dim) if config.qk_norm else nn.Identity() for _ in range(2)
        )
        self.softcap = config.attention_softcap
        self.sinks = nn.Parameter(torch.zeros(config.n_head)) if config.attention_sinks else None
        self.gate = OutputGate(config) if config.attention_gate else ungated
        self.residual = make_residual(config, layer)

    def forward(
        self,
        x: torch.Tensor,
        bias: AttentionBias = CAUSAL,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
        first: FirstValues | None = None,
    ) -> torch.Tensor:
        """Map x (B, T, C) to (B, T, C); keys and values of earlier positions come from the cache."""
        B, T, C = x.shape
        q, k, v = self.project(x, rotation)
        v = self.residual(v, first)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, K, S, D)
        y = self.attend(q, k, v, bias)  # (B, H, T, D)
        return self.c_proj(self.gate(y.transpose(1, 2).reshape(B, T, C), x))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: AttentionBias) -> torch.Tensor:
        """Return the output of the heads (B, H, T, D)."""
        return attend(q, k, v, bias, self.dropout if self.training else 0.0, self.scores)

    def weights(self, q: torch.Tensor, k: torch.Tensor, bias: AttentionBias) -> torch.Tensor:
        """Return the attention weights (B, H, T, S): with the identity as values, attention returns them."""
        values = torch.eye(k.shape[2], device=k.device).expand(*k.shape[:2], -1, -1)
        return attend(q, k, values, bias, 0.0, self.scores)

    @property
    def scores(self) -> Scores:
        """What the layer does to its scores."""
        return Scores(self.softcap, self.sinks)

    def project(self, x: torch.Tensor, rotation: Rotation | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries (B, H, T, D), keys and values (B, K, T, D) of x (B, T, C), rotated to their positions."""
        H, K = self.n_head, self.n_kv_head
        heads = self.c_attn(x).view(*x.shape[:2], H + 2 * K, self.head_dim).transpose(1, 2)
        q, k, v = heads.split((H, K, K), dim=1)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return (q, k, v) if rotation is None else (self.rotate(q, rotation), self.rotate(k, rotation), v)
