"""Masks under which a loss is none: what is to be predicted has been read.

A loss is -ln p(token | the tokens before it), and the losses of a text add up to -ln p(text) only where no token sees
those after it. Under a mask that looks ahead the figure falls to nothing with training, and says nothing.
"""

from __future__ import annotations

from gpt2lab.errors import InputError
from gpt2lab.model import GPTConfig


def require_no_leak(config: GPTConfig) -> None:
    """Raise `InputError` where the mask lets a token read what follows it."""
    if config.attention_mask.looks_ahead:
        raise InputError(
            f"mask {config.mask} lets a token read what follows it, so what it gives a text is no probability; "
            "measure a model of another mask"
        )
