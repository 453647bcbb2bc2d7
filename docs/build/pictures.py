"""Draw the pictures of the ten chapters: from real text, a trained model, or the formula itself.

    python docs/build/pictures.py [NAME ..]      write docs/images/build/NAME.png, all of them without a name
    python docs/build/pictures.py --measure      measure again what takes minutes, for measured.json

Each picture is a function without arguments that returns a figure; `picture` registers it under its name.
"""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from gpt2lab import GPT, Tokenizer
from gpt2lab.files import write_atomically
from gpt2lab.learn import gpt2
from gpt2lab.model.gpt import attention_weights
from gpt2lab.plots import DASHES, INK, LINES, MARKERS, RULE, TRAIN, VAL, frame, new_figure, png
from gpt2lab.runs import Run
from gpt2lab.stories.corpus import generate_story
from gpt2lab.tokenizer.pretokenize import GPT2
from gpt2lab.tokenizer.train import count_words, learn_merges
from gpt2lab.training.checkpoint import load_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

DOCS = Path(__file__).parents[1]
FOLDER = DOCS / "images" / "build"
TRAINED = DOCS / "gallery" / "stories"
"""A model of 2 layers, 4 heads and width 128, trained on the embedded stories."""

UNIT = 452
"""A hidden number of the second feed-forward layer of that model."""
COLORS = 255
"""Of a picture's file."""
MEASURED = Path(__file__).with_name("measured.json")
"""What `measure` returned when it was last run."""

PICTURES: dict[str, Callable[[], Figure]] = {}
"""The function that draws each picture, by the name of its file."""


def picture(draw: Callable[[], Figure]) -> Callable[[], Figure]:
    """Register a function as a picture: ``layer_norm`` draws layer-norm.png."""
    PICTURES[draw.__name__.replace("_", "-")] = draw
    return draw


# What several pictures share -----------------------------------------------------------------------------------------


@cache
def trained() -> tuple[GPT, Tokenizer]:
    """Return the model of the stories and its tokenizer."""
    model, _ = load_model(Run(TRAINED))
    return model.eval(), Tokenizer.load(TRAINED / "tokenizer")


@cache
def story() -> tuple[list[str], torch.Tensor]:
    """Return the tokens of the beginning of a story, up to where its lost kite is named again, and their ids (T,)."""
    _, tokenizer = trained()
    text = generate_story(1, 0).text
    ids = [tokenizer.eot, *tokenizer.encode(text[: text.index('?" she asked')])]
    return [tokenizer.decode([number]) for number in ids], torch.tensor(ids)


def write_tokens(axes: Axes, y: float, tokens: Sequence[str], shades: Sequence[float], color: str = TRAIN) -> None:
    """Write tokens as boxes in a row from x = 0 on, a character one unit wide, shaded from 0 (white) to 1."""
    from matplotlib.patches import Rectangle

    x = 0
    for token, shade in zip(tokens, shades, strict=True):
        box = {"ec": RULE, "lw": 0.8}
        axes.add_patch(Rectangle((x, y), len(token), 0.8, fc="white", **box))
        axes.add_patch(Rectangle((x, y), len(token), 0.8, fc=color, alpha=shade, **box))
        for offset, character in enumerate(token):
            ink = "white" if shade > 0.6 else "black"
            place = {"ha": "center", "va": "center_baseline", "color": ink, "family": "monospace"}
            axes.text(x + offset + 0.5, y + 0.38, character, fontsize=9, **place)
        x += len(token)


def characters(tokens: Sequence[str]) -> int:
    """Return how wide tokens are as `write_tokens` writes them."""
    return sum(map(len, tokens))


def outline(axes: Axes, x: float, y: float, width: float, color: str = VAL) -> None:
    """Draw a frame around the token at x."""
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, 0.8, fc="none", ec=color, lw=1.6, zorder=3))


def bare(axes: Axes, title: str = "") -> None:
    """Leave nothing of the axes but their title."""
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)


def grid(axes: Axes, values: torch.Tensor, title: str, **options: object) -> None:
    """Draw a matrix as squares, queries down and keys to the right."""
    axes.imshow(values.numpy(), interpolation="nearest", **options)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(RULE)


# The whole ------------------------------------------------------------------------------------------------------------


