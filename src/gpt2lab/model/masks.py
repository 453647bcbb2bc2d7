"""Who may attend to whom, as data: a predicate that is true if query q may attend to key k.

    allows(b, h, q, k) -> bool        row of the batch, head, position of the query, position of the key

The four are integer tensors that broadcast against one another, so one line serves every kernel: dense kernels
evaluate it on all pairs, the banded kernel on the pairs of a block, and FlexAttention traces it. `Mask` adds what is
known about a predicate, so that kernels and caches can skip keys. Masks combine with ``&`` and ``|``:

    sliding_window(256)                       causal() & Mask(lambda b, h, q, k: q - k < 256, reach=256)
    global tokens plus window                 sliding_window(256) | causal() & Mask(lambda b, h, q, k: k < 4)

`MASKS` is the registry: the options of a mask in the configuration are the parameters of its function. A plot of each,
drawn from the predicate, is in docs/attention.md.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from gpt2lab.errors import InputError, located

if TYPE_CHECKING:  # the configuration imports this module, and --help must not wait for torch
    import torch

Predicate: TypeAlias = "Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]"

CHECKED_POSITIONS = 512
"""The claims of a mask are checked on sequences up to this length."""


@dataclass(frozen=True)
class Mask:
    """A predicate, and what is known about it."""

    allows: Predicate
    reach: int | None = None
    """A query at q attends to no key at q - reach or before, except the leading ones; None: no such bound."""
    leading: int = 0
    """Number of positions at the start that every query may attend to, whatever the reach."""
    looks_ahead: bool = False
    """Whether a query may attend to later keys: then the next-token loss leaks, and a cache cannot be used."""

    def __and__(self, other: Mask) -> Mask:
        """Allow what both allow."""
        near = min((m for m in (self, other) if m.reach is not None), key=lambda m: m.leading + m.span, default=self)
        return Mask(
            lambda b, h, q, k: self.allows(b, h, q, k) & other.allows(b, h, q, k),
            near.reach,
            near.leading,
            self.looks_ahead and other.looks_ahead,
        )

    def __or__(self, other: Mask) -> Mask:
        """Allow what either allows."""
        limited = self.reach is not None and other.reach is not None
        return Mask(
            lambda b, h, q, k: self.allows(b, h, q, k) | other.allows(b, h, q, k),
            max(self.span, other.span) if limited else None,
            max(self.leading, other.leading),
            self.looks_ahead or other.looks_ahead,
        )

    @property
    def span(self) -> int:
        """The reach; 0 if it is unlimited."""
        return self.reach or 0

    @property
    def is_causal(self) -> bool:
        """Whether it is the plain causal mask, which kernels have built in."""
        return self.allows is _not_after

    @property
    def is_bandable(self) -> bool:
        """Whether the banded kernel supports it."""
        return self.reach is not None and not self.looks_ahead

    def keys_per_query(self, S: int) -> int:
        """Return an upper bound on the number of S keys that a query attends to: the leading ones and the reach."""
        return S if self.reach is None else min(S, self.leading + self.reach)


def _not_after(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return k <= q


def causal() -> Mask:
    """k <= q: GPT's own (Radford et al. 2018, section 3.1)."""
    return Mask(_not_after)


def sliding_window(window: int) -> Mask:
    """q - window < k <= q: the last ``window`` positions including its own (Beltagy et al. 2020, section 3.1)."""
    return causal() & Mask(lambda b, h, q, k: q - k < window, reach=window)


def global_window(window: int, prefix: int) -> Mask:
    """The window, and the first ``prefix`` positions for all (Beltagy et al. 2020, section 3.1, made causal)."""
    leading = causal() & Mask(lambda b, h, q, k: k < prefix, reach=window, leading=prefix)
    return sliding_window(window) | leading


def strided(window: int) -> Mask:
    """The window, and every ``window``-th position before it (Child et al. 2019, section 4.2, its two heads as one)."""
    return causal() & Mask(lambda b, h, q, k: (q - k < window) | ((q - k) % window == 0))


def prefix_lm(prefix: int) -> Mask:
    """Causal, but the first ``prefix`` positions see one another both ways (Raffel et al. 2020, section 3.2.1)."""
    return causal() | Mask(lambda b, h, q, k: k < prefix, looks_ahead=True)


def bidirectional() -> Mask:
    """Every query attends to every key (Devlin et al. 2019); the next-token loss is meaningless with it."""
    return Mask(lambda b, h, q, k: k >= 0, looks_ahead=True)


def document(ids: torch.Tensor) -> Mask:
    """Query and key belong to the same document; ids (B, T) number the documents. To be combined with another mask."""
    return Mask(lambda b, h, q, k: ids[b, q] == ids[b, k], looks_ahead=True)


MASKS: dict[str, Callable[..., Mask]] = {
    "causal": causal,
    "window": sliding_window,
    "global": global_window,
    "strided": strided,
    "prefix": prefix_lm,
    "bidirectional": bidirectional,
}
"""Masks by their name in the configuration. To add your own, add it here, in a file that ``--import`` names."""


