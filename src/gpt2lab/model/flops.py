"""What a token costs in floating-point operations, and what share of the machine's peak a run reaches.

Model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B) counts the operations that the model needs, not those
that an implementation repeats: 6 per parameter that takes part in a matrix product (2 forward, 4 backward), and for
attention's two products over the whole context 12 * n_layer * n_embd * T. Lookups in the embeddings cost nothing; the
tied head does. As there, a causal mask counts as the whole context; a window of W counts as min(T, W), and a mask
without a limited reach as T. Grouped heads have fewer key and value rows in c_attn, and the same products in attention.
"""

from __future__ import annotations

import functools
import re
import time

import torch

from gpt2lab.model.config import GPTConfig

PEAK_FLOPS: dict[str, dict[str, float]] = {
    # Dense matrix products, vendor's data sheets; no sparsity. The first that is a word of torch's device name counts.
    "GB200": {"bf16": 2500e12, "fp16": 2500e12, "tf32": 1250e12},
    "B200": {"bf16": 2250e12, "fp16": 2250e12, "tf32": 1125e12},
    "H200": {"bf16": 989e12, "fp16": 989e12, "tf32": 495e12, "fp32": 67e12},
    "H100 PCIe": {"bf16": 756e12, "fp16": 756e12, "tf32": 378e12, "fp32": 51e12},
    "H100 NVL": {"bf16": 835e12, "fp16": 835e12, "tf32": 418e12, "fp32": 60e12},
    "H100": {"bf16": 989e12, "fp16": 989e12, "tf32": 495e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "A10G": {"bf16": 70e12, "fp16": 70e12, "tf32": 35e12, "fp32": 31.5e12},
    "A40": {"bf16": 150e12, "fp16": 150e12, "tf32": 75e12, "fp32": 37.4e12},
    "L40S": {"bf16": 362e12, "fp16": 362e12, "tf32": 183e12, "fp32": 91.6e12},
    "L4": {"bf16": 121e12, "fp16": 121e12, "tf32": 60e12, "fp32": 30.3e12},
    "RTX 4090": {"bf16": 165e12, "fp16": 165e12, "tf32": 82.6e12, "fp32": 82.6e12},
    "RTX 3090": {"bf16": 71e12, "fp16": 71e12, "tf32": 35.6e12, "fp32": 35.6e12},
    "V100": {"fp16": 125e12, "fp32": 15.7e12},
    "T4": {"fp16": 65e12, "fp32": 8.1e12},
}


def flops_per_token(config: GPTConfig, T: int) -> float:
    """Return the operations of one training token (forward and backward) in sequences of T tokens."""
    c_attn = config.n_embd * (config.n_head + 2 * config.kv_heads) * config.head_dim
    block = c_attn + config.n_embd**2 + 2 * config.n_embd * config.inner  # attn.c_proj, the feed-forward
    products = config.n_layer * block + config.vocab_size * config.n_embd
    keys = config.attention_mask.keys_per_query(T)
    return 6.0 * products + 12.0 * config.n_layer * config.n_embd * keys


def cache_bytes(config: GPTConfig, T: int, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values that T tokens of a row keep in the cache (T = 1: the bytes of a token).

    Grouped heads store n_kv_head; a mask of limited reach keeps no more than it reaches.
    """
    kept = min(T, config.attention_mask.keys_per_query(config.n_ctx))
    return 2 * config.n_layer * config.kv_heads * config.head_dim * kept * dtype.itemsize


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """Return the peak rate for a precision (``bf16 fp16 tf32 fp32``) in operations a second, and where it is from.

    A GPU in the table has its data sheet's figure; any other device is measured with a large matrix product.
    """
    if device.type == "cuda":
        known = data_sheet(torch.cuda.get_device_name(device))
        if known is not None and precision in PEAK_FLOPS[known]:
            return PEAK_FLOPS[known][precision], f"{known} data sheet, {precision}"
    return _measured(device, precision), f"measured matrix product on {device.type}, {precision}"


def data_sheet(device_name: str) -> str | None:
    """Return the entry of `PEAK_FLOPS` for a GPU as torch names it ("NVIDIA H100 80GB HBM3"); None if unknown."""
    return next((known for known in PEAK_FLOPS if re.search(rf"\b{known}\b", device_name)), None)


def mfu(config: GPTConfig, T: int, tokens_per_s: float, peak: float) -> float:
    """Return model FLOPs utilisation as a fraction of the peak rate (of all devices together)."""
    return flops_per_token(config, T) * tokens_per_s / peak


@functools.cache
def _measured(device: torch.device, precision: str) -> float:
    """Return the best of a few square matrix products, which is what a model's products could reach."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    n = 1536 if device.type == "cpu" else 4096
    a = torch.rand(n, n, device=device).to(dtype)
    out = torch.empty_like(a)
    rates = []
    for _ in range(6):
        _synchronise(device)
        begin = time.perf_counter()
        torch.mm(a, a, out=out)
        _synchronise(device)
        rates.append(2.0 * n**3 / (time.perf_counter() - begin))
    return max(rates)


def _synchronise(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        torch.accelerator.synchronize(device)
