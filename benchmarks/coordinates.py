"""The coordinate check of muP: do activations change as much in a wide model as in a narrow one?

    python benchmarks/coordinates.py [--widths 64 128 256 512] [--steps 6] [--lr 0.01]

Models of 2 layers, with heads of width 16, take a few steps of AdamW on a batch of random tokens. What is measured is
the mean change |x_t - x_0| of the numbers that a part returns, over 3 seeds. With the standard parametrization it grows
with the width, and the best learning rate falls with it; with muP (``--model.mup-base-width 64``; Yang et al. 2022,
Tensor Programs V, appendix D.1) it does not depend on the width. The picture is docs/images/coordinates.png; it takes a
minute on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.training.config import OptimConfig
from gpt2lab.training.optim import make_optimizer

BASE, HEAD_DIM, VOCABULARY, ROWS, T = 64, 16, 256, 4, 32
SEEDS = 3
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "coordinates.png"


def main() -> None:
    from gpt2lab import plots

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512], help="multiples of 16")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-2, help="AdamW's learning rate")
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    for name, base in (("standard", None), ("muP", BASE)):
        for width in options.widths:
            runs = [changes(width, base, options.steps, options.lr, seed) for seed in range(SEEDS)]
            for part in runs[0]:
                means = [sum(run[part][step] for run in runs) / SEEDS for step in range(1, options.steps + 1)]
                print(f"{name:8} width {width:4}  {part:12}", *(f"{size:8.4f}" for size in means), flush=True)
            for step in (1, options.steps):
                lines = curves.setdefault(
                    f"{name}, after {step} steps" if step > 1 else f"{name}, after a step", [[]] * SEEDS
                )
                found = [(float(width), run["last block"][step]) for run in runs]
                lines[:] = [[*line, point] for line, point in zip(lines, found, strict=True)]
    plots.write_png(options.out, plots.by_distance(curves, "width of the model", "mean change in the last block"))


def changes(width: int, base: int | None, steps: int, lr: float, seed: int = 0) -> dict[str, list[float]]:
    """Return the mean change of what each part returns after 0, 1, ..., steps steps."""
    torch.manual_seed(seed)
    config = GPTConfig(2, width // HEAD_DIM, width, T, VOCABULARY, dropout=0.0, mup_base_width=base)
    model = GPT(config)
    optimizer = make_optimizer(model, OptimConfig(lr=lr, weight_decay=0.0))
    tokens = torch.randint(VOCABULARY, (ROWS, T + 1))
    found: list[dict[str, torch.Tensor]] = []
    for step in range(steps + 1):
        found.append(_activations(model, tokens[:, :-1]))
        if step < steps:
            loss = model(tokens[:, :-1], tokens[:, 1:]).loss
            assert loss is not None
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    first = found[0]
    return {part: [(now[part] - first[part]).abs().mean().item() for now in found] for part in first}


@torch.no_grad()
def _activations(model: GPT, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the parts of a model return for some tokens."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[torch.nn.Module, tuple[Any, ...], torch.Tensor], None]:
        return lambda module, inputs, x: found.update({name: x})

    parts = {"attention": "h.1.attn", "feed-forward": "h.1.mlp", "last block": "h.1"}
    hooks = [model.get_submodule(path).register_forward_hook(keep(name)) for name, path in parts.items()]
    logits = model(tokens).logits
    for hook in hooks:
        hook.remove()
    assert logits is not None
    return found | {"logits": logits}


if __name__ == "__main__":
    main()
