"""Perplexity over strided windows, with the protocol that a figure means nothing without.

    loss = mean of -ln p(token | what the window gives before it)      perplexity = exp(loss)
    bits per byte = loss * tokens / (ln 2 * bytes of the text)

    per word       = exp(loss * tokens / words)

A long stream is read in windows that overlap (`windows.py`), and each token but the first is scored once, in the first
window that has it.
With stride = context a token has from 1 to ``context`` tokens before it; a smaller stride gives every token at least
context - stride + 1, costs context / stride times as much, and lowers the figure. Perplexity per token compares models
of one tokenizer only; per word and bits per byte do so whatever the tokens are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from gpt2lab import plots
from gpt2lab.data.loader import count_windows
from gpt2lab.data.shards import TokenStream
from gpt2lab.errors import InputError
from gpt2lab.evaluation.likelihood import require_no_leak
from gpt2lab.files import read_json, write_json
from gpt2lab.model.gpt import GPT, evaluating
from gpt2lab.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIKITEXT = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r" @([-,.])@ ", r"\1"),
        (r"(?<==) (?==)", ""),  # the marks of a heading
        (r'" ([^"\n]*?) "', r'"\1"'),
        (r"(?<=s) '(?= )", "'"),
        (r"(?<= )' ([^'\n]*?) '(?= )", r"'\1'"),
        (r" '(?=(?:s|m|d|t|ll|re|ve)\b)", "'"),
        (r"(?<=\d) ([–‑/]) (?=\d)", r"\1"),
        (r"([$£€]) (?=\d)", r"\1"),
        (r"([(\[{]) ", r"\1"),
        (r" (?=[,.;:!?%)\]}](?:[ ,.;:!?%)\]}\"']|$))", ""),
        (r"^ | $", ""),
    )
)


def wikitext(text: str) -> str:
    """Undo WikiText's tokenisation, line by line.

    >>> wikitext(" It weighs 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 – 4 @.@ 9 lb ) . ")
    'It weighs 0.7–2.2 kg (1.5–4.9 lb).'
    """
    for pattern, replacement in _WIKITEXT:
        text = pattern.sub(replacement, text)
    return text


DETOKENISERS: dict[str, Callable[[str], str]] = {"wikitext": wikitext}
"""What ``--detokenise`` takes: a function of whole lines."""


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


@dataclass(frozen=True)
class Perplexity:
    """What was measured, and how."""

    loss: float
    """Mean over the scored tokens, in nats."""
    tokens: int
    """Tokens scored."""
    bytes: int
    """Bytes of the text in UTF-8; the tokens between documents have none."""
    context: int
    """Tokens of a window."""
    stride: int
    """Tokens from one window's begin to the next."""
    entropy_bits: float | None = None
    """The text's exact -log2 probability where it is known: less than this no model can spend on average."""
    words: int | None = None
    """Words of the text, parted by white space, where they were counted."""
    by_document: bool = False
    """Whether windows stay within documents."""

    @property
    def perplexity(self) -> float:
        """Return exp(loss), per token; infinite where a float cannot hold it."""
        return _exp(self.loss)

    @property
    def word_perplexity(self) -> float | None:
        """Return exp of the nats that a word costs; None where words were not counted."""
        return None if self.words is None else _exp(self.loss * self.tokens / self.words)

    @property
    def bits_per_byte(self) -> float:
        """Bits that the model spends on a byte of the text."""
        return self.loss * self.tokens / (math.log(2) * self.bytes)

    @property
    def entropy_floor(self) -> float | None:
        """Bits of entropy that a byte of the text has; None where it is not known."""
        return None if self.entropy_bits is None else self.entropy_bits / self.bytes

    @property
    def gap_percent(self) -> float | None:
        """How far the bits per byte lie above the floor, in percent of it; None where it is not known."""
        return None if self.entropy_floor is None else 100.0 * (self.bits_per_byte / self.entropy_floor - 1.0)

    @property
    def figures(self) -> dict[str, float]:
        """Return the figures by name; those that are not known are left out."""
        names = ("loss", "perplexity", "word_perplexity", "bits_per_byte", "entropy_floor", "gap_percent")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def protocol(self) -> str:
        """Return one sentence that says how the figures were taken."""
        before = self.context - self.stride + 1
        begin, borders = (
            ("a document's first", "and do not cross the borders of documents")
            if self.by_document
            else ("the first", "across the borders of documents")
        )
        words = "" if self.words is None else f", per word over its {self.words:,} words (parted by white space)"
        return (
            f"Each of {self.tokens:,} tokens (all but the first of the stream) is scored once, in windows of "
            f"{self.context:,} tokens {self.stride:,} apart that give it at least {before:,} "
            f"{'token' if before == 1 else 'tokens'} before it (fewer in {begin} window) {borders}; "
            f"bits per byte are over the text's {self.bytes:,} bytes{words}."
        )


