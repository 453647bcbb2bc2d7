"""What sharing a model's training out costs: two processes of one thread against one process of two.

    python benchmarks/ddp.py [--preset distilgpt2] [--rounds 3]

An update is 8 micro-steps of B 2, T 256 in each process, fp32 or bf16 as the CPU is fast in, with AdamW; sides run by
turns, each in new processes; tokens a second are the median of the rounds, and are saved by type of CPU
(ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 is a laptop's). Target: ddp at least 0.85 of one process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

MICRO_STEPS, B, T, UPDATES = 8, 2, 256, 3
SIDES = {"none": (1, 2), "ddp": (2, 1), "fsdp": (2, 1)}
"""Processes and threads of each mode."""


def work(mode: str, preset: str) -> None:
    """Train in this process; rank 0 prints tokens a second of all."""
    import torch

    from gpt2lab import runtime
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT
    from gpt2lab.training.config import OptimConfig
    from gpt2lab.training.distributed import MODES, clip_gradients, process_group
    from gpt2lab.training.optim import make_optimizer

    runtime.tune_allocator()
    torch.set_num_threads(SIDES[mode][1])
    with process_group("cpu") as comm:
        where = runtime.resolve("cpu")
        runtime.seed_step(1)
        model = GPT(GPTConfig.preset(preset))
        shared = MODES[mode](model, where)
        optimizer = make_optimizer(model, OptimConfig())
        tokens = torch.randint(model.config.vocab_size, (B, T + 1))
        begin = 0.0
        for update in range(UPDATES + 1):
            if update == 1:  # the first one allocates
                begin = time.perf_counter()
            for micro_step in range(MICRO_STEPS):
                shared.sync_gradients(micro_step == MICRO_STEPS - 1)
                with where.autocast():
                    loss = shared.network(tokens[:, :-1], tokens[:, 1:]).loss
                (loss / MICRO_STEPS).backward()
            clip_gradients(model, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if comm.is_main:
            count = UPDATES * MICRO_STEPS * B * T * comm.world_size
            print(f"RESULT {count / (time.perf_counter() - begin)} {where.precision}")


def measured(mode: str, preset: str) -> tuple[float, str]:
    """Return tokens a second, and the precision, of one side in new processes."""
    world, threads = SIDES[mode]
    start = [sys.executable] if world == 1 else [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [*start, __file__, "--preset", preset, "--work", mode]
    said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    _, speed, precision = next(line for line in said.splitlines() if line.startswith("RESULT")).split()
    return float(speed), precision


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", default="distilgpt2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.preset)
        return
    import torch

    speeds: dict[str, list[float]] = {mode: [] for mode in SIDES}
    precision = ""
    for _ in range(options.rounds):
        for mode, values in speeds.items():
            speed, precision = measured(mode, options.preset)
            values.append(speed)
            print(f"{mode}: {speed:,.0f} tokens/s", flush=True)
    median = {mode: statistics.median(values) for mode, values in speeds.items()}
    result = {
        "preset": options.preset,
        "precision": precision,
        "tokens_per_s": speeds,
        "of_one_process": {mode: round(value / median["none"], 3) for mode, value in median.items()},
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }
    path = Path(__file__).parent / "results" / "ddp.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    results[torch.backends.cpu.get_cpu_capability()] = result
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8", newline="\n")
    print(json.dumps(result["of_one_process"]), path)


if __name__ == "__main__":
    main()
