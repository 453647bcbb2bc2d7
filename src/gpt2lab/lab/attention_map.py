"""A picture of what a run's model attends to while it reads a text that it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gpt2lab.errors import InputError
from gpt2lab.lab.record import Record
from gpt2lab.model import attention_weights
from gpt2lab.tokenizer import Tokenizer
from gpt2lab.training import load_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKENS = 22
LARGEST = 200_000_000
"""Parameters up to which a model is loaded for a picture."""


@dataclass(frozen=True)
class AttentionMap:
    """Weights of the first and the last layer, the mean over their heads."""

    tokens: tuple[str, ...]
    first: tuple[tuple[float, ...], ...]
    """(T, T): row i is what token i reads."""
    last: tuple[tuple[float, ...], ...]
    layers: int
    step: int


def attention_map(record: Record) -> AttentionMap | None:
    """Read a run's newest sample with its best checkpoint; None where either is missing, damaged or too large.

    What is missing or damaged is named among the report's remarks already.
    """
    if not record.samples or not 0 < (record.parameters or 0) <= LARGEST:
        return None
    try:
        model, checkpoint = load_model(record.run, "best")
        tokenizer = Tokenizer.load(record.run.tokenizer)
    except InputError:
        return None
    start = [] if tokenizer.eot is None else [tokenizer.eot]
    ids = [*start, *tokenizer.encode(record.samples[-1].text[:2_000])][: min(TOKENS, model.config.n_ctx)]
    if len(ids) < 2:
        return None
    means = attention_weights(model, torch.tensor([ids])).mean(dim=2)[:, 0]  # (L, T, T)
    first, last = (tuple(tuple(row) for row in means[layer].tolist()) for layer in (0, -1))
    texts = tuple("start" if i == tokenizer.eot else _visible(tokenizer.decode([i])) for i in ids)
    return AttentionMap(texts, first, last, len(means), checkpoint.step)


def _visible(text: str) -> str:
    """Return a token as a label: spaces and line ends are seen."""
    return "".join({" ": "␣", "\n": "↵"}.get(c, c if c.isprintable() else "�") for c in text)


def draw(found: AttentionMap) -> Figure:
    """Draw the first and the last layer side by side, dark where much is read; one layer stands alone."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure  # slow to import, and needed only where something is drawn

    layers = [("Layer 1", found.first)]
    if found.layers > 1:
        layers.append((f"Layer {found.layers}", found.last))
    figure = Figure(figsize=(3.6 * len(layers) + 0.3, 3.7), layout="constrained")
    places = range(len(found.tokens))
    for index, (title, weights) in enumerate(layers):
        axes = figure.add_subplot(1, len(layers), index + 1)
        axes.imshow(weights, cmap="Greys", norm=PowerNorm(0.5, 0.0, 1.0), interpolation="nearest")
        axes.set_title(f"{title}, mean over its heads", fontsize=8, loc="left")
        axes.set_xticks(places, found.tokens, rotation=90, fontsize=6)
        axes.set_yticks(places, found.tokens if index == 0 else [""] * len(found.tokens), fontsize=6)
        axes.tick_params(length=0)
        axes.set_xlabel("read", fontsize=7)
        if index == 0:
            axes.set_ylabel("reading", fontsize=7)
    return figure
