"""Perplexity over strided windows, with the protocol that a figure means nothing without.

    loss = mean of -ln p(token | what the window gives before it)      perplexity = exp(loss)
    bits per byte = loss * tokens / (ln 2 * bytes of the text)

A model reads at most ``context`` tokens at once, so a long stream is cut into windows that begin ``stride`` apart. Each
token but the first is scored once, in the first window that has it:

    context 6, stride 2      window 0   . s s s s s s
                             window 1       . . . . . s s
                             window 2           . . . . . s s

With stride = context a token has from 1 to ``context`` tokens before it; a smaller stride gives every token at least
context - stride + 1, costs context / stride times as much, and lowers the figure. Perplexity per token compares models
of one tokenizer only; bits per byte does so whatever the tokens are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gpt2lab.data import ScoredBatch, TokenStream, in_order
from gpt2lab.errors import InputError
from gpt2lab.model import GPT, evaluating


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

    @property
    def perplexity(self) -> float:
        """Return exp(loss), per token; infinite where a float cannot hold it."""
        return math.exp(self.loss) if not self.loss > 709 else math.inf

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
        names = ("loss", "perplexity", "bits_per_byte", "entropy_floor", "gap_percent")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def protocol(self) -> str:
        """Return one sentence that says how the figures were taken."""
        before = self.context - self.stride + 1
        return (
            f"Each of {self.tokens:,} tokens (all but the first of the stream) is scored once, in windows of "
            f"{self.context:,} tokens {self.stride:,} apart that give it at least {before:,} "
            f"{'token' if before == 1 else 'tokens'} before it (fewer in the first window) across the borders of "
            f"documents; bits per byte are over the text's {self.bytes:,} bytes."
        )


def perplexity_of(
    model: GPT,
    stream: TokenStream,
    text_bytes: int,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    entropy_bits: float | None = None,
    progress: Callable[[int, int], None] | None = None,
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

    Raises:
        InputError: A stream shorter than a window, a context beyond the model's, no text, a value out of range.
    """
    n_ctx = model.config.n_ctx
    if text_bytes < 1:
        raise InputError(f"{stream.name}: a text of {text_bytes} bytes; give one with text in it")
    if context is not None and not 1 <= context <= n_ctx:
        raise InputError(f"context is {context}; it must be between 1 and the {n_ctx} tokens that the model reads")
    context = max(1, min(n_ctx, len(stream) - 1)) if context is None else context
    stride = (context + 1) // 2 if stride is None else stride
    total, scored = 0.0, 0
    for batch in in_order(stream, context, batch_size, stride):
        loss, tokens = _score(model, batch)
        total, scored = total + loss, scored + tokens
        if progress is not None:
            progress(scored, len(stream) - 1)
    return Perplexity(total / scored, scored, text_bytes, context, stride, entropy_bits)


def _score(model: GPT, batch: ScoredBatch) -> tuple[float, int]:
    """Return the summed loss of a batch's scored tokens, and how many they are."""
    device = model.wte.weight.device
    first = int(batch.scored.any(dim=0).int().argmax())  # no window scores anything before: no logits are made there
    with evaluating(model):
        losses = model.token_losses(batch.tokens.to(device), batch.targets[:, first:].to(device))  # (B, T - first)
    chosen = losses.cpu().double()[batch.scored[:, first:]]  # summed in fp64, which not every device has
    return float(chosen.sum()), len(chosen)
