"""``--mask-documents``: training and its validation read each document as if it stood alone."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import digests, rows, small, train

from gpt2lab import runtime
from gpt2lab.cli.main import main
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.loader import Loader
from gpt2lab.data.prepare import prepare
from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.loop import Hooks, StepReport, validation_loss
from gpt2lab.training.session import resume

PLAIN = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_ctx=16, dropout=0.0)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 documents of a few bytes: a window of 16 tokens holds several."""
    folder = tmp_path_factory.mktemp("short")
    text = "<|endoftext|>".join(f"{n} {'cat' * (n % 4)}" for n in range(200))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    prepare([str(folder / "text.txt")], Tokenizer.train([], 257), folder / "data", val_fraction=0.2)
    return folder / "data"


def loss_apart(model: GPT, tokens: torch.Tensor, targets: torch.Tensor, eot: int) -> float:
    """The mean loss of rows cut at each end of text, every part a sequence of its own that begins at position 0."""
    losses = []
    for row, after in zip(tokens, targets, strict=True):
        cuts = [0, *(n for n in range(1, len(row)) if row[n] == eot), len(row)]
        for start, stop in pairwise(cuts):
            logits = model(row[None, start:stop]).logits
            assert logits is not None
            losses.append(F.cross_entropy(logits[0], after[start:stop], reduction="none").detach())
    return float(torch.cat(losses).mean())


def test_the_first_loss_is_that_of_documents_read_alone(short: Path, tmp_path: Path) -> None:
    reports: dict[bool, list[StepReport]] = {}
    for mask_documents in (True, False):
        config = small(short, tmp_path / str(mask_documents), model=PLAIN, steps=2, mask_documents=mask_documents)
        told = reports[mask_documents] = []
        train(config, lambda run, told=told: Hooks(on_step=told.append))
    dataset = TokenDataset(short)
    eot = dataset.manifest.tokenizer.eot
    runtime.seed_step(config.seed)
    model = GPT(GPTConfig(2, 2, 16, 16, vocab_size=257, dropout=0.0, kernel="reference"))
    loader = Loader(dataset.stream("train"), 16, 8, 8, config.seed)
    batch = loader.batch(0, 0)
    assert (batch.tokens[:, 1:] == eot).any()
    assert reports[True][0].loss == pytest.approx(loss_apart(model, batch.tokens, batch.targets, eot), abs=1e-5)
    assert abs(reports[True][0].loss - reports[False][0].loss) > 1e-4


def test_so_is_the_validation_loss(short: Path) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(2, 2, 16, 16, vocab_size=257, dropout=0.0, kernel="reference")).eval()
    dataset = TokenDataset(short)
    val, eot = dataset.stream("val"), dataset.manifest.tokenizer.eot
    windows = torch.from_numpy(val.read(torch.arange(0, len(val) - 16, 16).numpy(), 17).astype("int64"))
    expected = loss_apart(model, windows[:, :-1], windows[:, 1:], eot)
    assert validation_loss(model, val, 16, 0, eot) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"mask_documents": True}], ids=["whole", "apart"])
def test_threads_that_read_ahead_change_nothing(short: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    runs = [
        train(small(short, tmp_path / str(workers), steps=10, loader_workers=workers, **changes))
        for workers in (0, 2, 8)
    ]
    assert rows(runs[0]) == rows(runs[1]) == rows(runs[2])


def test_a_run_goes_on_with_other_threads_but_not_with_another_mask(short: Path, tmp_path: Path) -> None:
    config = small(short, tmp_path / "run", steps=4, mask_documents=True)
    train(config)
    with pytest.raises(InputError, match="mask_documents was True when the run started and cannot be False"):
        resume(small(short, tmp_path / "run", steps=8, resume="last"), lambda run: Hooks())
    run = resume(
        small(short, tmp_path / "run", steps=8, resume="last", mask_documents=True, loader_workers=0),
        lambda run: Hooks(),
    )
    unbroken = train(small(short, tmp_path / "unbroken", steps=8, mask_documents=True))
    assert rows(run)[-1] == rows(unbroken)[-1]
    assert digests(run, 8) == digests(unbroken, 8)


def test_a_run_that_was_trained_so_is_measured_so(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mask_documents in (True, False):
        run = tmp_path / str(mask_documents)
        train(small(short, run, steps=2, mask_documents=mask_documents))
        for verb, apart in (("perplexity", "stay within documents"), ("positions", "within documents")):
            assert main(["eval", verb, str(run), "--split", "val"]) == 0
            assert (apart in capsys.readouterr().out.replace("\n", " ")) == mask_documents
