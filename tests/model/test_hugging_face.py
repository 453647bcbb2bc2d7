from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import random_model

from gpt2lab.generation import generate
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT

Twin = Callable[[GPT], Any]
SHAPES: dict[str, dict[str, Any]] = {
    "three heads, one layer, odd context": {"n_layer": 1, "n_head": 3, "n_embd": 24, "n_ctx": 17, "vocab_size": 61},
    "inner width of its own": {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 40, "vocab_size": 128, "n_inner": 50},
    "one head, deep": {"n_layer": 8, "n_head": 1, "n_embd": 16, "n_ctx": 33, "vocab_size": 100},
    "the width of gpt2": {"n_layer": 2, "n_head": 12, "n_embd": 768, "n_ctx": 64, "vocab_size": 1000},
    **{name: dataclasses.asdict(GPTConfig.preset(name)) for name in ("nano", "tiny", "distilgpt2", "gpt2")},
}
LARGE = ("distilgpt2", "gpt2")
REFERENCE = [(shape, "reference") for shape in SHAPES if shape not in LARGE]  # the full sizes once are enough


def model_of(shape: dict[str, Any], kernel: Any) -> GPT:
    return random_model({**shape, "dropout": 0.0, "kernel": kernel}, 0.02)


SLOW = pytest.param("distilgpt2", "auto", marks=pytest.mark.fault)  # half of gpt2, which is tested always


@pytest.mark.parametrize(
    ("shape", "kernel"), [*((shape, "auto") for shape in SHAPES if shape != "distilgpt2"), SLOW, *REFERENCE]
)
def test_logits_loss_and_every_gradient_equal_hugging_faces(shape: str, kernel: str, hugging_face_twin: Twin) -> None:
    ours = model_of(SHAPES[shape], kernel)
    theirs = hugging_face_twin(ours)
    B, T = (1, 32) if shape in LARGE else (2, ours.config.n_ctx)
    tokens = torch.randint(ours.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(1))
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


GREEDY = [shape for shape in SHAPES if shape not in (*LARGE, "the width of gpt2")]


@pytest.mark.parametrize("shape", [*GREEDY, pytest.param("gpt2", marks=pytest.mark.fault)])
def test_greedy_continuations_are_hugging_faces_with_a_cache_and_without(shape: str, hugging_face_twin: Twin) -> None:
    """200 tokens, or up to the context."""
    ours = model_of(SHAPES[shape], "auto").eval()
    with torch.no_grad():  # sharp enough that the two best tokens are never as near as rounding
        ours.wpe.weight.mul_(8)
    theirs = hugging_face_twin(ours)
    prompt = torch.randint(ours.config.vocab_size, (1, 5), generator=torch.Generator().manual_seed(2))
    new = min(200, ours.config.n_ctx - 5)
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new, pad_token_id=0
    )
    assert torch.equal(generate(ours, prompt, new, greedy=True), expected)
    with torch.no_grad():  # the best token after each beginning: by induction, the same continuation
        best = ours.head(ours.hidden(expected[:, :-1])[:, 4:]).argmax(-1)
    assert torch.equal(best, expected[:, 5:])
    assert len(expected[0, 5:].unique()) > 4  # a text, not one token for ever
