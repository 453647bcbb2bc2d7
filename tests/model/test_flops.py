from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.model.flops import data_sheet, flops_per_token, mfu, peak_flops
from gpt2lab.model.gpt import GPT


@pytest.mark.parametrize("kernel", ["reference", "matmul"])
@pytest.mark.parametrize("n_inner", [None, 50])
@pytest.mark.parametrize(("B", "T"), [(1, 16), (3, 7)])
def test_the_formula_equals_a_count_of_the_products_of_a_training_step(
    B: int, T: int, n_inner: Any, kernel: Any
) -> None:
    config = GPTConfig(
        n_layer=3, n_head=2, n_embd=32, n_ctx=16, vocab_size=192, n_inner=n_inner, dropout=0.0, kernel=kernel
    )
    model = GPT(config)
    tokens = torch.zeros(B, T, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens).loss.backward()
    assert counter.get_total_flops() == flops_per_token(config, T) * B * T


def test_gpt2_124m_by_hand() -> None:
    # 124,439,808 parameters without the 786,432 of wpe, the biases and the norms; attention over 1,024 positions
    products = 12 * 12 * 768**2 + 50257 * 768
    assert flops_per_token(PRESETS["gpt2"], 1024) == 6 * products + 12 * 12 * 768 * 1024


def test_mfu_is_the_share_of_the_peak() -> None:
    config = PRESETS["gpt2"]
    rate = 989e12 / flops_per_token(config, 1024)  # tokens a second if nothing were lost
    assert mfu(config, 1024, rate / 2, 989e12) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "precision", "rate", "sheet"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12, "H100"),
        ("NVIDIA H100 PCIe", "bf16", 756e12, "H100 PCIe"),
        ("NVIDIA H100 NVL", "bf16", 835e12, "H100 NVL"),
        ("NVIDIA H200", "fp16", 989e12, "H200"),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312e12, "A100"),
        ("Tesla T4", "fp16", 65e12, "T4"),
        ("Tesla V100-SXM2-16GB", "fp32", 15.7e12, "V100"),
        ("NVIDIA L4", "bf16", 121e12, "L4"),
        ("NVIDIA L40S", "bf16", 362e12, "L40S"),
        ("NVIDIA GeForce RTX 4090", "bf16", 165e12, "RTX 4090"),
    ],
)
def test_known_gpus_have_their_data_sheets_rate(
    name: str, precision: str, rate: float, sheet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), precision) == (rate, f"{sheet} data sheet, {precision}")


@pytest.mark.parametrize("name", ["NVIDIA RTX A4000", "NVIDIA L40", "NVIDIA T400", "NVIDIA GeForce GTX 1080"])
def test_a_gpu_whose_name_only_looks_alike_has_no_data_sheet(name: str) -> None:
    assert data_sheet(name) is None


def test_a_cpu_is_measured() -> None:
    rate, source = peak_flops(torch.device("cpu"), "fp32")
    assert source == "measured matrix product on cpu, fp32"
    assert 1e8 < rate < 1e15
    assert math.isfinite(rate)
