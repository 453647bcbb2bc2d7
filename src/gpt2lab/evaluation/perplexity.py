"""Perplexity over strided windows, with the protocol without which the result cannot be compared.

    loss            = mean of -ln p(token | the tokens before it in its window)
    perplexity      = exp(loss)
    word perplexity = exp(loss * tokens / words)
    bits per byte   = loss * tokens / (ln 2 * bytes of the text)

A model reads at most ``context`` tokens at once, so a long stream is read in windows that start ``stride`` apart; the
last one is moved back to end with the stream. A token is scored (s) once, in the first window that predicts it:

    context 6, stride 2      window 0   s s s s s s
                             window 1       . . . . s s
                             window 2           . . . . s s

With stride = context a token has from 1 to ``context`` tokens before it. A smaller stride gives each token at least
context - stride + 1 of them (outside the first window), costs context / stride times as much, and lowers the result.
Windows cover the whole stream, or each document by itself, so that none sees another document.

Perplexity compares models with the same tokenizer only; word perplexity and bits per byte do not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from gpt2lab.data.loader import count_windows
from gpt2lab.data.shards import TokenStream
from gpt2lab.errors import InputError
from gpt2lab.evaluation.likelihood import require_causal_mask
from gpt2lab.model.gpt import GPT, evaluating

BLOCK = 1 << 20
"""Tokens searched for the starts of documents at a time."""


@dataclass(frozen=True)
class Perplexity:
    """The result, and how it was measured."""

    loss: float
    """Mean over the scored tokens, in nats."""
    tokens: int
    """Number of scored tokens."""
    bytes: int
    """Bytes of the text in UTF-8; the tokens between documents have none."""
    context: int
    """Tokens in a window."""
    stride: int
    """Tokens from the start of one window to the start of the next."""
    entropy_bits: float | None = None
    """Exact -log2 probability of the text where it is known: the least that any model can reach on average."""
    words: int | None = None
    """Words of the text, separated by white space; None if they were not counted."""
    by_document: bool = False
    """Whether windows stay within documents."""

    @property
    def perplexity(self) -> float:
        """exp(loss), per token; infinite where a float cannot hold it."""
        return _exp(self.loss)

    @property
    def word_perplexity(self) -> float | None:
        """exp of the nats per word; None if words were not counted."""
        return None if self.words is None else _exp(self.loss * self.tokens / self.words)

    @property
    def bits_per_byte(self) -> float:
        """Loss of the whole text in bits, per byte of the text."""
        return self.loss * self.tokens / (math.log(2) * self.bytes)

    @property
    def entropy_floor(self) -> float | None:
        """Entropy of the text in bits per byte; None if it is unknown."""
        return None if self.entropy_bits is None else self.entropy_bits / self.bytes

    @property
    def gap_percent(self) -> float | None:
        """Excess of the bits per byte over the entropy, in percent of it; None if the entropy is unknown."""
        return None if self.entropy_floor is None else 100.0 * (self.bits_per_byte / self.entropy_floor - 1.0)

    @property
    def figures(self) -> dict[str, float]:
        """The results by name, without those that are unknown."""
        names = ("loss", "perplexity", "word_perplexity", "bits_per_byte", "entropy_floor", "gap_percent")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def protocol(self) -> str:
        """How the results were measured, in one sentence."""
        before = self.context - self.stride + 1
        first, boundaries = (
            ("the first window of a document", "windows stay within documents")
            if self.by_document
            else ("the first window", "windows reach across document boundaries")
        )
        words = "" if self.words is None else f", word perplexity over its {self.words:,} whitespace-separated words"
        return (
            f"Each of {self.tokens:,} tokens (all but the first of the stream) is scored once, in windows of "
            f"{self.context:,} tokens with stride {self.stride:,}, after at least {before:,} "
            f"{'token' if before == 1 else 'tokens'} of context (fewer in {first}); {boundaries}; bits per byte are "
            f"over the {self.bytes:,} bytes of the text{words}."
        )


def _exp(nats: float) -> float:
    return math.inf if nats > 709 else math.exp(nats)


def perplexity_of(
    model: GPT,
    stream: TokenStream,
    text_bytes: int,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    entropy_bits: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    words: int | None = None,
    eot: int | None = None,
) -> Perplexity:
    """Measure the perplexity of a model on a split, in evaluation mode and under the caller's autocast.

    Args:
        model: The model; its mask must be causal.
        stream: The tokens of the split.
        text_bytes: Bytes of the text of the split, from its manifest.
        context: Tokens in a window; by default as many as the model reads, or all of a shorter stream.
        stride: From 1 to the context; by default half of it, rounded up.
        batch_size: Windows per forward pass. It affects speed and memory only.
        entropy_bits: Entropy of the split, if its manifest knows it.
        progress: Called with the number of tokens scored so far and their total.
        words: Words of the text, for the word perplexity.
        eot: The token that begins each document, to keep windows within documents; None lets them cross.

    Raises:
        InputError: A stream shorter than a window, a context longer than the model's, an empty text, a value out of
            range, or a mask that is not causal.
    """
    require_causal_mask(model.config)
    for count, unit in ((text_bytes, "bytes"), (words, "words")):
        if count is not None and count < 1:
            raise InputError(f"{stream.name}: the text has {count} {unit}; it must not be empty")
    context = window_length(model, stream, context)
    stride = (context + 1) // 2 if stride is None else stride
    windows = cut_windows(stream, context, stride, eot)
    total = sum(float(losses.sum()) for _, losses in losses_by_batch(model, stream, windows, batch_size, progress))
    scored = windows.scored
    return Perplexity(total / scored, scored, text_bytes, context, stride, entropy_bits, words, eot is not None)


def window_length(model: GPT, stream: TokenStream, context: int | None) -> int:
    """Return the length of a window: ``context``, by default as much as the model reads and the stream has.

    Raises:
        InputError: It is more than the model reads, or than the stream has.
    """
    n_ctx = model.config.n_ctx
    if context is None:
        context = max(1, min(n_ctx, len(stream) - 1))
    if not 1 <= context <= n_ctx:
        raise InputError(f"context is {context}; it must be between 1 and {n_ctx}, the context length of the model")
    count_windows(stream, context)
    return context


def losses_by_batch(
    model: GPT,
    stream: TokenStream,
    windows: Windows,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for each batch of windows, the positions of the scored targets in their windows and their losses in nats.

    Both are of shape (N,); the losses are fp64.

    Raises:
        InputError: The batch size is below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch size is {batch_size}; it must be at least 1")
    device, done = model.wte.weight.device, 0
    for batch in windows.batches(stream, batch_size):
        first = int(batch.scored.any(dim=0).int().argmax())  # nothing is scored before it: no logits are needed there
        with evaluating(model):
            all_losses = model.token_losses(batch.tokens.to(device), batch.targets[:, first:].to(device))
        scored = batch.scored.numpy()
        losses = all_losses.cpu().double().numpy()[scored[:, first:]]  # fp64 on the CPU: not every device has it
        yield np.nonzero(scored)[1], losses
        done += len(losses)
        if progress is not None:
            progress(done, windows.scored)


class Batch(NamedTuple):
    """Windows side by side; all tensors are of shape (B, L)."""

    tokens: torch.Tensor
    targets: torch.Tensor
    """The id that follows each token."""
    scored: torch.Tensor
    """Bool: false where an earlier window scores the same target, and on padding after a shorter window."""


@dataclass(frozen=True)
class Windows:
    """Windows of a stream; each array has one entry per window."""

    starts: np.ndarray
    """Position of the first token in the stream."""
    lengths: np.ndarray
    """Number of tokens read."""
    firsts: np.ndarray
    """First position in the window whose target is scored."""

    @property
    def scored(self) -> int:
        """Number of targets scored in all windows."""
        return int((self.lengths - self.firsts).sum())

    def batches(self, stream: TokenStream, batch_size: int) -> Iterator[Batch]:
        """Yield batches of windows, shortest first to keep padding small."""
        order = np.argsort(self.lengths, kind="stable")
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            starts, lengths, firsts = self.starts[chosen], self.lengths[chosen], self.firsts[chosen]
            rows = np.zeros((len(chosen), lengths.max() + 1), dtype=np.int64)
            for length in np.unique(lengths):
                same = lengths == length
                rows[same, : length + 1] = stream.read(starts[same], int(length) + 1)
            positions = np.arange(rows.shape[1] - 1)
            scored = (positions >= firsts[:, None]) & (positions < lengths[:, None])
            tokens = torch.from_numpy(rows)
            yield Batch(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(scored))


def cut_windows(stream: TokenStream, context: int, stride: int, eot: int | None = None) -> Windows:
    """Cut a stream into windows that together score each token but the first once.

    Args:
        stream: The tokens.
        context: Longest window, in tokens.
        stride: From 1 to ``context``: tokens from the start of one window to the start of the next.
        eot: The token that begins each document, to keep windows within documents; None treats the stream as one.
            The token that ends a document is scored with it.

    Raises:
        InputError: The stride is out of range, or the stream does not begin with a document.
    """
    if not 1 <= stride <= context:
        raise InputError(f"stride is {stride}; it must be between 1 and {context}, the length of a window")
    starts = np.zeros(1, dtype=np.int64) if eot is None else document_starts(stream, eot)
    sizes = np.diff(starts, append=len(stream) - 1)  # targets of each document
    starts, sizes = starts[sizes > 0], sizes[sizes > 0]
    counts = np.maximum(-(-(sizes - context) // stride), 0) + 1
    index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of a window in its document
    starts, sizes = np.repeat(starts, counts), np.repeat(sizes, counts)
    offsets = np.minimum(index * stride, np.maximum(sizes - context, 0))
    seen = np.where(index == 0, 0, (index - 1) * stride + context)  # targets of the document scored before
    return Windows(starts + offsets, np.minimum(sizes, context), seen - offsets)


def document_starts(stream: TokenStream, eot: int) -> np.ndarray:
    """Return the positions of the tokens that begin documents, (documents,).

    Raises:
        InputError: The stream does not begin with one.
    """
    found = [
        start + np.flatnonzero(stream.read(np.array([start]), min(BLOCK, len(stream) - start))[0] == eot)
        for start in range(0, len(stream), BLOCK)
    ]
    starts = np.concatenate(found)
    if not len(starts) or starts[0] != 0:
        raise InputError(
            f"{stream.name}: does not begin with the end-of-text token {eot}, so its documents cannot be separated; "
            "evaluate it without document boundaries"
        )
    return starts
