"""How far a 5-gram model stays above the entropy of the stories corpus, by the number of stories it has seen.

Tokens are words and marks with the space before them, so that their concatenation is the text and bits per byte can be
compared with the grammar's. Two interpolated models, both after Chen & Goodman, "An empirical study of smoothing
techniques for language modeling" (1999): modified Kneser-Ney and Witten-Bell.

    python benchmarks/stories_ngram.py [--stories 2000 20000 200000] [--order 5]

prints a table and writes `benchmarks/results/stories_ngram.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt2lab.stories.corpus import Story, stories

RESULT = Path(__file__).parent / "results" / "stories_ngram.json"
TOKEN = re.compile(r" ?\w+| ?[^\w\s]+|\s")
TEST_SEED, TRAIN_SEED = 1, 0
BEGIN, END = 0, 1  # token ids
BITS = 12  # per token in a packed n-gram: five fit into 64 bits

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One model on the held-out stories."""

    stories: int
    tokens: int
    model: str
    bits_per_byte: float
    above_entropy: float


def tokenize(texts: Iterator[str], vocabulary: dict[str, int], order: int) -> Ids:
    """Ids of all texts in a row, each behind ``order - 1`` BEGIN and before one END; new tokens get new ids."""
    ids: list[int] = []
    for text in texts:
        ids += [BEGIN] * (order - 1)
        ids += [vocabulary.setdefault(token, len(vocabulary) + 2) for token in TOKEN.findall(text)]
        ids.append(END)
    assert len(vocabulary) + 2 <= 1 << BITS
    return np.array(ids, dtype=np.int64)


def pack(ids: Ids, order: int, longest: int) -> Ids:
    """The n-gram that ends at each token that is not BEGIN, as one integer."""
    packed = np.zeros(len(ids) - longest + 1, dtype=np.int64)
    for back in range(order - 1, -1, -1):
        packed = packed << BITS | ids[longest - 1 - back : len(ids) - back]
    return packed[ids[longest - 1 :] != BEGIN]


class Table:
    """The counts of one order and, for each context, what smoothing needs of it."""

    def __init__(self, ngrams: Ids, counts: Ids) -> None:
        self.ngrams, self.counts = ngrams, counts
        self.contexts, starts = np.unique(ngrams >> BITS, return_index=True)
        self.totals = np.add.reduceat(counts, starts).astype(float)
        kinds = np.minimum(counts, 3)[:, None] == np.arange(1, 4)
        self.types = np.add.reduceat(kinds.astype(np.int64), starts).astype(float)  # continuations seen 1, 2, 3+ times

    def look_up(self, ngrams: Ids) -> tuple[Ids, Ids, NDArray[np.bool_]]:
        """Count of each n-gram, the row of its context, and whether that context was seen."""
        at = np.minimum(np.searchsorted(self.ngrams, ngrams), len(self.ngrams) - 1)
        count = np.where(self.ngrams[at] == ngrams, self.counts[at], 0)
        row = np.minimum(np.searchsorted(self.contexts, ngrams >> BITS), len(self.contexts) - 1)
        return count, row, self.contexts[row] == ngrams >> BITS


def kneser_ney(table: Table, ngrams: Ids, lower: Floats) -> Floats:
    """Discount by D1, D2, D3+ (Chen & Goodman, eq. 26), give what that frees to the lower order."""
    n = [max(int((table.counts == k).sum()), 1) for k in range(1, 5)]
    y = n[0] / (n[0] + 2 * n[1])
    discounts = np.clip([k - (k + 1) * y * n[k] / n[k - 1] for k in range(1, 4)], 0.01, [0.99, 1.99, 2.99])
    count, row, seen = table.look_up(ngrams)
    kept = np.maximum(count - np.append(0.0, discounts)[np.minimum(count, 3)], 0)
    return np.where(seen, (kept + table.types[row] @ discounts * lower) / table.totals[row], lower)


def witten_bell(table: Table, ngrams: Ids, lower: Floats) -> Floats:
    """Weigh the lower order by the number of different continuations that the context had."""
    count, row, seen = table.look_up(ngrams)
    types = table.types[row].sum(1)
    return np.where(seen, (count + types * lower) / (table.totals[row] + types), lower)


def bits(train: Ids, test: Ids, order: int, n_vocabulary: int) -> dict[str, float]:
    """Total -log2 probability of the test tokens under both models."""
    ngrams, counts = np.unique(pack(train, order, order), return_counts=True)
    tables, continuations = [Table(ngrams, counts)], [Table(ngrams, counts)]
    for n in range(order - 1, 0, -1):
        mask = (1 << BITS * n) - 1
        continuations.append(Table(*np.unique(ngrams & mask, return_counts=True)))  # distinct tokens to the left
        ngrams = continuations[-1].ngrams
        tables.append(Table(*np.unique(pack(train, n, order), return_counts=True)))
    total: dict[str, float] = {}
    for name, smooth, levels in (("Kneser-Ney", kneser_ney, continuations), ("Witten-Bell", witten_bell, tables)):
        probability: Floats = np.full(len(pack(test, 1, order)), 1 / n_vocabulary)
        for n, table in enumerate(reversed(levels), start=1):
            probability = smooth(table, pack(test, n, order), probability)
        total[name] = float(-np.log2(probability).sum())
    return total


def measure(sizes: list[int], held_out: list[Story], order: int) -> Iterator[Row]:
    """Train both models on the first ``size`` stories of one seed, test them on stories of another."""
    vocabulary: dict[str, int] = {}
    n_bytes = sum(len(story.text) for story in held_out)
    entropy = sum(story.bits for story in held_out) / n_bytes
    for size in sizes:
        train = tokenize((story.text for story in islice(stories(TRAIN_SEED), size)), vocabulary, order)
        test = tokenize((story.text for story in held_out), vocabulary, order)
        for model, total in bits(train, test, order, len(vocabulary)).items():
            yield Row(size, int((train != BEGIN).sum()), model, total / n_bytes, total / n_bytes / entropy - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, nargs="+", default=[2_000, 6_000, 20_000, 60_000, 200_000])
    parser.add_argument("--held-out", type=int, default=2_000)
    parser.add_argument("--order", type=int, default=5, choices=range(2, 6))
    options = parser.parse_args()
    began = time.perf_counter()
    held_out = list(islice(stories(TEST_SEED), options.held_out))
    n_bytes, n_bits = sum(len(story.text) for story in held_out), sum(story.bits for story in held_out)
    words = sum(len(story.text.split()) for story in held_out) / len(held_out)
    print(
        f"entropy {n_bits / n_bytes:.4f} bits per byte, {n_bits / len(held_out):.1f} bits and {words:.0f} words a story"
    )
    print("  stories     tokens  model        bits/byte  above entropy")
    rows = []
    for row in measure(options.stories, held_out, options.order):
        print(f"{row.stories:9,} {row.tokens:10,}  {row.model:11}  {row.bits_per_byte:9.4f}  {row.above_entropy:12.1%}")
        rows.append(asdict(row))
    result = {
        "order": options.order,
        "held_out_stories": options.held_out,
        "entropy_bits_per_byte": n_bits / n_bytes,
        "entropy_bits_per_story": n_bits / len(held_out),
        "words_per_story": words,
        "rows": rows,
        "seconds": round(time.perf_counter() - began, 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
