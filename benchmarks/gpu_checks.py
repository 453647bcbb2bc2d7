"""Whether training is right on a GPU: the section `correctness` of benchmarks/gpu.py, and what its sections share."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Bench:
    """Where and in which size the sections run."""

    device: str
    size: dict[str, Any]
    nanogpt: Path | None
    found: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The rows of the sections that have run."""

    @property
    def precision(self) -> str:
        """bf16, which every GPU from Ampere on multiplies; the CPU walks the same path."""
        return "bf16"


def trainer_of(bench: Bench, precision: Any = None, model: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Return the library's `Trainer` for the size, on random tokens."""
    from gpt2lab import runtime
    from gpt2lab.model.config import GPTConfig
    from gpt2lab.training import loop
    from plan import make_trainer  # benchmarks/plan.py, beside this file

    size = bench.size
    where = runtime.resolve(bench.device, precision or bench.precision)
    config = GPTConfig.preset(size["preset"], **({"dropout": 0.0} | (model or {})))
    return make_trainer(config, where, size["B"], size["T"], False, loop, **changes)


def losses_of(trainer: Any, steps: int) -> list[float]:
    """Return the losses of the next steps."""
    with trainer.runtime.numerics(trainer.config.deterministic):
        return [trainer.update().loss for _ in range(steps)]


def correctness(bench: Bench) -> Generator[dict[str, Any], None, None]:
    """Yield a row for each check: what was compared, the largest difference, the bound, whether it held."""
    for check in (check_kernels, check_compiled, check_precisions, check_deterministic, check_resume):
        try:
            for name, found, bound in check(bench):
                yield {"check": name, "difference": found, "bound": bound, "ok": found <= bound}
        except Exception as error:  # one that cannot run says nothing of the others
            traceback.print_exc()
            yield {"check": check.__name__, "error": f"{type(error).__name__}: {error}"[:300], "ok": False}


def check_kernels(bench: Bench) -> list[tuple[str, float, float]]:
    """Compare every kernel's output and gradient to the reference's, in fp32 on the same inputs."""
    import torch

    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT

    def run(kernel: Any, mask: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        config = GPTConfig(2, 4, 128, 256, vocab_size=512, dropout=0.0, kernel=kernel, **mask)
        model = GPT(config).to(bench.device)
        tokens = torch.randint(512, (2, 256), generator=torch.Generator().manual_seed(1)).to(bench.device)
        loss = model(tokens, tokens).loss
        assert loss is not None
        loss.backward()
        assert model.wte.weight.grad is not None
        return loss.detach(), model.wte.weight.grad

    found = []
    window = {"mask": "window", "window": 32}
    flex = ["flex"] if bench.device.startswith("cuda") else []
    for mask, kernels in (({}, ["matmul", "sdpa", *flex]), (window, ["sdpa", "banded", *flex])):
        loss, gradient = run("reference", mask)
        for kernel in kernels:
            other, theirs = run(kernel, mask)
            difference = max(abs((loss - other).item()), ((gradient - theirs).norm() / gradient.norm()).item())
            found.append((f"{kernel}, {mask.get('mask', 'causal')}, against reference", difference, 1e-4))
    return found


def check_compiled(bench: Bench) -> list[tuple[str, float, float]]:
    """Compare the losses of compiled and eager training."""
    if bench.device == "cpu":
        return []  # tests/training covers it, and compiling takes longer than all the rest
    eager, compiled = (losses_of(trainer_of(bench, compile=choice), 5) for choice in ("off", "on"))
    return [("compiled against eager, 5 steps", max(abs(a - b) for a, b in zip(eager, compiled, strict=True)), 0.02)]


def check_precisions(bench: Bench) -> list[tuple[str, float, float]]:
    """Compare the losses of bf16, and on a GPU TF32 and fp16, to those of fp32."""
    choices = ["bf16"] + (["tf32", "fp16"] if bench.device.startswith("cuda") else [])
    exact = losses_of(trainer_of(bench, "fp32"), 5)
    found = []
    for precision in choices:
        losses = losses_of(trainer_of(bench, precision), 5)
        difference = max(abs(a - b) for a, b in zip(exact, losses, strict=True))
        # fp16 begins with steps whose gradients overflow: the scaler skips them and comes down.
        found.append((f"{precision} against fp32, 5 steps", difference, 0.5 if precision == "fp16" else 0.03))
    return found


def check_deterministic(bench: Bench) -> list[tuple[str, float, float]]:
    """Train twice under --deterministic, with dropout: the same bits, with activation checkpointing too."""
    changes: dict[str, Any] = {"model": {"dropout": 0.1}, "deterministic": True}
    first, second = (losses_of(trainer_of(bench, **changes), 5) for _ in range(2))
    again = losses_of(trainer_of(bench, activation_checkpointing=True, **changes), 5)
    return [
        ("two deterministic runs", max(abs(a - b) for a, b in zip(first, second, strict=True)), 0.0),
        ("activation checkpointing", max(abs(a - b) for a, b in zip(first, again, strict=True)), 0.0),
    ]


def check_resume(bench: Bench) -> list[tuple[str, float, float]]:
    """Save after two steps, load into a new trainer, and go on for two: the same bits."""
    import dataclasses

    from gpt2lab.runs import Run
    from gpt2lab.training import checkpoint

    unbroken = trainer_of(bench, deterministic=True)
    begun = trainer_of(bench, deterministic=True)
    expected = losses_of(unbroken, 4)[2:]
    losses_of(begun, 2)
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", {}, {})
        state = dataclasses.asdict(begun.progress) | {"fingerprints": {}}
        saved = checkpoint.save(run, begun.model, begun.optimizer, state)
        resumed = trainer_of(bench, deterministic=True)
        resumed.restore(saved)
    found = losses_of(resumed, 2)
    return [("resumed against unbroken", max(abs(a - b) for a, b in zip(expected, found, strict=True)), 0.0)]