@picture
def whole() -> Figure:
    """Show the way of a text through the model and back, with the chapter of each step and the shape of its result."""
    figure = new_figure(9.6, 4.6)
    axes = figure.add_subplot()
    axes.add_patch(rounded(5.2, 0.85, 6.1, 3.05, fc="#f4f4f4", ec=RULE))
    axes.text(5.4, 3.62, "6  block, L times", fontsize=9, color=INK)
    for x, y, name, shape, color in (
        (0.0, 1.1, "1  bytes, BPE", "ids (B, T)", LINES[0]),
        (2.6, 1.1, "2  embeddings", "x (B, T, C)", LINES[0]),
        (5.4, 1.75, "5  layer norm", "(B, T, C)", LINES[2]),
        (5.4, 2.7, "3  attention, 4  heads", "(B, H, T, D)", LINES[2]),
        (8.3, 1.75, "5  layer norm", "(B, T, C)", LINES[2]),
        (8.3, 2.7, "5  feed-forward, GELU", "(B, T, 4C)", LINES[2]),
        (11.7, 1.1, "6  norm and head", "logits (B, T, V)", LINES[0]),
        (11.7, 4.15, "7  loss", "a number", LINES[1]),
        (5.4, 4.15, "8  gradients, AdamW", "better weights", LINES[1]),
        (6.9, -0.2, "9  sampling, cache", "the next token", LINES[3]),
        (12.3, -0.2, "10  evaluation", "a report", LINES[3]),
    ):
        axes.add_patch(rounded(x, y, 2.3, 0.7, fc="white", ec=color))
        axes.text(x + 1.15, y + 0.45, name, ha="center", va="center", fontsize=8.5)
        axes.text(x + 1.15, y + 0.19, shape, ha="center", va="center", fontsize=7.5, color=INK)
    for start, end in (
        ((2.3, 1.45), (2.6, 1.45)),
        ((4.9, 1.45), (7.88, 1.45)),  # the residual stream, which each branch leaves and is added to
        ((8.12, 1.45), (10.78, 1.45)),
        ((11.02, 1.45), (11.7, 1.45)),
        *(((x, low), (x, high)) for x in (6.55, 9.45) for low, high in ((1.45, 1.75), (2.45, 2.7))),
        ((12.85, 1.8), (12.85, 4.15)),
        ((11.7, 4.5), (7.7, 4.5)),
        ((6.55, 4.15), (6.55, 3.9)),
        ((13.4, 1.1), (13.4, 0.5)),
    ):
        arrow(axes, start, end)
    for x in (8.0, 10.9):
        arrow(axes, (x - 0.3, 3.05), (x, 1.56), "angle,angleA=0,angleB=90,rad=4")  # to the right, then down
        axes.text(x, 1.45, "+", ha="center", va="center", bbox={"boxstyle": "circle,pad=0.1", "fc": "white", "ec": INK})
    arrow(axes, (5.4, 4.5), (3.75, 1.8), "angle,angleA=180,angleB=90,rad=4")  # to the left, then down
    arrow(axes, (12.2, 1.1), (9.2, 0.15), "angle,angleA=-90,angleB=0,rad=4")  # down, then to the left
    arrow(axes, (6.9, 0.15), (3.75, 1.1), "angle,angleA=180,angleB=-90,rad=4")  # to the left, then up
    axes.set(xlim=(-0.1, 14.7), ylim=(-0.3, 4.95))
    bare(axes)
    return figure


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], path: str = "arc3") -> None:
    """Draw an arrow, straight unless its path turns a corner."""
    style = {"arrowstyle": "->", "connectionstyle": path, "color": INK, "lw": 1.1}
    axes.annotate("", end, start, arrowprops=style)


def rounded(x: float, y: float, width: float, height: float, **options: object) -> Patch:
    """Return a rectangle with round corners."""
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.12"
    return FancyBboxPatch((x, y), width, height, boxstyle=style, lw=1.3, **options)


# 1 Bytes --------------------------------------------------------------------------------------------------------------

SENTENCE = 'Have you seen my pink kite?" she asked Sara quietly.'
SONNET = """Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date;
"""
"""Shakespeare, sonnet 18."""


@cache
def learned() -> list[tuple[int, int]]:
    """Return 1,200 merges of 300 stories."""
    words = count_words((generate_story(0, index).text for index in range(300)), GPT2, processes=1)
    return learn_merges(words, 1200)


@picture
def merges() -> Figure:
    """Show a sentence after more and more merges: darker tokens are longer."""
    figure = new_figure(7.2, 2.6)
    axes = figure.add_subplot()
    counts = (0, 20, 100, 300, 600, 1000)
    for row, count in enumerate(counts):
        made = learned()[:count]
        tokens = [gpt2.decode([number], made) for number in gpt2.encode(SENTENCE, made)]
        write_tokens(axes, -row, tokens, [0.12 * min(len(token) - 1, 5) for token in tokens])
        axes.text(-1, -row + 0.4, f"{count:,}", ha="right", va="center", fontsize=9, color=INK)
        axes.text(len(SENTENCE) + 1, -row + 0.4, len(tokens), va="center", fontsize=9, color=INK)
    axes.text(-1, 1.2, "merges", ha="right", va="center", fontsize=9, color=INK)
    axes.text(len(SENTENCE) + 1, 1.2, "tokens", va="center", fontsize=9, color=INK)
    axes.set(xlim=(-6, len(SENTENCE) + 6), ylim=(-len(counts) + 0.9, 1.5))
    bare(axes)
    return figure


@picture
def compression() -> Figure:
    """Show how many bytes a token stands for, by the number of merges, on three texts."""
    texts = {
        "stories it was trained on": "".join(generate_story(0, index).text for index in range(20)),
        "other stories": "".join(generate_story(9, index).text for index in range(20)),
        "a sonnet": SONNET,
    }
    counts = [0, 10, 30, 100, 200, 300, 500, 800, 1200]
    figure = new_figure(6.2, 3.0)
    axes = figure.add_subplot()
    for index, (name, text) in enumerate(texts.items()):
        lengths = [len(text.encode()) / len(gpt2.encode(text, learned()[:count])) for count in counts]
        axes.plot(counts, lengths, marker="osD"[index], ms=4, color=LINES[index], ls=DASHES[index], label=name)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    axes.set_ylim(0, None)
    frame(axes, "merges", title="bytes per token")
    return figure


# 2 Embeddings ---------------------------------------------------------------------------------------------------------

