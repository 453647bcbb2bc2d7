"""Causal multi-head attention: one equation, three ways to compute it.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(D) + M) V        (Vaswani et al. 2017, section 3.2.1)

with M = 0 where a query may read a key and -inf elsewhere. ``reference`` is that line. Every other kernel must equal it
and exists only because it is faster somewhere; `choose_kernel` says where. A kernel is a function
``(q, k, v, mask, dropout) -> out`` with q (B, H, T, D), k and v (B, H, S, D), mask boolean and broadcastable to
(B, H, T, S) or None for causal, out (B, H, T, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from gpt2lab.model.cache import LayerCache
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.masks import causal

KernelFn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float], torch.Tensor]


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """The equation as it stands, with the softmax in fp32."""
    T, S = q.shape[-2], k.shape[-2]
    scores = (q @ k.transpose(-2, -1)).float() / math.sqrt(q.shape[-1])  # (B, H, T, S)
    allowed = causal(T, S, q.device) if mask is None else mask
    weights = F.softmax(scores.masked_fill(~allowed, -math.inf), dim=-1)
    return F.dropout(weights, dropout).to(v.dtype) @ v  # (B, H, T, D)


def matmul(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    """The equation in the inputs' dtype with the mask added inside the first product.

    On a CPU in bf16 its backward is 2 to 5 times faster than SDPA's up to T = 512.
    """
    B, H, T, D = q.shape
    S = k.shape[-2]
    allowed = causal(T, S, q.device) if mask is None else mask
    bias = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device).masked_fill_(~allowed, -math.inf)
    bias = bias.expand(B, H, T, S).reshape(B * H, T, S) if mask is not None else bias
    q, k, v = (t.reshape(B * H, -1, D) for t in (q, k, v))
    scores = torch.baddbmm(bias, q, k.transpose(-2, -1), alpha=1.0 / math.sqrt(D))  # (B * H, T, S)
    weights = F.dropout(F.softmax(scores, dim=-1), dropout)
    return torch.bmm(weights, v).view(B, H, T, D)


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """PyTorch's scaled_dot_product_attention: FlashAttention (Dao et al. 2022) where the device has it."""
    T, S = q.shape[-2], k.shape[-2]
    if mask is None and T not in (1, S):
        mask = causal(T, S, q.device)  # a chunk behind a cache: is_causal would align it to the first key
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None and T > 1)


KERNELS: dict[str, KernelFn] = {"reference": reference, "matmul": matmul, "sdpa": sdpa}


def choose_kernel(q: torch.Tensor, S: int) -> str:
    """Return the fastest kernel for these queries (B, H, T, D) over S keys, as measured.

    SDPA wins wherever it has a fast backward. On a CPU its bf16 backward has none, so short training sequences there
    go through plain products.
    """
    training = torch.is_grad_enabled() and q.requires_grad
    if q.device.type == "cpu" and training and (q.dtype == torch.bfloat16 or S < 256) and S <= 512:
        return "matmul"
    return "sdpa"


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float, kernel: str
) -> torch.Tensor:
    """Run a kernel by name; a query that may read nothing gives zeros, never NaN.

    Such a row is computed as if it might read everything, then set to zero: so its gradient is finite too.
    """
    name = choose_kernel(q, k.shape[-2]) if kernel == "auto" else kernel
    if mask is None:
        return KERNELS[name](q, k, v, None, dropout)
    empty = ~mask.any(dim=-1, keepdim=True)  # (.., T, 1)
    return KERNELS[name](q, k, v, mask | empty, dropout).masked_fill(empty, 0.0)


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention with GPT-2's two projections, ``c_attn`` (to q, k, v) and ``c_proj``."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.dropout, self.kernel = config.dropout, config.kernel
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, cache: LayerCache | None = None
    ) -> torch.Tensor:
        """Map x (B, T, C) to (B, T, C); keys and values of earlier positions come from the cache."""
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.n_head, self.head_dim).transpose(1, 2) for t in self.c_attn(x).split(C, dim=-1))
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, S, D)
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0, self.kernel)  # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))
