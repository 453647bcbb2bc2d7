"""Attention after GPT-2's against Hugging Face's: the same weights, the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_models import random_ids, random_model
from torch import nn
from transformers import DiffLlamaConfig, DiffLlamaForCausalLM

from gpt2lab import GPT

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
