"""Attention after GPT-2's against Hugging Face's: the same weights, the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_models import random_ids, random_model
from torch import nn
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DiffLlamaConfig, DiffLlamaForCausalLM

from gpt2lab import GPT, generate
from gpt2lab.model.attention import AttentionBias, attend

OURS: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_ctx": 24, "vocab_size": 61, "n_inner": 50}
OURS |= {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "bias": False, "tied_head": False}
THEIRS: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 50}
THEIRS |= {"max_position_embeddings": 24, "vocab_size": 61, "rms_norm_eps": 1e-5, "attn_implementation": "eager"}
OTHERS = {
    "mlp.c_fc": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.c_proj": ["mlp.down_proj"],
    "attn.c_proj": ["self_attn.o_proj"],
    "ln_1": ["input_layernorm"],
    "ln_2": ["post_attention_layernorm"],
}
"""Their modules for one of ours, whose rows it joins."""


def copied_to(theirs: nn.Module, ours: GPT, modules: dict[str, list[str]], parameters: dict[str, str]) -> None:
    """Give a model of theirs the weights of ours; ``modules`` and ``parameters`` are those of attention."""
    own = ours.state_dict()
    copied = {"lm_head.weight": own["lm_head.weight"][:61], "model.embed_tokens.weight": own["wte.weight"][:61]}
    copied["model.norm.weight"] = own["ln_f.weight"]
    expected = theirs.state_dict()
    for layer in range(ours.config.n_layer):
        for name, their_names in (OTHERS | modules).items():
            full = [f"model.layers.{layer}.{each}.weight" for each in their_names]
            rows = own[f"h.{layer}.{name}.weight"].split([len(expected[each]) for each in full])
            copied |= dict(zip(full, rows, strict=True))
        copied |= {f"model.layers.{layer}.{its}": own[f"h.{layer}.{name}"] for name, its in parameters.items()}
    theirs.load_state_dict(copied)


@pytest.mark.parametrize("n_kv_head", [4, 2])
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_differential_attention_is_that_of_hugging_faces_diffllama(kernel: str, n_kv_head: int) -> None:
    options = {"differential_attention": True, "n_kv_head": n_kv_head, "kernel": kernel}
    ours = random_model(OURS | options).eval()
    for name, parameter in ours.named_parameters():
        if "head_norm" in name:
            nn.init.ones_(parameter)  # DiffLlama's norm has no weight
    theirs = DiffLlamaForCausalLM(DiffLlamaConfig(**THEIRS, num_key_value_heads=n_kv_head)).eval()
    lambdas = {f"attn.lambda_{name}": f"self_attn.lambda_{name}" for name in ("q1", "k1", "q2", "k2")}
    copied_to(theirs, ours, {"attn.c_attn": [f"self_attn.{name}_proj" for name in "qkv"]}, lambdas)
    tokens = random_ids(61, 2, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_latent_attention_is_that_of_hugging_faces_deepseek_v2(kernel: str) -> None:
    L, H, D, R = 10, 4, 8, 4
    options = {"latent_dim": L, "rope_pairing": "interleaved", "norm_eps": 1e-6, "kernel": kernel}
    ours = random_model(OURS | options).eval()
    sizes = {"kv_lora_rank": L, "q_lora_rank": None, "qk_nope_head_dim": D, "qk_rope_head_dim": R, "v_head_dim": D}
    config = DeepseekV2Config(**THEIRS | sizes | {"rms_norm_eps": 1e-6, "first_k_dense_replace": 3})
    theirs: Any = DeepseekV2ForCausalLM(config).eval()
    rotated_last = GPT(ours.config)
    weights = ours.state_dict()
    for layer in range(3):
        q, kept = weights[f"h.{layer}.attn.c_attn.weight"].split((H * (R + D), R + L))
        q = q.view(H, R + D, -1).roll(-R, dims=1).flatten(0, 1)
        weights[f"h.{layer}.attn.c_attn.weight"] = torch.cat((q, kept.roll(-R, dims=0)))
    rotated_last.load_state_dict(weights)
    names = {
        "attn.c_attn": ["self_attn.q_proj", "self_attn.kv_a_proj_with_mqa"],
        "attn.c_latent": ["self_attn.kv_b_proj"],
        "attn.latent_norm": ["self_attn.kv_a_layernorm"],
    }
    copied_to(theirs, rotated_last, names, {})
    tokens = random_ids(61, 2, 24)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, atol=1e-4, rtol=1e-4)
    prompt = tokens[:1, :4]
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 20, "pad_token_id": 0, "eos_token_id": None}
    written = theirs.generate(prompt, do_sample=False, **options)
    assert torch.equal(generate(ours, prompt, 20, greedy=True), written)


def test_the_cache_of_a_latent_holds_it_and_one_rotated_key() -> None:
    ours = random_model(OURS | {"latent_dim": 10})
    cache = ours.new_cache(2)
    assert cache.nbytes == 2 * ours.config.cache_bytes(24, torch.float32) == 2 * 3 * 24 * (10 + 4) * 4
    alone = random_model(OURS | {"latent_dim": 10, "position": "none"})
    assert alone.config.cache_bytes(1, torch.bfloat16) == 3 * 10 * 2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_absorbed_equals_expanded(dtype: torch.dtype, tolerance: float) -> None:
    ours = random_model(OURS | {"latent_dim": 10, "attention_softcap": 5.0, "attention_sinks": True}).to(dtype)
    attention: Any = ours.h[1].get_submodule("attn")
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 1, 12, generator=generator, dtype=dtype)
    kept = torch.randn(2, 1, 9, 14, generator=generator, dtype=dtype)
    mask = torch.arange(9) < torch.tensor([[[[7]]], [[[9]]]])  # (2, 1, 1, 9)
    bias = AttentionBias("reference", mask)
    k, v = attention.expand(kept)
    expected = attend(q, k, v, bias, 0.0, attention.scores)
    torch.testing.assert_close(attention.absorbed(q, kept, bias), expected, atol=tolerance, rtol=tolerance)
