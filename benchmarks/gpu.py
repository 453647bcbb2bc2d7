"""Everything that can only be said on a GPU, in one go: is it right there, how fast is it, how much memory.

    PYTHONPATH=src python benchmarks/gpu.py [--minutes 10] [--only SECTION ...] [--nanogpt DIR] [--out DIR]

A GPU is lent rarely and for minutes, so the sections run in the order of their worth, and each row is written as soon
as it is known: DIR/gpu/<gpu>-<section>.json, and all of them in DIR/<gpu>.json and a table beside it. A section that
would take longer than what is left of the time is skipped with a line, one that is still running when the time is over
ends after its present row, and one that fails ends with a line, and the next begins. The exit code is 1 if a check did
not hold or a section failed. It needs no network and no installation, only torch 2.11 or newer (and, for the recipe,
gpt2lab's dependencies and Tiny Shakespeare in $GPT2LAB_DATA). ``--device cpu --size tiny`` walks the same code on a
machine without a GPU, in small, and keeps its results out of the way.

    correctness   kernels against the reference, compiled against eager, bf16 and fp16 training, determinism, resume
    training      GPT-2 124M: tokens/s and MFU, ours and nanoGPT's (where --nanogpt names a checkout) by turns
    loss          the loss alone, forward and backward, and its share of a step
    decoding      1, 8, 32 and 128 rows: tokens/s, and the share of the memory's bandwidth that is used
    recipe        `gpt2lab train --recipe fast` by character: seconds to nanoGPT's loss on Tiny Shakespeare
    memory        the peak of torch's allocator against `gpt2lab plan`
    windows       FlexAttention and the banded kernel against SDPA with a mask, forward and backward
    ablations     the training step with one thing less at a time
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from gpu_checks import Bench, correctness, losses_of, trainer_of

RESULTS = Path(__file__).parent / "results"
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "preset": "gpt2", "B": 32, "T": 1024, "steps": 12, "warmup": 4, "windows": 8192, "new_tokens": 128,
        "rows": (1, 8, 32, 128), "recipe": {"n-layer": 6, "n-head": 6, "n-embd": 384, "n-ctx": 256}, "recipe_B": 64,
        "recipe_steps": 1000, "pace": 1.0,
    },
    "tiny": {
        "preset": "tiny", "B": 2, "T": 128, "steps": 2, "warmup": 1, "windows": 512, "new_tokens": 8,
        "rows": (1, 4), "recipe": {"n-layer": 1, "n-head": 2, "n-embd": 32, "n-ctx": 32}, "recipe_B": 4,
        "recipe_steps": 20, "pace": 0.0,
    },
}  # fmt: skip
"""``pace`` multiplies the seconds that a section is expected to take."""
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.04e12}
"""Bytes a second of a GPU's memory, by its name in `runtime.GPUS`, as its data sheet says."""
TARGET = 1.4697
"""nanoGPT's loss on Tiny Shakespeare by character, as its README has it for a GPU."""
Rows = Generator[dict[str, Any], None, None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all sections (default 10)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (default cuda)")
    parser.add_argument("--size", choices=SIZES, default="gpt2", help="gpt2, or tiny to try the script")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, to run beside")
    parser.add_argument("--out", type=Path, help="directory for the results (default benchmarks/results)")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    import torch

    from gpt2lab import runtime

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no CUDA here; --device cpu --size tiny walks through the same code")
    runtime.tune_allocator()
    name = re.sub(r"\W+", "-", runtime.device_name(torch.device(options.device)).split(" (")[0]).strip("-").lower()
    out = options.out or (RESULTS if options.size == "gpt2" else Path(tempfile.mkdtemp(prefix="gpu-tiny-")))
    (out / "gpu").mkdir(parents=True, exist_ok=True)
    bench = Bench(options.device, SIZES[options.size], options.nanogpt)
    failed = 0
    for section in options.only:
        expected, left = SECONDS[section] * bench.size["pace"], deadline - time.monotonic()
        if expected > left:
            print(f"== {section} skipped: it takes about {expected:.0f} s, and {left:.0f} s are left", flush=True)
            continue
        failed += run(section, bench, out, name, deadline)
    print(f"{out / name}.json and .md; {failed} failed")
    return 1 if failed else 0


def run(section: str, bench: Bench, out: Path, name: str, deadline: float) -> int:
    """Run a section and write each row that it finds; return how many checks did not hold, an error counted as one."""
    from gpt2lab.files import write_json

    begin, rows = time.monotonic(), bench.found.setdefault(section, [])

    def write(state: str) -> None:
        part = {"section": section, "state": state, "seconds": round(time.monotonic() - begin, 1), "rows": rows}
        write_json(out / "gpu" / f"{name}-{section}.json", part)
        join(out, name)
        print(f"== {section} {state}, {part['seconds']} s", *map(json.dumps, rows[-1:]), sep="\n", flush=True)

    state = "complete"
    with closing(SECTIONS[section](bench)) as found:
        try:
            for row in found:
                rows.append(row)
                write("running")
                if time.monotonic() > deadline:
                    state = "ended, the time is over"
                    break
        except Exception as error:  # the next section must have its chance
            traceback.print_exc()
            state = "failed"
            rows.append({"error": f"{type(error).__name__}: {error}"[:300], "ok": False})
    write(state)
    return sum(not row.get("ok", True) for row in rows)


def join(out: Path, name: str) -> None:
    """Write what every section has found so far into one JSON file and a table."""
    from gpt2lab.files import read_json, write_atomically, write_json
    from gpt2lab.runtime import environment

    parts = [read_json(p) for section in SECTIONS if (p := out / "gpu" / f"{name}-{section}.json").exists()]
    write_json(out / f"{name}.json", {"environment": environment(), "sections": parts})
    lines = [f"# {name}\n"]
    for part in (part for part in parts if part["rows"]):
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
        lines += [
            f"\n## {part['section']} ({part['seconds']} s, {part['state']})\n",
            "| " + " | ".join(columns) + " |",
            "|---" * len(columns) + "|",
        ]
        lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in part["rows"]]
    write_atomically(out / f"{name}.md", "\n".join(lines) + "\n")


