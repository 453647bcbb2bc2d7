"""The parts that GPT-2 fixed and its successors changed: each against the equations, written out below."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from random_models import random_ids, random_model

from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT, attention_weights
from gpt2lab.model.layers import ACTIVATIONS

SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 24, "n_ctx": 16, "vocab_size": 61}
OPTIONS: dict[str, list[Any]] = {
    "norm": ["layernorm", "rmsnorm"],
    "norm_placement": ["pre", "post", "sandwich"],
    "norm_eps": [1e-5, 0.1],
    "norm_affine": [True, False],
    "qk_norm": [False, True],
    "attention_softcap": [None, 1.0],
    "attention_sinks": [False, True],
    "attention_gate": [False, True],
    "value_residual": [False, True],
    "differential_attention": [False, True],
    "latent_dim": [None, 10],
    "activation": list(ACTIVATIONS),
    "parallel_blocks": [False, True],
    "tied_head": [True, False],
    "logit_softcap": [None, 2.0],
    "z_loss": [0.0, 0.1],
    "embedding_norm": [False, True],
    "bias": [True, False],
    "n_kv_head": [None, 2],
}
REFUSED = [({"parallel_blocks": True}, {"norm_placement": placement}) for placement in ("post", "sandwich")]
REFUSED += [({"latent_dim": 10}, other) for other in ({"n_kv_head": 2}, {"qk_norm": True}, {"value_residual": True})]
REFUSED += [({"latent_dim": 10}, {"differential_attention": True})]


def variants() -> list[dict[str, Any]]:
    """Each value alone, then combinations drawn until every pair of values of two options has been seen."""
    alone = [{name: value} for name, values in OPTIONS.items() for value in values[1:]]
    draw, unseen, found = random.Random(0), None, []
    while unseen is None or unseen:
        combined = {name: draw.choice(values) for name, values in OPTIONS.items()}
        for part, other in REFUSED:
            if (part | other).items() <= combined.items():
                combined |= {name: OPTIONS[name][0] for name in other}
        chosen = [(name, str(value)) for name, value in combined.items()]
        pairs = {(a, b) for a in chosen for b in chosen if a < b}
        if unseen is None:
            every = [(name, str(value)) for name, values in OPTIONS.items() for value in values]
            refused = [{(name, str(value)) for name, value in (a | b).items()} for a, b in REFUSED]
            unseen = {(a, b) for a in every for b in every if a[0] < b[0] and {a, b} not in refused}
        if pairs & unseen:
            found.append(combined)
            unseen -= pairs
    return alone + found


VARIANTS = variants()
every_variant = pytest.mark.parametrize(
    "options", VARIANTS, ids=lambda options: "-".join(str(value) for value in options.values())
)


def by_hand(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V), from the weights and the equations alone."""
    c, weights = model.config, model.state_dict()

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        if c.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt()
        return x * weights.get(f"{name}.weight", 1.0) + weights.get(f"{name}.bias", 0.0)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def attention(h: str, x: torch.Tensor) -> torch.Tensor:
        D, K, maps, heads = c.head_dim, c.kv_heads, [], []
        rows = linear(f"{h}.attn.c_attn", x).split(D, dim=-1)
        if c.latent_dim is not None:
            queries, latent = linear(f"{h}.attn.c_attn", x).split((c.n_head * D, c.latent_dim), dim=-1)
            latent = latent / (latent.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt()
            latent = latent * weights.get(f"{h}.attn.latent_norm.weight", 1.0)
            expanded = linear(f"{h}.attn.c_latent", latent).split(D, dim=-1)  # key, value, key, value, ..
            rows = (*queries.split(D, dim=-1), *expanded[0::2], *expanded[1::2])
        values.append(rows[c.n_head + K :])
        for head in range(c.n_head):
            q, k = rows[head], rows[c.n_head + head * K // c.n_head]
            v = values[-1][head * K // c.n_head]
            if c.value_residual and h != "h.0":
                of_first, own = weights[f"{h}.attn.residual.lambdas"]
                v = of_first * values[0][head * K // c.n_head] + own * v
            if c.qk_norm:
                q, k = norm(f"{h}.attn.q_norm", q), norm(f"{h}.attn.k_norm", k)
            scores = q @ k.transpose(1, 2) / math.sqrt(D)
            if c.attention_softcap:
                scores = c.attention_softcap * torch.tanh(scores / c.attention_softcap)
            later = torch.ones_like(scores).triu(1).bool()
            raised = scores.exp().masked_fill(later, 0.0)
            total = raised.sum(-1, keepdim=True)
            if c.attention_sinks:
                total = total + weights[f"{h}.attn.sinks"][head].exp()
            maps.append(raised / total)
            heads.append(v)
        out = [weights @ v for weights, v in zip(maps, heads, strict=True)]
        if c.differential_attention:
            pairs, exponents = c.n_head // 2, [weights[f"{h}.attn.lambda_{n}"] for n in ("q1", "k1", "q2", "k2")]
            start = 0.8 - 0.6 * math.exp(-0.3 * int(h[2:]))
            second = math.exp(exponents[0] @ exponents[1]) - math.exp(exponents[2] @ exponents[3]) + start
            out = []
            for head in range(pairs):
                value = torch.cat((heads[head], heads[head + pairs]), dim=-1)
                y = (maps[head] - second * maps[head + pairs]) @ value
                y = y / (y.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt()
                out.append((1 - start) * y * weights.get(f"{h}.attn.head_norm.weight", 1.0))
        y = torch.cat(out, dim=-1)
        if c.attention_gate:
            y = y / (1 + torch.exp(-linear(f"{h}.attn.gate.c_gate", x)))
        return linear(f"{h}.attn.c_proj", y)

    def feed_forward(h: str, x: torch.Tensor) -> torch.Tensor:
        x = linear(f"{h}.mlp.c_fc", x)
        tanh = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        gate, value = x.chunk(2, dim=-1)
        gate_tanh, _ = tanh.chunk(2, dim=-1)
        results = {
            "gelu_tanh": tanh,
            "gelu": 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
            "relu": x.clamp(min=0),
            "relu2": x.clamp(min=0) ** 2,
            "silu": x / (1 + torch.exp(-x)),
            "glu": value / (1 + torch.exp(-gate)),
            "geglu": gate_tanh * value,
            "swiglu": gate / (1 + torch.exp(-gate)) * value,
        }
        return linear(f"{h}.mlp.c_proj", results[c.activation])

    values: list[Any] = []  # of each layer
    x = weights["wte.weight"][tokens] + weights["wpe.weight"][: tokens.shape[1]]
    x = norm("ln_0", x) if c.embedding_norm else x
    for h in (f"h.{layer}" for layer in range(c.n_layer)):
        if c.parallel_blocks:
            x = x + attention(h, norm(f"{h}.ln_1", x)) + feed_forward(h, norm(f"{h}.ln_1", x))
        elif c.norm_placement == "pre":
            x = x + attention(h, norm(f"{h}.ln_1", x))
            x = x + feed_forward(h, norm(f"{h}.ln_2", x))
        elif c.norm_placement == "post":
            x = norm(f"{h}.ln_1", x + attention(h, x))
            x = norm(f"{h}.ln_2", x + feed_forward(h, x))
        else:
            x = x + norm(f"{h}.ln_1_post", attention(h, norm(f"{h}.ln_1", x)))
            x = x + norm(f"{h}.ln_2_post", feed_forward(h, norm(f"{h}.ln_2", x)))
    x = x if c.norm_placement == "post" else norm("ln_f", x)
    logits = (x @ weights["wte.weight" if c.tied_head else "lm_head.weight"].T)[..., : c.vocab_size]
    return c.logit_softcap * torch.tanh(logits / c.logit_softcap) if c.logit_softcap else logits


@every_variant
def test_logits_and_loss_equal_the_equations(options: dict[str, Any]) -> None:
    model = random_model(SHAPE | options)
    tokens, targets = random_ids(61, 2, 9), random_ids(61, 2, 9, seed=1)
    expected = by_hand(model, tokens)
    torch.testing.assert_close(model.eval()(tokens).logits, expected, atol=1e-4, rtol=1e-4)
    cross_entropy = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model(tokens, targets).loss, cross_entropy, atol=1e-4, rtol=1e-4)
    z_loss = model.config.z_loss * expected.exp().sum(-1).log().square().mean()  # in training only
    torch.testing.assert_close(model.train()(tokens, targets).loss, cross_entropy + z_loss, atol=1e-4, rtol=1e-4)


@every_variant
def test_a_variant_caches_learns_and_counts_its_parameters(options: dict[str, Any]) -> None:
    model = random_model(SHAPE | options)
    tokens = random_ids(61, 2, 9)
    cache = model.new_cache(2)
    with torch.no_grad():
        pieces = [model.hidden(part, cache=cache) for part in tokens.split([4, 1, 1, 3], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model.hidden(tokens), atol=1e-5, rtol=1e-5)
    model(tokens, tokens).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), f"{name} has no gradient"
    padding = sum(64 - 61 for name in ("wte", "lm_head") if hasattr(model, name)) * 24
    assert model.n_params == sum(p.numel() for p in model.parameters()) - padding


@pytest.mark.parametrize("options", [{"attention_softcap": 1.0}, {"attention_sinks": True}, {"n_kv_head": 2}], ids=str)
@pytest.mark.parametrize("mask", [{}, {"mask": "window", "window": 3}, {"position": "alibi"}], ids=str)
def test_changed_scores_are_the_same_with_both_plain_kernels(options: dict[str, Any], mask: dict[str, Any]) -> None:
    both = [random_model(SHAPE | options | mask | {"kernel": kernel}) for kernel in ("reference", "matmul")]
    tokens, gradients = random_ids(61, 2, 9), []
    for model in both:
        loss = model(tokens, tokens, documents=torch.arange(9).expand(2, 9) // 5).loss
        gradients.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    sums = attention_weights(both[0], tokens).sum(-1)
    assert (sums < 1.0).all() if "attention_sinks" in options else torch.allclose(sums, torch.ones(()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{"norm": "rmsnorm", "qk_norm": True}, {"norm_placement": "sandwich"}], ids=str)
def test_the_stream_keeps_autocasts_dtype(options: dict[str, Any], dtype: torch.dtype) -> None:
    model, tokens = random_model(SHAPE | options), random_ids(61, 2, 9)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found = model.hidden(tokens)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), model.hidden(tokens), atol=0.2, rtol=0.1)


def test_a_gated_layer_has_as_many_parameters_as_an_ordinary_one() -> None:
    for width in (64, 128, 768, 1600):
        plain, gated = (GPTConfig(n_embd=width, n_head=1, activation=name) for name in ("gelu_tanh", "swiglu"))
        assert 3 * gated.inner == pytest.approx(2 * plain.inner, rel=0.03)
    assert GPTConfig(activation="swiglu").inner == 2048
    assert GPTConfig(activation="swiglu", n_inner=100).inner == 100


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm": "batch"}, 'unknown norm "batch"'),
        ({"norm_placement": "both"}, 'unknown norm_placement "both"'),
        ({"activation": "swigl"}, r'unknown activation "swigl" \(did you mean "swiglu"\?\)'),
        ({"norm_eps": 0.0}, "norm_eps is 0.0; it must be above 0"),
        ({"logit_softcap": 0.0}, "logit_softcap is 0.0; it must be above 0"),
        ({"z_loss": -1.0}, "z_loss is -1.0; it must be at least 0"),
        ({"attention_softcap": -1.0}, "attention_softcap is -1.0; it must be above 0"),
        (
            {"attention_sinks": True, "kernel": "sdpa"},
            "attention_sinks is not implemented for kernel sdpa; take auto, matmul",
        ),
        ({"attention_softcap": 50.0, "kernel": "banded"}, "attention_softcap is not implemented for kernel banded"),
        ({"value_residual": True, "n_layer": 1}, "value_residual with n_layer 1: .* take 2 layers or more"),
        ({"differential_attention": True, "n_head": 3}, "differential_attention with n_head 3: .* an even number"),
        (
            {"differential_attention": True, "n_kv_head": 1},
            "differential_attention with n_kv_head 1: .* an even number",
        ),
        ({"differential_attention": True, "position": "alibi"}, "differential_attention with position alibi: .* take"),
        ({"latent_dim": 0}, "latent_dim is 0; it must be at least 1"),
        *(
            ({"latent_dim": 64, name: value}, f"latent_dim 64 with {name} {value}: .*; leave one of them out")
            for name, value in (
                *(("n_kv_head", 4), ("qk_norm", True), ("value_residual", True), ("differential_attention", True)),
                ("mup_base_width", 64),
            )
        ),
        (
            {"latent_dim": 64, "position": "rope", "rope_fraction": 0.5},
            "latent_dim 64 with rope_fraction 0.5: .* leave",
        ),
        (
            {"latent_dim": 64, "position": "rope", "rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_ctx": 64},
            "latent_dim 64 with rope_scaling yarn: .*; take linear or ntk",
        ),
        ({"latent_dim": 64, "position": "rope", "n_head": 128}, "768 / n_head 128 = 6 is not divisible by 4; choose"),
        ({"parallel_blocks": True, "norm_placement": "post"}, "parallel_blocks with norm_placement post: .* take"),
    ],
)
def test_impossible_parts_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GPTConfig(**values)
