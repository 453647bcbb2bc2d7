"""GPT-2 as plain PyTorch: configuration, attention kernels, the network, its loss, its cost in operations."""

from gpt2lab.model.cache import KVCache
from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.model.flops import flops_per_token, mfu, peak_flops
from gpt2lab.model.gpt import GPT, GPTOutput

__all__ = ["GPT", "PRESETS", "GPTConfig", "GPTOutput", "KVCache", "flops_per_token", "mfu", "peak_flops"]
