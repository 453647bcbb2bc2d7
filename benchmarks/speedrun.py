"""Time to a loss: `gpt2lab train --recipe fast` against nanoGPT's CPU recipe, on Tiny Shakespeare by character.

    python benchmarks/speedrun.py --nanogpt DIR [--steps 400] [--rounds 1] [--cpu native|avx2] [OPTION OF TRAIN ...]

Both sides train 4 layers of 4 heads and width 128 on 64 characters of context, on the first 90 % of the text. They run
as separate processes in turn, with two threads each. The loss is that of the final weights over the whole validation
split, in nats per character: 1,742 windows of 64 characters.

nanoGPT's side is its model, unchanged, in its documented CPU recipe (fp32, eager, 2,000 steps of 12 windows at random
offsets, no dropout, no biases). The loop is that of its train.py: AdamW, betas 0.9 and 0.99, weight decay 0.1, clipping
at 1, 100 steps of warm-up to 1e-3, a cosine to 1e-4, and an evaluation on 20 batches of each split every 250 steps. Its
time leaves out the loss over the whole split, which its train.py does not measure. Our side is the command as a user
runs it: its time includes that measurement, plots, checkpoints and a sample.

More options are those of `gpt2lab train`, such as `--optim.lr 4e-3`. The result is written if nanoGPT took its 2,000
steps on both types of CPU. `avx2` is this machine without what most laptops lack, as in train_cpu.py.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = {"n_layer": 4, "n_head": 4, "n_embd": 128}
T, B = 64, 12
NANOGPT_STEPS = 2_000
CPUS = {"native": {}, "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}}
RESULTS = Path(__file__).parent / "results" / "speedrun.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("GPT2LAB_DATA", "../shared/data"))
    parser.add_argument("--text", type=Path, default=shared / "tinyshakespeare.txt", help="training text")
    parser.add_argument("--nanogpt", type=Path, help="checkout of nanoGPT; without it, only our side runs")
    parser.add_argument("--nanogpt-steps", type=int, default=NANOGPT_STEPS, help="fewer, to try the script")
    parser.add_argument("--steps", type=int, default=400, help="steps of our side (default 400)")
    parser.add_argument("--batch-tokens", type=int, default=T * B, help="characters per step of our side (default 768)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side on each type of CPU (default 1)")
    parser.add_argument("--cpu", choices=CPUS, help="one type of CPU only")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (default 2)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options, ours = parser.parse_known_args()
    if options.child:
        print(json.dumps(train_nanogpt(options.child, options.nanogpt, options.nanogpt_steps)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_characters(options.text, folder)
        words = ["--steps", options.steps, "--batch-tokens", options.batch_tokens, *ours]
        for cpu in [options.cpu] if options.cpu else CPUS:
            env = os.environ | CPUS[cpu] | {"OMP_NUM_THREADS": str(options.threads)}
            found: dict[str, list[dict[str, Any]]] = {"nanoGPT": [], "fast": []}
            for _ in range(options.rounds):
                if options.nanogpt:
                    found["nanoGPT"].append(run_nanogpt(folder, options.nanogpt, options.nanogpt_steps, env))
                    print(cpu, "nanoGPT", found["nanoGPT"][-1], flush=True)
                found["fast"].append(run_ours(folder, words, env))
                print(cpu, "fast", found["fast"][-1], flush=True)
            rows.append({"cpu": cpu, **summary(found)})
            print(json.dumps(rows[-1]), flush=True)
    if options.nanogpt and options.nanogpt_steps == NANOGPT_STEPS and len(rows) == len(CPUS):
        from gpt2lab.files import write_json
        from gpt2lab.runtime import environment

        command = ["gpt2lab", "train", "--recipe", "fast", *map(str, words)]
        about = {"environment": environment() | {"threads": options.threads}, "ours": " ".join(command)}
        write_json(RESULTS, about | {"rows": rows})


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return every run, the median of each figure, and how many times as long nanoGPT's process took."""
    sides = {side: runs for side, runs in found.items() if runs}
    medians = {
        side: {key: statistics.median(run[key] for run in runs) for key in ("seconds", "training_seconds", "loss")}
        for side, runs in sides.items()
    }
    if "nanoGPT" not in sides:
        return {"medians": medians, "runs": sides}
    ratio = medians["nanoGPT"]["seconds"] / medians["fast"]["seconds"]
    return {"nanogpt_takes_times_our_time": round(ratio, 2), "medians": medians, "runs": sides}