GROUPS = {
    "colors": "pink white red purple blue green yellow orange",
    "animals": "cat dog duck parrot donkey horse hen goat",
    "names": "Lily Emma Anna Mia Jack Sam Sara Rose",
    "numbers": "three four five six seven eight nine",
    "adverbs": "quickly slowly politely gently quietly warmly",
    "places": "river park forest hill lake bridge school",
}


@picture
def embeddings() -> Figure:
    """Show the vectors of some words of the stories, projected on the two principal directions of these words."""
    model, tokenizer = trained()
    words = {name: group.split() for name, group in GROUPS.items()}
    ids = {word: tokenizer.encode(f" {word}") for group in words.values() for word in group}
    assert all(len(found) == 1 for found in ids.values())
    vectors = model.wte.weight.detach()[[found[0] for found in ids.values()]]
    vectors = vectors - vectors.mean(0)
    places = vectors @ torch.linalg.svd(vectors, full_matrices=False).Vh[:2].T
    of = dict(zip(ids, places.tolist(), strict=True))
    figure = new_figure(7.6, 3.6)
    axes = figure.add_subplot()
    for index, (name, group) in enumerate(words.items()):
        x, y = zip(*(of[word] for word in group), strict=True)
        axes.plot(x, y, ls="none", marker=MARKERS[index], color=LINES[index], ms=5, mfc="none")
        right = sum(x) > 0
        label = {"ha": "right" if right else "left", "va": "center", "fontsize": 8.5, "color": LINES[index]}
        beside = (min(x) - 0.03 if right else max(x) + 0.03, sum(y) / len(y))
        axes.text(*beside, f"{name}: {', '.join(group[:5])}, ..", **label)
    axes.margins(0.06, 0.1)
    frame(axes, "first principal direction of these words", "second")
    return figure


@picture
def positions() -> Figure:
    """Show how alike the learned vectors of positions are: cosines between the rows of wpe."""
    from matplotlib import colormaps

    model, _ = trained()
    rows = F.normalize(model.wpe.weight.detach(), dim=1)
    cosines = rows @ rows.T
    levels = colormaps["RdBu"].resampled(17)
    figure = new_figure(7.6, 2.9)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    shown = left.imshow(
        cosines[::2, ::2].numpy(), cmap=levels, interpolation="nearest", vmin=-1, vmax=1, extent=(0, 256, 256, 0)
    )
    figure.colorbar(shown, ax=left, shrink=0.8, ticks=(-1, 0, 1)).ax.tick_params(colors=INK, length=0)
    left.set_title("cosine of two positions", loc="left", fontsize=10.5, color=INK)
    left.set_xticks((0, 100, 200))
    left.set_yticks((0, 100, 200))
    left.tick_params(colors=INK, length=0)
    for index, position in enumerate((20, 110, 220)):
        right.plot(cosines[position].tolist(), color=LINES[index], ls=DASHES[index], lw=1.2)
        right.text(position, 1.04, position, ha="center", fontsize=9, color=LINES[index])
    right.set_ylim(-1, 1.2)
    frame(right, "position", title="three rows of it")
    return figure


