"""Muon against AdamW on Tiny Shakespeare by character: steps to the same validation loss, each at its best rate.

    python benchmarks/muon.py [--text FILE] [--steps 2000] [--quick]

The recipe is the README's: 4 layers, 4 heads, width 128, context 64, 768 characters per step, no dropout, the last 10 %
held out. Both optimizers run with every learning rate below: AdamW for all steps, Muon for half of them, with a
schedule of that length. The figure is the mean loss over the whole validation split. It takes about 12 minutes on two
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

ADAMW_RATES = (1e-3, 3e-3, 6e-3, 1e-2)
MUON_RATES = (0.01, 0.02, 0.04)
"""For matrices; embeddings, norms and biases use AdamW at 3e-3."""
RESULTS = Path(__file__).parent / "results" / "muon.json"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "muon.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("GPT2LAB_DATA", "../shared/data"))
    parser.add_argument("--text", type=Path, default=shared / "tinyshakespeare.txt", help="training text")
    parser.add_argument("--steps", type=int, default=2_000, help="steps of AdamW (default 2000)")
    parser.add_argument("--quick", action="store_true", help="one rate each, to try the script; nothing is written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_characters(options.text, Path(folder))
        runs = []
        for name, steps, rates in (
            ("adamw", options.steps, ADAMW_RATES),
            ("muon", options.steps // 2, MUON_RATES),
        ):
            for rate in rates[1:2] if options.quick else rates:
                runs.append(measure(data, Path(folder), name, rate, steps))
                print(f"{name:5} {rate:<6} {steps:5} steps: {runs[-1]['val_loss']:.4f} nats", flush=True)
    found = compare(runs)
    print(json.dumps(found, indent=2))
    if not options.quick:
        write(runs, found)


def prepare_characters(text: Path, folder: Path) -> Path:
    """Prepare the text as bytes, with the last tenth held out."""
    from gpt2lab.data.prepare import prepare
    from gpt2lab.tokenizer.tokenizer import Tokenizer

    prepare([str(text)], Tokenizer.train([], 257), folder / "data", val_fraction=0.1, test_fraction=0.0)
    return folder / "data"


def measure(data: Path, folder: Path, name: Any, rate: float, steps: int) -> dict[str, Any]:
    """Train once; return the validation losses, each over the whole split."""
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.training.config import OptimConfig, TrainConfig
    from gpt2lab.training.session import train

    muon_lr, lr = (rate, 3e-3) if name == "muon" else (None, rate)
    config = TrainConfig(
        data=data,
        out=folder / f"{name} {rate}",
        steps=steps,
        batch_tokens=768,
        model=GPTConfig(n_layer=4, n_head=4, n_embd=128, n_ctx=64, dropout=0.0),
        optim=OptimConfig(name=name, lr=lr, muon_lr=muon_lr, min_lr=lr / 30, warmup_steps=min(100, steps // 10)),
        eval_every=max(1, steps // 10),
        eval_tokens=0,
        checkpoint_every=steps,
        log_every=steps,
    )
    rows = [row for row in train(config).metrics() if row["val_loss"] is not None]
    curve = [(int(row["step"] or 0), round(row["val_loss"] or 0.0, 4)) for row in rows]
    return {"optimizer": name, "rate": rate, "steps": steps, "val_loss": curve[-1][1], "curve": curve}


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the best run of each, and the first step at which Muon reaches the final loss of AdamW."""
    adamw, muon = (
        min((r for r in runs if r["optimizer"] == name), key=lambda r: r["val_loss"]) for name in ("adamw", "muon")
    )
    reached = next((step for step, loss in muon["curve"] if loss <= adamw["val_loss"]), None)
    return {
        "adamw": {key: adamw[key] for key in ("rate", "steps", "val_loss")},
        "muon": {key: muon[key] for key in ("rate", "steps", "val_loss")},
        "muon_reaches_adamw_at_step": reached,
        "share_of_adamws_steps": reached and round(reached / adamw["steps"], 3),
    }


def write(runs: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """Write the results, with machine and versions, and the plot."""
    from matplotlib.figure import Figure

    from gpt2lab.files import write_json
    from gpt2lab.runtime import environment

    write_json(RESULTS, {"environment": environment(), "found": found, "runs": runs})
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        best = run["rate"] == found[run["optimizer"]]["rate"]
        color = "#0072B2" if run["optimizer"] == "adamw" else "#D55E00"
        steps, losses = zip(*run["curve"], strict=True)
        label = f"{run['optimizer']} {run['rate']}: {run['val_loss']:.3f}"
        axes.plot(steps, losses, color=color, lw=2 if best else 1, alpha=1 if best else 0.4, label=label)
    axes.axhline(found["adamw"]["val_loss"], color="#0072B2", lw=0.8, ls=":")
    axes.set(xlabel="step", ylabel="validation loss, nats per character", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    main()