def seconds_of(step: Callable[[], object], warmup: int, steps: int, device: str) -> float:
    """Return the median seconds of a step."""
    import torch

    times = []
    for index in range(warmup + steps):
        begin = time.perf_counter()
        step()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        if index >= warmup:
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def compiled(bench: Bench) -> dict[str, Any]:
    """Return the option of a trainer that compiles on a GPU."""
    return {"compile": "on" if bench.device.startswith("cuda") else "off"}


def training(bench: Bench) -> Rows:
    """Yield tokens/s and MFU of training, ours and nanoGPT's by turns, so that a clock that slows down slows both."""
    sides: list[tuple[str, Callable[[], object], Any]] = []
    trainer = trainer_of(bench, **compiled(bench))
    sides.append(("gpt2lab", trainer.update, trainer.config.model))
    if bench.nanogpt is not None:
        sides.append(("nanoGPT", nanogpt_step(bench, bench.nanogpt), trainer.config.model))
    warmup = bench.size["warmup"]
    for turn in range(2):
        for side, step, model in sides:
            yield {"turn": turn, "side": side, **step_figures(bench, step, model, warmup)}
        warmup = 1


def step_figures(bench: Bench, step: Callable[[], object], model: Any, warmup: int) -> dict[str, Any]:
    """Return tokens/s, MFU and peak memory of a training step; each model counts as GPT-2 of this shape."""
    import torch

    from gpt2lab import runtime

    size, device = bench.size, torch.device(bench.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_of(step, warmup, size["steps"], bench.device)
    speed = size["B"] * size["T"] / seconds
    peak, source = runtime.peak_flops(device, bench.precision)
    return {
        "tokens_per_s": round(speed), "ms_per_step": round(1e3 * seconds, 2),
        "mfu": round(model.flops_per_token(size["T"]) * speed / peak, 4),
        "peak_memory_mb": round(runtime.peak_memory_mb(device)), "peak_rate": source,
    }  # fmt: skip


def nanogpt_step(bench: Bench, checkout: Path) -> Callable[[], object]:
    """Return the peer's training step: bf16 autocast, its fused AdamW, compiled on a GPU."""
    sys.path.insert(0, str(checkout))
    import torch

    from gpt2lab.model.config import GPTConfig as Ours
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    size, shape = bench.size, Ours.preset(bench.size["preset"])
    config = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.n_embd, "block_size": shape.n_ctx}
    model: Any = GPT(GPTConfig(vocab_size=50304, dropout=0.0, bias=False, **config)).to(bench.device)
    device = torch.device(bench.device).type
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # as its train.py allows TF32
        model = torch.compile(model)
    tokens = torch.randint(50257, (size["B"], size["T"] + 1), device=bench.device)

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def loss(bench: Bench) -> Rows:
    """Yield the time of the loss alone, its share of the first step of `training`, and how fast its products ran."""
    import torch

    from gpt2lab import runtime
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.loss import fused_losses, plain_loss

    size, config = bench.size, GPTConfig.preset(bench.size["preset"])
    rows, device = size["B"] * size["T"], torch.device(bench.device)
    x = torch.randn(rows, config.n_embd, dtype=torch.bfloat16, device=device, requires_grad=True)
    weight = torch.randn(config.padded_vocab, config.n_embd, device=device, requires_grad=True)
    targets = torch.randint(config.vocab_size, (rows,), device=device)
    flops = 6.0 * rows * config.padded_vocab * config.n_embd
    steps = [row["ms_per_step"] for row in bench.found.get("training", []) if row.get("side") == "gpt2lab"]
    ways: dict[str, Callable[..., torch.Tensor]] = {
        "compiled": lambda *given: fused_losses(*given, compiled=True)[0],
        "eager": lambda *given: fused_losses(*given)[0],
        "plain": plain_loss,
    }
    for way in ways if device.type == "cuda" else ("eager", "plain"):

        def step(way: str = way) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                found = ways[way](x, weight, targets, config.vocab_size)
            found.backward()
            x.grad = weight.grad = None

        ms = 1e3 * seconds_of(step, 2, size["steps"], bench.device)
        share = round(ms / steps[-1], 4) if steps else None
        used = round(flops / (ms / 1e3) / runtime.peak_flops(device, "bf16")[0], 4)
        yield {"loss": way, "rows": rows, "ms": round(ms, 2), "of_a_step": share, "of_peak_rate": used}


