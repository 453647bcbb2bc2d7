"""Perplexity over strided windows and loss by position, with the protocol that makes results comparable.

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

The loss by position shows how much a model gains from its context:

    loss(t) = mean of -ln p(token | the t tokens before it in its window),    t = 1 ... context

Where the curve is flat, more context brings nothing. Its windows do not overlap (stride = context), so every position
is averaged over equally many tokens. A run stores the curve as ``positions.json``, with a plot beside it:

    {"step", "split", "protocol", "losses": [nats, ...], "tokens": [count, ...]}

Entry t - 1 of both lists belongs to position t; a loss is null where no token was scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gpt2lab import plots
from gpt2lab.data.dataset import TokenDataset, text_bytes
from gpt2lab.data.loader import count_windows
from gpt2lab.data.shards import TokenStream
from gpt2lab.errors import InputError, require
from gpt2lab.evaluation.likelihood import Progress, require_causal_mask
from gpt2lab.files import write_checked_json
from gpt2lab.model.language_model import LanguageModel, evaluating
from gpt2lab.runs import Run

POSITIONS_FILE = "positions.json"
MAX_POSITION_POINTS = 40
"""Points of a curve of losses by position, evenly spaced on the logarithmic axis."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out text to evaluate on."""

    name: str
    """What results call it."""
    stream: TokenStream
    bytes: int
    """Bytes of the text in UTF-8; the tokens between documents have none."""
    eot: int
    """Id of the token that begins each document."""
    words: int | None = None
    """Words of the text, separated by white space; None if they were not counted."""
    entropy_bits: float | None = None
    """Exact -log2 probability of the text where it is known: the least that any model can reach on average."""
    preparation: str = ""
    """What was done to the text first: a sentence that the protocol begins with, or nothing."""

    @classmethod
    def of_split(
        cls, dataset: TokenDataset, split: str, name: str = "", words: int | None = None, preparation: str = ""
    ) -> HeldOut:
        """Take a split of prepared data, by default with its own name and the number of words of its decoded text.

        If only some of its tokens count in the loss, then so do their bytes, and words are not counted.

        Raises what `TokenDataset.stream` does.
        """
        stream, info, eot = dataset.stream(split), dataset.manifest.splits[split], dataset.manifest.tokenizer.eot
        if stream.masked:
            return cls(name or split, stream, _counted_bytes(dataset, stream), eot)
        if words is None:
            words = sum(len(text.split()) for text in dataset.documents(split))
        return cls(name or split, stream, info.bytes, eot, words, info.entropy_bits, preparation)


def _counted_bytes(dataset: TokenDataset, stream: TokenStream) -> int:
    """Return the bytes of text in the tokens that count in the loss."""
    counts = np.zeros(dataset.manifest.tokenizer.n_vocab, dtype=np.int64)
    for ids, counted in zip(stream.blocks(), stream.counted_blocks(), strict=True):
        counts += np.bincount(ids[counted], minlength=len(counts))
    return text_bytes(counts, dataset.tokenizer())


@dataclass(frozen=True)
class Perplexity:
    """The result, and how it was measured."""

    loss: float
    """Mean over the scored tokens, in nats."""
    tokens: int
    """Number of scored tokens."""
    context: int
    """Tokens in a window."""
    stride: int
    """Tokens from the start of one window to the start of the next."""
    by_document: bool
    """Whether windows stay within documents."""
    text: HeldOut

    @property
    def figures(self) -> dict[str, float]:
        """The results by name, without those that are unknown.

        ``word_perplexity`` needs the number of words; ``entropy_floor`` (bits per byte) and ``gap_percent``, the excess
        of the bits per byte over it, need the entropy of the text. A perplexity that a float cannot hold is infinite.
        """
        nats, text = self.loss * self.tokens, self.text
        figures = {"loss": self.loss, "perplexity": _exp(self.loss)}
        if text.words is not None:
            figures["word_perplexity"] = _exp(nats / text.words)
        figures["bits_per_byte"] = nats / (math.log(2) * text.bytes)
        if text.entropy_bits is not None:
            figures["entropy_floor"] = text.entropy_bits / text.bytes
            figures["gap_percent"] = 100.0 * (figures["bits_per_byte"] / figures["entropy_floor"] - 1.0)
        return figures

    @property
    def protocol(self) -> str:
        """How the results were measured."""
        before, words = self.context - self.stride + 1, self.text.words
        scored, whose = "all but the first of the stream", "the text"
        first, boundaries = "", "windows reach across document boundaries"
        if self.by_document:
            first, boundaries = " of a document", "windows stay within documents"
        if self.text.stream.masked:
            scored, whose = "those that count in the loss", "the text that they spell"
        counted = "" if words is None else f", word perplexity over its {words:,} whitespace-separated words"
        return (
            f"{self.text.preparation}Each of {self.tokens:,} tokens ({scored}) is scored once, "
            f"in windows of {self.context:,} tokens with stride {self.stride:,}, after at least {before:,} "
            f"{'token' if before == 1 else 'tokens'} of context (fewer in the first window{first}); {boundaries}; "
            f"bits per byte are over the {self.text.bytes:,} bytes of {whose}{counted}."
        )


