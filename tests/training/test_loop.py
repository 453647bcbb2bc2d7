"""The training loop: what an update is, what is measured and when, and when a run ends."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support import checkpoint, digests, rows, saved_steps, small, train

from gpt2lab import runtime
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.loader import Loader
from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training import monitoring
from gpt2lab.training.config import OptimConfig, saved_config
from gpt2lab.training.loop import Hooks, HooksFor, StepReport
from gpt2lab.training.monitoring import draw
from gpt2lab.training.optim import learning_rate

PLAIN = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16, dropout=0.0)


def told(reports: list[StepReport]) -> HooksFor:
    """Collect what `on_step` is told."""
    return lambda run: Hooks(on_step=reports.append)


def test_a_run_is_the_loop_that_one_would_write_by_hand(data: Path, tmp_path: Path) -> None:
    optim = OptimConfig(lr=1e-2, warmup_steps=3, weight_decay=0.2, grad_clip=0.3)
    config = small(data, tmp_path / "run", model=PLAIN, optim=optim, steps=12, micro_batch=8)
    reports: list[StepReport] = []
    run = train(config, told(reports))
    model, by_hand = _train_by_hand(
        Loader(TokenDataset(data).stream("train"), 16, 8, 8, config.seed), config.seed, optim
    )
    assert [r.loss for r in reports] == pytest.approx([loss for loss, _ in by_hand], abs=1e-4)
    assert [r.grad_norm for r in reports] == pytest.approx([norm for _, norm in by_hand], rel=1e-3)
    assert min(r.grad_norm for r in reports) > 0.3  # clipping took part, and the norm is that before it
    assert [r.lr for r in reports] == [learning_rate(optim, step, 12, 128) for step in range(12)]
    weights = load_file(checkpoint(run, 12) / "model.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=1e-3, atol=1e-4, msg=name)


def _train_by_hand(loader: Loader, seed: int, optim: OptimConfig) -> tuple[GPT, list[tuple[float, float]]]:
    """Twelve steps in plain PyTorch: cross-entropy of logits, clipping in two lines, AdamW without fusing."""
    runtime.seed_step(seed)
    model = GPT(GPTConfig(1, 2, 16, 16, vocab_size=257, dropout=0.0, kernel="reference"))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.2},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False)
    figures = []
    for step in range(12):
        batch = loader.batch(step, 0)
        logits = model(batch.tokens).logits
        assert logits is not None
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        optimiser.zero_grad()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
        for gradient in gradients:
            gradient *= min(1.0, optim.grad_clip / norm)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(optim, step, 12, 128)
        optimiser.step()
        figures.append((loss.item(), norm))
    return model, figures


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_accumulation_gives_the_step_of_the_whole_batch(data: Path, tmp_path: Path, micro_batch: int) -> None:
    whole: list[StepReport] = []
    parts: list[StepReport] = []
    options: dict[str, Any] = {"model": PLAIN, "steps": 8, "optim": OptimConfig(lr=1e-3)}
    train(small(data, tmp_path / "whole", micro_batch=8, **options), told(whole))
    train(small(data, tmp_path / "parts", micro_batch=micro_batch, **options), told(parts))
    assert [r.loss for r in parts] == pytest.approx([r.loss for r in whole], abs=1e-5)
    assert [r.grad_norm for r in parts] == pytest.approx([r.grad_norm for r in whole], abs=1e-5)


def test_each_row_of_the_metrics_is_the_mean_since_the_last(data: Path, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    run = train(small(data, tmp_path / "run"), told(reports))
    losses = [r.loss for r in reports]
    metrics = run.metrics()
    assert [row["step"] for row in metrics] == [5, 8, 10, 15, 16, 20, 24]  # every 5, and with each validation
    begin = 0
    for row in metrics:
        step = int(row["step"] or 0)
        assert row["train_loss"] == pytest.approx(sum(losses[begin:step]) / (step - begin))
        assert row["tokens"] == 128 * step
        assert row["epoch"] == pytest.approx(8 * step / 75, abs=1e-4)
        assert row["lr"] == reports[step - 1].lr
        assert row["grad_norm"] == reports[step - 1].grad_norm
        assert (row["val_loss"] is not None) == (step % 8 == 0)
        assert row["tokens_per_s"] and row["peak_memory_mb"] and row["seconds"]
        begin = step
    seconds = [row["seconds"] or 0.0 for row in metrics]
    assert seconds == sorted(seconds)


def test_on_step_is_told_every_step(data: Path, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    run = train(small(data, tmp_path / "run", steps=10, eval_every=4), told(reports))
    assert [(r.step, r.steps) for r in reports] == [(step, 10) for step in range(1, 11)]
    assert [r.val_loss is None for r in reports] == [True] * 3 + [False] * 7
    assert reports[6].val_loss == next(row["val_loss"] for row in run.metrics() if row["step"] == 4)
    assert all(r.tokens_per_s > 0 for r in reports)


def test_it_learns(data: Path, tmp_path: Path) -> None:
    optim = OptimConfig(lr=2e-2)
    run = train(small(data, tmp_path / "run", model=PLAIN, optim=optim, steps=120, eval_every=60, checkpoint_every=100))
    metrics = run.metrics()
    assert metrics[0]["train_loss"] == pytest.approx(math.log(257), abs=0.7)
    assert (metrics[-1]["train_loss"] or 9) < 2.0
    assert (metrics[-1]["val_loss"] or 9) < 2.5


def test_a_sequence_shorter_than_the_context(data: Path, tmp_path: Path) -> None:
    shapes: list[torch.Size] = []

    def hooks(run: Run) -> Hooks:
        return Hooks(sample=lambda model, step: shapes.append(model.wpe.weight.shape))

    run = train(small(data, tmp_path / "run", seq_len=8, steps=3), hooks)
    assert saved_config(run).seq_len == 8
    assert shapes == [torch.Size([16, 16])]
    moments = load_file(checkpoint(run, 3) / "optimizer.safetensors")
    read = moments["wpe.weight.exp_avg_sq"].sum(dim=1) > 0
    assert read.tolist() == [True] * 8 + [False] * 8  # positions past the sequence get no gradient


def test_samples_are_asked_for_at_intervals_and_at_the_end(data: Path, tmp_path: Path) -> None:
    asked: list[tuple[int, bool, bool]] = []

    def hooks(run: Run) -> Hooks:
        return Hooks(sample=lambda model, step: asked.append((step, model.training, torch.is_autocast_enabled("cpu"))))

    run = train(small(data, tmp_path / "run", sample_every=10, precision="bf16"), hooks)
    assert asked == [(10, False, True), (20, False, True), (24, False, True)]
    silent = train(small(data, tmp_path / "silent", precision="bf16"))
    assert digests(run) == digests(silent)  # sampling changes nothing


def test_sampling_may_draw_random_numbers(data: Path, finished: Run, tmp_path: Path) -> None:
    def sample(model: GPT, step: int) -> None:
        torch.rand(3)

    run = train(small(data, tmp_path / "run", sample_every=1), lambda run: Hooks(sample=sample))
    assert digests(run) == digests(finished)


def test_patience_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.0, 2.1])
    monkeypatch.setattr("gpt2lab.training.loop.validation_loss", lambda *_: next(losses))
    with caplog.at_level(logging.INFO, logger="gpt2lab"):
        run = train(small(data, tmp_path / "run", eval_every=3, patience=3, keep_last=1))
    assert [int(row["step"]) for row in rows(run)][-1] == 15  # an equal loss is no better one
    assert saved_steps(run) == [6, 15]
    assert "finished: no better validation loss in 3 validations" in caplog.text


def poisoned(step: int, spoil: Any) -> HooksFor:
    """Spoil the model after a step, through the hook that gets to see it."""

    def sample(model: GPT, at: int) -> None:
        if at == step:
            spoil(model)

    return lambda run: Hooks(sample=sample)


@torch.no_grad()
def _infinite_weight(model: GPT) -> None:
    model.get_parameter("ln_f.weight")[0] = math.inf


def _infinite_gradient(model: GPT) -> None:
    model.get_parameter("ln_f.weight").register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_infinite_weight, r"step 7: loss (nan|inf), "),
        (_infinite_gradient, r"step 7: loss \d.*, gradient norm (nan|inf)"),
    ],
)
def test_what_is_not_finite_stops_the_run_before_the_update(data: Path, tmp_path: Path, spoil: Any, said: str) -> None:
    config = small(data, tmp_path / "run", sample_every=3, checkpoint_every=5)
    with pytest.raises(
        InputError, match=said + r".*: training diverged and the update was not made; .*lower --optim\.lr"
    ):
        train(config, poisoned(6, spoil))
    run = Run(tmp_path / "run")
    assert saved_steps(run) == [5]
    assert [int(row["step"]) for row in rows(run)] == [5]
    assert all(bool(t.isfinite().all()) for t in load_file(checkpoint(run, 5) / "model.safetensors").values())


@pytest.mark.parametrize("with_val", [True, False], ids=["val", "no val"])
def test_the_picture_and_the_log_grow_while_it_runs(
    data: Path, without_val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_val: bool
) -> None:
    from PIL import Image  # comes with matplotlib

    monkeypatch.setattr(monitoring, "draw", draw)
    seen: list[tuple[int, int]] = []

    def on_step(report: StepReport) -> None:
        picture, log = tmp_path / "run" / "curves.png", tmp_path / "run" / "train.log"
        drawn = picture.stat().st_size if picture.exists() else 0
        seen.append((drawn, log.read_text(encoding="utf-8").count("tokens/s\n")))

    source = data if with_val else without_val
    run = train(small(source, tmp_path / "run", log_every=2, eval_every=12), lambda run: Hooks(on_step=on_step))
    assert [drawn > 0 for drawn, _ in seen] == [False] * 11 + [True] * 13
    assert [logged for _, logged in seen] == [step // 2 for step in range(1, 25)]
    with Image.open(run.path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (910, 455)
    assert not list(run.path.glob(".*"))


def test_the_log_holds_the_rows_and_the_choices(data: Path, tmp_path: Path) -> None:
    run = train(small(data, tmp_path / "run"))
    log = (run.path / "train.log").read_text(encoding="utf-8")
    for row in run.metrics():
        line = f"step {row['step']:.0f}/24  loss {row['train_loss']:.4f}"
        line += f"  val {row['val_loss']:.4f}" if row["val_loss"] is not None else ""
        assert f"{line}  lr {row['lr']:.2e}  norm {row['grad_norm']:.2f}  " in log
    assert "precision fp32: asked for" in log
    assert "finished: 24 steps done" in log
    assert all(line[:2] == "20" for line in log.splitlines())  # each begins with its date


def test_the_run_directory_holds_what_it_should(data: Path, tmp_path: Path) -> None:
    run = train(small(data, tmp_path / "run"))
    held = {p.name for p in run.path.iterdir()}
    assert {"config.json", "environment.json", "train.log", "metrics.csv", "evals.csv", "tokenizer"} <= held
    assert TokenDataset(data).tokenizer().fingerprint == _tokenizer_of(run)
    assert run.environment["torch"] == torch.__version__


def _tokenizer_of(run: Run) -> str:
    return Tokenizer.load(run.tokenizer).fingerprint


def test_without_a_name_runs_are_numbered(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(small(data, tmp_path, steps=1), out=None)
    assert [train(config).path for _ in range(3)] == [Path("runs") / f"nano-data{n}" for n in ("", "-2", "-3")]