def decoding(bench: Bench) -> Rows:
    """Yield tokens/s of generation with a cache by the number of rows, and the share of the memory's bandwidth.

    A step reads every weight once, in the dtype of the products, and of each row the keys and values so far.
    """
    import torch

    from gpt2lab import generate, runtime
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT

    where = runtime.resolve(bench.device, bench.precision)  # type: ignore[arg-type]
    model = GPT(GPTConfig.preset(bench.size["preset"])).to(where.device).eval()
    new, read = bench.size["new_tokens"], model.n_params - model.wpe.weight.numel()
    peak, source = bandwidth(where.device)
    for batch in bench.size["rows"]:
        prompt = torch.randint(50257, (batch, 16), device=where.device)

        def step(prompt: torch.Tensor = prompt) -> None:
            with where.autocast():
                generate(model, prompt, new, greedy=True)

        seconds = seconds_of(step, 1, 2, bench.device)
        moved = read * where.dtype.itemsize + batch * model.config.cache_bytes(16 + new // 2, where.dtype)
        yield {
            "rows": batch, "new_tokens": new, "tokens_per_s": round(batch * new / seconds, 1),
            "ms_per_token": round(1e3 * seconds / new, 3), "of_bandwidth": round(moved * new / seconds / peak, 4),
            "bandwidth": source,
        }  # fmt: skip


def bandwidth(device: Any) -> tuple[float, str]:
    """Return bytes a second of the device's memory, and where the figure is from: the data sheet, or a copy."""
    import torch

    from gpt2lab import runtime

    known = runtime.data_sheet(runtime.device_name(device))
    if known in BANDWIDTH:
        return BANDWIDTH[known], f"{known} data sheet"
    source = torch.zeros(2**26, device=device)
    copy = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: copy.copy_(source), 2, 5, str(device)), "measured copy"


