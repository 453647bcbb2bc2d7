"""`gpt2lab plan`: figures worked by hand, JSON and table, a run to go by, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpt2lab.cli.main import main
from gpt2lab.files import write_json
from gpt2lab.lab.forecast import GPU_MEMORY
from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.model.flops import PEAK_FLOPS, flops_per_token
from gpt2lab.runs import Run
from gpt2lab.training.config import OptimConfig, ResolvedConfig, to_dict


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
    found = planned(capsys, "--preset", "gpt2-xl", "--gpu", "H100", "--gpus", 64, "--tokens", "10B", "--mfu", 0.5)
    a_token = 6 * (48 * 12 * 1600**2 + 50257 * 1600) + 12 * 48 * 1600 * 1024
    assert found["n_params"] == 1_557_611_200
    assert found["flops"] == pytest.approx(a_token * 10**10)
    seconds = a_token * 10**10 / (64 * 989e12 * 0.5)
    assert found["plain"]["days"] == pytest.approx(seconds / 86_400)
    assert found["checkpointed"]["days"] == pytest.approx(4 / 3 * seconds / 86_400)
    assert found["plain"]["gpu_hours"] == pytest.approx(64 * seconds / 3600)
    assert (found["plain"]["mfu"], found["checkpointed"]["mfu"]) == (0.5, 0.375)
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
    assert planned(capsys)["workload"]["tokens"] == 20 * 124_439_808


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
        "MFU",
        "a step",
        "GPU-hours",
        "data set",
    ):
        assert name in said
    assert (
        "without activation" in said
        and " with activation" in said
        and "124,439,808 parameters on 8 x H100 (ddp, bf16)" in said
    )


def test_the_mode_is_the_one_that_training_takes(capsys: pytest.CaptureFixture[str]) -> None:
    # 16 bytes a parameter: gpt2-large's 12.4 GB are over half of 24 GB, gpt2-medium's 5.7 GB are not
    for preset, mode in (("gpt2-large", "fsdp"), ("gpt2-medium", "ddp")):
        assert planned(capsys, "--preset", preset, "--gpu", "rtx 4090", "--gpus", 8)["parallel"] == mode


@pytest.mark.parametrize(
    ("text", "count"), [("10B", 10**10), ("1.5b", 15 * 10**8), ("3e8", 3 * 10**8), ("7_000", 7000)]
)
def test_tokens_as_people_write_them(capsys: pytest.CaptureFixture[str], text: str, count: int) -> None:
    assert planned(capsys, "--tokens", text)["workload"]["tokens"] == count


@pytest.fixture
def short_run(tmp_path: Path) -> Run:
    """A run of three rows, of which the first is slow."""
    return measured_run(tmp_path / "run")


def measured_run(path: Path, gpus: str = "none", **changes: Any) -> Run:
    """A run of three rows, of which the first is slow."""
    options: dict[str, Any] = {
        "preset": "tiny", "batch_tokens": 2048, "micro_batch": 4, "seq_len": 256, "steps": 30, "out": path,
        "model": GPTConfig.preset("tiny"), "optim": OptimConfig(), "device": "cpu", "precision": "fp32",
        "compile": "off", "parallel": "none",
    }  # fmt: skip
    config = ResolvedConfig(**(options | changes))
    run = Run.create(path, to_dict(config), {"gpus": gpus})
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


def test_a_short_run_is_spread_as_asked(short_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--from", short_run.path, "--gpus", 2, "--parallel", "fsdp")
    assert found["parallel"] == "fsdp"
    whole = planned(capsys, "--from", short_run.path, "--gpus", 2)
    assert whole["parallel"] == "ddp"
    assert found["plain"]["memory"]["weights"] == pytest.approx(whole["plain"]["memory"]["weights"] / 2, abs=4)


def test_a_run_of_several_processes_is_planned_for_as_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = measured_run(tmp_path / "run", parallel="fsdp")
    folder = run.checkpoints / "step_00000030"
    folder.mkdir(parents=True)
    write_json(folder / "state.json", {"world": 2, "val_loss": None})
    found = planned(capsys, "--from", run.path)
    assert (found["workload"]["gpus"], found["parallel"]) == (2, "fsdp")
    assert found["plain"]["tokens_per_s"] == pytest.approx(1100)
    more = planned(capsys, "--from", run.path, "--gpus", 4)
    assert more["parallel"] == "fsdp" and more["plain"]["tokens_per_s"] == pytest.approx(2200)
    alone = planned(capsys, "--from", run.path, "--gpus", 1)
    assert alone["parallel"] == "single" and alone["plain"]["tokens_per_s"] == pytest.approx(550)


def test_a_short_run_on_gpus_that_its_micro_batch_does_not_suit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured_run(tmp_path / "run", batch_tokens=24 * 256, micro_batch=8)  # 24 sequences a step
    found = planned(capsys, "--from", run.path, "--gpus", 2)["plain"]  # 12 for each: 8 does not divide them, 6 does
    assert (found["micro_batch"], found["micro_steps"]) == (6, 2)
    assert "is not a multiple of 5 GPUs" in refused(capsys, "--from", run.path, "--gpus", 5)


def test_a_run_with_activation_checkpointing_was_measured_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured_run(tmp_path / "run", activation_checkpointing=True)
    found = planned(capsys, "--from", run.path)
    assert found["checkpointed"]["tokens_per_s"] == pytest.approx(1100)
    assert found["plain"]["tokens_per_s"] == pytest.approx(1100 * 4 / 3)
    assert (found["checkpointed"]["mfu"], found["plain"]["mfu"]) == pytest.approx((0.3, 0.4))


def test_hours_of_a_run_on_cpus_are_those_of_its_processes(short_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--from", str(short_run.path), "--gpus", "2"]) == 0
    printed = capsys.readouterr().out
    assert "process-hours" in printed and "machine" not in printed


def test_a_short_run_is_planned_on_the_gpu_that_it_was_measured_on(
    tmp_path: Path, short_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = measured_run(tmp_path / "cuda", "NVIDIA H100 80GB HBM3, NVIDIA H100 80GB HBM3", device="cuda")
    assert planned(capsys, "--from", run.path)["workload"]["gpu"] == "H100"
    assert "was measured on H100, which tells nothing of A100" in refused(capsys, "--from", run.path, "--gpu", "A100")
    assert "was measured on cpu, which tells nothing of H100" in refused(
        *(capsys, "--from", short_run.path, "--gpu", "h100")
    )
    strange = measured_run(tmp_path / "strange", "Voodoo 2", device="cuda")
    assert "was measured on Voodoo 2, which is in no table; name one like it by --gpu" in (
        refused(capsys, "--from", strange.path)
    )
    assert planned(capsys, "--from", strange.path, "--gpu", "T4")["workload"]["gpu"] == "T4"


def test_what_is_refused(short_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "batch_tokens 524288 is not a multiple of 7 GPUs x seq_len 1024; nearest that fit: 523264 or 530432" in (
        refused(capsys, "--gpus", 7)
    )
    assert 'unknown GPU "H10" (did you mean "H100"?)' in refused(capsys, "--gpu", "H10")
    assert 'unknown preset "gpt3"' in refused(capsys, "--preset", "gpt3")
    assert "T4 has no peak rate for bf16; choose from fp16, fp32" in refused(capsys, "--gpu", "T4")
    for parallel in ("ddp", "fsdp"):
        alone = f"parallel {parallel} is for several GPUs, and gpus is 1; give more by --gpus, or leave out --parallel"
        assert alone in refused(capsys, "--gpus", 1, "--parallel", parallel)
        assert alone in refused(capsys, "--from", short_run.path, "--parallel", parallel)
    assert "precision fp16 is for GPUs; on this CPU use" in refused(capsys, "--gpu", "cpu", "--precision", "fp16")
    assert "precision tf32 needs CUDA" in refused(capsys, "--gpu", "cpu", "--precision", "tf32")
    for no_count in ("10X", "inf", "nan", "1e400", "0.5", "1.5"):
        assert f'tokens is "{no_count}"; give a whole number such as 10000000000, 1e10, 10B or 300M' in (
            refused(capsys, "--tokens", no_count)
        )
    assert "mfu is 40.0; it is a share of the peak rate" in refused(capsys, "--mfu", 40)
    assert "gpus is 0; it must be at least 1" in refused(capsys, "--gpus", 0)
    assert "gpus is 0; it must be at least 1" in refused(capsys, "--from", short_run.path, "--gpus", 0)
    assert "tokens is -5; it must be at least 1" in refused(capsys, "--from", short_run.path, "--tokens", -5)
    assert "micro_batch 3 does not divide the 512 sequences" in refused(capsys, "--micro-batch", 3)
    assert "--from takes the run's own --preset, --mfu" in refused(
        *(capsys, "--from", short_run.path, "--preset", "gpt2", "--mfu", 0.5)
    )
    config = short_run.config
    other = Run.create(tmp_path / "other", config, {"gpus": "none"})
    write_json(other.path / "config.json", config)
    assert "fewer than two rows" in refused(capsys, "--from", other.path)
    assert "does not exist" in refused(capsys, "--from", tmp_path / "nowhere")


def test_every_gpu_with_a_peak_rate_has_a_memory() -> None:
    assert GPU_MEMORY.keys() == PEAK_FLOPS.keys()
