"""The windows in which a model reads a stream from its first token to its last, each token scored once.

A model reads at most ``context`` tokens at once, so a stretch is cut into windows that begin ``stride`` apart; the last
is moved back to end with the stretch. A token is scored (s) in the first window that has it as a target:

    context 6, stride 2      window 0   s s s s s s
                             window 1       . . . . s s
                             window 2           . . . . s s

Stretches are the whole stream, or its documents one by one: then no window sees anything of another document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from gpt2lab.data import TokenStream
from gpt2lab.errors import InputError

_BLOCK = 1 << 20
"""Tokens searched at once for the ends of documents."""


@dataclass(frozen=True)
class ScoredBatch:
    """Windows side by side, all (B, L): ids, the id that follows each, and whether it is scored here."""

    tokens: torch.Tensor
    targets: torch.Tensor
    scored: torch.Tensor
    """Bool; false where an earlier window has the same target, and on the padding behind a shorter window."""


@dataclass(frozen=True)
class Windows:
    """Where the windows lie; arrays of one entry a window."""

    starts: np.ndarray
    """Position in the stream of a window's first token."""
    lengths: np.ndarray
    """Tokens that it reads."""
    firsts: np.ndarray
    """The first place in it whose target is scored."""

    @property
    def scored(self) -> int:
        """Targets scored in all of them."""
        return int((self.lengths - self.firsts).sum())

    def batches(self, stream: TokenStream, batch_size: int) -> Iterator[ScoredBatch]:
        """Yield them, shortest first so that little is padded, ``batch_size`` at a time."""
        order = np.argsort(self.lengths, kind="stable")
        for begin in range(0, len(order), batch_size):
            yield self._batch(stream, order[begin : begin + batch_size])

    def _batch(self, stream: TokenStream, chosen: np.ndarray) -> ScoredBatch:
        starts, lengths, firsts = self.starts[chosen], self.lengths[chosen], self.firsts[chosen]
        rows = np.zeros((len(chosen), lengths.max() + 1), dtype=np.int64)
        for length in np.unique(lengths):
            same = lengths == length
            rows[same, : length + 1] = stream.read(starts[same], int(length) + 1)
        places = np.arange(rows.shape[1] - 1)
        scored = (places >= firsts[:, None]) & (places < lengths[:, None])
        tokens = torch.from_numpy(rows)
        return ScoredBatch(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(scored))


def cut(stream: TokenStream, context: int, stride: int, eot: int | None = None) -> Windows:
    """Cut a stream into windows that score each token but the first once.

    Args:
        stream: The tokens.
        context: Tokens of a window at most.
        stride: From 1 to ``context``: tokens from one window's begin to the next.
        eot: The token that begins each document, to keep windows within documents; None takes the stream as one.
            What closes a document is scored with it.

    Raises:
        InputError: The stride is out of range, or the stream does not begin with a document.
    """
    if not 1 <= stride <= context:
        raise InputError(f"stride is {stride}; it must be between 1 and the window's {context} tokens")
    begins = np.zeros(1, dtype=np.int64) if eot is None else document_begins(stream, eot)
    sizes = np.diff(begins, append=len(stream) - 1)  # targets of each stretch
    begins, sizes = begins[sizes > 0], sizes[sizes > 0]
    counts = np.maximum(-(-(sizes - context) // stride), 0) + 1
    index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of a window in its stretch
    begins, sizes = np.repeat(begins, counts), np.repeat(sizes, counts)
    offsets = np.minimum(index * stride, np.maximum(sizes - context, 0))
    seen = np.where(index == 0, 0, (index - 1) * stride + context)  # targets of the stretch scored before
    return Windows(begins + offsets, np.minimum(sizes, context), seen - offsets)


def document_begins(stream: TokenStream, eot: int) -> np.ndarray:
    """Return the positions of the tokens that begin documents, (documents,).

    Raises:
        InputError: The stream does not begin with one.
    """
    found = [
        start + np.flatnonzero(stream.read(np.array([start]), min(_BLOCK, len(stream) - start))[0] == eot)
        for start in range(0, len(stream), _BLOCK)
    ]
    begins = np.concatenate(found)
    if not len(begins) or begins[0] != 0:
        raise InputError(
            f"{stream.name}: does not begin with the end-of-text token {eot}, so where documents begin is not known; "
            "measure it without the borders of documents"
        )
    return begins
