"""What `gpt2lab plan` says a step takes against the memory that a process is seen to take.

    python benchmarks/plan.py [--only tiny|distilgpt2|gpt2] [--device cpu|cuda]

Each measurement is a process of its own: three updates of the library's `Trainer` on random tokens, and the most memory
that it held less what it held after its imports (on a CPU), or the most that torch's allocator held (on a GPU).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SIZES = {"tiny": (4, 256), "distilgpt2": (2, 256), "gpt2": (1, 256)}
"""Sequences a pass and tokens a sequence."""
RESULTS = Path(__file__).parent / "results" / "plan.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SIZES, help="one model")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--child", nargs=3, metavar=("PRESET", "PRECISION", "CHECKPOINTED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        preset, precision, checkpointed = options.child
        print(json.dumps(measure(preset, precision, checkpointed, options.device)))
        return
    rows = []
    for preset in [options.only] if options.only else SIZES:
        for precision in ("fp32", "bf16"):
            for checkpointed in ("", "checkpointed"):
                rows.append(run_child(preset, precision, checkpointed, options.device))
                print(rows[-1], flush=True)
    worst = max(abs(row["estimated_mb"] / row["measured_mb"] - 1) for row in rows)
    print(f"largest error {worst:.1%}")
    if options.only is None:
        from gpt2lab.files import write_json
        from gpt2lab.runtime import environment

        path = RESULTS if options.device == "cpu" else RESULTS.with_name("plan_cuda.json")
        write_json(path, {"environment": environment(), "largest_error": round(worst, 3), "rows": rows})


def run_child(preset: str, precision: str, checkpointed: str, device: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--device", device, "--child", preset, precision, checkpointed]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(preset: str, precision: Any, checkpointed: str, device: str) -> dict[str, Any]:
    """Run three updates; return the memory they took, and the estimate, in MiB."""
    from gpt2lab import runtime

    runtime.tune_allocator()
    import torch
    import torch._dynamo  # else the optimiser's first step imports it, and its 90 MB count as the step's
    import torch.utils.checkpoint

    from gpt2lab.model.config import GPTConfig
    from gpt2lab.training import loop, memory

    del torch
    B, T = SIZES[preset]
    model = GPTConfig.preset(preset)
    where = runtime.resolve(device, precision)
    imports = runtime.peak_memory_mb(where.device)
    trainer = make_trainer(model, where, B, T, bool(checkpointed), loop)
    for _ in range(3):
        trainer.update()
    shape = memory.Shape(model, T, B, where.precision, where.device.type, bool(checkpointed))
    estimated = memory.estimate(shape).peak / 2**20
    measured = runtime.peak_memory_mb(where.device) - imports
    return {
        "preset": preset, "precision": precision, "checkpointed": bool(checkpointed), "B": B, "T": T,
        "measured_mb": round(measured), "estimated_mb": round(estimated), "ratio": round(estimated / measured, 3),
    }  # fmt: skip


def make_trainer(model: Any, where: Any, B: int, T: int, checkpointed: bool, loop: Any, **changes: Any) -> Any:
    """Return a `Trainer` on random tokens."""
    import numpy as np

    from gpt2lab.runs import Run
    from gpt2lab.training.config import OptimConfig, ResolvedConfig, TrainConfig
    from gpt2lab.training.loop import Hooks
    from gpt2lab.training.setup import Setup

    class RandomStream:
        """Random tokens in place of shards."""

        name, masked = "random tokens", False
        tokens = np.random.default_rng(0).integers(0, model.vocab_size, 200_000, dtype=np.uint16)

        def __len__(self) -> int:
            return len(self.tokens)

        def read(self, starts: np.ndarray, length: int) -> np.ndarray:
            return np.stack([self.tokens[start : start + length] for start in starts])

    options: dict[str, Any] = {
        "out": Path(), "steps": 100, "model": model, "optim": OptimConfig(lr=3e-3),
        "batch_tokens": B * T, "micro_batch": B, "seq_len": T, "compile": "off",
        "parallel": "none", "device": str(where.device), "precision": where.precision,
        "activation_checkpointing": checkpointed, **TrainConfig().intervals(100),
    }  # fmt: skip
    loop.peak_flops = lambda device, precision: (1e12, "not measured")  # its product would take memory of its own
    config = ResolvedConfig(**(options | changes))
    data = loop.Data(RandomStream(), None, {})
    return loop.Trainer(Setup(config, where, ()), data, Run(Path()), Hooks())


if __name__ == "__main__":
    main()
