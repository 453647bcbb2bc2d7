"""`gpt2lab plan`: figures worked by hand, JSON and table, the speed of a measured run, and refusals."""

from __future__ import annotations

import json
import re
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest

from gpt2lab.cli.main import main
from gpt2lab.files import write_checked_json
from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.runs import Run
from gpt2lab.training.config import OptimConfig, ResolvedConfig, to_dict
from gpt2lab.training.memory import n_params

Capture = pytest.CaptureFixture[str]


def planned(capsys: Capture, *argv: object) -> dict[str, Any]:
    """Return the figures of a plan."""
    capsys.readouterr()
    assert main(["plan", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def measured_run(path: Path, gpus: str = "none", speeds: tuple[float, ...] = (100, 1000, 1200), **changes: Any) -> Run:
    """Make a run with rows of the given tokens per second; the first is slow, as the warm-up is."""
    options: dict[str, Any] = {
        "preset": "tiny", "batch_tokens": 2048, "micro_batch": 4, "seq_len": 256, "steps": 30, "out": path,
        "model": GPTConfig.preset("tiny"), "optim": OptimConfig(), "device": "cpu", "precision": "fp32",
        "compile": "off", "parallel": "none", "log_every": 10, "eval_every": 10, "checkpoint_every": 10,
    }  # fmt: skip
    run = Run.create(path, to_dict(ResolvedConfig(**(options | changes))), {"gpus": gpus})
    for step, speed in enumerate(speeds, 1):
        row = dict.fromkeys(("tokens", "epoch", "train_loss", "val_loss", "lr", "grad_norm", "seconds"), 1.0)
        run.add_metrics({"step": 10 * step, **row, "tokens_per_s": speed, "mfu": 0.3, "peak_memory_mb": 500.0})
    return run


def test_gpt2_xl_on_64_gpus_by_hand(capsys: Capture) -> None:
    found = planned(capsys, "--preset", "gpt2-xl", "--gpu", "H100", "--gpus", 64, "--tokens", "10B", "--mfu", 0.5)
    plain, per_token = found["plain"], 6 * (48 * 12 * 1600**2 + 50257 * 1600) + 12 * 48 * 1600 * 1024
    seconds, padded = per_token * 10**10 / (64 * 989e12 * 0.5), 1_557_611_200 + (50304 - 50257) * 1600
    assert (found["n_params"], found["steps"], plain["fits"]) == (1_557_611_200, -(-(10**10) // 2**20), True)
    assert (plain["mfu"], found["checkpointed"]["mfu"]) == (0.5, 0.375)
    assert found["flops"] == pytest.approx(per_token * 10**10)
    assert plain["days"] == pytest.approx(seconds / 86_400)
    assert found["checkpointed"]["days"] == pytest.approx(4 / 3 * seconds / 86_400)
    assert plain["gpu_hours"] == pytest.approx(64 * seconds / 3600)
    assert plain["step_seconds"] == pytest.approx(per_token * 2**20 / (64 * 989e12 * 0.5))
    assert plain["memory"]["weights"] == 4 * padded
    assert (found["checkpoint_bytes"], found["dataset_bytes"]) == (12 * padded, 2 * 10**10)
    assert found["cache_bytes"] == 2 * 48 * 1600 * 1024 * 2


def test_a_model_too_large_for_one_gpu_is_sharded(capsys: Capture) -> None:
    large = ["--preset", "gpt2-xl", "--gpus", 16, "--gpu", "A10G"]
    found = planned(capsys, *large)
    assert found["parallel"] == "fsdp"
    assert found["plain"]["memory"]["weights"] == pytest.approx(4 * 1_557_611_200 / 16, rel=1e-3)
    replicated = planned(capsys, *large, "--parallel", "ddp")
    assert not replicated["plain"]["fits"] and replicated["plain"]["largest_micro_batch"] == 0


def test_the_parallel_mode_is_the_one_that_training_chooses(capsys: Capture) -> None:
    # 16 bytes per parameter: the 12.4 GB of gpt2-large are over half of 24 GB, the 5.7 GB of gpt2-medium are not.
    for preset, mode in (("gpt2-large", "fsdp"), ("gpt2-medium", "ddp")):
        assert planned(capsys, "--preset", preset, "--gpu", "rtx 4090", "--gpus", 8)["parallel"] == mode


def test_the_table_has_both_scenarios_and_every_part(capsys: Capture) -> None:
    assert main(["plan", "--preset", "gpt2", "--gpus", "8"]) == 0
    printed = " ".join(capsys.readouterr().out.split("\n"))
    parts = [
        "cache of 1,024 tokens 37.7 MB",
        "weights",
        "gradients",
        "optimizer state",
        "activations",
        "peak",
        "largest micro-batch",
        "MFU",
    ]
    parts += ["time per step", "GPU-hours", "on disk", "without activation", " with activation"]
    for part in [*parts, "124,439,808 parameters on 8 x H100 (ddp, bf16)"]:
        assert part in printed


@pytest.mark.parametrize(
    ("text", "count"),
    [("10B", 10**10), ("1.5b", 15 * 10**8), ("3e8", 3 * 10**8), ("7_000", 7000), (None, 20 * 124_439_808)],
)
def test_tokens_are_written_in_any_usual_way_or_twenty_per_parameter(
    capsys: Capture, text: str | None, count: int
) -> None:
    assert planned(capsys, *([] if text is None else ["--tokens", text]))["workload"]["tokens"] == count


TINY = PRESETS["tiny"]
TINY_SIZE = n_params(TINY) + (TINY.padded_vocab - TINY.vocab_size) * TINY.n_embd
FROM_RUN = [  # of 1,100 tokens per second: changes to the run, more options, what is planned
    ({}, "--tokens 11000000", {"plain.tokens_per_s": 1100, "plain.days": 11e6 / 1100 / 86_400, "steps": 5372}),
    ({}, "--tokens 11000000", {"plain.micro_batch": 4, "flops": TINY.flops_per_token(256) * 11e6}),
    ({}, "--gpus 2", {"plain.tokens_per_s": 2200, "parallel": "ddp", "plain.memory.weights": 4 * TINY_SIZE}),
    ({}, "--gpus 2 --parallel fsdp", {"parallel": "fsdp", "plain.memory.weights": 2 * TINY_SIZE}),
    # 24 sequences per step are 12 for each of two GPUs, which 8 does not divide but 6 does.
    ({"batch_tokens": 24 * 256, "micro_batch": 8}, "--gpus 2", {"plain.micro_batch": 6, "plain.micro_steps": 2}),
    ({"activation_checkpointing": True}, "", {"checkpointed.tokens_per_s": 1100, "checkpointed.mfu": 0.3}),
    ({"mask_documents": True}, "", {"workload.documents": True}),
    # 2,048 tokens a step: 100 steps of a quarter, 100 of a half, then full; half the context until step 200.
    (
        {"grow_batch": "100:200", "grow_seq_len": "200"},
        "--tokens 563200",
        {"steps": 400, "flops": TINY.flops_per_token(128) * 153_600 + TINY.flops_per_token(256) * 409_600},
    ),
    ({"activation_checkpointing": True}, "", {"plain.tokens_per_s": 1100 * 4 / 3, "plain.mfu": 0.4}),
]


@pytest.mark.parametrize(("changes", "options", "expected"), FROM_RUN)
def test_a_short_run_is_extrapolated(
    tmp_path: Path, capsys: Capture, changes: dict[str, Any], options: str, expected: dict[str, Any]
) -> None:
    found = planned(capsys, "--from", measured_run(tmp_path / "run", **changes).path, *options.split())
    assert {name: reduce(getitem, name.split("."), found) for name in expected} == pytest.approx(expected)


def test_a_run_of_several_processes_is_planned_for_as_many(tmp_path: Path, capsys: Capture) -> None:
    run = measured_run(tmp_path / "run", parallel="fsdp")
    folder = run.checkpoints / "step_00000030"
    folder.mkdir(parents=True)
    write_checked_json(folder / "state.json", {"world": 2, "val_loss": None})
    for options, gpus, mode, speed in (
        ("", 2, "fsdp", 1100),
        ("--gpus=4", 4, "fsdp", 2200),
        ("--gpus=1", 1, "single", 550),
    ):
        found = planned(capsys, "--from", run.path, *options.split())
        assert (found["workload"]["gpus"], found["parallel"]) == (gpus, mode)
        assert found["plain"]["tokens_per_s"] == pytest.approx(speed)


def test_hours_of_a_run_on_cpus_are_process_hours(tmp_path: Path, capsys: Capture) -> None:
    assert main(["plan", "--from", str(measured_run(tmp_path / "run").path), "--gpus", "2"]) == 0
    printed = capsys.readouterr().out
    assert "process-hours" in printed and "machine" not in printed


def test_the_gpu_is_the_one_that_the_run_was_measured_on(tmp_path: Path, capsys: Capture) -> None:
    known = measured_run(tmp_path / "known", "NVIDIA H100 80GB HBM3, NVIDIA H100 80GB HBM3", device="cuda")
    assert planned(capsys, "--from", known.path)["workload"]["gpu"] == "H100"
    unknown = measured_run(tmp_path / "unknown", "Voodoo 2", device="cuda")
    assert planned(capsys, "--from", unknown.path, "--gpu", "T4")["workload"]["gpu"] == "T4"


NO_GPU_COUNT = "gpus is 0; it must be at least 1"
ONE_GPU = "parallel {} needs several GPUs, but gpus is 1; raise --gpus, or leave out --parallel"
REFUSALS = [
    ("--gpus 7", "seq_len 1024 x 7 processes = 7168; nearest that fit: 523264 or 530432"),
    ("--from RUN --gpus 5", "batch_tokens 2048 is not a multiple of micro_batch 1 x seq_len 256 x 5 processes"),
    ("--gpu H10", 'unknown GPU "H10" (did you mean "H100"?)'),
    ("--preset gpt3", 'unknown preset "gpt3"'),
    ("--gpu T4 --precision bf16", "T4 has no peak rate for bf16; choose from fp16, fp32"),
    *((f"{of}--parallel {mode}", ONE_GPU.format(mode)) for mode in ("ddp", "fsdp") for of in ("", "--from RUN ")),
    ("--gpu cpu --precision fp16", "precision fp16 is for GPUs; on this CPU use"),
    ("--gpu cpu --precision tf32", "precision tf32 needs CUDA"),
    *(
        (f"--tokens {text}", f'tokens is "{text}"; give a whole number such as 10000000000, 1e10, 10B or 300M')
        for text in ("10X", "inf", "nan", "1e400", "0.5", "1.5")
    ),
    ("--mfu 40", "mfu is 40.0; it must be a fraction of the peak rate"),
    ("--gpus 0", NO_GPU_COUNT),
    ("--from RUN --gpus 0", NO_GPU_COUNT),
    ("--from RUN --tokens -5", "tokens is -5; it must be at least 1"),
    ("--micro-batch 3", "nearest that fit: 522240 or 525312, or a micro_batch of 2 or 4"),
    ("--from RUN --preset gpt2 --mfu 0.5", "--from takes --preset, --mfu from the run; leave out one of them"),
    ("--from RUN --gpu h100", "was measured on cpu, which says nothing about H100"),
    ("--from CUDA --gpu A100", "was measured on H100, which says nothing about A100"),
    ("--from UNKNOWN", "was measured on Voodoo 2, which is in no table; name a similar GPU with --gpu"),
    ("--from FRESH", "fewer than two rows"),
    ("--from NOWHERE", "does not exist"),
]


@pytest.mark.parametrize(("options", "expected"), REFUSALS, ids=[options for options, _ in REFUSALS])
def test_refusals(tmp_path: Path, capsys: Capture, options: str, expected: str) -> None:
    if name := re.search("RUN|CUDA|UNKNOWN|FRESH", options):
        gpus = {"CUDA": "NVIDIA H100 80GB HBM3", "UNKNOWN": "Voodoo 2"}
        device = "cuda" if name[0] in gpus else "cpu"
        speeds = (100.0,) if name[0] == "FRESH" else (100.0, 1000.0)
        measured_run(tmp_path / name[0], gpus.get(name[0], "none"), speeds, device=device)
    argv = [str(tmp_path / word) if word.isupper() and word.isalpha() else word for word in options.split()]
    assert main(["plan", *argv]) == 2
    assert expected in capsys.readouterr().err
