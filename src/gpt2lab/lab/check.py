"""`gpt2lab check`: does everything work on this machine? A line for each part, with a tick or what went wrong."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.markup import escape

from gpt2lab import runtime
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.loader import Loader
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import texts
from gpt2lab.errors import InputError
from gpt2lab.lab.console import console
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.flops import peak_flops
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import load_into, save, verify
from gpt2lab.training.config import OptimConfig
from gpt2lab.training.optim import make_optimiser

SEQ_LEN, ROWS = 64, 8
OVERFIT_STEPS, OVERFIT_LOSS = 200, 0.1


@dataclass
class Bench:
    """What the checks hand on to one another."""

    where: Runtime
    folder: Path
    data: Path | None
    dataset: TokenDataset = field(init=False)
    model: GPT = field(init=False)
    tokens: torch.Tensor = field(init=False)
    targets: torch.Tensor = field(init=False)

    def loss(self) -> torch.Tensor:
        """Return the loss of the batch."""
        with self.where.autocast():
            loss = self.model(self.tokens, self.targets).loss
        assert loss is not None  # targets were given
        return loss


def run_checks(data: Path | None, device: str) -> bool:
    """Run every check, print a line for each, and return whether all passed.

    Raises:
        InputError: There is no such device.
    """
    runtime.tune_allocator()
    where = runtime.resolve(device)
    with tempfile.TemporaryDirectory(prefix="gpt2lab-check-") as folder:
        bench = Bench(where, Path(folder), data)
        passed = [_run(name, check, bench) for name, check in CHECKS.items()]
        return all(passed)


def _run(name: str, check: Callable[[Bench], str], bench: Bench) -> bool:
    try:
        said = check(bench)
    except Exception as error:  # whatever is broken is what this command is there to tell
        missing = isinstance(error, AttributeError) and isinstance(error.obj, Bench)
        why = "not run, because an earlier part failed" if missing else f"{type(error).__name__}: {error}"
        console.print(f"[red]✗[/] {name}: {escape(why)}")
        return False
    console.print(f"[green]✓[/] {name}: {escape(said)}")
    return True


def _require(true: bool, otherwise: str) -> None:
    if not true:
        raise InputError(otherwise)


def _machine(bench: Bench) -> str:
    where = bench.where
    free = runtime.available_memory(where.device) / 2**30
    return f"{where.device}, {runtime.device_name(where.device)}, torch {torch.__version__}, {free:.1f} GiB free"


def _precision(bench: Bench) -> str:
    rate, source = peak_flops(bench.where.device, bench.where.precision)
    return f"{bench.where.precision} ({bench.where.why_precision}); {rate / 1e12:.2f} TFLOP/s, {source}"


def _compiler(bench: Bench) -> str:
    able, why = runtime.can_compile(bench.where.device)
    return f"{'can compile' if able else 'will not compile'}: {why}"


def _data(bench: Bench) -> str:
    if bench.data is None:
        tokenizer = Tokenizer.train(texts(["stories"], max_documents=200), 512)
        bench.dataset = prepare(["stories"], tokenizer, bench.folder / "data", max_documents=200)
    else:
        bench.dataset = TokenDataset(bench.data)
    batch = Loader(bench.dataset.stream("train"), SEQ_LEN, ROWS, ROWS, seed=0).batch(0, 0)
    bench.tokens, bench.targets = batch.tokens.to(bench.where.device), batch.targets.to(bench.where.device)
    return f"a batch of {ROWS} x {SEQ_LEN} tokens from {bench.data or 'stories'}"


def _tokenizer(bench: Bench) -> str:
    tokenizer = bench.dataset.tokenizer()
    text = "One day, naïve 🐈 said:\n\t“Hello”,  <|endoftext|> is text here.\r\n"
    _require(tokenizer.decode(tokenizer.encode(text)) == text, "a text does not come back as it went in")
    tokenizer.save(bench.folder / "tokenizer")
    again = Tokenizer.load(bench.folder / "tokenizer")
    _require(again.fingerprint == tokenizer.fingerprint, "a saved tokenizer is not the one that was saved")
    return f"{tokenizer.n_vocab:,} entries, text and file come back unchanged"


def _model(bench: Bench) -> str:
    torch.manual_seed(0)
    vocab_size = bench.dataset.manifest.tokenizer.n_vocab
    bench.model = GPT(GPTConfig.preset("nano", vocab_size=vocab_size)).to(bench.where.device)
    bench.loss().backward()
    gradients = [p.grad for p in bench.model.parameters()]
    finite = all(g is not None and bool(g.isfinite().all()) for g in gradients)
    _require(finite, "a parameter has no gradient, or one that is not finite")
    return f"nano with {bench.model.n_params:,} parameters, forward and backward, every gradient finite"


def _initial_loss(bench: Bench) -> str:
    loss, expected = bench.loss().item(), math.log(bench.model.config.vocab_size)
    _require(abs(loss - expected) < 0.2, f"{loss:.3f}, but a model that knows nothing has ln(vocab) = {expected:.3f}")
    return f"{loss:.3f}, and ln(vocab) is {expected:.3f}"


def _overfit(bench: Bench) -> str:
    optimiser = make_optimiser(bench.model, OptimConfig(lr=3e-3, weight_decay=0.0))
    bench.model.train()
    loss = bench.loss()
    for step in range(1, OVERFIT_STEPS + 1):
        optimiser.zero_grad(set_to_none=True)
        loss = bench.loss()
        if loss.item() < OVERFIT_LOSS:
            return f"the batch is learnt by heart: loss {loss.item():.3f} after {step} steps"
        loss.backward()
        optimiser.step()
    raise InputError(f"loss {loss.item():.3f} after {OVERFIT_STEPS} steps on one batch, not below {OVERFIT_LOSS}")


def _checkpoint(bench: Bench) -> str:
    run = Run.create(bench.folder / "run", {}, {})
    optimiser = make_optimiser(bench.model, OptimConfig())
    bench.loss().backward()
    optimiser.step()  # so that there is a state to save
    saved = save(run, bench.model, optimiser, {"step": 1, "val_loss": None})
    verify(saved)
    again = GPT(bench.model.config).to(bench.where.device)
    load_into(saved, again, make_optimiser(again, OptimConfig()))
    same = all(torch.equal(a, b) for a, b in zip(bench.model.parameters(), again.parameters(), strict=True))
    _require(same, "the weights that were read are not those that were written")
    return "weights and optimiser come back bit for bit"


CHECKS: dict[str, Callable[[Bench], str]] = {
    "machine": _machine,
    "precision": _precision,
    "compiler": _compiler,
    "data": _data,
    "tokenizer": _tokenizer,
    "model": _model,
    "initial loss": _initial_loss,
    "overfitting": _overfit,
    "checkpoint": _checkpoint,
}
"""The checks in order; each may use what those before it made."""