def options_of(make: Callable[..., Mask]) -> tuple[str, ...]:
    """Return the configuration options that a mask takes: the parameters of its function."""
    return tuple(inspect.signature(make).parameters)


@functools.cache
def make_mask(
    name: str, make: Callable[..., Mask], n_ctx: int, n_head: int, options: tuple[tuple[str, int], ...]
) -> Mask:
    """Build a mask and check its claims on up to 512 positions. The cache is by function: a name may get another.

    Raises:
        InputError: It cannot be computed (with the line), or lets a query attend to later keys, or beyond its reach,
            without declaring so.
    """
    import torch

    n = min(n_ctx, CHECKED_POSITIONS)
    positions = torch.arange(n, device="cpu")
    q, k = positions[:, None], positions
    try:
        mask = make(**dict(options))
        if not isinstance(mask, Mask):
            raise TypeError(f"{mask!r:.60} is not a Mask")
        if mask.is_causal:
            return mask
        allowed = dense(mask, 1, n_head, positions, positions).expand(1, n_head, n, n)
        if allowed.dtype != torch.bool:
            raise TypeError(f"the predicate returns {allowed.dtype}, not torch.bool")
    except Exception as error:
        file = getattr(getattr(make, "__code__", None), "co_filename", "")
        raise InputError(f'mask "{name}": {located(error, file)}') from error
    wrong = {}
    if not mask.looks_ahead:
        wrong["which is later; combine it with causal(), or declare looks_ahead=True"] = k > q
    if mask.reach is not None:
        far = (q - k >= mask.reach) & (k >= mask.leading)
        wrong[f"beyond its reach of {mask.reach}; correct the reach"] = far
    for why, where in wrong.items():
        if bool((found := allowed & where).any()):
            _, h, query, key = found.nonzero()[0].tolist()
            raise InputError(f'mask "{name}" lets head {h} at position {query} attend to position {key}, {why}')
    return mask


def dense(mask: Mask, B: int, H: int, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return a mask as a boolean tensor (B or 1, H or 1, T, S) for positions q (T,) and k (S,), or (B, T) and (B, S).

    A dimension is 1 if the mask does not depend on the row or the head.
    """
    return on_pairs(mask.allows, B, H, q, k)


def on_pairs(function: Predicate, B: int, H: int, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return what a function of row, head, query and key gives for each, as `dense` does for a mask."""
    import torch

    b = torch.arange(B, device=q.device)[:, None, None, None]
    h = torch.arange(H, device=q.device)[:, None, None]
    T, S = q.shape[-1], k.shape[-1]
    q, k = (q[:, None, :, None], k[:, None, None, :]) if q.dim() == 2 else (q[:, None], k)
    values = function(b, h, q, k)
    values = values[(None,) * (4 - values.dim())]
    return values.expand(*values.shape[:2], T, S)


def causal_tensor(T: int, S: int, device: torch.device) -> torch.Tensor:
    """Return the (T, S) mask in which query i, at position S - T + i, attends to positions up to its own."""
    import torch

    queries = torch.arange(S - T, S, device=device)[:, None]  # (T, 1)
    keys = torch.arange(S, device=device)[None, :]  # (1, S)
    return keys <= queries


def additive(allowed: torch.Tensor, dtype: torch.dtype, scores: torch.Tensor | None = None) -> torch.Tensor:
    """Return 0, or what is to be added to the scores, where a boolean mask is true and -inf elsewhere."""
    import torch

    if scores is not None:
        return torch.where(allowed, scores.to(dtype), -math.inf)
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -math.inf)


def without_empty_rows(allowed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Unmask the queries of a mask (.., T, S) that may attend to nothing; return which they are, (.., T, 1), if any.

    This keeps their softmax and its gradient finite; their output is set to zero afterwards.
    """
    empty = ~allowed.any(dim=-1, keepdim=True)
    if allowed.device.type == "cpu" and not bool(empty.any()):  # elsewhere the check would wait for the device
        return allowed, None
    return allowed | empty, empty


def as_mask(mask: torch.Tensor, B: int, H: int, T: int, S: int) -> torch.Tensor:
    """Return a user's mask as a boolean tensor that broadcasts to (B, H, T, S).

    Args:
        mask: Shape (T, S), (B, T, S) or (B, H, T, S); boolean, or numbers that are all 0 or 1.
        B: Batch size.
        H: Heads.
        T: Queries.
        S: Keys.

    Raises:
        InputError: The shape is another, or a value is neither 0 nor 1.
    """
    if tuple(mask.shape) not in ((T, S), (B, T, S), (B, H, T, S)):
        raise InputError(
            f"the mask has shape {tuple(mask.shape)}; it must be one of {(T, S)}, {(B, T, S)} and {(B, H, T, S)}"
        )
    import torch

    if mask.dtype != torch.bool:
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise InputError(
                "the mask holds values other than 0 and 1; give a boolean tensor, True where q may attend to k"
            )
        mask = mask.bool()
    return mask[:, None] if mask.dim() == 3 else mask
