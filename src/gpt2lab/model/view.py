"""What the queries of a forward pass may read, in the form that its kernel takes: made once, read by every layer.

mask of the configuration, or a user's tensor       which keys may be read
  & documents, & not the padding of a cache           of this batch
  -> kernel, by mask, device, dtype, length, training   `choose_kernel`
  -> None | boolean | additive | bands | block mask   `make_view`
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from gpt2lab.errors import InputError
from gpt2lab.model.banded import BLOCK, Band, make_bands
from gpt2lab.model.masks import Mask, additive, as_mask, causal_tensor, dense, document, without_empty_rows

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
