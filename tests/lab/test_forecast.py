"""`gpt2lab plan`: figures worked by hand, JSON and table, a run to go by, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt2lab.cli import main
from gpt2lab.files import write_json
from gpt2lab.lab.plan import GPU_MEMORY
from gpt2lab.model import PRESETS, GPTConfig, flops_per_token
from gpt2lab.model.flops import PEAK_FLOPS
from gpt2lab.runs import Run
from gpt2lab.training import TrainConfig, to_dict


def planned(capsys: pytest.CaptureFixture[str], *argv: object) -> dict:
    """The figures of a plan."""
    capsys.readouterr()
    assert main(["plan", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What a plan that cannot be is told."""
    capsys.readouterr()
    assert main(["plan", *map(str, argv)]) == 2
    return capsys.readouterr().err


def test_gpt2_xl_on_64_gpus_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--preset", "gpt2-xl", "--gpu", "H100", "--gpus", 64, "--tokens", 10**10, "--mfu", 0.5)
    a_token = 6 * (48 * 12 * 1600**2 + 50257 * 1600) + 12 * 48 * 1600 * 1024
    assert found["n_params"] == 1_557_611_200
    assert found["flops"] == pytest.approx(a_token * 10**10)
    seconds = a_token * 10**10 / (64 * 989e12 * 0.5)
    assert found["plain"]["days"] == pytest.approx(seconds / 86_400)
    assert found["checkpointed"]["days"] == pytest.approx(4 / 3 * seconds / 86_400)
    assert found["steps"] == -(-(10**10) // 2**20)
    assert found["plain"]["step_seconds"] == pytest.approx(a_token * 2**20 / (64 * 989e12 * 0.5))
    padded = (50304 - 50257) * 1600
    assert found["plain"]["memory"]["weights"] == 4 * (1_557_611_200 + padded)
    assert found["checkpoint_bytes"] == 12 * (1_557_611_200 + padded)
    assert found["dataset_bytes"] == 2 * 10**10
    assert found["plain"]["fits"]


def test_what_one_gpu_does_not_hold_is_shared_out(capsys: pytest.CaptureFixture[str]) -> None:
    large = ["--preset", "gpt2-xl", "--gpus", 16, "--gpu", "A10G"]
    found = planned(capsys, *large)
    assert found["parallel"] == "fsdp"
    assert found["plain"]["memory"]["weights"] == pytest.approx(4 * 1_557_611_200 / 16, rel=1e-3)
    replicated = planned(capsys, *large, "--parallel", "ddp")
    assert not replicated["plain"]["fits"] and replicated["plain"]["largest_micro_batch"] == 0


def test_tokens_are_twenty_a_parameter_unless_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys)["question"]["tokens"] == 20 * 124_439_808


def test_the_table_names_both_ways_and_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "gpt2", "--gpus", "8"]) == 0
    said = capsys.readouterr().out
    for name in (
        "weights",
        "gradients",
        "optimiser",
        "activations",
        "peak",
        "largest micro-batch",
        "a step",
        "data set",
    ):
        assert name in said
    assert "with activation checkpointing" in said and "124,439,808 parameters on 8 x H100 (ddp, bf16)" in said


@pytest.fixture
def short_run(tmp_path: Path) -> Run:
    """A run of three rows, of which the first is slow."""
    config = TrainConfig(
        preset="tiny", batch_tokens=2048, micro_batch=4, precision="fp32", model=GPTConfig.preset("tiny")
    )
    run = Run.create(tmp_path / "run", to_dict(config), {})
    for step, speed in ((10, 100.0), (20, 1000.0), (30, 1200.0)):
        row = dict.fromkeys(("tokens", "epoch", "train_loss", "val_loss", "lr", "grad_norm", "seconds"), 1.0)
        run.add_metrics({"step": step, **row, "tokens_per_s": speed, "mfu": 0.3, "peak_memory_mb": 500.0})
    return run


def test_a_short_run_is_extrapolated(short_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--from", short_run.path, "--tokens", 11 * 10**6)
    assert found["plain"]["tokens_per_s"] == pytest.approx(1100)
    assert found["plain"]["days"] == pytest.approx(11e6 / 1100 / 86_400)
    assert found["steps"] == -(-11 * 10**6 // 2048)
    assert found["plain"]["micro_batch"] == 4
    assert found["flops"] == pytest.approx(flops_per_token(PRESETS["tiny"], 256) * 11e6)
    four = planned(capsys, "--from", short_run.path, "--tokens", 11 * 10**6, "--gpus", 2)
    assert four["plain"]["tokens_per_s"] == pytest.approx(2200)


def test_what_is_refused(short_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "batch_tokens 524288 is not a multiple of 7 GPUs x seq_len 1024; nearest that fit: 523264 or 530432" in (
        refused(capsys, "--gpus", 7)
    )
    assert 'unknown GPU "H10" (did you mean "H100"?)' in refused(capsys, "--gpu", "H10")
    assert 'unknown preset "gpt3"' in refused(capsys, "--preset", "gpt3")
    assert "T4 has no peak rate for bf16; choose from fp16, fp32" in refused(capsys, "--gpu", "T4")
    assert "mfu is 40.0; it is a share of the peak rate" in refused(capsys, "--mfu", 40)
    assert "gpus is 0; it must be at least 1" in refused(capsys, "--gpus", 0)
    assert "gpus is 0; it must be at least 1" in refused(capsys, "--from", short_run.path, "--gpus", 0)
    assert "tokens is -5; it must be at least 1" in refused(capsys, "--from", short_run.path, "--tokens", -5)
    assert "micro_batch 3 does not divide the 512 sequences" in refused(capsys, "--micro-batch", 3)
    assert "--from takes the run's own --preset, --mfu" in refused(
        *(capsys, "--from", short_run.path, "--preset", "gpt2", "--mfu", 0.5)
    )
    config = short_run.config
    other = Run.create(tmp_path / "other", config, {})
    write_json(other.path / "config.json", config)
    assert "fewer than two rows" in refused(capsys, "--from", other.path)
    assert "does not exist" in refused(capsys, "--from", tmp_path / "nowhere")


def test_every_gpu_with_a_peak_rate_has_a_memory() -> None:
    assert GPU_MEMORY.keys() == PEAK_FLOPS.keys()