def _exp(nats: float) -> float:
    return math.inf if nats > 709 else math.exp(nats)


def perplexity_of(
    model: LanguageModel,
    held_out: HeldOut,
    context: int | None = None,
    stride: int | None = None,
    by_document: bool = False,
    progress: Progress | None = None,
    batch_size: int = 8,
) -> Perplexity:
    """Measure the perplexity of a model, in evaluation mode and under the caller's autocast.

    Args:
        model: The model; its mask must be causal.
        held_out: The text.
        context: Tokens in a window; by default as many as the model reads, or all of a shorter text.
        stride: From 1 to the context; by default half of it, rounded up.
        by_document: Whether windows stay within documents.
        progress: Called with the number of tokens scored so far and their total.
        batch_size: Windows per forward pass. It affects speed and memory only.

    Raises:
        InputError: A text shorter than a window, a context longer than the model's, an empty text, a value out of
            range, or a mask that is not causal.
    """
    held_out.stream.require_counted()
    for count, unit in ((held_out.bytes, "bytes"), (held_out.words, "words")):
        if count is not None and count < 1:
            raise InputError(f"{held_out.stream.name}: the text has {count} {unit}; it must not be empty")
    context = _window_length(model, held_out.stream, context)
    stride = (context + 1) // 2 if stride is None else stride
    windows = cut_windows(held_out.stream, context, stride, held_out.eot if by_document else None)
    losses = _losses_by_batch(model, held_out.stream, windows, batch_size, progress)
    sums, counts = zip(*((float(batch.sum()), len(batch)) for _, batch in losses), strict=True)
    return Perplexity(sum(sums) / sum(counts), sum(counts), context, stride, by_document, held_out)


@dataclass(frozen=True)
class PositionCurve:
    """The mean loss at each position; entry t - 1 belongs to the tokens with t tokens before them."""

    step: int = field(default=0, kw_only=True)
    """Step of the weights, which `save_positions` stores."""
    split: str
    """The text that it was measured on."""
    protocol: str
    """How it was measured, in one sentence."""
    losses: tuple[float | None, ...]
    """Mean loss in nats; None where no token was scored."""
    tokens: tuple[int, ...]
    """Number of tokens scored."""

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """Mean position and mean loss, weighted by tokens, of intervals that grow by a constant factor."""
        last = len(self.losses)
        edges = sorted({round(last ** (n / MAX_POSITION_POINTS)) for n in range(MAX_POSITION_POINTS)} | {last + 1})
        points: list[tuple[float, float]] = []
        for begin, end in pairwise(edges):
            found = zip(range(begin, end), self.losses[begin - 1 :], self.tokens[begin - 1 :], strict=False)
            scored = [(t, loss, n) for t, loss, n in found if loss is not None]
            if total := sum(n for _, _, n in scored):
                mean = sum(loss * n for _, loss, n in scored) / total
                points.append((sum(t for t, _, _ in scored) / len(scored), mean))
        return tuple(points)

    def draw(self, title: str = "") -> plots.Figure:
        """Plot the curve."""
        return plots.by_distance({"": [self.points]}, "tokens before it in the window", "loss, nats per token", title)


