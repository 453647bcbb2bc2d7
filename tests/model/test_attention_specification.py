"""One specification over every attention that the configuration allows: (position, key heads, mask, kernel, part).

The full product takes too long. `all_pairs` samples it by a covering array of strength 2 (Cohen et al. 1997): every
value of an option meets every value of every other that fits, in at least one variant. ALiBi is tested with every mask
in every kernel but flex, since bias and mask are one tensor there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from functools import cache
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
YARN = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_ctx": 5}
POSITIONS: dict[str, dict[str, Any]] = {
    "learned": {},
    "sinusoidal": {},
    "rope": {},
    "none": {},
    "alibi": {},
    "rope-interleaved": {"rope_pairing": "interleaved"},
    "rope-half": {"rope_fraction": 0.5},
    "rope-linear": {"rope_scaling": "linear", "rope_factor": 4.0},
    "rope-ntk": {"rope_scaling": "ntk", "rope_factor": 4.0},
    "rope-yarn": YARN | {"rope_pairing": "interleaved"},
    "rope-nope": {"nope_every": 2},
}
PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sinks": {"attention_sinks": True},
    "softcap": {"attention_softcap": 1.0},
    "gate": {"attention_gate": True},
    "value_residual": {"value_residual": True},
    "differential": {"differential_attention": True},
    "latent": {"latent_dim": 6},
    "qk_norm": {"qk_norm": True},
    "rmsnorm": {"norm": "rmsnorm", "qk_norm": True, "norm_placement": "sandwich"},
}
CHOICES: dict[str, list[Any]] = {
    "position": list(POSITIONS),
    "n_kv_head": [4, 2, 1],
    "mask": list(MASKS),
    "kernel": ["reference", "matmul", "sdpa", "flex", "banded"],
    "part": list(PARTS),
}


def fits(variant: dict[str, Any]) -> bool:
    if variant.get("part") in ("sinks", "softcap") and variant.get("kernel", "matmul") not in ("reference", "matmul"):
        return False
    if variant.get("part") == "differential" and (variant.get("position") == "alibi" or variant.get("n_kv_head") == 1):
        return False
    if variant.get("part") == "latent" and (
        variant.get("n_kv_head", 4) != 4 or variant.get("position") in ("rope-half", "rope-ntk", "rope-yarn")
    ):  # with ntk one pair is too few, and half of these heads is one
        return False
    if variant.get("kernel") == "flex":  # it is slow here, and sees positions but as q and k, and ALiBi's biases
        return variant.get("position", "rope") in ("rope", "alibi")
    return variant.get("kernel") != "banded" or variant.get("mask", "window") in BANDED


def all_pairs(choices: dict[str, list[Any]], fits: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Variants in which every two values of two options that fit together occur together, chosen greedily.

    Each variant begins with a pair that is still missing, and takes for each other option the value that adds most.
    """
    two = itertools.combinations(choices, 2)
    pairs = [{a: x, b: y} for a, b in two for x, y in itertools.product(choices[a], choices[b])]
    missing = [pair for pair in pairs if fits(pair)]

    def covered(variant: dict[str, Any]) -> int:
        return sum(pair.items() <= variant.items() for pair in missing)

    variants = []
    while missing:
        variant = dict(missing[0])
        for name in [name for name in choices if name not in variant]:
            variant = max(filter(fits, ({**variant, name: value} for value in choices[name])), key=covered)
        missing = [pair for pair in missing if not pair.items() <= variant.items()]
        variants.append({name: variant[name] for name in choices})
    return variants


ALIBI = [
    {"position": "alibi", "n_kv_head": 2, "mask": mask, "kernel": kernel, "part": "plain"}
    for mask, kernel in itertools.product(MASKS, CHOICES["kernel"])
    if kernel != "flex"
]
VARIANTS = all_pairs(CHOICES, fits)
VARIANTS += [variant for variant in ALIBI if fits(variant) and variant not in VARIANTS]


def of_every(variants: list[dict[str, Any]]) -> pytest.MarkDecorator:
    names = ["{position}-{n_kv_head}-{mask}-{kernel}-{part}".format(**variant) for variant in variants]
    return pytest.mark.parametrize("variant", variants, ids=names)


pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(autouse=True)
def _several_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut T into several bands; take FlexAttention's own unfused form, since compiling each variant takes 10 s."""
    monkeypatch.setattr(banded, "BLOCK", 4)
    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention)


def model_of(variant: dict[str, Any], n_layer: int = 2) -> GPT:
    """A model whose parts all matter, made once: larger weights than a fresh one, and biases that are not 0."""
    return _model_of(n_layer, **variant)


@cache
def _model_of(n_layer: int, **variant: Any) -> GPT:
    torch.manual_seed(0)
    options = {name: value for name, value in variant.items() if name != "part"}
    options |= {"position": variant["position"].partition("-")[0], **PARTS[variant["part"]]}
    options["n_kv_head"] = None if variant["n_kv_head"] == H else variant["n_kv_head"]
    options |= POSITIONS[variant["position"]] | MASKS[variant["mask"]]
    model = GPT(GPTConfig(n_layer, H, 16, T, V, dropout=0.0, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def tokens_of(rows: int = B) -> torch.Tensor:
    return torch.randint(V, (rows, T), generator=torch.Generator().manual_seed(1))


def allowed_by(config: GPTConfig) -> torch.Tensor:
    """What the predicate says, asked pair by pair: (T, T)."""
    mask, zero = config.masks[0], torch.tensor(0)
    pairs = [[bool(mask.allows(zero, zero, torch.tensor(q), torch.tensor(k))) for k in range(T)] for q in range(T)]
    return torch.tensor(pairs)


@of_every(VARIANTS)
def test_an_output_depends_on_exactly_what_the_predicate_allows(variant: dict[str, Any]) -> None:
    n_layer = POSITIONS[variant["position"]].get("nope_every", 2 if variant["part"] == "value_residual" else 1)
    model = deepcopy(model_of(variant, n_layer)).double()
    tokens = tokens_of(1)
    changed = tokens.repeat(T, 1)
    changed.fill_diagonal_(0)
    changed += torch.eye(T, dtype=torch.long) * ((tokens + 1) % V)  # row k differs from the original at place k
    with torch.no_grad():
        moved = (model.hidden(changed) - model.hidden(tokens)).abs().amax(-1).T  # (query, key)
    direct = allowed_by(model.config) | torch.eye(T, dtype=torch.bool)  # a token always reaches its own place
    expected = torch.linalg.matrix_power(direct.double(), n_layer) > 0
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
        gradients = [
            torch.autograd.grad((logits * weights).sum(), list(each.parameters()))
            for each, logits in ((model, found), (reference, expected))
        ]
        for (name, _), a, b in zip(model.named_parameters(), *gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=lambda said, n=name: f"{n}: {said}")


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
    whole = dense(config.masks[0], B, H, places, places).expand(B, H, T, T)
    assert torch.equal(whole, allowed_by(config).expand(B, H, T, T))


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(CHOICES, 2)))
def test_every_two_values_that_fit_occur_together(a: str, b: str) -> None:
    expected = {(x, y) for x in CHOICES[a] for y in CHOICES[b] if fits({a: x, b: y})}
    assert {(variant[a], variant[b]) for variant in VARIANTS} == expected