def _exp(nats: float) -> float:
    return math.exp(nats) if not nats > 709 else math.inf


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
    """Measure a model's perplexity on a split. It runs in evaluation mode, in the caller's autocast.

    Args:
        model: The model.
        stream: The split's tokens.
        text_bytes: Bytes of the split's text, as its manifest says.
        context: Tokens of a window, at most the model's; None is the model's, or all that a shorter stream has.
        stride: From 1 to the context; None is half of it.
        batch_size: Windows at once. It changes the time and nothing else.
        entropy_bits: The split's entropy where its manifest knows it.
        progress: Called with the tokens scored so far and those to score.
        words: Words of the text, for the perplexity per word.
        eot: The token that begins a document, to keep windows within documents; None reads across their borders.

    Raises:
        InputError: A stream shorter than a window, a context beyond the model's, no text, a value out of range, or a
            mask that looks ahead, under which a token is read before it is scored.
    """
    require_no_leak(model.config)
    if text_bytes < 1 or (words is not None and words < 1):
        held = f"{text_bytes} bytes" if text_bytes < 1 else f"{words} words"
        raise InputError(f"{stream.name}: a text of {held}; give one with text in it")
    context = checked_context(model, stream, context)
    stride = (context + 1) // 2 if stride is None else stride
    windows = cut(stream, context, stride, eot)
    total = sum(float(losses.sum()) for _, losses in scored_losses(model, stream, windows, batch_size, progress))
    scored = windows.scored
    return Perplexity(total / scored, scored, text_bytes, context, stride, entropy_bits, words, eot is not None)


def checked_context(model: GPT, stream: TokenStream, context: int | None) -> int:
    """Return the tokens of a window: those asked for, or all that the model reads and the stream has.

    Raises:
        InputError: More than the model reads, or than the stream has.
    """
    n_ctx = model.config.n_ctx
    if context is None:
        context = max(1, min(n_ctx, len(stream) - 1))
    if not 1 <= context <= n_ctx:
        raise InputError(f"context is {context}; it must be between 1 and the {n_ctx} tokens that the model reads")
    count_windows(stream, context)
    return context


