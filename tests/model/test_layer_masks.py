"""Layers with masks of their own: each attends as its mask says, with every kernel and with a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_models import random_ids, random_model

from gpt2lab.errors import InputError
from gpt2lab.generation import generate, pad_left
from gpt2lab.model import banded
from gpt2lab.model.attention import AttentionBias
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.model.masks import dense

SHAPE: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 16, "n_ctx": 24, "vocab_size": 61, "dropout": 0.0}
PATTERNS: dict[str, dict[str, Any]] = {
    "window,causal": {"window": 4},
    "causal, window": {"window": 4},
    "window,window,causal": {"window": 5},
    "window,global": {"window": 4, "prefix": 2},
    "strided,global,window": {"window": 4, "prefix": 2},
}


@pytest.fixture(autouse=True)
def _several_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banded, "BLOCK", 4)


def layer_by_layer(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    """The final stream, each block with the matrix of its mask and plain attention."""
    T, names = tokens.shape[1], model.config.mask_names
    x, places = model.embed(tokens, 0, None), torch.arange(T)
    for layer, block in enumerate(model.h):
        options = {name: getattr(model.config, name) for name in ("window", "prefix")}
        mask = GPTConfig(n_ctx=24, mask=names[layer % len(names)], **only_taken(names[layer % len(names)], options))
        x = block(x, AttentionBias("reference", dense(mask.masks[0], 1, 1, places, places)))
    return model.ln_f(x)


def only_taken(mask: str, options: dict[str, Any]) -> dict[str, Any]:
    taken = {"window": ["window"], "global": ["window", "prefix"], "strided": ["window"]}.get(mask, [])
    return {name: options[name] for name in taken}


@pytest.mark.parametrize("kernel", ["auto", "reference", "matmul", "sdpa"])
@pytest.mark.parametrize("mask", PATTERNS)
def test_each_layer_attends_as_its_own_mask_says(mask: str, kernel: str) -> None:
    model = random_model(SHAPE | {"mask": mask, "kernel": kernel} | PATTERNS[mask])
    tokens = random_ids(61, 2, 20)
    torch.testing.assert_close(model.hidden(tokens), layer_by_layer(model, tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("mask", PATTERNS)
def test_the_cache_keeps_for_each_layer_what_its_mask_reaches(mask: str, position: str) -> None:
    model = random_model(SHAPE | {"mask": mask, "position": position} | PATTERNS[mask])
    tokens, cache = random_ids(61, 3, 20), model.new_cache(3)
    with torch.no_grad():
        pieces = [model.hidden(part, cache=cache) for part in tokens.split([7, 1, 1, 6, 1, 4], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model.hidden(tokens), atol=1e-5, rtol=1e-5)
    c, names = model.config, mask.replace(" ", "").split(",")
    window, prefix = c.window or 0, c.prefix or 0
    reach = {"causal": 24, "strided": 24, "window": window, "global": window + prefix}
    kept = [reach[names[layer % len(names)]] for layer in range(3)]
    assert [layer.keys.shape[2] for layer in cache.layers] == kept
    assert cache.nbytes == 3 * c.cache_bytes(24, torch.float32) == 3 * 2 * 16 * sum(kept) * 4
    assert cache.rolling and cache.endless == (24 not in kept and position == "rope")
    products = 3 * 12 * 16**2 + 61 * 16
    assert c.flops_per_token(24) == 6 * products + 12 * 16 * sum(kept)


@pytest.mark.parametrize("mask", PATTERNS)
def test_rows_of_different_lengths_and_texts_beyond_the_context_are_written_alike(mask: str) -> None:
    model = random_model(SHAPE | {"mask": mask, "position": "rope"} | PATTERNS[mask]).eval()
    prompts = [[5, 7, 9], list(range(20)), [3]]
    tokens, padding = pad_left(prompts)
    together = generate(model, tokens, 16, padding=padding, greedy=True)
    endless = model.new_cache(1).endless
    for row, prompt in enumerate(prompts):
        if not endless and len(prompt) + 16 > 24:  # its window slides with that of the other rows
            continue
        alone = generate(model, torch.tensor([prompt]), 16, greedy=True)[0, len(prompt) :]
        assert together[row, -16:].tolist() == alone.tolist()
        text = torch.tensor([[*prompt, *alone.tolist()]])[:, :24]  # what fits a pass without a cache
        likeliest = model(text).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert likeliest.tolist() == text[0, len(prompt) :].tolist()


def test_a_pattern_learns_with_documents() -> None:
    model = random_model(SHAPE | {"mask": "window,causal", "window": 4})
    tokens = random_ids(61, 2, 20)
    documents = torch.arange(20).expand(2, 20) // 7
    model(tokens, tokens, documents=documents).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        inside = model.hidden(tokens[:, 7:14], positions=torch.arange(7, 14).expand(2, 7))
        found = model.hidden(tokens, documents=documents)[:, 7:14]
    torch.testing.assert_close(found, inside, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "window,causal"}, "mask window needs window: give it"),
        ({"mask": "causal,,window", "window": 4}, 'unknown mask ""'),
        ({"mask": "causal,windo", "window": 4}, r'unknown mask "windo" \(did you mean "window"\?\)'),
        ({"mask": "causal,causal", "window": 4}, "window is 4, but mask causal,causal has none"),
        ({"mask": "causal,causal,causal,causal"}, "is for 4 layers, and n_layer is 3; name fewer"),
        ({"mask": "window,causal", "window": 4, "kernel": "banded"}, "kernel banded needs a causal mask of limited"),
    ],
)
def test_patterns_that_make_no_sense_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GPTConfig(**(SHAPE | options))
