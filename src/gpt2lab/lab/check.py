"""The checks of ``gpt2lab check``: a line for each part of the program, with a tick or what went wrong."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.markup import escape

from gpt2lab import runtime
from gpt2lab.console import console
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.loader import Loader
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import texts
from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import load_into, save, verify
from gpt2lab.training.config import OptimConfig
from gpt2lab.training.optim import make_optimizer

SEQ_LEN, ROWS = 64, 8
OVERFIT_STEPS, OVERFIT_LOSS = 200, 0.1


@dataclass
class Context:
    """What later checks reuse of earlier ones."""

    runtime: Runtime
    folder: Path
    data: Path | None
    dataset: TokenDataset = field(init=False)
    model: GPT = field(init=False)
    tokens: torch.Tensor = field(init=False)
    targets: torch.Tensor = field(init=False)

    def loss(self) -> torch.Tensor:
        """Return the loss of the batch."""
        with self.runtime.autocast():
            loss = self.model(self.tokens, self.targets).loss
        assert loss is not None  # targets were given
        return loss


def run_checks(data: Path | None, device: str) -> bool:
    """Run every check, print a line for each, and return whether all passed.

    Raises:
        InputError: The device does not exist.
    """
    runtime.tune_allocator()
    resolved = runtime.resolve(device)
    with tempfile.TemporaryDirectory(prefix="gpt2lab-check-") as folder:
        context = Context(resolved, Path(folder), data)
        passed = [_run(name, check, context) for name, check in CHECKS.items()]
        return all(passed)


def _run(name: str, check: Callable[[Context], str], context: Context) -> bool:
    try:
        said = check(context)
    except Exception as error:  # reporting whatever is broken is the purpose
        missing = isinstance(error, AttributeError) and isinstance(error.obj, Context)
        why = "not run, because an earlier check failed" if missing else f"{type(error).__name__}: {error}"
        console.print(f"[red]✗[/] {name}: {escape(why)}")
        return False
    console.print(f"[green]✓[/] {name}: {escape(said)}")
    return True


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _machine(context: Context) -> str:
    device = context.runtime.device
    free = runtime.available_memory(device) / 2**30
    return f"{device}, {runtime.device_name(device)}, torch {torch.__version__}, {free:.1f} GiB free"


def _precision(context: Context) -> str:
    rate, source = runtime.peak_flops(context.runtime.device, context.runtime.precision)
    return f"{context.runtime.precision} ({context.runtime.precision_reason}); {rate / 1e12:.2f} TFLOP/s, {source}"


def _compiler(context: Context) -> str:
    able, why = runtime.can_compile(context.runtime.device)
    return f"{'can compile' if able else 'will not compile'}: {why}"


def _data(context: Context) -> str:
    if context.data is None:
        tokenizer = Tokenizer.train(texts(["stories"], max_documents=200), 512)
        context.dataset = prepare(["stories"], tokenizer, context.folder / "data", max_documents=200)
    else:
        context.dataset = TokenDataset(context.data)
    batch = Loader(context.dataset.stream("train"), SEQ_LEN, ROWS, ROWS, seed=0).batch(0, 0)
    context.tokens, context.targets = batch.tokens.to(context.runtime.device), batch.targets.to(context.runtime.device)
    return f"a batch of {ROWS} x {SEQ_LEN} tokens from {context.data or 'stories'}"


def _tokenizer(context: Context) -> str:
    tokenizer = context.dataset.tokenizer()
    text = "One day, naïve 🐈 said:\n\t“Hello”,  <|endoftext|> is text here.\r\n"
    _require(tokenizer.decode(tokenizer.encode(text)) == text, "decoding does not restore the encoded text")
    tokenizer.save(context.folder / "tokenizer")
    again = Tokenizer.load(context.folder / "tokenizer")
    _require(again.fingerprint == tokenizer.fingerprint, "a loaded tokenizer differs from the one that was saved")
    return f"{tokenizer.n_vocab:,} entries, text and files round-trip"


def _model(context: Context) -> str:
    torch.manual_seed(0)
    vocab_size = context.dataset.manifest.tokenizer.n_vocab
    context.model = GPT(GPTConfig.preset("nano", vocab_size=vocab_size)).to(context.runtime.device)
    context.loss().backward()
    gradients = [p.grad for p in context.model.parameters()]
    finite = all(g is not None and bool(g.isfinite().all()) for g in gradients)
    _require(finite, "a parameter has no gradient, or one that is not finite")
    return f"nano with {context.model.n_params:,} parameters, forward and backward, every gradient finite"


def _initial_loss(context: Context) -> str:
    loss, expected = context.loss().item(), math.log(context.model.config.vocab_size)
    _require(
        abs(loss - expected) < 0.2, f"{loss:.3f}, but an untrained model should have ln(vocab_size) = {expected:.3f}"
    )
    return f"{loss:.3f}; ln(vocab_size) is {expected:.3f}"


def _overfitting(context: Context) -> str:
    optimizer = make_optimizer(context.model, OptimConfig(lr=3e-3, weight_decay=0.0))
    context.model.train()
    loss = context.loss()
    for step in range(1, OVERFIT_STEPS + 1):
        optimizer.zero_grad(set_to_none=True)
        loss = context.loss()
        if loss.item() < OVERFIT_LOSS:
            return f"one batch is memorized: loss {loss.item():.3f} after {step} steps"
        loss.backward()
        optimizer.step()
    raise InputError(f"loss {loss.item():.3f} after {OVERFIT_STEPS} steps on one batch; expected below {OVERFIT_LOSS}")


def _checkpoint(context: Context) -> str:
    run = Run.create(context.folder / "run", {}, {})
    optimizer = make_optimizer(context.model, OptimConfig())
    context.loss().backward()
    optimizer.step()  # creates optimizer state to save
    saved = save(run, context.model, optimizer, {"step": 1, "val_loss": None})
    verify(saved)
    again = GPT(context.model.config).to(context.runtime.device)
    load_into(saved, again, make_optimizer(again, OptimConfig()))
    same = all(torch.equal(a, b) for a, b in zip(context.model.parameters(), again.parameters(), strict=True))
    _require(same, "the weights read back differ from those written")
    return "weights and optimizer state round-trip bit for bit"


CHECKS = {
    check.__name__.strip("_").replace("_", " "): check
    for check in (
        *(_machine, _precision, _compiler, _data, _tokenizer),
        *(_model, _initial_loss, _overfitting, _checkpoint),
    )
}
"""The checks by name, in order; each may use what earlier ones created."""
