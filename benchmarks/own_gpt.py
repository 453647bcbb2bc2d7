"""A GPT-2 built by the chapters against ours: the same data, recipe and seeds, on Tiny Shakespeare by character.

    python benchmarks/own_gpt.py [--text FILE] [--steps 500] [--out DIR] [--quick]

The exercises are written by `gpt2lab learn start` and completed with the reference, gpt2lab/learn/gpt2.py. Both models
are trained by `gpt2lab train`, ours and ``--model my_gpt2.py:GPT``: 4 layers, 4 heads, width 64, context 64, 768
characters per step, no dropout, fp32, the last 10 % held out. The figure is the loss over the whole validation split,
of two seeds. A report of the first run is written, too.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import tempfile
from pathlib import Path

RECIPE = (
    "--model.n-layer=4 --model.n-head=4 --model.n-embd=64 --model.n-ctx=64 --model.dropout=0 --batch-tokens=768 "
    "--optim.lr=3e-3 --eval-tokens=0 --precision=fp32 --device=cpu"
)
SEEDS = (0, 1)
RESULTS = Path(__file__).parent / "results" / "own_gpt.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("GPT2LAB_DATA", "../shared/data"))
    parser.add_argument("--text", type=Path, default=shared / "tinyshakespeare.txt", help="training text")
    parser.add_argument("--steps", type=int, default=500, help="steps of each run (default 500)")
    parser.add_argument("--out", type=Path, help="directory to keep the runs and the report in")
    parser.add_argument("--quick", action="store_true", help="one seed, to try the script; nothing is written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        own = ["--model", f"{built(folder / 'student')}:GPT"]
        command("tokenizer", "train", "--input", options.text, "--vocab-size=257", "--out", folder / "tokenizer")
        command("data", "prepare", options.text, "--tokenizer", folder / "tokenizer", "--out", folder / "data",
                "--val-fraction=0.1", "--test-fraction=0")  # fmt: skip
        losses: dict[str, list[float]] = {"ours": [], "by the chapters": []}
        for seed in SEEDS[:1] if options.quick else SEEDS:
            for name, model in zip(losses, ([], own), strict=True):
                losses[name].append(trained(folder, name, model, seed, options.steps))
                print(f"{name}, seed {seed}: {losses[name][-1]:.4f} nats", flush=True)
        command("report", folder / "by the chapters 0", "--out", folder / "report.html")
    ours, theirs = map(statistics.fmean, losses.values())
    found = {"steps": options.steps, "losses": losses, "difference_percent": round(100 * (theirs / ours - 1), 3)}
    print(json.dumps(found, indent=2))
    if not options.quick:
        from gpt2lab.files import write_json
        from gpt2lab.runtime import environment

        write_json(RESULTS, {"environment": environment(), "found": found})


def built(folder: Path) -> Path:
    """Complete the exercises with the reference; return the file of the model."""
    from gpt2lab.learn import exercises, gpt2

    exercises.start(folder)
    for part in exercises.PARTS:
        with (folder / part.file).open("a", encoding="utf-8") as file:
            file.write("\n\n" + inspect.getsource(getattr(gpt2, part.name)))
    return folder / exercises.OWN_MODEL


def trained(folder: Path, name: str, model: list[str], seed: int, steps: int) -> float:
    """Train once; return the last validation loss."""
    from gpt2lab.runs import Run

    out = folder / f"{name} {seed}"
    lengths = [f"--steps={steps}", f"--eval-every={steps}", f"--checkpoint-every={steps}", f"--seed={seed}"]
    command("train", "--data", folder / "data", "--out", out, *RECIPE.split(), *lengths, *model)
    return [row["val_loss"] for row in Run.open(out).metrics() if row["val_loss"] is not None][-1]


def command(*words: object) -> None:
    """Run a command of gpt2lab."""
    from gpt2lab.cli.main import main

    if main([str(word) for word in words]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
