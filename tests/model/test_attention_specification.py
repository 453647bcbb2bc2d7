"""One specification over every attention that the configuration allows: (position, key heads, mask, kernel)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from gpt2lab.model import attention, banded
from gpt2lab.model.cache import KVCache
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.model.masks import dense

T, V, H, B = 13, 31, 4, 3
MASKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"window": 3},
    "global": {"window": 3, "prefix": 2},
    "strided": {"window": 4},
    "prefix": {"prefix": 5},
    "bidirectional": {},
}
BANDED = ("window", "global")
VARIANTS = [
    {"position": position, "n_kv_head": heads, "mask": mask, "kernel": kernel, **options}
    for position in ("learned", "sinusoidal", "rope", "none")
    for heads in (4, 2, 1)
    for mask, options in MASKS.items()
    for kernel in ("reference", "matmul", "sdpa", "flex", "banded")
    if kernel != "banded" or mask in BANDED
    if kernel != "flex" or (position, heads) == ("rope", 2)  # it is slow here, and sees neither but as q, k, v
]


def of_every(variants: list[dict[str, Any]]) -> pytest.MarkDecorator:
    names = ["{position}-{n_kv_head}-{mask}-{kernel}".format(**variant) for variant in variants]
    return pytest.mark.parametrize("variant", variants, ids=names)


pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(autouse=True)
def _several_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut T into several bands; take FlexAttention's own unfused form, since compiling each variant takes 10 s."""
    monkeypatch.setattr(banded, "BLOCK", 4)
    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention)


def model_of(variant: dict[str, Any], n_layer: int = 2) -> GPT:
    """A model whose parts all matter: larger weights than a fresh one, and biases that are not 0."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer, H, 16, T, V, dropout=0.0, **variant))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def tokens_of(rows: int = B) -> torch.Tensor:
    return torch.randint(V, (rows, T), generator=torch.Generator().manual_seed(1))


def allowed_by(config: GPTConfig) -> torch.Tensor:
    """What the predicate says, asked pair by pair: (T, T)."""
    mask, zero = config.attention_mask, torch.tensor(0)
    pairs = [[bool(mask.allows(zero, zero, torch.tensor(q), torch.tensor(k))) for k in range(T)] for q in range(T)]
    return torch.tensor(pairs)


@of_every(VARIANTS)
def test_an_output_depends_on_exactly_what_the_predicate_allows(variant: dict[str, Any]) -> None:
    model = model_of(variant, n_layer=1).double()
    tokens = tokens_of(1)
    changed = tokens.repeat(T, 1)
    changed.fill_diagonal_(0)
    changed += torch.eye(T, dtype=torch.long) * ((tokens + 1) % V)  # row k differs from the original at place k
    with torch.no_grad():
        moved = (model.hidden(changed) - model.hidden(tokens)).abs().amax(-1).T  # (query, key)
    expected = allowed_by(model.config) | torch.eye(T, dtype=torch.bool)  # a token always reaches its own place
    assert torch.equal(moved > 1e-9, expected)
    assert (moved[~expected] < 1e-13).all()


@of_every(VARIANTS)
def test_the_kernel_equals_the_reference_forward_and_backward(variant: dict[str, Any]) -> None:
    model, reference = model_of(variant), model_of({**variant, "kernel": "reference"})
    tokens = tokens_of()
    backward = variant["kernel"] != "flex"  # none on a CPU
    with torch.set_grad_enabled(backward):
        found, expected = model(tokens).logits, reference(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    if backward:
        weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
        for logits in (found, expected):
            (logits * weights).sum().backward()
        for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
            assert a.grad is not None
            torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4, msg=lambda said, n=name: f"{n}: {said}")


@of_every(VARIANTS)
def test_rows_do_not_depend_on_one_another_nor_on_their_order(variant: dict[str, Any]) -> None:
    model, tokens, order = model_of(variant), tokens_of(), [2, 0, 1]
    with torch.no_grad():
        whole = model(tokens).logits
        torch.testing.assert_close(model(tokens[order]).logits, whole[order], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(model(tokens[1:2]).logits, whole[1:2], atol=1e-6, rtol=1e-6)


@of_every(VARIANTS)
def test_bf16_stays_within_its_rounding(variant: dict[str, Any]) -> None:
    model, tokens = model_of(variant), tokens_of()
    with torch.no_grad():
        expected = model(tokens).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(tokens).logits
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 2**-5 * expected.abs().max()


@of_every([variant for variant in VARIANTS if variant["mask"] not in ("prefix", "bidirectional")])
def test_cached_equals_uncached(variant: dict[str, Any]) -> None:
    model, tokens = model_of(variant), tokens_of()
    cache = KVCache(model.config, B, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        expected = model.hidden(tokens)
        for start, end in [(0, 2), (2, 3), (3, 4), (4, 9), (9, 10), (10, 12), (12, 13)]:
            found = model.hidden(tokens[:, start:end], cache=cache)
            torch.testing.assert_close(found, expected[:, start:end], atol=1e-5, rtol=1e-5)
    assert cache.rolling == (variant["mask"] in BANDED)


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_asked_for_all_pairs_at_once_says_the_same(name: str) -> None:
    config = GPTConfig(1, H, 16, T, V, mask=name, **MASKS[name])
    places = torch.arange(T)
    whole = dense(config.attention_mask, B, H, places, places).expand(B, H, T, T)
    assert torch.equal(whole, allowed_by(config).expand(B, H, T, T))