@picture
def rotation() -> Figure:
    """Show rotary positions: the angles of four pairs of a head at nine positions, and a product by distance."""
    figure = new_figure(9.0, 3.0)
    grids = figure.add_gridspec(2, 3, width_ratios=(1, 1, 2.6))
    frequencies = 10_000.0 ** (-2 * torch.arange(16) / 32)
    for index, pair in enumerate((0, 2, 4, 8)):
        axes = figure.add_subplot(grids[index // 2, index % 2])
        angles = torch.arange(9) * frequencies[pair]
        for position, angle in enumerate(angles.tolist()):
            axes.plot([0, math.cos(angle)], [0, math.sin(angle)], color=TRAIN, lw=1.5, alpha=0.2 + 0.1 * position)
        axes.add_patch(circle())
        axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
        bare(axes, f"pair {pair}")
    axes = figure.add_subplot(grids[:, 2])
    q, k = torch.ones(1, 1, 1, 32), torch.ones(1, 1, 1, 32)
    for index, start in enumerate((0, 50)):
        distances = range(65)
        turned = gpt2.rotate(q, torch.tensor([start + 64]))
        products = [(turned * gpt2.rotate(k, torch.tensor([start + 64 - d]))).sum().item() / 32 for d in distances]
        axes.plot(distances, products, color=LINES[index], ls=DASHES[index], lw=1.5, label=f"query at {start + 64}")
    axes.legend(frameon=False, fontsize=9)
    frame(axes, "distance of the key", title="product of equal q and k after rotation")
    return figure


def circle() -> Patch:
    """Return the unit circle."""
    from matplotlib.patches import Circle

    return Circle((0, 0), 1, fc="none", ec=RULE, lw=1)


# 3 Attention ----------------------------------------------------------------------------------------------------------


@picture
def reading() -> Figure:
    """Show what two tokens of a story read: the weights of one head each, over the tokens before them."""
    model, _ = trained()
    tokens, ids = story()
    weights = attention_weights(model, ids[None])[0, 0]  # (H, T, T) of the first layer
    figure = new_figure(7.2, 2.5)
    rows = figure.subplots(2, 1)
    lines = [tokens.index("On"), tokens.index(" At")]
    for axes, (query, head) in zip(rows, ((" my", 3), (" pink", 1)), strict=True):
        position = len(tokens) - 1 - tokens[::-1].index(query)
        of_query = weights[head, position].tolist()
        for row, (start, end) in enumerate(pairwise([*lines, position + 1])):
            write_tokens(axes, -1.5 * row, tokens[start:end], of_query[start:end])
            for i in range(start, end):
                if of_query[i] >= 0.1:
                    x = characters(tokens[start:i]) + len(tokens[i]) / 2
                    axes.text(x, -1.5 * row + 0.9, f"{of_query[i]:.2f}", ha="center", fontsize=8, color=TRAIN)
        outline(axes, characters(tokens[lines[-1] : position]), -1.5, len(query))
        axes.set(xlim=(-0.5, 64), ylim=(-1.8, 1.7))
        bare(axes, f"what \u201c{query.strip()}\u201d reads in head {head} of the first layer")
    return figure


@picture
def attention_step() -> Figure:
    """Show the three steps from scores to weights on five tokens: products, mask, softmax."""
    model, _ = trained()
    tokens, ids = story()
    x = model.h[0].ln_1(model.embed(ids[None], 0))
    q, k, _ = model.h[0].attn.project(x, None)  # (1, H, T, D)
    start = tokens.index(" pretty")
    shown = slice(start, start + 5)
    scores = (q @ k.transpose(-2, -1))[0, 1, shown, shown].detach() / math.sqrt(q.shape[-1])
    masked = scores.masked_fill(~torch.ones_like(scores).tril().bool(), -math.inf)
    figure = new_figure(9.0, 3.2)
    panels = {
        "scores q k$^T$ / $\\sqrt{D}$": scores,
        "mask: later keys become \u2212\u221e": masked,
        "softmax of each row": masked.softmax(-1),
    }
    for index, (title, values) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 3, index + 1)
        grid(axes, values, title, cmap="Blues", vmin=0 if index == 2 else -5, vmax=1.1 if index == 2 else 9)
        axes.set_xticks(range(5), tokens[shown], fontsize=8)
        axes.set_yticks(range(5), tokens[shown] if index == 0 else [""] * 5, fontsize=8)
        axes.tick_params(length=0, colors=INK)
        for row, numbers in enumerate(values.tolist()):
            for column, number in enumerate(numbers):
                text = "\u2212\u221e" if number == -math.inf else "0" if number == 0 else f"{number:.2f}"
                axes.text(
                    column, row, text, ha="center", va="center", fontsize=8, color="white" if number > 0.75 else "black"
                )
    return figure


@picture
def scale() -> Figure:
    """Show the largest weight of 32 keys, with and without 1/sqrt(D), for random queries and keys of growing width."""
    generator = torch.Generator().manual_seed(0)
    widths = [2**n for n in range(1, 10)]
    largest: dict[str, list[float]] = {"without the scale": [], "with 1/sqrt(D)": []}
    for D in widths:
        q, k = (torch.randn(200, n, D, generator=generator) for n in (1, 32))
        scores = q @ k.transpose(-2, -1)
        for name, scaled in zip(largest, (scores, scores / math.sqrt(D)), strict=True):
            largest[name].append(scaled.softmax(-1).amax(-1).mean().item())
    figure = new_figure(8.4, 2.9)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    for color, dashes, (name, values) in zip((VAL, TRAIN), ("-", "--"), largest.items(), strict=True):
        left.plot(widths, values, color=color, ls=dashes, marker="o", ms=4, label=name)
    left.axhline(1 / 32, color=INK, lw=1, ls=":")
    left.annotate("all 32 keys alike", (2, 1 / 32), xytext=(0, 3), textcoords="offset points", fontsize=8, color=INK)
    left.set_xscale("log", base=2)
    left.set_xticks(widths, [str(width) for width in widths])
    left.set_ylim(0, 1.02)
    left.legend(frameon=False, loc="upper left", fontsize=9)
    frame(left, "width D of a head", title="largest of 32 weights, mean of 200 queries")
    q, k = (torch.randn(n, 64, generator=generator) for n in (1, 32))
    scores = (q @ k.T)[0].sort(descending=True).values
    for color, offset, values in ((VAL, -0.2, scores), (TRAIN, 0.2, scores / 8)):
        right.bar([key + offset for key in range(32)], values.softmax(-1).tolist(), width=0.4, color=color)
    frame(right, "keys, largest score first", title="the weights of one query, D = 64")
    return figure


# 4 Heads --------------------------------------------------------------------------------------------------------------


@picture
def split_heads() -> Figure:
    """Show where the numbers of three tokens go, split into two heads rightly, and without the transposition."""
    T, H, D = 3, 2, 3
    x = torch.arange(T * H * D).view(1, T, H * D)
    right = gpt2.split_heads(x, H)[0]
    wrong = x.view(H, T, D)
    figure = new_figure(8.4, 1.95)
    panels = {
        "x: 3 tokens of 6 numbers": [x[0]],
        "split_heads(x, 2)": list(right),
        "x.view(2, 3, 3), which is wrong": list(wrong),
    }
    grids = figure.add_gridspec(1, 5, width_ratios=(2, 1, 1, 1, 1))
    column = 0
    for title, matrices in panels.items():
        for head, matrix in enumerate(matrices):
            axes = figure.add_subplot(grids[column])
            column += 1
            below = "" if len(matrices) == 1 else f"head {head}"
            numbered(axes, matrix, H * D, f"{title if head == 0 else ''}\n{below}")
    return figure


def numbered(axes: Axes, matrix: torch.Tensor, C: int, title: str) -> None:
    """Draw numbers as squares with the color of the token that they come from: C of them each."""
    from matplotlib.patches import Rectangle

    for row, numbers in enumerate(matrix.tolist()):
        for column, number in enumerate(numbers):
            color = LINES[number // C]
            axes.add_patch(Rectangle((column, -row), 0.9, 0.9, fc=color, alpha=0.25, ec="none"))
            axes.text(column + 0.45, -row + 0.45, number, ha="center", va="center", fontsize=9)
    axes.set(xlim=(-0.1, matrix.shape[1]), ylim=(-len(matrix) + 0.9, 1.1), aspect="equal")
    bare(axes, title)


@picture
def masks() -> Figure:
    """Show causal and window masks as squares, also with more keys than queries."""
    figure = new_figure(8.4, 2.5)
    panels = {
        "causal_mask(8, 8)": gpt2.causal_mask(8, 8),
        "causal_mask(3, 8)": gpt2.causal_mask(3, 8),
        "window_mask(8, 8, 3)": gpt2.window_mask(8, 8, 3),
        "window_mask(3, 8, 3)": gpt2.window_mask(3, 8, 3),
    }
    for index, (title, mask) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 4, index + 1)
        grid(axes, mask.float(), title, cmap="Blues", vmin=-0.15, vmax=1.2)
        axes.set_xlabel("keys", fontsize=9, color=INK)
        axes.set_anchor("S")
        T, S = mask.shape
        axes.vlines([key - 0.5 for key in range(1, S)], -0.5, T - 0.5, color="white", lw=1)
        axes.hlines([query - 0.5 for query in range(1, T)], -0.5, S - 0.5, color="white", lw=1)
        if index == 0:
            axes.set_ylabel("queries", fontsize=9, color=INK)
    return figure


@picture
def heads() -> Figure:
    """Show the weights of four heads of one layer on the same sentence."""
    model, _ = trained()
    tokens, ids = story()
    first = tokens.index(" got")
    shown = slice(first, first + 18)
    weights = attention_weights(model, ids[None])[0, 0, :, shown, shown]
    figure = new_figure(9.6, 3.1)
    for head, values in enumerate(weights):
        axes = figure.add_subplot(1, 4, head + 1)
        grid(axes, values.sqrt(), f"head {head}", cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(18), tokens[shown], fontsize=6.5, rotation=90)
        axes.set_yticks(range(18), tokens[shown] if head == 0 else [""] * 18, fontsize=6.5)
        axes.tick_params(length=0, colors=INK)
    return figure


# 5 Layers -------------------------------------------------------------------------------------------------------------


@picture
def layer_norm() -> Figure:
    """Show the numbers of the residual stream of a trained model before and after layer norm, for four tokens."""
    model, _ = trained()
    tokens, ids = story()
    with torch.no_grad():
        x = model.h[0](model.embed(ids[None], 0))[0]
        normalized = F.layer_norm(x, x.shape[-1:])
    figure = new_figure(8.4, 2.9)
    left, right = figure.subplots(1, 2)
    for index, token in enumerate(("<|endoftext|>", "On", " birthday", " kite")):
        at = tokens.index(token)
        for axes, values in ((left, x[at]), (right, normalized[at])):
            axes.plot(*density(values), color=LINES[index], ls=DASHES[index], lw=1.5, label=token.strip())
    left.legend(frameon=False, fontsize=8.5)
    for axes, title in ((left, "before: 128 numbers of a token"), (right, "after, without weight and bias")):
        frame(axes, "value", title=title)
        axes.set_yticks([])
    return figure


def density(values: torch.Tensor) -> tuple[list[float], list[float]]:
    """Return a smooth histogram of values (N,), by Gaussians of a fifth of their deviation."""
    width = values.std() * 0.25
    x = torch.linspace(values.min() - 3 * width, values.max() + 3 * width, 200)
    y = torch.exp(-0.5 * ((x[:, None] - values) / width).square()).mean(1) / width
    return x.tolist(), y.tolist()


@picture
def gelu() -> Figure:
    """Show GELU beside ReLU, their derivatives, and how far the tanh form is from the exact one."""
    x = torch.linspace(-4, 4, 401, requires_grad=True)
    curves = {"GELU": gpt2.gelu(x), "ReLU": x.relu()}
    figure = new_figure(9.4, 2.8)
    left, middle, right = figure.subplots(1, 3)
    for index, (name, y) in enumerate(curves.items()):
        (slope,) = torch.autograd.grad(y.sum(), x)
        for axes, values in ((left, y), (middle, slope)):
            axes.plot(x.detach(), values.detach(), color=LINES[index], ls=DASHES[index], lw=1.6, label=name)
    left.legend(frameon=False, fontsize=9)
    right.plot(x.detach(), (curves["GELU"] - F.gelu(x)).detach() * 1e4, color=INK, lw=1.4)
    for axes, title in ((left, "value"), (middle, "derivative"), (right, "tanh form minus erf form, times 10\u2074")):
        frame(axes, "x", title=title)
    return figure


@picture
def unit() -> Figure:
    """Show one of the hidden numbers of a feed-forward layer over a text: it is large where a name comes next."""
    model, tokenizer = trained()
    text = generate_story(1, 1).text
    text = text[: text.index(" Sara made one")]
    tokens = [tokenizer.decode([number]).replace("\n", " ") for number in tokenizer.encode(text)]
    ids = torch.tensor([[tokenizer.eot, *tokenizer.encode(text)]])
    found: list[torch.Tensor] = []
    hook = model.h[1].mlp.c_fc.register_forward_hook(lambda layer, inputs, y: found.append(gpt2.gelu(y[0, 1:, UNIT])))
    with torch.no_grad():
        model(ids)
    hook.remove()
    values = found[0].clamp(min=0) / found[0].max()
    lines = [0]
    for index in range(len(tokens)):
        if characters(tokens[lines[-1] : index + 1]) > 70:
            lines.append(index)
    figure = new_figure(8.0, 0.3 * len(lines) + 0.1)
    axes = figure.add_subplot()
    for row, (start, end) in enumerate(pairwise([*lines, len(tokens)])):
        write_tokens(axes, -row, tokens[start:end], values[start:end].tolist(), VAL)
    axes.set(xlim=(-0.5, 71), ylim=(-len(lines) + 0.9, 1))
    bare(axes)
    return figure


# 6 The model ----------------------------------------------------------------------------------------------------------

PARTS = {"token embedding": "wte.", "position embedding": "wpe.", "attention": ".attn.", "feed-forward": ".mlp."}
"""What the names of a part's parameters contain; the norms are too few to be seen."""
SIZES = {"small": (768, 12), "medium": (1024, 24), "large": (1280, 36), "XL": (1600, 48)}
"""Width and number of blocks of the four GPT-2."""


@picture
def parameters() -> Figure:
    """Show how the parameters of the four GPT-2 are shared among their parts."""
    figure = new_figure(7.4, 2.5)
    axes = figure.subplots()
    for row, (name, (width, blocks)) in enumerate(SIZES.items()):
        shapes = gpt2.parameter_shapes(gpt2.Config(n_embd=width, n_layer=blocks))
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        total, left = sum(sizes.values()), 0.0
        for (part, within_name), color in zip(PARTS.items(), (LINES[0], LINES[5], LINES[1], LINES[4]), strict=True):
            share = 100 * sum(size for name, size in sizes.items() if within_name in name) / total
            axes.barh(row, share, left=left, color=color, height=0.62, label=part if row == 0 else None)
            if share > 4:
                text = {"ha": "center", "va": "center", "color": "black" if color in LINES[4:] else "white"}
                axes.text(left + share / 2, row, f"{share:.0f} %", fontsize=9, **text)
            left += share
        axes.text(101, row, f"{total / 1e6:,.0f} M", va="center", color=INK, fontsize=9.5)
    axes.set_yticks(range(len(SIZES)), list(SIZES))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    frame(axes)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    return figure


# 7 Loss and initial weights -------------------------------------------------------------------------------------------


@picture
def surprise() -> Figure:
    """Show what each token of a story that was not trained on costs a trained model."""
    model, tokenizer = trained()
    ids = torch.tensor([[tokenizer.eot, *tokenizer.encode(generate_story(1, 0).text)][:58]])
    losses = model.token_losses(ids[:, :-1], ids[:, 1:])[0].tolist()
    figure = new_figure(8.6, 3.0)
    axes = figure.subplots()
    positions = range(len(losses))
    axes.bar(positions, losses, color=TRAIN, width=0.8)
    mean = sum(losses) / len(losses)
    axes.axhline(mean, color=VAL, lw=1.3)
    axes.set_xlim(-0.7, len(losses) - 0.3)
    frame(axes, title="Surprise −ln p of each token, in nats")
    axes.set_title(f"mean {mean:.2f}", loc="right", fontsize=10.5, color=VAL)
    axes.set_xticks(positions, [tokenizer.decode([number]).strip() for number in ids[0, 1:].tolist()])
    axes.tick_params(axis="x", rotation=90, labelsize=8.5)
    axes.grid(axis="x", visible=False)
    return figure


@picture
def stream_growth() -> Figure:
    """Show how the residual stream grows over the blocks of a new model, with and without the smaller c_proj."""
    config = gpt2.Config(vocab_size=256, n_ctx=64, n_embd=128, n_head=4, n_layer=24)
    figure = new_figure(6.4, 2.7)
    axes = figure.subplots()
    cases = {"0.02 everywhere": (math.sqrt(2 * config.n_layer), VAL, "s"), "c_proj: 0.02 / √(2L)": (1.0, TRAIN, "o")}
    for label, (factor, color, marker) in cases.items():
        weights = gpt2.initial_weights(config, torch.Generator().manual_seed(0))
        weights = {name: w * factor if name.endswith("c_proj.weight") else w for name, w in weights.items()}
        tokens = torch.arange(2 * config.n_ctx).view(2, -1) % config.vocab_size
        x = gpt2.embed(tokens, weights["wte.weight"], weights["wpe.weight"])
        deviations = [x.std().item()]
        for layer in gpt2.layers(weights):
            x = gpt2.block(x, layer, config.n_head)
            deviations.append(x.std().item())
        axes.plot(deviations, color=color, marker=marker, ms=3.5, lw=1.4, label=label)
    axes.set_ylim(0, None)
    frame(axes, "blocks passed", title="Standard deviation of the residual stream in a new model of 24 blocks")
    axes.legend(frameon=False, labelcolor=INK)
    return figure


# 8 Optimizer ----------------------------------------------------------------------------------------------------------

TINY = gpt2.Config(vocab_size=1707, n_ctx=64, n_embd=64, n_head=4, n_layer=2)
"""A model that takes 20 ms for a step of 128 tokens."""


@cache
def held_out(seed: int, stories: int) -> torch.Tensor:
    """Return some stories of a seed as one text, each after the end-of-text token, (N,)."""
    _, tokenizer = trained()
    texts = (generate_story(seed, index).text for index in range(stories))
    return torch.tensor([number for text in texts for number in (tokenizer.eot, *tokenizer.encode(text))])


@picture
def schedule() -> Figure:
    """Show the learning rate over a run with a short and with a long warm-up."""
    figure = new_figure(6.4, 2.5)
    axes = figure.subplots()
    for warmup, color, dashes in ((100, TRAIN, "solid"), (400, VAL, (0, (5, 2)))):
        rates = [gpt2.learning_rate(step, 2_000, warmup, 1e-3, 1e-4) for step in range(2_000)]
        axes.plot(rates, color=color, ls=dashes, lw=1.6, label=f"warm-up of {warmup} steps")
    axes.set(xlim=(0, 2_000), ylim=(0, None))
    axes.set_yticks([0, 1e-4, 5e-4, 1e-3], ["0", "min_lr", "", "max_lr"])
    frame(axes, "step", title="Learning rate of 2,000 steps")
    axes.legend(frameon=False, labelcolor=INK)
    return figure


ONE_BATCH = {
    "rate 0.003": {},
    "rate 0.00001: too small": {"lr": 1e-5},
    "rate 0.1: too large": {"lr": 0.1},
    "targets not shifted": {"shift": 0},
}


@picture
def one_batch() -> Figure:
    """Show the loss of a single batch that is trained on again and again: right, and in three ways wrong."""
    figure = new_figure(7.0, 3.2)
    axes = figure.subplots()
    for label, losses, color, dashes in zip(ONE_BATCH, measured()["one_batch"], LINES, DASHES, strict=False):
        axes.plot(losses, color=color, ls=dashes, lw=1.6, label=label)
    axes.axhline(math.log(TINY.vocab_size), color=INK, lw=0.9)
    axes.text(100, math.log(TINY.vocab_size) + 0.1, "ln V", ha="right", color=INK)
    axes.set(xlim=(0, 100), ylim=(0, 8.2))
    frame(axes, "step", title="Loss of one batch, nats per token")
    axes.legend(frameon=False, labelcolor=INK, loc="center right", bbox_to_anchor=(1.0, 0.58))
    return figure


def memorize(lr: float = 3e-3, shift: int = 1, steps: int = 101) -> list[float]:
    """Return the losses of a small model that is trained on one batch of four rows of 32 tokens."""
    weights = gpt2.initial_weights(TINY, torch.Generator().manual_seed(0))
    inputs, targets = gpt2.batch(held_out(1, 10), [0, 200, 400, 600], 32)
    batches, state = [(inputs, targets if shift else inputs)], {}
    return [gpt2.train_step(weights, batches, loss_of, state, lr)[0] for _ in range(steps)]


def loss_of(weights: dict[str, torch.Tensor], inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of a batch in a model of four heads."""
    return gpt2.cross_entropy(gpt2.gpt(inputs, weights, n_head=4), targets)


# 9 Sampling and the cache ---------------------------------------------------------------------------------------------

KEPT = {
    "as it is": {},
    "temperature 0.5": {"temperature": 0.5},
    "top-k 5": {"top_k": 5},
    "top-p 0.9": {"top_p": 0.9},
}


@picture
def truncation() -> Figure:
    """Show what temperature, top-k and top-p make of two distributions of the trained model."""
    model, tokenizer = trained()
    figure = new_figure(8.8, 4.4)
    panels = figure.subplots(2, len(KEPT), sharex="row", sharey="row")
    for row, prompt in zip(panels, ("Once upon a time, there lived a shy", "One"), strict=True):
        ids = torch.tensor([[tokenizer.eot, *tokenizer.encode(prompt)]])
        logits = model(ids).logits[0, -1].detach()
        most = logits.argsort(descending=True)[:16]
        before = logits.softmax(-1)[most].tolist()
        for axes, (name, options) in zip(row, KEPT.items(), strict=True):
            p = gpt2.probabilities(logits, **options)
            axes.barh(range(len(most)), before, color=RULE, height=0.8)
            axes.barh(range(len(most)), p[most].tolist(), color=TRAIN, height=0.5)
            axes.set_yticks(range(len(most)), [tokenizer.decode([number]).strip() for number in most.tolist()])
            axes.set_ylim(len(most) - 0.4, -0.6)
            frame(axes, title=name)
            kept = {"transform": axes.transAxes, "ha": "right", "color": INK, "fontsize": 9}
            axes.text(0.97, 0.04, f"{int((p > 0).sum()):,} kept", **kept)
            axes.tick_params(labelsize=8, pad=1)
            axes.grid(axis="y", visible=False)
    return figure


@picture
def cache_cost() -> Figure:
    """Show the arithmetic of one new token of the smallest GPT-2 by the number of tokens so far."""
    lengths = [2**n for n in range(11)]
    figure = new_figure(6.4, 3.0)
    axes = figure.subplots()
    for label, color, marker in (("without a cache", VAL, "s"), ("with a cache", TRAIN, "o")):
        costs = [operations(gpt2.Config(), S, S if label == "without a cache" else 1) / 1e9 for S in lengths]
        axes.plot(lengths, costs, color=color, marker=marker, ms=4, lw=1.5, label=label)
        axes.text(lengths[-1] * 1.12, costs[-1], f"{costs[-1]:.3g}", color=color, va="center", fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(0.9, 1700)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    frame(
        axes,
        "tokens so far (both axes are logarithmic)",
        title="Billions of operations for one new token of GPT-2, 124 M",
    )
    axes.legend(frameon=False, labelcolor=INK, loc="upper left")
    return figure


def operations(config: gpt2.Config, S: int, T: int) -> int:
    """Return additions and multiplications of the matrix products in a pass of T tokens, the last of S."""
    C = config.n_embd
    return T * (config.n_layer * (24 * C**2 + 4 * S * C) + 2 * config.vocab_size * C)


# 10 Evaluation --------------------------------------------------------------------------------------------------------

CONTEXT, STRIDES, SEEDS = 64, (64, 32, 16, 8), 8


@picture
def stride() -> Figure:
    """Show the perplexity of one model on one text by the stride of the windows, and what each costs."""
    found = measured()["stride"]
    figure = new_figure(6.4, 2.9)
    axes = figure.subplots()
    axes.bar(range(len(STRIDES)), found, color=TRAIN, width=0.6)
    for index, (each, value) in enumerate(zip(STRIDES, found, strict=True)):
        text = f"{value:.3f}\ncost {CONTEXT // each}"
        axes.text(index, value + 0.06, text, ha="center", color=INK, fontsize=9)
    axes.set_xticks(range(len(STRIDES)), [str(each) for each in STRIDES])
    axes.set_ylim(0, max(found) + 0.6)
    frame(axes, f"stride, with windows of {CONTEXT} tokens", title="Perplexity of one model on one text, and its cost")
    axes.grid(visible=False)
    return figure


def perplexity_by_stride(model: GPT, tokens: torch.Tensor, stride: int) -> float:
    """Return the perplexity of a model over tokens (N,) in windows of CONTEXT tokens."""
    losses, counts = [], []
    for start, end, first in gpt2.windows(len(tokens), CONTEXT, stride):
        found = model.token_losses(tokens[None, start:end], tokens[None, start + 1 + first : end + 1])
        losses.append(found.mean().item())
        counts.append(found.numel())
    return gpt2.perplexity(losses, counts)


@picture
def seeds() -> Figure:
    """Show the test losses of two learning-rate schedules by seed, and the interval of their difference."""
    tenth, zero = measured()["seeds"]
    differences = [b - a for a, b in zip(tenth, zero, strict=True)]
    figure = new_figure(8.6, 3.1)
    left, right = figure.subplots(1, 2)
    for pair in zip(tenth, zero, strict=True):
        left.plot((0, 1), pair, color=RULE, lw=1, zorder=1)
    left.plot([0] * SEEDS, tenth, "o", color=TRAIN, ms=5)
    left.plot([1] * SEEDS, zero, "s", color=VAL, ms=5)
    left.set_xticks((0, 1), ("rate falls to a tenth", "rate falls to 0"))
    left.set_xlim(-0.4, 1.4)
    frame(left, title=f"Test loss of {SEEDS} seeds, nats per token")
    for n in range(2, SEEDS + 1):
        low, high = gpt2.interval(differences[:n])
        right.plot((n, n), (low, high), color=TRAIN, lw=2)
        right.plot(n, sum(differences[:n]) / n, "o", color=TRAIN, ms=5)
    right.axhline(0, color=INK, lw=0.9)
    frame(right, "seeds", title="Difference of the pairs, mean and 95 % interval")
    return figure


def short_run(seed: int, min_lr: float, steps: int = 120) -> float:
    """Return the loss on other stories after a short training of a small model."""
    generator = torch.Generator().manual_seed(seed)
    weights, state = gpt2.initial_weights(TINY, generator), {}
    text, T = held_out(1, 300), 32
    for step in range(steps):
        starts = torch.randint(len(text) - T - 1, (8,), generator=generator).tolist()
        rate = gpt2.learning_rate(step, steps, 10, 3e-3, min_lr)
        gpt2.train_step(weights, [gpt2.batch(text, starts, T)], loss_of, state, rate)
    test = held_out(2, 20)
    with torch.no_grad():
        return loss_of(weights, *gpt2.batch(test, list(range(0, len(test) - T - 1, T)), T)).item()


# Measurements that take longer than a picture should ------------------------------------------------------------------


def measure() -> dict[str, list]:
    """Return what the curves of three pictures show, which takes two minutes."""
    model, _ = trained()
    return {
        "one_batch": [[round(loss, 4) for loss in memorize(**options)] for options in ONE_BATCH.values()],
        "stride": [perplexity_by_stride(model, held_out(1, 40), each) for each in STRIDES],
        "seeds": [[short_run(seed, min_lr) for seed in range(SEEDS)] for min_lr in (3e-4, 0.0)],
    }


@cache
def measured() -> dict[str, list]:
    """Return what `MEASURED` holds."""
    return json.loads(MEASURED.read_text(encoding="utf-8"))


def main(names: Sequence[str]) -> None:
    """Write the named pictures, or all; or measure."""
    if names == ["--measure"]:
        write_atomically(MEASURED, (json.dumps(measure(), indent=1) + "\n").encode())
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or PICTURES:
        write_atomically(FOLDER / f"{name}.png", small_png(PICTURES[name]()))


def small_png(figure: Figure) -> bytes:
    """Return a figure as PNG with few colors, which halves its size."""
    from PIL import Image

    content = io.BytesIO()
    Image.open(io.BytesIO(png(figure))).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(
        content, "png", optimize=True
    )
    return content.getvalue()


if __name__ == "__main__":
    main(sys.argv[1:])
