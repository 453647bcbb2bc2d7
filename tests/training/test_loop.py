"""The training loop: what an update is, what is evaluated and written, when a run ends, and what saves memory only."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from support import (
    PLAIN,
    SMALL,
    Doing,
    assert_same_run,
    at_step,
    checkpoint,
    column,
    copy_of,
    digests,
    go_on,
    hidden,
    log_of,
    refusal,
    reported,
    rows,
    saved_steps,
    small,
    train,
    trainer_of,
)

from gpt2lab import runtime
from gpt2lab.cli.main import main
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.loader import Batch, Loader
from gpt2lab.data.prepare import prepare
from gpt2lab.errors import InputError
from gpt2lab.model.gpt import GPT
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training import loop
from gpt2lab.training.checkpoint import find, load_model
from gpt2lab.training.config import OptimConfig, TrainConfig, saved_config
from gpt2lab.training.loop import (
    SPIKE_FROM,
    SPIKE_WINDOW,
    Hooks,
    StepReport,
    Trainer,
    draw_curves,
    find_spike,
    validation_loss,
)
from gpt2lab.training.optim import learning_rate
from gpt2lab.training.setup import Data, resolve


def reference(seed: int) -> GPT:
    """The model of a run of `PLAIN`, before its first step, with the reference kernel."""
    runtime.seed_step(seed)
    return GPT(dataclasses.replace(PLAIN, vocab_size=257, kernel="reference"))


def cross_entropy(model: LanguageModel, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean loss of whole rows, from the logits."""
    logits = model(tokens).logits
    assert logits is not None
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_a_run_is_the_loop_that_one_would_write_by_hand(data: Path, tmp_path: Path) -> None:
    optim = OptimConfig(lr=1e-2, warmup_steps=3, weight_decay=0.2, grad_clip=0.3)
    config = small(data, tmp_path / "run", model=PLAIN, optim=optim, steps=12, micro_batch=8)
    run, reports = reported(config)
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
    model = reference(seed)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == dim], "weight_decay": decay}
        for dim, decay in ((2, 0.2), (1, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False)
    figures = []
    for step in range(12):
        batch = loader.batch(step, 0)
        loss = cross_entropy(model, batch.tokens, batch.targets)
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
        for gradient in gradients:
            gradient *= min(1.0, optim.grad_clip / norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(optim, step, 12, 128)
        optimizer.step()
        figures.append((loss.item(), norm))
    return model, figures


def test_accumulation_gives_the_step_of_the_whole_batch(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": PLAIN, "steps": 8, "optim": OptimConfig(lr=1e-3)}
    _, whole = reported(small(data, tmp_path / "8", micro_batch=8, **options))
    for micro_batch in (1, 2, 4):
        _, parts = reported(small(data, tmp_path / str(micro_batch), micro_batch=micro_batch, **options))
        assert [r.loss for r in parts] == pytest.approx([r.loss for r in whole], abs=1e-5)
        assert [r.grad_norm for r in parts] == pytest.approx([r.grad_norm for r in whole], abs=1e-5)


def test_each_row_of_the_metrics_is_the_mean_since_the_last_and_a_line_of_the_log(data: Path, tmp_path: Path) -> None:
    run, reports = reported(small(data, tmp_path / "run"))
    losses, metrics, log = [r.loss for r in reports], run.metrics(), log_of(run)
    assert [row["step"] for row in metrics] == [5, 8, 10, 15, 16, 20, 24]  # every 5, and with each validation
    begin = 0
    for row in metrics:
        step = int(row["step"] or 0)
        assert row["train_loss"] == pytest.approx(sum(losses[begin:step]) / (step - begin))
        assert row["tokens"] == 128 * step
        assert row["epoch"] == pytest.approx(8 * step / 75, abs=1e-4)
        assert (row["lr"], row["grad_norm"]) == (reports[step - 1].lr, reports[step - 1].grad_norm)
        assert (row["val_loss"] is not None) == (step % 8 == 0)
        assert row["tokens_per_s"] and row["peak_memory_mb"] and row["seconds"]
        line = f"step {step}/24  loss {row['train_loss']:.4f}"
        line += f"  val {row['val_loss']:.4f}" if row["val_loss"] is not None else ""
        assert f"{line}  lr {row['lr']:.2e}  norm {row['grad_norm']:.2f}  " in log
        begin = step
    seconds = [row["seconds"] or 0.0 for row in metrics]
    assert seconds == sorted(seconds)
    assert "precision fp32: asked for" in log and "finished: 24 steps done" in log
    assert all(line[:2] == "20" for line in log.splitlines())  # each begins with its date
    files = {p.name for p in run.path.iterdir()}
    assert {"config.json", "environment.json", "train.log", "metrics.csv", "evals.csv", "tokenizer"} <= files
    assert TokenDataset(data).tokenizer().fingerprint == Tokenizer.load(run.tokenizer).fingerprint
    assert run.environment["torch"] == torch.__version__


def test_on_step_is_told_every_step(data: Path, tmp_path: Path) -> None:
    run, reports = reported(small(data, tmp_path / "run", model=PLAIN, steps=10, eval_every=4))
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
    hooks = Doing(sample=lambda model, step: shapes.append(model.wpe.weight.shape))
    run = train(small(data, tmp_path / "run", seq_len=8, steps=3), hooks)
    assert saved_config(run).seq_len == 8
    assert shapes == [torch.Size([16, 16])]
    read = load_file(checkpoint(run, 3) / "optimizer.safetensors")["wpe.weight.exp_avg_sq"].sum(dim=1) > 0
    assert read.tolist() == [True] * 8 + [False] * 8  # positions past the sequence get no gradient


def test_samples_are_asked_for_at_intervals_and_at_the_end(data: Path, tmp_path: Path) -> None:
    asked: list[tuple[int, bool, bool]] = []

    def sample(model: GPT, step: int) -> None:
        torch.rand(3)
        asked.append((step, model.training, torch.is_autocast_enabled("cpu")))

    options = {"model": PLAIN, "precision": "bf16"}
    run = train(small(data, tmp_path / "run", sample_every=10, **options), Doing(sample=sample))
    assert asked == [(10, False, True), (20, False, True), (24, False, True)]
    silent = train(small(data, tmp_path / "silent", **options))
    assert digests(run) == digests(silent)  # sampling, which may draw random numbers, changes nothing


def test_patience_ends_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.0, 2.1])
    monkeypatch.setattr("gpt2lab.training.loop.validation_loss", lambda *_: next(losses))
    run = train(small(data, tmp_path / "run", model=PLAIN, eval_every=3, patience=3, keep_last=1))
    assert [int(row["step"]) for row in rows(run)][-1] == 15  # an equal loss is no better one
    assert saved_steps(run) == [6, 15]
    assert "finished: no better validation loss in 3 validations" in log_of(run)


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
    hooks = Doing(sample=lambda model, step: spoil(model) if step == 6 else None)
    config = small(data, tmp_path / "run", model=PLAIN, sample_every=3, checkpoint_every=5)
    said += r".*: training diverged and the update was not made; .*lower --optim\.lr"
    refusal(lambda: train(config, hooks), said)
    run = Run(tmp_path / "run")
    assert saved_steps(run) == [5]
    assert [int(row["step"]) for row in rows(run)] == [5]
    assert all(bool(t.isfinite().all()) for t in load_file(checkpoint(run, 5) / "model.safetensors").values())


@pytest.mark.parametrize("step", [0, 1])
def test_a_run_that_fails_before_its_first_step_leaves_no_directory(data: Path, tmp_path: Path, step: int) -> None:
    def fail(*_: object) -> Any:
        raise InputError("no memory")

    hooks = at_step(step, fail) if step else Doing(begin=fail)
    refusal(lambda: train(small(data, tmp_path / "run", model=PLAIN), hooks), "no memory")
    assert (tmp_path / "run").exists() == (step > 0)


@pytest.mark.parametrize("folder", ["data", "without_val"])
def test_the_picture_and_the_log_grow_while_it_runs(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    from PIL import Image  # comes with matplotlib

    monkeypatch.setattr(loop, "draw_curves", draw_curves)
    seen: list[tuple[int, int]] = []

    def on_step(report: StepReport) -> None:
        picture = tmp_path / "run" / "curves.png"
        drawn = picture.stat().st_size if picture.exists() else 0
        seen.append((drawn, log_of(Run(tmp_path / "run")).count("tokens/s\n")))

    config = small(request.getfixturevalue(folder), tmp_path / "run", model=PLAIN, log_every=2, eval_every=12)
    run = train(config, Doing(on_step=on_step))
    assert [drawn > 0 for drawn, _ in seen] == [False] * 11 + [True] * 13
    assert [logged for _, logged in seen] == [step // 2 for step in range(1, 25)]
    with Image.open(run.path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (910, 455)
    assert not list(run.path.glob(".*"))


def test_without_a_name_runs_are_numbered(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(small(data, tmp_path, model=PLAIN, steps=1), out=None)
    assert [train(config).path for _ in range(3)] == [Path("runs") / f"nano-data{n}" for n in ("", "-2", "-3")]


def _windows(folder: Path) -> torch.Tensor:
    """Every whole window of the validation split, from the file itself: llm.c's header is 1,024 bytes."""
    tokens = np.fromfile(next(folder.glob("val*.bin")), dtype="<u2", offset=1024).astype(np.int64)
    return torch.from_numpy(np.stack([tokens[i : i + 17] for i in range(0, len(tokens) - 16, 16)]))


def test_validation_with_0_tokens_uses_all_of_them(data: Path, tmp_path: Path) -> None:
    run = train(small(data, tmp_path / "run", eval_tokens=0))
    windows = _windows(data)
    with torch.no_grad():
        expected = cross_entropy(load_model(run, "last")[0], windows[:, :-1], windows[:, 1:]).item()
    assert run.metrics()[-1]["val_loss"] == pytest.approx(expected, abs=1e-5)


class Reads:
    """A stream of tokens that remembers where it was read."""

    masked = False

    def __init__(self, length: int) -> None:
        self.name = "memory"
        self.tokens = np.random.default_rng(0).integers(0, 257, length).astype(np.uint16)
        self.starts: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        self.starts += starts.tolist()
        return np.stack([self.tokens[start : start + length] for start in starts])


@pytest.mark.parametrize(
    ("max_tokens", "starts"),
    [(0, range(0, 1600, 16)), (5000, range(0, 1600, 16)), (80, [0, 320, 640, 960, 1280]), (3, [0])],
    ids=["all", "more than there are", "five", "less than one"],
)
def test_validation_reads_the_same_windows_each_time_spread_evenly(max_tokens: int, starts: Any) -> None:
    model, losses = reference(0).eval(), []
    for _ in range(2):
        stream = Reads(1601)
        losses.append(validation_loss(model, stream, 16, max_tokens))  # type: ignore[arg-type]
        assert stream.starts == list(starts)
    assert losses[0] == losses[1]


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
            loss = cross_entropy(model, row[None, start:stop], after[start:stop])
            losses.append(loss.item() * (stop - start))
    return sum(losses) / tokens.numel()


def test_with_mask_documents_losses_are_those_of_documents_read_alone_and_so_are_evaluations(
    short: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(short, tmp_path / "run", model=PLAIN, steps=2)
    (apart, (first, _)), (_, (plain, _)) = (
        reported(dataclasses.replace(config, mask_documents=mask, out=tmp_path / str(mask))) for mask in (True, False)
    )
    assert apart.config["mask_documents"]
    dataset, model = TokenDataset(short), reference(config.seed)
    eot = dataset.manifest.tokenizer.eot
    batch: Batch = Loader(dataset.stream("train"), 16, 8, 8, config.seed).batch(0, 0)
    assert (batch.tokens[:, 1:] == eot).any()
    assert first.loss == pytest.approx(loss_apart(model, batch.tokens, batch.targets, eot), abs=1e-5)
    assert abs(first.loss - plain.loss) > 1e-4
    windows = _windows(short)
    expected = loss_apart(model.eval(), windows[:, :-1], windows[:, 1:], eot)
    assert validation_loss(model, dataset.stream("val"), 16, 0, eot) == pytest.approx(expected, abs=1e-5)
    for mask in (True, False):
        for verb, said in (("perplexity", "stay within documents"), ("positions", "within documents")):
            assert main(["eval", verb, str(tmp_path / str(mask)), "--split", "val"]) == 0
            assert (said in capsys.readouterr().out.replace("\n", " ")) == mask


@pytest.mark.parametrize("mask", [False, True], ids=["whole", "apart"])
def test_threads_that_read_ahead_change_nothing(short: Path, tmp_path: Path, mask: bool) -> None:
    options = {"model": PLAIN, "steps": 10, "mask_documents": mask}
    runs = [train(small(short, tmp_path / str(n), loader_workers=n, **options)) for n in (0, 2, 8)]
    assert rows(runs[0]) == rows(runs[1]) == rows(runs[2])
    resumed, config = copy_of(runs[0], tmp_path / "resumed")
    assert_same_run(go_on(config, 4, loader_workers=3), runs[0], 10)
    assert saved_config(resumed).mask_documents == mask


def fp16_trainer(data: Path, out: Path) -> Trainer:
    """A trainer in fp16 on the CPU, which a user cannot ask for: it is slow, but the arithmetic is that of GPUs."""
    dataset = TokenDataset(data)
    plan = resolve(small(data, out, model=PLAIN, steps=12), dataset)
    half = dataclasses.replace(plan, runtime=Runtime(torch.device("cpu"), "fp16"))
    run = Run(out) if out.exists() else Run.create(out, {}, {})
    return Trainer(half, Data.open(dataset, plan.config), run, Hooks())


def test_in_fp16_a_step_that_overflows_is_skipped_and_the_scale_halved(data: Path, tmp_path: Path) -> None:
    half = fp16_trainer(data, tmp_path / "run")
    half.scaler.load_state_dict(half.scaler.state_dict() | {"scale": 1e38})  # every gradient overflows
    before = [parameter.detach().clone() for parameter in half.model.parameters()]
    update = half.update()
    assert math.isfinite(update.loss)
    assert not math.isfinite(update.grad_norm)
    assert all(torch.equal(a, b) for a, b in zip(before, half.model.parameters(), strict=True))
    assert half.scaler.get_scale() == pytest.approx(5e37)
    assert half.progress.step == 1
    with torch.no_grad():
        half.model.get_parameter("ln_f.weight").fill_(math.inf)
    refusal(half.update, "step 2: loss nan")


def test_in_fp16_it_learns_and_resumes_with_its_scale(data: Path, tmp_path: Path) -> None:
    unbroken, first = (fp16_trainer(data, tmp_path / name) for name in ("unbroken", "run"))
    unbroken.fit()
    for _ in range(5):
        first.update()
    first.save()
    second = fp16_trainer(data, tmp_path / "run")
    second.restore(find(second.run, "5"))
    assert second.scaler.state_dict() == first.scaler.state_dict()
    second.fit()
    assert (second.run.metrics()[-1]["train_loss"] or 9) < 4.5 < math.log(257)
    assert digests(second.run, 12) == digests(unbroken.run, 12)


RECENT = [3.0 + 0.1 * (-1) ** n for n in range(50)]


def test_the_z_score_by_hand() -> None:
    spike = find_spike(4.0, [*RECENT], 6.0)
    assert spike is not None
    assert spike == pytest.approx((3.0, (4.0 - statistics.fmean(RECENT)) / statistics.pstdev(RECENT)))


@pytest.mark.parametrize(
    ("loss", "recent", "threshold", "spikes"),
    [
        (3.59, RECENT, 6.0, False),
        (3.61, RECENT, 6.0, True),
        (3.59, RECENT, 5.5, True),
        (2.0, RECENT, 6.0, False),
        (9.0, RECENT[: SPIKE_FROM - 1], 6.0, False),  # too little to compare to
        (3.1, [3.0] * 50, 6.0, False),  # a plateau
        (3.3, [3.0] * 50, 6.0, True),
    ],
)
def test_only_what_lies_far_above_is_a_spike(loss: float, recent: list[float], threshold: float, spikes: bool) -> None:
    assert (find_spike(loss, [*recent], threshold) is not None) == spikes


def test_a_level_that_stays_becomes_the_new_normal() -> None:
    recent = [*RECENT]
    spikes = [find_spike(6.0, recent, 6.0) is not None for _ in range(220)]
    assert spikes[0] and not spikes[19]
    assert recent == [6.0] * SPIKE_WINDOW


def spoil_loss(monkeypatch: pytest.MonkeyPatch, step: int, micro_step: int | None, factor: float) -> None:
    """Multiply the loss of a step, or of one of its two micro-steps, and with it its gradient."""
    forward, passes = GPT.forward, iter(range(10_000))

    def spoiled(self: GPT, *inputs: Any) -> Any:
        found = forward(self, *inputs)
        if found.loss is None:
            return found
        at, part = divmod(next(passes), 2)
        hit = at + 1 == step and micro_step in (None, part)
        return found._replace(loss=found.loss * factor) if hit else found

    monkeypatch.setattr(GPT, "forward", spoiled)


@pytest.mark.parametrize("on_spike", ["warn", "skip", "off"])
def test_a_spike_is_warned_of_or_skipped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_spike: Any
) -> None:
    weights: list[torch.Tensor] = []
    hooks = Doing(sample=lambda model, step: weights.append(model.wte.weight.detach().clone()))
    spoil_loss(monkeypatch, 23, None, 10)
    run = train(small(data, tmp_path / "run", on_spike=on_spike, sample_every=1), hooks)
    assert bool(re.search(r"step 23: loss \d.* deviations above the mean of the last steps", log_of(run))) == (
        on_spike != "off"
    )
    assert ("its update is skipped" in log_of(run)) == (on_spike == "skip")
    assert torch.equal(weights[21], weights[22]) == (on_spike == "skip")
    assert not torch.equal(weights[22], weights[23])


def test_a_resumed_run_skips_the_same_updates(data: Path, tmp_path: Path) -> None:
    # Losses of single sequences hop about, and the bar is low: the window's bits decide what is skipped.
    noisy: dict[str, Any] = {"batch_tokens": 16, "micro_batch": 1, "optim": OptimConfig(lr=1e-4), "spike_z": 0.05}
    config = small(data, tmp_path / "run", model=PLAIN, steps=40, on_spike="skip", **noisy)
    unbroken = train(dataclasses.replace(config, out=tmp_path / "unbroken"))
    skipped = re.findall(r"step (\d+): .* its update is skipped", log_of(unbroken))
    assert skipped and int(skipped[-1]) > 24
    train(config)
    assert_same_run(go_on(config, 24), unbroken, 40)


def windows_of(data: Path, config: TrainConfig, step: int, micro_step: int) -> list[int]:
    """The windows of a micro-step, from the loader's batches: their tokens are looked up in the stream."""
    stream = TokenDataset(data).stream("train")
    loader = Loader(stream, 16, 8, 4, config.seed)
    whole = stream.read(np.array([0]), len(stream))[0]
    tokens = loader.batch(step, micro_step).tokens.numpy()
    windows = range(loader.windows_per_epoch)
    return [next(k for k in windows if (whole[16 * k : 16 * k + 16] == row).all()) for row in tokens]


def test_an_infinite_loss_names_rank_and_windows(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_loss(monkeypatch, 5, 1, math.nan)
    config = small(data, tmp_path / "run")
    named = ", ".join(map(str, windows_of(data, config, 4, 1)))
    refusal(lambda: train(config), rf"step 5: loss nan.* on rank 0 in micro-step 2, windows {named}: training ")
    assert saved_steps(Run(tmp_path / "run")) == [4]


def test_rows_have_the_fraction_of_waiting_for_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Mapping[str, float | None]] = []
    clock = iter(range(10_000))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))  # every look at it takes a second
    run = train(small(data, tmp_path / "run", model=PLAIN), Doing(on_row=told.append))
    assert [{k: v for k, v in row.items() if k != "data_wait"} for row in told] == run.metrics()
    assert all(0 < (row["data_wait"] or 0) < 1 for row in told)
    assert told[0]["data_wait"] == pytest.approx(10 / (5 * 5 + 1), abs=0.1)  # 5 steps, 2 batches each, a second a batch
    assert f"data {100 * (told[0]['data_wait'] or 0):.1f} %" in log_of(run)


def test_a_trace_of_the_steps_asked_for_is_written_even_if_interrupted(data: Path, tmp_path: Path) -> None:
    run = train(small(data, tmp_path / "run", model=PLAIN, profile_steps="3:4"))
    trace = json.loads((run.path / "trace_3-4.json").read_text(encoding="utf-8"))
    updates = [e for e in trace["traceEvents"] if str(e.get("name")).startswith("Optimizer.step#")]
    assert len(updates) == 2
    assert run.config["profile_steps"] is None  # of this start only
    assert not hidden(run)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(data, tmp_path / "other", model=PLAIN, profile_steps="2:9"), at_step(3, interrupt))
    assert (tmp_path / "other" / "trace_2-9.json").stat().st_size


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_changes_no_bit(data: Path, tmp_path: Path, precision: Any) -> None:
    options = {"precision": precision, "steps": 8}
    plain = train(small(data, tmp_path / "plain", **options))
    run = train(small(data, tmp_path / "run", activation_checkpointing=True, **options))
    assert_same_run(run, plain, 8)  # with dropout


def test_activation_checkpointing_keeps_less(data: Path, tmp_path: Path) -> None:
    def kept_by(checkpointing: bool) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        trainer = trainer_of(data, tmp_path, steps=1, activation_checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer._backward(0, 0)
        return sum(kept.values())

    assert kept_by(True) < 0.7 * kept_by(False)


def test_the_training_loss_is_the_cross_entropy_of_the_next_token(data: Path, tmp_path: Path) -> None:
    models = [dataclasses.replace(SMALL, z_loss=z) for z in (0.0, 1.0)]
    runs = [train(small(data, tmp_path / str(model.z_loss), model=model, steps=1, log_every=1)) for model in models]
    plain, with_z = (column(run, "train_loss") + column(run, "grad_norm") for run in runs)
    assert with_z[0] == pytest.approx(plain[0], rel=1e-6)
    assert with_z[1] > 1.1 * plain[1]


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore")  # of torch's own, while it compiles
@pytest.mark.parametrize("value_residual", [False, True])
def test_activation_checkpointing_compiled_changes_no_bit(data: Path, tmp_path: Path, value_residual: bool) -> None:
    options: dict[str, Any] = {"model": dataclasses.replace(SMALL, value_residual=value_residual), "compile": "on"}
    plain = train(small(data, tmp_path / "plain", **options))
    assert_same_run(train(small(data, tmp_path / "run", activation_checkpointing=True, **options)), plain)


def test_deterministic_mode_changes_no_bit_and_ends_with_the_run(data: Path, finished: Run, tmp_path: Path) -> None:
    seen: list[bool] = []
    hooks = Doing(on_step=lambda report: seen.append(torch.are_deterministic_algorithms_enabled()))
    run = train(small(data, tmp_path / "run", deterministic=True), hooks)
    assert seen == [True] * 24
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same_run(run, finished)
