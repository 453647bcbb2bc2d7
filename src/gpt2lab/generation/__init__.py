"""Writing with a model: sampling strategies, decoding with a cache, streaming of text."""

from gpt2lab.generation.decode import generate, next_logits, outgrows, pad_left, seeded, stream
from gpt2lab.generation.sampling import STRATEGIES, Strategy, filter_top_k, filter_top_p, probabilities, sample_next
from gpt2lab.generation.text import TextStreamer, encode_prompt

__all__ = [
    "STRATEGIES",
    "Strategy",
    "TextStreamer",
    "encode_prompt",
    "filter_top_k",
    "filter_top_p",
    "generate",
    "next_logits",
    "outgrows",
    "pad_left",
    "probabilities",
    "sample_next",
    "seeded",
    "stream",
]
