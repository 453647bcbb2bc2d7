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
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._compile import _disable_dynamo
from torch.nn.attention.flex_attention import flex_attention

from gpt2lab.model.banded import banded, fold_bias
from gpt2lab.model.cache import LayerCache
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.masks import additive, causal_tensor
from gpt2lab.model.positions import Rotation, rotate
from gpt2lab.model.view import View


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
