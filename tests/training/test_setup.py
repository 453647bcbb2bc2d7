"""What a run resolves to: its length in steps, its micro-batch, its device; and what cannot be had is said at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SMALL, small, train

from gpt2lab import runtime
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError
from gpt2lab.model.config import PRESETS, GPTConfig
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
        ({"max_tokens": 128}, 1),
        ({"max_tokens": 1000}, 7),
        ({"max_tokens": 1024}, 8),
        ({}, 1000),
    ],
    ids=str,
)
def test_the_length_in_steps(data: Path, length: dict[str, Any], steps: int) -> None:
    assert plan(data, **({"steps": None} | length)).config.steps == steps


def test_epochs_count_windows_of_the_sequences_that_are_read(data: Path) -> None:
    assert (
        plan(data, steps=None, epochs=1.0, seq_len=8, batch_tokens=64, micro_batch=4).config.steps == 19
    )  # 151 windows


def test_fewer_tokens_than_a_step_takes(data: Path) -> None:
    with pytest.raises(InputError, match="max_tokens is 100, less than the 128 of one step"):
        plan(data, steps=None, max_tokens=100)


@pytest.mark.parametrize(("batch", "expected"), [(128, 8), (16 * 7, 7), (16 * 256, 256), (16 * 257, 1), (8192, 256)])
def test_the_automatic_micro_batch_is_the_largest_that_divides_the_step(data: Path, batch: int, expected: int) -> None:
    chosen = plan(data, micro_batch="auto", batch_tokens=batch).config.micro_batch
    assert chosen == expected  # 4,096 tokens a pass are 256 sequences of 16


def test_the_automatic_micro_batch_fits_into_the_memory_that_is_free(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = runtime.resolve("cpu", "fp32")
    shape = Shape(PRESETS["gpt2"], 1024, 1, "fp32", "cpu", micro_steps=2)
    chosen = []
    for free in (2**40, 2**34, 0):
        monkeypatch.setattr(runtime, "available_memory", lambda device, free=free: free)
        chosen.append(choose_micro_batch(shape, 4096, where))
    assert chosen == [4, 2, 1]


def test_a_micro_batch_that_does_not_divide_the_step_names_the_nearest_that_do(data: Path) -> None:
    with pytest.raises(InputError, match=r"batch_tokens 128 .* micro_batch 3 x seq_len 16 .*: 96 or 144, or a micro_b"):
        plan(data, micro_batch=3)


@pytest.mark.parametrize("micro_batch", [4, "auto"])
def test_a_step_that_is_not_made_of_whole_sequences_names_the_nearest_that_are(data: Path, micro_batch: Any) -> None:
    with pytest.raises(InputError, match=r"batch_tokens 130 is not a multiple .*nearest that fit: 128 or (144|192)"):
        plan(data, batch_tokens=130, micro_batch=micro_batch)


def test_the_vocabulary_is_the_tokenizers(data: Path) -> None:
    assert plan(data).config.model == dataclasses.replace(SMALL, vocab_size=257)
    with pytest.raises(InputError, match=r"model\.vocab_size is 300, but the data's tokenizer has 257 entries"):
        plan(data, model=GPTConfig(1, 2, 16, 16, vocab_size=300))


def test_every_auto_is_resolved_and_written_down(data: Path, tmp_path: Path) -> None:
    auto = {"micro_batch": "auto", "precision": "auto", "compile": "auto", "device": "auto", "steps": 2}
    config = saved_config(train(small(data, tmp_path / "run", **auto)))
    assert "auto" not in (config.micro_batch, config.precision, config.compile, config.device)
    assert config.model.vocab_size == 257


def test_the_choices_are_explained(data: Path) -> None:
    notes = "\n".join(plan(data).notes)
    for said in ("device cpu", "precision fp32: asked for", "compile off: asked for", "= 2 x 4 sequences of 16"):
        assert said in notes


def test_an_absent_device_names_those_present(data: Path) -> None:
    with pytest.raises(InputError, match=r'there is no device "cuda:99" here; this machine has cpu'):
        plan(data, device="cuda:99")


def test_half_precision_on_a_cpu_names_what_to_use(data: Path) -> None:
    with pytest.raises(InputError, match=r"precision fp16 is for GPUs; on this CPU use (bf16|fp32)"):
        plan(data, precision="fp16")


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
    with pytest.raises(InputError, match=r"out of memory with 4 sequences of 16 tokens a pass; .* lower --micro-batch"):
        train(small(data, tmp_path / "run"))


def test_out_of_memory_on_a_cpu_is_recognised(data: Path) -> None:
    with pytest.raises(InputError, match="out of memory"), explain_out_of_memory(plan(data).config):
        torch.empty(2**55, dtype=torch.uint8)


def test_other_errors_pass_unchanged(data: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(plan(data).config):
        raise RuntimeError("shapes do not fit")


def test_what_does_not_fit_the_data_leaves_no_directory(data: Path, without_val: Path, tmp_path: Path) -> None:
    long = GPTConfig(1, 2, 16, 4096)
    for folder, changes, said in (
        (data, {"batch_tokens": 130}, "nearest that fit"),
        (data, {"device": "cuda:99"}, "there is no device"),
        (data, {"model": long, "batch_tokens": 4096, "micro_batch": 1}, "fewer than one window of seq_len 4096"),
        (data, {"model": long, "seq_len": 800, "batch_tokens": 800, "micro_batch": 1}, r"\(val\): .* tokens, fewer"),
        (without_val, {"patience": 3}, "patience is 3, but .* has no val split"),
        (tmp_path / "nowhere", {}, "no such directory of prepared data"),
    ):
        with pytest.raises(InputError, match=said):
            train(small(folder, tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists()


def test_damaged_data_leaves_no_directory(data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data"
    broken.mkdir()
    for path in (p for p in data.rglob("*") if p.is_file()):
        (broken / path.relative_to(data)).parent.mkdir(exist_ok=True)
        (broken / path.relative_to(data)).write_bytes(path.read_bytes())
    shard = next(broken.glob("train*.bin"))
    changed = bytearray(shard.read_bytes())
    changed[-1] ^= 1
    shard.write_bytes(changed)
    with pytest.raises(InputError, match=shard.name):
        train(small(broken, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
