"""Training on conversations: only what the assistant says counts, in every mean that is taken."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import (
    PLAIN,
    assert_same_run,
    column,
    go_on,
    interrupted,
    log_of,
    refusal,
    reported,
    small,
    train,
)

from gpt2lab import runtime
from gpt2lab.cli.main import main
from gpt2lab.data.dataset import TokenDataset, import_shards
from gpt2lab.data.loader import Loader, read_windows, within_documents
from gpt2lab.data.prepare import prepare
from gpt2lab.evaluation.measure import RunData
from gpt2lab.evaluation.perplexity import HeldOut, loss_by_position, perplexity_of
from gpt2lab.model.gpt import GPT
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.report import facts
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.config import saved_config
from gpt2lab.training.loop import validation_loss
from ranks import launch_each, needs_fork


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions of 30 bytes with answers of a few: many windows of 16 tokens hold no token that counts."""
    folder = tmp_path_factory.mktemp("chat")
    said = [(f"How much is {n} and {n}{'?' * (1 + n % 7)}", str(2 * n) * (1 + n % 3)) for n in range(80)]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in said]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tokenizer = Tokenizer.train([], 257)
    prepare(
        [str(folder / "chat.jsonl")], tokenizer, folder / "data", format="chat", val_fraction=0.3, test_fraction=0.1
    )
    return folder / "data"


def mean_loss(
    model: LanguageModel, tokens: torch.Tensor, targets: torch.Tensor, eot: int | None = None
) -> torch.Tensor:
    """The mean over the targets that count, by torch's own loss."""
    documents = () if eot is None else (None, *within_documents(tokens, eot))
    logits = model(tokens, None, *documents).logits
    assert logits is not None
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


@pytest.mark.parametrize("apart", [False, True], ids=["packed", "mask documents"])
@pytest.mark.parametrize("sampling", ["permutation", "random"])
def test_a_step_is_the_mean_over_all_tokens_that_count_however_it_is_accumulated(
    chat: Path, tmp_path: Path, sampling: Any, apart: bool
) -> None:
    dataset = TokenDataset(chat)
    stream, eot = dataset.stream("train"), dataset.manifest.tokenizer.eot if apart else None
    options: dict[str, Any] = {
        "model": PLAIN,
        "steps": 1,
        "eval_tokens": 0,
        "sampling": sampling,
        "mask_documents": apart,
    }
    config = small(chat, tmp_path / "run", **options)
    loader = Loader(stream, 16, 8, 1, config.seed, random=sampling == "random")
    batches = [loader.batch(0, micro_step) for micro_step in range(8)]
    counts = [int((batch.targets >= 0).sum()) for batch in batches]
    assert 0 in counts and len(set(counts)) > 2
    runtime.seed_step(config.seed)
    model = GPT(dataclasses.replace(PLAIN, vocab_size=257))
    tokens, targets = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("tokens", "targets"))
    loss = mean_loss(model, tokens, targets, eot)
    loss.backward()
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]))
    for micro_batch in (1, 2, 8):
        each = dataclasses.replace(config, out=tmp_path / str(micro_batch), micro_batch=micro_batch)
        _, (first,) = reported(each)
        assert first.loss == pytest.approx(loss.item(), abs=1e-5)
        assert first.grad_norm == pytest.approx(norm.item(), rel=1e-4)