def recipe(bench: Bench) -> Rows:
    """Yield what `gpt2lab train --recipe fast` reaches on Tiny Shakespeare by character, and when it is at `TARGET`."""
    from gpt2lab.runs import Run

    text = Path(os.environ.get("GPT2LAB_DATA", "shared/data")) / "tinyshakespeare.txt"
    size = bench.size
    shape = [word for option, value in size["recipe"].items() for word in (f"--model.{option}", value)]
    batch = size["recipe_B"] * size["recipe"]["n-ctx"]
    with tempfile.TemporaryDirectory() as name:
        tokenizer, data, run = (Path(name) / part for part in ("bytes", "data", "run"))

        def gpt2lab(*words: object) -> None:
            subprocess.run([sys.executable, "-m", "gpt2lab", *map(str, words)], check=True, stdout=subprocess.DEVNULL)

        gpt2lab("tokenizer", "train", "--input", text, "--vocab-size", 257, "--out", tokenizer)
        split = ("--val-fraction", 0.1, "--test-fraction", 0)
        gpt2lab("data", "prepare", text, "--tokenizer", tokenizer, "--out", data, *split)
        begin = time.perf_counter()
        gpt2lab(
            "train", "--recipe", "fast", "--data", data, "--out", run, "--device", bench.device,
            "--steps", size["recipe_steps"], "--batch-tokens", batch, "--eval-every", size["recipe_steps"] // 10,
            "--eval-tokens", 10**6, "--model.dropout", 0.2, *shape,
        )  # fmt: skip
        process = time.perf_counter() - begin
        losses = [(row["val_loss"], row["seconds"]) for row in Run.open(run).metrics() if row["val_loss"] is not None]
    yield {
        "steps": size["recipe_steps"], "batch_tokens": batch, "val_loss": round(min(losses)[0], 4), "target": TARGET,
        "to_target_s": next((seconds for value, seconds in losses if value <= TARGET), None),
        "training_s": losses[-1][1], "process_s": round(process, 1),
    }  # fmt: skip


def memory(bench: Bench) -> Rows:
    """Yield the peak of torch's allocator over three steps beside the estimate, with and without checkpointing."""
    import gc

    import torch

    from gpt2lab import runtime
    from gpt2lab.training.memory import Shape, estimate

    size = bench.size
    for precision in ("fp32", "bf16"):
        for checkpointed in (False, True):
            gc.collect()
            if bench.device.startswith("cuda"):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            trainer = trainer_of(bench, precision, {"dropout": 0.1}, activation_checkpointing=checkpointed)
            losses_of(trainer, 3)
            measured = runtime.peak_memory_mb(trainer.runtime.device)
            where = trainer.runtime
            shape = Shape(trainer.config.model, size["T"], size["B"], precision, where.device.type, checkpointed)
            estimated = estimate(shape).peak / 2**20
            yield {
                "precision": precision, "checkpointed": checkpointed, "measured_mb": round(measured),
                "estimated_mb": round(estimated), "ratio": round(estimated / measured, 3),
            }  # fmt: skip
            del trainer