def scored_losses(
    model: GPT,
    stream: TokenStream,
    windows: Windows,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield of each batch of windows the scored targets' places in their window, (N,), and losses in nats, (N,).

    Raises:
        InputError: The batch size is below 1.
    """
    if batch_size < 1:
        raise InputError(f"batch size is {batch_size}; it must be 1 or more")
    done = 0
    for batch in windows.batches(stream, batch_size):
        places, losses = _score(model, batch)
        yield places, losses
        done += len(losses)
        if progress is not None:
            progress(done, windows.scored)


def _score(model: GPT, batch: ScoredBatch) -> tuple[np.ndarray, np.ndarray]:
    device = model.wte.weight.device
    first = int(batch.scored.any(dim=0).int().argmax())  # no window scores anything before: no logits are made there
    with evaluating(model):
        losses = model.token_losses(batch.tokens.to(device), batch.targets[:, first:].to(device))  # (B, L - first)
    scored = batch.scored.numpy()
    chosen = losses.cpu().double().numpy()[scored[:, first:]]  # summed in fp64, which not every device has
    return np.nonzero(scored)[1], chosen


@dataclass(frozen=True)
class PositionLosses:
    """The curve; entry t - 1 is of the tokens with t tokens before them."""

    losses: tuple[float, ...]
    """Mean loss at each place, in nats; NaN where no token was scored."""
    tokens: tuple[int, ...]
    """Tokens scored at each place."""
    by_document: bool
    """Whether windows stay within documents."""

    @property
    def protocol(self) -> str:
        """Return one sentence that says how the curve was taken."""
        across = "within documents" if self.by_document else "across the borders of documents"
        return (
            f"Mean loss by the tokens before a token in its window, over {sum(self.tokens):,} tokens in windows of "
            f"{len(self.losses):,} that follow each other {across}."
        )


def loss_by_position(
    model: GPT,
    stream: TokenStream,
    context: int | None = None,
    batch_size: int = 8,
    eot: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PositionLosses:
    """Measure the loss at each place of the context. Arguments and errors are those of `perplexity_of`."""
    require_no_leak(model.config)
    context = checked_context(model, stream, context)
    windows = cut(stream, context, context, eot)
    sums, counts = np.zeros(context), np.zeros(context, dtype=np.int64)
    for places, losses in scored_losses(model, stream, windows, batch_size, progress):
        sums += np.bincount(places, losses, minlength=context)
        counts += np.bincount(places, minlength=context)
    with np.errstate(invalid="ignore"):
        means = sums / counts
    return PositionLosses(tuple(means.tolist()), tuple(counts.tolist()), eot is not None)


POSITIONS_FILE = "positions.json"
MAX_POSITION_POINTS = 40
"""Points of a curve of losses by position, evenly spaced on the logarithmic axis."""


@dataclass(frozen=True)
class PositionCurve:
    """The loss by position of a run, as it is plotted."""

    step: int
    split: str
    protocol: str
    points: tuple[tuple[float, float], ...]
    """Position (the number of tokens before) and loss; see `position_points`."""


def save_positions(run: Run, step: int, split: str, curve: PositionLosses) -> tuple[Path, Path]:
    """Write ``positions.json`` and ``positions.png`` for the weights of a step; return their paths."""
    file = run.evaluations(step) / POSITIONS_FILE
    losses = [loss if math.isfinite(loss) else None for loss in curve.losses]
    saved = {"step": step, "split": split, "protocol": curve.protocol, "losses": losses, "tokens": curve.tokens}
    write_json(file, saved)
    points = position_points(curve.losses, curve.tokens)
    figure = draw_positions(points, f"{run.path.name}, step {step:,}, {split}")
    plots.write_png(file.with_suffix(".png"), figure)
    return file, file.with_suffix(".png")


def saved_positions(run: Run) -> PositionCurve | None:
    """Return the curve that `save_positions` wrote for the newest step; None if there is none.

    Raises:
        InputError: The file is damaged.
    """
    path = run.latest_evaluation(POSITIONS_FILE)
    if path is None:
        return None
    saved = read_json(path)
    try:
        losses = [math.nan if loss is None else float(loss) for loss in saved["losses"]]
        points = tuple(position_points(losses, saved["tokens"]))
        return PositionCurve(int(saved["step"]), str(saved["split"]), str(saved["protocol"]), points)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not a curve of losses by position; run gpt2lab eval positions again") from error


def draw_positions(points: plots.Points, title: str = "") -> Figure:
    """Plot a curve of losses by position."""
    return plots.by_distance({"": [points]}, "tokens before it in the window", "loss, nats per token", title)


def position_points(losses: Sequence[float], tokens: Sequence[int]) -> list[tuple[float, float]]:
    """Return the mean position and the mean loss, weighted by tokens, of intervals that grow by a constant factor."""
    last = len(losses)
    edges = sorted({round(last ** (n / MAX_POSITION_POINTS)) for n in range(MAX_POSITION_POINTS)} | {last + 1})
    points: list[tuple[float, float]] = []
    for begin, end in pairwise(edges):
        positions = [t for t in range(begin, end) if tokens[t - 1]]
        if total := sum(tokens[t - 1] for t in positions):
            loss = sum(losses[t - 1] * tokens[t - 1] for t in positions) / total
            points.append((sum(positions) / len(positions), loss))
    return points
