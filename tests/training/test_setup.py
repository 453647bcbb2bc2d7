"""What a run resolves to: its length in steps, its micro-batch, its device, and the reasons."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SMALL, refusal, small, train

from gpt2lab import runtime
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.model.config import PRESETS
from gpt2lab.model.gpt import GPT
from gpt2lab.training.config import saved_config
from gpt2lab.training.memory import Shape
from gpt2lab.training.setup import Setup, choose_micro_batch, explain_out_of_memory, resolve


def plan(data: Path, **changes: Any) -> Setup:
    return resolve(small(data, Path("unused"), **changes), TokenDataset(data))


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({"steps": 7}, 7),
        ({"epochs": 1.0}, 10),  # 75 windows, 8 a step
        ({"epochs": 2.0}, 19),
        ({"epochs": 0.01}, 1),
        ({"epochs": 1.0, "seq_len": 8, "batch_tokens": 64}, 19),  # 151 windows
        ({"max_tokens": 128}, 1),
        ({"max_tokens": 1000}, 7),
        ({"max_tokens": 1024}, 8),
        ({}, 1000),
    ],
    ids=str,
)
def test_the_length_in_steps(data: Path, length: dict[str, Any], steps: int) -> None:
    assert plan(data, **({"steps": None} | length)).config.steps == steps


@pytest.mark.parametrize(("batch", "expected"), [(128, 8), (16 * 7, 7), (16 * 256, 256), (16 * 257, 1), (8192, 256)])
def test_the_automatic_micro_batch_is_the_largest_that_divides_the_step(data: Path, batch: int, expected: int) -> None:
    chosen = plan(data, micro_batch="auto", batch_tokens=batch).config.micro_batch
    assert chosen == expected  # 4,096 tokens per pass are 256 sequences of 16


def test_the_automatic_micro_batch_fits_into_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    where = runtime.resolve("cpu", "fp32")
    shape = Shape(PRESETS["gpt2"], 1024, 1, "fp32", "cpu", micro_steps=2)
    chosen = []
    for free in (2**40, 2**34, 0):
        monkeypatch.setattr(runtime, "available_memory", lambda device, free=free: free)
        chosen.append(choose_micro_batch(shape, 4096, where))
    assert chosen == [4, 2, 1]


def test_every_auto_is_resolved_and_written_down_with_its_reason(data: Path, tmp_path: Path) -> None:
    auto = {"micro_batch": "auto", "precision": "auto", "compile": "auto", "device": "auto", "steps": 2}
    config = saved_config(train(small(data, tmp_path / "run", **auto)))
    assert "auto" not in (config.micro_batch, config.precision, config.compile, config.device)
    planned = plan(data)
    assert config.model == planned.config.model == dataclasses.replace(SMALL, vocab_size=257)  # the tokenizer's
    notes = "\n".join(planned.notes)
    for said in ("device cpu", "precision fp32: asked for", "compile off: asked for", "= 2 x 4 sequences of 16"):
        assert said in notes


ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    "Python": MemoryError(),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_out_of_memory_names_what_to_lower(
    data: Path, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*_: object) -> None:
        raise error

    monkeypatch.setattr(GPT, "forward", forward)
    said = r"^out of memory with 4 sequences of 16 tokens per pass; .* lower --micro-batch"
    refusal(lambda: train(small(data, tmp_path / "run")), said)


def test_out_of_memory_on_a_cpu_is_recognized_and_other_errors_pass_unchanged(data: Path) -> None:
    config = plan(data).config

    def allocate() -> None:
        with explain_out_of_memory(config):
            torch.empty(2**55, dtype=torch.uint8)

    refusal(allocate, "out of memory")
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(config):
        raise RuntimeError("shapes do not fit")