def loss_by_position(
    model: LanguageModel,
    held_out: HeldOut,
    context: int | None = None,
    by_document: bool = False,
    progress: Progress | None = None,
    batch_size: int = 8,
) -> PositionCurve:
    """Measure the mean loss at each position of the window. Arguments and errors are those of `perplexity_of`."""
    held_out.stream.require_counted()
    context = _window_length(model, held_out.stream, context)
    windows = cut_windows(held_out.stream, context, context, held_out.eot if by_document else None)
    sums, counts = np.zeros(context), np.zeros(context, dtype=np.int64)
    for positions, losses in _losses_by_batch(model, held_out.stream, windows, batch_size, progress):
        sums += np.bincount(positions, losses, minlength=context)
        counts += np.bincount(positions, minlength=context)
    means = [
        loss / n if n and math.isfinite(loss) else None for loss, n in zip(sums.tolist(), counts.tolist(), strict=True)
    ]
    protocol = (
        f"Mean loss by the number of preceding tokens in the window, over {counts.sum():,} tokens in non-overlapping "
        f"windows of {context:,} tokens {'within documents' if by_document else 'across document boundaries'}."
    )
    return PositionCurve(held_out.name, protocol, tuple(means), tuple(counts.tolist()))


def save_positions(run: Run, step: int, curve: PositionCurve) -> tuple[Path, Path]:
    """Write ``positions.json`` and ``positions.png`` for the weights of a step; return their paths."""
    file = run.evaluations(step) / POSITIONS_FILE
    write_checked_json(file, asdict(replace(curve, step=step)))
    plots.write_png(file.with_suffix(".png"), curve.draw(f"{run.path.name}, step {step:,}, {curve.split}"))
    return file, file.with_suffix(".png")


def _window_length(model: LanguageModel, stream: TokenStream, context: int | None) -> int:
    """Return the length of a window: ``context``, by default as much as the model reads and the stream has.

    Raises:
        InputError: It is more than the model reads, or than the stream has, or the mask is not causal.
    """
    require_causal_mask(model.config)
    n_ctx = model.config.n_ctx
    if context is None:
        context = max(1, min(n_ctx, len(stream) - 1))
    require(1 <= context <= n_ctx, "context", context, f"between 1 and {n_ctx}, the context length of the model")
    count_windows(stream, context)
    return context


def _losses_by_batch(
    model: LanguageModel, stream: TokenStream, windows: Windows, batch_size: int, progress: Progress | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for each batch of windows, the positions of the scored targets in their windows and their losses in nats.

    Both are of shape (N,); the losses are fp64.

    Raises:
        InputError: The batch size is below 1.
    """
    require(batch_size >= 1, "batch size", batch_size, "at least 1")
    device, done = model.device, 0
    for batch in windows.batches(stream, batch_size):
        first = int(batch.counted.any(dim=0).int().argmax())  # nothing is scored before it: no logits are needed there
        with evaluating(model):
            all_losses = model.token_losses(batch.tokens.to(device), batch.targets[:, first:].to(device))
        counted = batch.counted.numpy()
        losses = all_losses.cpu().double().numpy()[counted[:, first:]]  # fp64 on the CPU: not every device has it
        yield np.nonzero(counted)[1], losses
        done += int(batch.scored.sum())
        if progress is not None:
            progress(done, windows.scored)


class Batch(NamedTuple):
    """Windows side by side; all tensors are of shape (B, L)."""

    tokens: torch.Tensor
    targets: torch.Tensor
    """The id that follows each token."""
    scored: torch.Tensor
    """Bool: false where an earlier window scores the same target, and on padding after a shorter window."""
    counted: torch.Tensor
    """Bool: those that are scored and count in the loss."""


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
            counted = np.zeros((len(chosen), lengths.max()), dtype=bool)
            for length in np.unique(lengths):
                same = lengths == length
                rows[same, : length + 1] = stream.read(starts[same], int(length) + 1)
                counted[same, :length] = stream.counted(starts[same] + 1, int(length))
            positions = np.arange(rows.shape[1] - 1)
            scored = (positions >= firsts[:, None]) & (positions < lengths[:, None])
            tokens = torch.from_numpy(rows)
            yield Batch(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(scored), torch.from_numpy(scored & counted))


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
    require(1 <= stride <= context, "stride", stride, f"between 1 and {context}, the length of a window")
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
    starts = np.flatnonzero(np.concatenate([block == eot for block in stream.blocks()]))
    if not len(starts) or starts[0] != 0:
        raise InputError(
            f"{stream.name}: does not begin with the end-of-text token {eot}, so its documents cannot be separated; "
            "evaluate it without document boundaries"
        )
    return starts
