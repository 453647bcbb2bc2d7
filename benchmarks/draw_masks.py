"""Draw each mask of docs/attention.md from its predicate.

    python benchmarks/draw_masks.py [--out docs/images/masks.png]

A dark square: the query of the row may read the key of the column. The last two are combinations: packed documents,
and the example of a mask of one's own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import torch

from gpt2lab.model.masks import (
    Mask,
    bidirectional,
    causal,
    dense,
    document,
    global_window,
    prefix_lm,
    sliding_window,
    strided,
)

matplotlib.use("Agg")

T = 24
DOCUMENTS = torch.tensor([[0] * 10 + [1] * 8 + [2] * 6])
DRAWN: dict[str, Mask] = {
    "causal": causal(),
    "window: 6": sliding_window(6),
    "global: window 6, prefix 2": global_window(6, 2),
    "strided: window 5": strided(5),
    "prefix: 8": prefix_lm(8),
    "bidirectional": bidirectional(),
    "causal & document": causal() & document(DOCUMENTS),
    "dilated: window 5": causal() & Mask(lambda b, h, q, k: ((q - k) % 2 == 0) & (q - k < 10)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parents[1] / "docs" / "images" / "masks.png"
    parser.add_argument(
        "--out", type=Path, default=default, help="the picture to write (default docs/images/masks.png)"
    )
    out = parser.parse_args().out
    figure, axes = plt.subplots(2, 4, figsize=(9, 5), layout="constrained")
    positions = torch.arange(T)
    for axis, (name, mask) in zip(axes.flat, DRAWN.items(), strict=True):
        axis.imshow(dense(mask, 1, 1, positions, positions)[0, 0], cmap="Blues", vmin=-0.15, vmax=1.2)
        axis.set_title(name, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes[-1]:
        axis.set_xlabel("keys", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("queries", fontsize=8)
    figure.savefig(out, dpi=80)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
