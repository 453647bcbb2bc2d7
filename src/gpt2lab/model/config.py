"""The architecture as a value: every size of GPT-2 differs in these numbers only.

Sizes of the published models are those of Radford et al. 2019, "Language Models are Unsupervised Multitask Learners",
table 2; distilgpt2 is Sanh et al. 2019. ``nano`` and ``tiny`` are ours, for machines without a GPU.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from gpt2lab.errors import InputError, one_of

VOCAB_MULTIPLE = 64
"""The embedding is padded to a multiple of this many rows: matrix units want it, and the padding takes no part."""

Kernel = Literal["auto", "reference", "matmul", "sdpa"]


@dataclass(frozen=True)
class GPTConfig:
    """The architecture of a GPT-2. The defaults are GPT-2 124M's.

    Raises:
        InputError: A size is not positive, the heads do not divide the width, or dropout is outside [0, 1).
    """

    n_layer: int = 12
    """Transformer blocks."""
    n_head: int = 12
    """Attention heads; must divide n_embd."""
    n_embd: int = 768
    """Width C of the residual stream."""
    n_ctx: int = 1024
    """Longest sequence, in tokens: the rows of the position embedding."""
    vocab_size: int = 50257
    """Entries of the vocabulary; training takes it from the data's tokenizer."""
    n_inner: int | None = None
    """Width of the feed-forward layer; None is 4 * n_embd."""
    bias: bool = True
    """Biases in linear layers and layer norms."""
    dropout: float = 0.1
    """Dropout on embeddings, attention weights and residual branches."""
    kernel: Kernel = "auto"
    """How attention is computed; every kernel gives the same numbers. auto picks the fastest that applies."""

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "n_ctx", "vocab_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.n_inner is not None and self.n_inner < 1:
            raise InputError(f"n_inner is {self.n_inner}; give at least 1, or leave it out for 4 * n_embd")
        if self.n_embd % self.n_head:
            fits = [n for n in range(1, self.n_embd + 1) if self.n_embd % n == 0]
            near = sorted(sorted(fits, key=lambda n: abs(n - self.n_head))[:4])
            raise InputError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; heads near it that fit: {near}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        one_of("kernel", self.kernel, ("auto", "reference", "matmul", "sdpa"))

    @property
    def head_dim(self) -> int:
        """Width D of one head."""
        return self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer."""
        return self.n_inner or 4 * self.n_embd

    @property
    def padded_vocab(self) -> int:
        """Rows of the token embedding: vocab_size rounded up to a multiple of 64."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @classmethod
    def preset(cls, name: str, **changes: Any) -> GPTConfig:
        """Return a named size, with ``changes`` on top.

        Raises:
            InputError: There is no such preset (the nearest is suggested), or a change does not fit.
        """
        one_of("preset", name, PRESETS)
        return dataclasses.replace(PRESETS[name], **changes)


PRESETS: dict[str, GPTConfig] = {
    "nano": GPTConfig(n_layer=1, n_head=2, n_embd=64, n_ctx=128, dropout=0.0),
    "tiny": GPTConfig(n_layer=2, n_head=4, n_embd=128, n_ctx=256),
    "distilgpt2": GPTConfig(n_layer=6, n_head=12, n_embd=768),
    "gpt2": GPTConfig(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600),
}
"""The sizes by name; their parameter counts are fixed by tests."""
