from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpt2lab.model import GPT, GPTConfig

Twin = Callable[[GPT], Any]
SHAPES: dict[str, dict[str, Any]] = {
    "three heads, one layer, odd context": {"n_layer": 1, "n_head": 3, "n_embd": 24, "n_ctx": 17, "vocab_size": 61},
    "inner width of its own": {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 40, "vocab_size": 128, "n_inner": 50},
    "one head, deep": {"n_layer": 8, "n_head": 1, "n_embd": 16, "n_ctx": 33, "vocab_size": 100},
    "the width of gpt2": {"n_layer": 2, "n_head": 12, "n_embd": 768, "n_ctx": 64, "vocab_size": 1000},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_ctx": 1024, "vocab_size": 50257},
}
REFERENCE = [(shape, "reference") for shape in SHAPES if shape != "gpt2"]  # the full size once is enough


def model_of(shape: dict[str, Any], kernel: Any) -> GPT:
    """A model in which no bias is 0 and no gain 1, so that each would be missed."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**shape, dropout=0.0, kernel=kernel))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


@pytest.mark.parametrize(("shape", "kernel"), [*((shape, "auto") for shape in SHAPES), *REFERENCE])
def test_logits_loss_and_every_gradient_equal_hugging_faces(shape: str, kernel: str, hugging_face_twin: Twin) -> None:
    ours = model_of(SHAPES[shape], kernel)
    theirs = hugging_face_twin(ours)
    length = min(ours.config.n_ctx, 32 if shape == "gpt2" else 1024)
    tokens = torch.randint(
        ours.config.vocab_size, (1 if shape == "gpt2" else 2, length), generator=torch.Generator().manual_seed(1)
    )
    expected = theirs(tokens, labels=tokens)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, expected.logits, atol=1e-4, rtol=0)
    loss = ours(tokens[:, :-1], tokens[:, 1:]).loss  # Hugging Face shifts inside
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=0)
    loss.backward()
    expected.loss.backward()
    for name, parameter in theirs.transformer.named_parameters():
        assert_gradient(name, ours.get_parameter(name).grad, parameter.grad)


def assert_gradient(name: str, ours: torch.Tensor | None, theirs: torch.Tensor) -> None:
    """Equal to 1e-4 of the gradient's largest entry; Hugging Face keeps the matrices of blocks transposed."""
    assert ours is not None, name
    theirs = theirs.T if name.startswith("h.") and theirs.dim() == 2 else theirs
    off = (ours[: len(theirs)] - theirs).abs().max() / theirs.abs().max()
    assert off <= 1e-4, f"{name} is off by {off:.1e}"
