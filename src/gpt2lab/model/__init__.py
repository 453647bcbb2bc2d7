"""GPT-2 as plain PyTorch: configuration, attention kernels, the network, its loss, its cost in operations."""

from gpt2lab.model.cache import KVCache
from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.model.flops import cache_bytes, flops_per_token, mfu, peak_flops
from gpt2lab.model.gpt import GPT, GPTOutput
from gpt2lab.model.grouping import pool_heads
from gpt2lab.model.inspection import attention_weights
from gpt2lab.model.modes import evaluating
from gpt2lab.model.view import choose_kernel

__all__ = [
    "GPT",
    "PRESETS",
    "GPTConfig",
    "GPTOutput",
    "KVCache",
    "attention_weights",
    "cache_bytes",
    "choose_kernel",
    "evaluating",
    "flops_per_token",
    "mfu",
    "peak_flops",
    "pool_heads",
]
