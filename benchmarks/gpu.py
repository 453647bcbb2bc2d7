"""Everything that can only be said on a GPU, in one go: is it right there, how fast is it, how much memory.

    PYTHONPATH=src python benchmarks/gpu.py [--only SECTION ...] [--nanogpt DIR] [--device cuda] [--size gpt2|tiny]

It needs no network, no data and no installation, only torch 2.11 or newer. Each section writes its JSON into
benchmarks/results/gpu/ when it ends; the whole is joined into benchmarks/results/<gpu>.json and a table beside it. All
sections together are meant to take under 8 minutes on an H200. ``--device cpu --size tiny`` walks the same code on a
machine without a GPU, in small, and keeps its results out of the way.

    correctness   kernels against the reference, compiled against eager, bf16 and fp16 training, determinism, resume
    training      GPT-2 124M: tokens/s and MFU as it is, then with one thing less at a time
    windows       FlexAttention and the banded kernel against SDPA with a mask, forward and backward
    decoding      batch 1 and batch 32, tokens/s
    memory        the peak of torch's allocator against `gpt2lab plan`
    nanogpt       its model and training step on the same GPU, where --nanogpt names a checkout
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_checks import Bench, correctness, losses_of, trainer_of

RESULTS = Path(__file__).parent / "results"
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"preset": "gpt2", "B": 32, "T": 1024, "steps": 12, "warmup": 4, "windows": 8192, "new_tokens": 256},
    "tiny": {"preset": "tiny", "B": 2, "T": 128, "steps": 2, "warmup": 1, "windows": 512, "new_tokens": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (default cuda)")
    parser.add_argument("--size", choices=SIZES, default="gpt2", help="gpt2, or tiny to try the script")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, to run beside")
    options = parser.parse_args()
    import torch

    from gpt2lab import runtime
    from gpt2lab.files import write_json

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no CUDA here; --device cpu --size tiny walks through the same code")
    runtime.tune_allocator()
    name = re.sub(r"\W+", "-", runtime.device_name(torch.device(options.device)).split(" (")[0]).strip("-").lower()
    folder = RESULTS / "gpu" if options.size == "gpt2" else Path(tempfile.mkdtemp(prefix="gpu-tiny-"))
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.device, SIZES[options.size], options.nanogpt)
    for section in options.only:
        begin = time.perf_counter()
        rows = SECTIONS[section](bench)
        seconds = round(time.perf_counter() - begin, 1)
        write_json(folder / f"{name}-{section}.json", {"section": section, "seconds": seconds, "rows": rows})
        print(f"== {section}, {seconds} s", *map(json.dumps, rows), sep="\n", flush=True)
    join(folder, name)


def join(folder: Path, name: str) -> None:
    """Write what every section has found so far into one JSON file and a table."""
    from gpt2lab.files import read_json, write_atomically, write_json
    from gpt2lab.runtime import environment

    parts = [read_json(p) for section in SECTIONS if (p := folder / f"{name}-{section}.json").exists()]
    out = folder.parent if folder.name == "gpu" else folder
    write_json(out / f"{name}.json", {"environment": environment(), "sections": parts})
    lines = [f"# {name}\n"]
    for part in (part for part in parts if part["rows"]):
        columns = list(dict.fromkeys(key for row in part["rows"] for key in row))
        lines += [
            f"\n## {part['section']} ({part['seconds']} s)\n",
            "| " + " | ".join(columns) + " |",
            "|---" * len(columns) + "|",
        ]
        lines += ["| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in part["rows"]]
    write_atomically(out / f"{name}.md", "\n".join(lines) + "\n")
    print(f"{out / name}.json and .md")


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


def training(bench: Bench) -> list[dict[str, Any]]:
    """Return tokens/s and MFU of training with everything, then with one thing less at a time."""
    import torch

    from gpt2lab.model import gpt as network
    from gpt2lab.model import loss as losses
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.training import loop

    compile_ = "on" if bench.device.startswith("cuda") else "off"
    fused_losses, make_optimizer, padded = network.fused_losses, loop.make_optimizer, GPTConfig.padded_vocab

    def plain_losses(*arguments: Any) -> Any:
        loss = losses.plain_loss(*arguments)
        return loss, torch.zeros_like(loss)

    def plain_optimizer(*arguments: Any) -> Any:
        optimizer = make_optimizer(*arguments)
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = False, False
        return optimizer

    ways: dict[str, dict[str, Any]] = {
        "everything": {}, "without compile": {"compile": "off"}, "without flash": {"model": {"kernel": "matmul"}},
        "without fused loss": {}, "without fused optimizer": {}, "without padded vocabulary": {},
    }  # fmt: skip
    rows = []
    for way, changes in ways.items():
        network.fused_losses = plain_losses if way == "without fused loss" else fused_losses
        loop.make_optimizer = plain_optimizer if way == "without fused optimizer" else make_optimizer
        if way == "without padded vocabulary":
            setattr(GPTConfig, "padded_vocab", property(lambda self: self.vocab_size))  # noqa: B010
        try:
            rows.append({"way": way, **training_figures(bench, trainer_of(bench, **{"compile": compile_, **changes}))})
        except torch.OutOfMemoryError:
            rows.append({"way": way, "tokens_per_s": "out of memory"})
        finally:
            network.fused_losses, loop.make_optimizer = fused_losses, make_optimizer
            setattr(GPTConfig, "padded_vocab", padded)  # noqa: B010
    return rows


def training_figures(bench: Bench, trainer: Any) -> dict[str, Any]:
    """Return tokens/s, MFU and peak memory of a trainer."""
    import torch

    from gpt2lab import runtime

    size, device = bench.size, trainer.runtime.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = seconds_of(trainer.update, size["warmup"], size["steps"], bench.device)
    speed = size["B"] * size["T"] / seconds
    peak, source = runtime.peak_flops(device, trainer.runtime.precision)
    return {
        "tokens_per_s": round(speed), "ms_per_step": round(1e3 * seconds, 2),
        "mfu": round(trainer.config.model.flops_per_token(size["T"]) * speed / peak, 4),
        "peak_memory_mb": round(runtime.peak_memory_mb(device)), "peak_rate": source,
    }  # fmt: skip


def windows(bench: Bench) -> list[dict[str, Any]]:
    """Return the time of attention over a window by each kernel, forward and backward, beside full causal SDPA."""
    import torch

    from gpt2lab.model.attention import AttentionPattern, attend
    from gpt2lab.model.config import GPTConfig

    T, rows = bench.size["windows"], []
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

        rows.append(
            {"kernel": kernel, "mask": what, "T": T, "ms": round(1e3 * seconds_of(step, 3, 10, bench.device), 3)}
        )
    return rows


def decoding(bench: Bench) -> list[dict[str, Any]]:
    """Return tokens/s of generation with a cache, for one sequence and for 32."""
    import torch

    from gpt2lab import generate, runtime
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT

    where = runtime.resolve(bench.device, bench.precision)  # type: ignore[arg-type]
    model = GPT(GPTConfig.preset(bench.size["preset"])).to(where.device).eval()
    new, rows = bench.size["new_tokens"], []
    for batch in (1, 32):
        prompt = torch.randint(50257, (batch, 16), device=where.device)

        def step(prompt: torch.Tensor = prompt) -> None:
            with where.autocast():
                generate(model, prompt, new, greedy=True)

        seconds = seconds_of(step, 1, 2, bench.device)
        rows.append({"batch": batch, "new_tokens": new, "tokens_per_s": round(batch * new / seconds, 1)})
    return rows


def memory(bench: Bench) -> list[dict[str, Any]]:
    """Return the peak of torch's allocator over three steps beside the estimate, with and without checkpointing."""
    import gc

    import torch

    from gpt2lab import runtime
    from gpt2lab.training.memory import Shape, estimate

    size, rows = bench.size, []
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
            rows.append({
                "precision": precision, "checkpointed": checkpointed, "measured_mb": round(measured),
                "estimated_mb": round(estimated), "ratio": round(estimated / measured, 3),
            })  # fmt: skip
            del trainer
    return rows


def nanogpt(bench: Bench) -> list[dict[str, Any]]:
    """Return tokens/s of the peer's model and training step: bf16 autocast, its fused AdamW, compiled on a GPU."""
    if bench.nanogpt is None:
        return []
    sys.path.insert(0, str(bench.nanogpt))
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

    seconds = seconds_of(step, size["warmup"], size["steps"], bench.device)
    return [
        {
            "way": "nanoGPT",
            "tokens_per_s": round(size["B"] * size["T"] / seconds),
            "ms_per_step": round(1e3 * seconds, 2),
        }
    ]


SECTIONS: dict[str, Callable[[Bench], list[dict[str, Any]]]] = {
    "correctness": correctness,
    "training": training,
    "windows": windows,
    "decoding": decoding,
    "memory": memory,
    "nanogpt": nanogpt,
}

if __name__ == "__main__":
    main()