@needs_fork
def test_two_ranks_have_the_losses_of_one(chat: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": PLAIN, "micro_batch": 1, "steps": 4, "log_every": 1, "eval_tokens": 0}
    config = small(chat, tmp_path / "none", **options)
    works = [
        partial(train, dataclasses.replace(config, out=tmp_path / mode, parallel=mode)) for mode in ("ddp", "fsdp")
    ]
    assert launch_each(2, works) == [["", ""]] * 2
    alone = train(config)
    for mode in ("ddp", "fsdp"):
        for name in ("train_loss", "val_loss"):
            assert column(Run(tmp_path / mode), name) == pytest.approx(column(alone, name), abs=1e-5)


@pytest.mark.parametrize("apart", [False, True], ids=["packed", "mask documents"])
def test_a_resumed_run_is_the_unbroken_one_and_its_validation_counts_what_counts(
    chat: Path, tmp_path: Path, apart: bool
) -> None:
    config = small(chat, tmp_path / "run", mask_documents=apart, eval_tokens=0)
    unbroken = train(dataclasses.replace(config, out=tmp_path / "unbroken"))
    interrupted(config, 10)
    assert_same_run(go_on(config), unbroken)
    model, _ = load_model(unbroken, "24")
    val, eot = TokenDataset(chat).stream("val"), TokenDataset(chat).manifest.tokenizer.eot if apart else None
    tokens, targets = read_windows(val, np.arange((len(val) - 1) // 16) * 16, 16)
    with torch.no_grad():
        expected = mean_loss(model, tokens, targets, eot).item()
    assert column(unbroken, "val_loss")[-1] == pytest.approx(expected, abs=1e-5)
    assert validation_loss(model, val, 16, 0, eot) == pytest.approx(expected, abs=1e-5)


def test_a_step_without_a_token_that_counts_is_told_and_changes_no_gradient(chat: Path, tmp_path: Path) -> None:
    config = small(chat, tmp_path / "run", model=PLAIN, batch_tokens=16, micro_batch=1, log_every=1, eval_tokens=0)
    run, reports = reported(config)
    without = [report.step for report in reports if report.loss == 0]
    assert 0 < len(without) < 24 and all(math.isfinite(report.loss) for report in reports)
    assert [report.grad_norm == 0 for report in reports] == [report.loss == 0 for report in reports]
    for step in without:
        assert f"step {step}: none of its tokens counts, no update; larger --batch-tokens avoid this" in log_of(run)


def test_a_validation_without_a_token_that_counts_is_refused(chat: Path, tmp_path: Path) -> None:
    config = small(chat, tmp_path / "run", eval_tokens=16)
    refusal(lambda: train(config), r"\(val\): none of 16 tokens counts in the loss; give more --eval-")
    assert not (tmp_path / "run").exists()


def test_data_of_which_nothing_counts_is_refused(chat: Path, tmp_path: Path) -> None:
    data = shutil.copytree(chat, tmp_path / "data", ignore=shutil.ignore_patterns("manifest.json", "tokenizer"))
    for mask in data.glob("*.mask"):
        mask.write_bytes(bytes(mask.stat().st_size))
    import_shards(data, TokenDataset(chat).tokenizer())
    none = "none of its tokens counts in the loss"
    refusal(lambda: train(small(data, tmp_path / "run")), rf"\(train\): {none}")
    for measure in (perplexity_of, loss_by_position):
        refusal(lambda f=measure: f(GPT(PLAIN), HeldOut.of_split(TokenDataset(data), "val")), rf"\(val\): {none}")


def test_perplexity_and_positions_are_those_of_what_counts(
    chat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(small(chat, tmp_path / "run", model=PLAIN, steps=4, eval_tokens=0))
    assert main(["eval", "perplexity", str(run.path), "--split", "val", "--stride", "16"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    figures = {row["metric"]: float(row["value"]) for row in run.evals()}
    model, _ = load_model(run, "best")
    val = TokenDataset(chat).stream("val")
    ids, counted = (np.concatenate([*blocks]) for blocks in (val.blocks(), val.counted_blocks()))
    last = (len(ids) - 1) // 16 * 16
    losses: list[float] = []
    for start in [*range(0, last, 16), len(ids) - 17]:
        window = torch.from_numpy(ids[start : start + 17].astype(np.int64))[None]
        found = model.token_losses(window[:, :-1], window[:, 1:])[0].tolist()
        new = max(0, last - start) if start == len(ids) - 17 else 0
        losses += [loss for at, loss in enumerate(found) if at >= new and counted[start + 1 + at]]
    assert len(losses) == counted.sum()
    assert figures["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    text = TokenDataset(chat).tokenizer().decode(ids[counted & (ids != 256)].tolist())
    assert figures["bits_per_byte"] == pytest.approx(np.sum(losses) / math.log(2) / len(text.encode()), rel=1e-5)
    assert figures.keys() == {"loss", "perplexity", "bits_per_byte"}
    assert f"Each of {len(losses)} tokens (those that count in the loss) is scored once" in said
    assert f"bits per byte are over the {len(text)} bytes of the text that they spell." in said
    assert main(["eval", "positions", str(run.path), "--split", "val"]) == 0
    assert f"over {counted.sum()} tokens in" in " ".join(capsys.readouterr().out.split())
    assert "Only tokens that are marked count in the loss" in facts.splits(RunData(run))
    assert saved_config(run).model.vocab_size == 257