def prepare_characters(text: Path, folder: Path) -> None:
    """Prepare the text as bytes, which are its characters, with the last tenth as the validation split."""
    from gpt2lab.data.prepare import prepare
    from gpt2lab.tokenizer.tokenizer import Tokenizer

    prepare([str(text)], Tokenizer.train([], 257), folder / "data", val_fraction=0.1, test_fraction=0.0)


def run_ours(folder: Path, words: list[Any], env: dict[str, str]) -> dict[str, Any]:
    """Train by the recipe in a process of its own."""
    from gpt2lab.runs import Run

    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    command = [sys.executable, "-m", "gpt2lab", "train", "--data", folder / "data", "--out", run, "--recipe", "fast"]
    for name, value in {**MODEL, "n_ctx": T}.items():
        command += [f"--model.{name.replace('_', '-')}", value]
    command += ["--eval-tokens", 0, "--eval-every", 10**9, "--checkpoint-every", 10**9, *words]
    begin = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, env=env, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    last, config = Run(run).metrics()[-1], Run(run).config
    return {
        "seconds": round(seconds, 2),
        "training_seconds": last["seconds"],
        "loss": round(last["val_loss"] or math.nan, 4),
        "steps": int(last["step"] or 0),
        "characters": int(last["tokens"] or 0),
        "precision": config["precision"],
    }


def run_nanogpt(folder: Path, checkout: Path, steps: int, env: dict[str, str]) -> dict[str, Any]:
    """Train by nanoGPT's recipe in a process of its own."""
    command = [sys.executable, __file__, "--child", folder, "--nanogpt", checkout, "--nanogpt-steps", steps]
    begin = time.perf_counter()
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, env=env)
    seconds = time.perf_counter() - begin
    found = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": round(seconds - found.pop("whole_split_seconds"), 2), **found}


def train_nanogpt(folder: Path, checkout: Path, steps: int) -> dict[str, Any]:
    """Train nanoGPT's model as its train.py does on a CPU."""
    sys.path.insert(0, str(checkout))
    import numpy as np
    import torch

    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    train, val = read_characters(folder / "data")
    torch.manual_seed(1337)
    model = GPT(GPTConfig(block_size=T, vocab_size=int(train.max()) + 1, dropout=0.0, bias=False, **MODEL))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")

    def batch(tokens: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        starts = torch.randint(len(tokens) - T, (B,)).tolist()
        x, y = (torch.stack([torch.from_numpy(tokens[i + j : i + j + T]) for i in starts]) for j in (0, 1))
        return x, y

    @torch.no_grad()
    def evaluate() -> None:
        model.eval()
        for tokens in (train, val):
            torch.tensor([model(*batch(tokens))[1].item() for _ in range(20)]).mean()
        model.train()

    def learning_rate(step: int) -> float:
        if step < 100:
            return 1e-3 * (step + 1) / 101
        return 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / max(1, steps - 100))) * 9e-4

    begin = time.perf_counter()
    for step in range(steps + 1):  # as nanoGPT counts: it evaluates before the first step and at the last
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        if step % 250 == 0:
            evaluate()
        _, loss = model(*batch(train))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # its log of each step
    trained = time.perf_counter()
    model.eval()
    with torch.no_grad():
        rows = torch.from_numpy(np.stack([val[i : i + T + 1] for i in range(0, len(val) - T, T)]))
        losses = [len(part) * model(part[:, :-1], part[:, 1:].contiguous())[1].item() for part in rows.split(64)]
    return {
        "training_seconds": round(trained - begin, 2),
        "loss": round(sum(losses) / len(rows), 4),
        "steps": steps,
        "characters": (steps + 1) * B * T,
        "precision": "fp32",
        "whole_split_seconds": time.perf_counter() - trained,
    }


def read_characters(data: Path) -> Any:
    """Return the training and validation split without their end-of-text tokens, as ids from 0 to 64."""
    import numpy as np

    from gpt2lab.data.dataset import TokenDataset

    dataset = TokenDataset(data)
    streams = [dataset.stream(name, every_byte=False) for name in ("train", "val")]
    splits = [stream.read(np.zeros(1, dtype=np.int64), len(stream))[0][1:] for stream in streams]
    characters = np.unique(np.concatenate(splits))
    return [np.searchsorted(characters, split) for split in splits]


if __name__ == "__main__":
    main()
