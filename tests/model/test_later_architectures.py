"""Llama and Qwen3 in Hugging Face's form: the same logits and tokens, both ways, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import random_ids, random_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from gpt2lab import GPT, GPTConfig, generate
from gpt2lab.errors import InputError
from gpt2lab.model.huggingface import ARCHITECTURES, config_from_hf, config_to_hf, to_hf

CONFIG, WEIGHTS = "config.json", "model.safetensors"
OURS: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 24, "vocab_size": 61}
OURS |= {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "bias": False, "tied_head": False}
THEIRS: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "max_position_embeddings": 24,
}
THEIRS |= {"vocab_size": 61, "intermediate_size": 50, "head_dim": 8, "num_key_value_heads": 4}
THEIRS |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
CLASSES: dict[str, tuple[Any, Any]] = {
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 6, "rope_theta": 50.0}


def hf_model(kind: str, **changes: Any) -> Any:
    """A model of Hugging Face's own, no weight of which is 0 or 1."""
    torch.manual_seed(0)
    config, model = CLASSES[kind]
    theirs = model(config(**{**THEIRS, **changes})).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return theirs


def assert_same_model(ours: GPT, theirs: Any) -> None:
    """The same logits, and the same tokens after a prompt."""
    tokens = random_ids(61, 2, 24, seed=1)
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours.eval()(tokens).logits, expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.5
    prompt = tokens[:1, :4]
    written = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20, pad_token_id=0
    )
    assert torch.equal(generate(ours, prompt, 20, greedy=True), written)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"num_key_value_heads": 2}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rms_norm_eps": 0.1, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
        ("llama", {"head_dim": None, "hidden_act": "swish"}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50.0}}),
        ("llama", {"rope_parameters": YARN}),
        ("qwen3", {"rope_parameters": YARN}),
        ("qwen3", {}),
        ("qwen3", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        ("qwen3", {"rms_norm_eps": 0.1, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}),
    ],
    ids=str,
)
def test_what_transformers_saves_is_imported_and_computes_the_same(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    theirs = hf_model(kind, **changes)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GPT.from_hf(tmp_path / "theirs")
    assert ours.n_params == sum(parameter.numel() for parameter in theirs.parameters())
    assert_same_model(ours, theirs)
    ours.save_hf(tmp_path / "again")
    before, after = load_file(tmp_path / "theirs" / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_no_number_of_key_heads_means_that_of_query_heads(kind: str, tmp_path: Path) -> None:
    hf_model(kind).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_key_value_heads": None}), encoding="utf-8")
    assert_same_model(GPT.from_hf(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"n_kv_head": 2, "n_inner": 50, "norm_eps": 0.1, "rope_base": 50.0}),
        ("llama", {"n_kv_head": 1, "tied_head": True}),
        ("llama", {"bias": True, "n_kv_head": 4}),
        ("llama", {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_ctx": 6, "rope_base": 50.0}),
        ("llama", {"rope_scaling": "linear", "rope_factor": 4.0}),
        ("llama", {"rope_pairing": "interleaved", "n_kv_head": 2, "bias": True}),
        ("qwen3", {"rope_pairing": "interleaved", "n_kv_head": 2, "qk_norm": True}),
        ("llama", {"dropout": 0.1, "z_loss": 1e-4, "kernel": "reference"}),
        ("qwen3", {"qk_norm": True}),
        ("qwen3", {"qk_norm": True, "n_kv_head": 2, "tied_head": True, "rope_base": 50.0}),
        ("gpt2", {name: getattr(GPTConfig(), name) for name in ("norm", "position", "activation")} | {"norm_eps": 0.1}),
    ],
    ids=str,
)
def test_what_is_exported_loads_in_transformers_and_computes_the_same(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = random_model({**OURS, **changes})
    model.save_hf(tmp_path / "out")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    theirs, report = loaded
    assert not any(report.values()), report
    assert type(theirs) is CLASSES[kind][1] and theirs.dtype == torch.float32
    assert_same_model(model, theirs.eval())
    again = GPT.from_hf(tmp_path / "out")
    if model.config.rope_pairing == "interleaved":
        assert again.config.rope_pairing == "halves"  # rows of queries and keys are in another order
        return
    if kind != "gpt2":  # which gets biases
        same: dict[str, Any] = {"dropout": 0.0, "z_loss": 0.0, "kernel": "auto"}
        same["n_kv_head"] = None if model.config.kv_heads == 4 else model.config.n_kv_head
        assert again.config == dataclasses.replace(model.config, **same)
    for name, weight in model.state_dict().items():
        rows = 61 if name in ("wte.weight", "lm_head.weight") else len(weight)
        assert torch.equal(again.state_dict()[name][:rows], weight[:rows]), name


def test_what_their_configuration_leaves_out_is_as_in_their_class() -> None:
    for architecture in ARCHITECTURES:
        theirs = CLASSES[architecture.model_type][0]().to_dict()
        for name, value in architecture.defaults.items():
            assert theirs[name] == value or (value is None and theirs[name] == theirs["num_attention_heads"]), name
        assert architecture.head_dim in (None, theirs.get("head_dim"))
        for name, allowed in architecture.fixed.items():
            assert theirs.get(name, False) in allowed, name


@pytest.mark.parametrize(("preset", "kind"), [("gpt2-modern", "qwen3"), ("cs336", "llama")])
def test_presets_have_the_names_and_shapes_of_their_architecture(preset: str, kind: str) -> None:
    config, (config_class, model_class) = GPTConfig.preset(preset), CLASSES[kind]
    values = {name: value for name, value in config_to_hf(config).items() if name != "model_type"}
    with torch.device("meta"):
        theirs: Any = model_class(config_class(**values))
        ours = to_hf(config, GPT(config).state_dict())
    shapes = {key.removeprefix("model."): weight.shape for key, weight in theirs.state_dict().items()}
    assert {key: weight.shape for key, weight in ours.items()} == shapes
    expected = dataclasses.replace(config, rope_pairing="halves")
    assert config_from_hf(json.loads(theirs.config.to_json_string(use_diff=False)), "here") == expected


def test_the_names_of_older_versions_are_understood(tmp_path: Path) -> None:
    """``rope_theta`` beside ``rope_scaling``, frequencies among the weights, a tied head that is stored."""
    rope = {"rope_type": "default", "rope_theta": 50.0}
    theirs = hf_model("llama", rope_parameters=rope, tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text())
    del values["rope_parameters"]
    (tmp_path / CONFIG).write_text(json.dumps(values | {"rope_theta": 50, "rope_scaling": None}))
    tensors = load_file(tmp_path / WEIGHTS)
    old = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tensors | old | head, tmp_path / WEIGHTS, metadata={"format": "pt"})
    ours = GPT.from_hf(tmp_path)
    assert ours.config.rope_base == 50.0 and ours.config.tied_head
    assert_same_model(ours, theirs)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act is gelu and must be silu or swish"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout is 0.1 and must be 0.0"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp is 2 and must be 1"),
        ("llama", {"attention_bias": True}, "attention_bias and mlp_bias differ"),
        ("llama", {"attention_bias": "yes", "mlp_bias": "yes"}, "mlp_bias is 'yes' and must be true or false"),
        ("llama", {"head_dim": 16}, "head_dim is 16 and must be hidden_size / num_attention_heads = 8"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3"}},
            "rope_type llama3; those that can be imported are default",
        ),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling has rope_type dynamic; those that",
        ),
        ("llama", {"rope_scaling": {"type": "linear"}}, "factor is None and must be a number"),
        ("llama", {"rope_parameters": YARN | {"beta_fast": 16}}, "rope_parameters has beta_fast 16, which cannot"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters has partial_rotary_factor 0.5"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5 and must be left out"),
        (
            "llama",
            {"original_max_position_embeddings": 9},
            "original_max_position_embeddings is 9 and must be left out",
        ),
        ("llama", {"rope_parameters": {"rope_theta": "big"}}, "rope_theta is 'big' and must be a number"),
        ("llama", {"rope_parameters": 3}, "rope_parameters is 3 and must be null"),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps is None and must be a number"),
        ("llama", {"num_key_value_heads": 3}, "n_kv_head is 3; it must divide n_head 4"),
        ("llama", {"num_hidden_layers": 3}, "missing: layers.2.input_layernorm.weight"),
        ("llama", {"intermediate_size": 48}, "layers.0.mlp.gate_proj.weight (50, 32), not (48, 32)"),
        ("llama", {"tie_word_embeddings": True}, "lm_head.weight is not embed_tokens.weight, but the head is tied"),
        ("llama", {"model_type": "qwen3"}, "missing: layers.0.self_attn.q_norm.weight"),
        ("qwen3", {"model_type": "llama"}, "unexpected: layers.0.self_attn.k_norm.weight"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True and must be False"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window is True and must be False"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types is ['full_attention', 'sliding_attention']",
        ),
        ("qwen3", {"layer_types": 3}, "layer_types is 3 and must be full_attention throughout"),
        ("qwen3", {"head_dim": ...}, "head_dim is 128 and must be hidden_size / num_attention_heads = 8"),
        ("qwen3", {"hidden_act": "gelu", "head_dim": 4}, "head_dim is 4 and must be hidden_size / num_attention_heads"),
    ],
    ids=str,
)
def test_what_is_not_as_here_is_refused_with_its_name_and_value(
    kind: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """``...`` leaves an option out."""
    hf_model(kind).save_pretrained(tmp_path)
    values = {**json.loads((tmp_path / CONFIG).read_text()), **changes}
    (tmp_path / CONFIG).write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))
    with pytest.raises(InputError) as caught:
        GPT.from_hf(tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "nearest", "said"),
    [
        ({"activation": "geglu"}, "LlamaForCausalLM", "activation geglu; what can be exported has activation swiglu"),
        ({"qk_norm": True, "bias": True}, "LlamaForCausalLM", "qk_norm true; what can be exported has qk_norm false"),
        ({"qk_norm": True, "norm_affine": False}, "Qwen3ForCausalLM", "norm_affine false; .* norm_affine true"),
        (
            {"logit_softcap": 30.0},
            "LlamaForCausalLM",
            "logit_softcap 30.0; what can be exported has logit_softcap none",
        ),
        ({"norm": "layernorm"}, "LlamaForCausalLM", "norm layernorm; what can be exported has norm rmsnorm"),
        ({"rope_scaling": "ntk", "rope_factor": 4.0}, "LlamaForCausalLM", "rope_scaling ntk, .* rope_scaling none"),
        ({"rope_fraction": 0.5}, "LlamaForCausalLM", "rope_fraction 0.5; what can be exported has rope_fraction 1.0"),
        ({"mask": "window", "window": 4}, "LlamaForCausalLM", "mask window, window 4; .* mask causal, window none"),
        ({"position": "learned", "norm": "layernorm"}, "GPT2LMHeadModel", "activation swiglu; .* activation gelu_tanh"),
    ],
    ids=str,
)
def test_a_model_of_other_parts_is_not_exported_and_the_nearest_architecture_named(
    changes: dict[str, Any], nearest: str, said: str, tmp_path: Path
) -> None:
    model = GPT(GPTConfig(**{**OURS, **changes}))
    with pytest.raises(InputError, match=f"the nearest is {nearest}, but the model has {said}") as caught:
        model.save_hf(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