def windows(bench: Bench) -> Rows:
    """Yield the time of attention over a window by each kernel, forward and backward, beside full causal SDPA."""
    import torch

    from gpt2lab.model.attention import AttentionPattern, attend
    from gpt2lab.model.config import GPTConfig

    T = bench.size["windows"]
    options: dict[str, Any] = {"device": bench.device, "dtype": torch.bfloat16, "requires_grad": True}
    q, k, v = (torch.randn(1, 12, T, 64, **options) for _ in range(3))
    places = torch.arange(T, device=bench.device)
    full = {"mask": "causal"}
    cases: list[tuple[str, str, dict[str, Any]]] = [("sdpa", "full causal", full)]
    flex = ["flex"] if bench.device.startswith("cuda") else []
    for width in (T // 32, T // 8):
        cases += [
            (kernel, f"window {width}", {"mask": "window", "window": width}) for kernel in ("sdpa", "banded", *flex)
        ]
    for kernel, what, mask in cases:
        config = GPTConfig(n_ctx=T, dropout=0.0, kernel=kernel, **mask)  # type: ignore[arg-type]
        pattern = AttentionPattern(config.masks[0], 1, 12, places, places)
        bias = pattern.bias(kernel, torch.bfloat16, training=True)

        def step(bias: Any = bias) -> None:
            attend(q, k, v, bias, 0.0).sum().backward()

        yield {"kernel": kernel, "mask": what, "T": T, "ms": round(1e3 * seconds_of(step, 3, 10, bench.device), 3)}


def ablations(bench: Bench) -> Rows:
    """Yield tokens/s and MFU of training with one thing less at a time."""
    import torch

    from gpt2lab.model import gpt as network
    from gpt2lab.model import loss as losses
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.training import loop

    fused_losses, make_optimizer, padded = network.fused_losses, loop.make_optimizer, GPTConfig.padded_vocab

    def plain_losses(*arguments: Any) -> Any:
        loss = losses.plain_loss(*arguments[:6])
        return loss, torch.zeros_like(loss)

    def plain_optimizer(*arguments: Any) -> Any:
        optimizer = make_optimizer(*arguments)
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = False, False
        return optimizer

    ways: dict[str, dict[str, Any]] = {
        "without compile": {"compile": "off"}, "without flash": {"model": {"kernel": "matmul"}},
        "without fused loss": {}, "without fused optimizer": {}, "without padded vocabulary": {},
    }  # fmt: skip
    for way, changes in ways.items():
        network.fused_losses = plain_losses if way == "without fused loss" else fused_losses
        loop.make_optimizer = plain_optimizer if way == "without fused optimizer" else make_optimizer
        if way == "without padded vocabulary":
            setattr(GPTConfig, "padded_vocab", property(lambda self: self.vocab_size))  # noqa: B010
        try:
            trainer = trainer_of(bench, **{**compiled(bench), **changes})
            yield {"way": way, **step_figures(bench, trainer.update, trainer.config.model, bench.size["warmup"])}
        except torch.OutOfMemoryError:
            yield {"way": way, "tokens_per_s": "out of memory"}
        finally:
            network.fused_losses, loop.make_optimizer = fused_losses, make_optimizer
            setattr(GPTConfig, "padded_vocab", padded)  # noqa: B010


SECTIONS: dict[str, Callable[[Bench], Rows]] = {
    "correctness": correctness,
    "training": training,
    "loss": loss,
    "decoding": decoding,
    "recipe": recipe,
    "memory": memory,
    "windows": windows,
    "ablations": ablations,
}
"""In the order of their worth."""
SECONDS = {
    "correctness": 120, "training": 90, "loss": 10, "decoding": 40, "recipe": 60, "memory": 40, "windows": 60,
    "ablations": 30,
}  # fmt: skip
"""What each is expected to take on an H100; of the ablations, the first. No GPU has confirmed them yet."""

if __name__ == "__main__":
    sys.exit(main())
