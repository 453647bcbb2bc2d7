"""How much a model gains from what it has read: its loss by the place in the context.

    loss(t) = mean of -ln p(token | the t tokens of its window before it),    t = 1 ... context

A model that uses its context has a falling curve; where it turns flat, more context brings nothing. Windows follow each
other without overlap (stride = context), so that each place is measured on as many tokens as any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpt2lab.data import TokenStream
from gpt2lab.evaluation.leak import require_no_leak
from gpt2lab.evaluation.perplexity import checked_context, scored_losses
from gpt2lab.evaluation.windows import cut
from gpt2lab.model import GPT


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
