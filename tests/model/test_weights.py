"""Weights in Hugging Face's form: in and out, every variant of the form that is about, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_ids, random_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from gpt2lab import GPT, GPTConfig
from gpt2lab.errors import InputError
from gpt2lab.model.huggingface import config_from_hf, config_to_hf, to_hf

SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 3, "n_embd": 24, "n_ctx": 17, "vocab_size": 61, "dropout": 0.1}
CONFIG, WEIGHTS = "config.json", "model.safetensors"
Twin = Callable[[GPT], Any]


def model_of(**changes: Any) -> GPT:
    model = random_model({**SHAPE, **changes}, 0.1).eval()
    with torch.no_grad():
        model.wte.weight[model.config.vocab_size :] = 0.0
    return model


def hf_model(**changes: Any) -> Any:
    """A model that Hugging Face's own code made."""
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": None}
    sizes = {"n_layer": 2, "n_head": 3, "n_embd": 24, "n_positions": 17, "vocab_size": 61}
    return GPT2LMHeadModel(GPT2Config(**{**sizes, **ids, **changes})).eval()


def assert_same_weights(one: GPT, other: GPT) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def assert_same_function(ours: GPT, theirs: Any) -> None:
    tokens = random_ids(ours.config.vocab_size, 2, ours.config.n_ctx, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, atol=1e-4, rtol=0)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory that Hugging Face's own code wrote."""
    hf_model().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS, metadata={"format": "pt"})


def reconfigure(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(directory: Path) -> str:
    with pytest.raises(InputError) as caught:
        GPT.from_hf(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{}, {"n_inner": 50}, {"n_layer": 1}, {"vocab_size": 128}, {"dropout": 0.0}, {"n_ctx": 1}, {"n_kv_head": 3}],
    ids=str,
)
def test_export_then_import_is_bitwise_equal(changes: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(**changes)
    model.save_hf(tmp_path / "out")
    again = GPT.from_hf(tmp_path / "out")
    assert again.config == dataclasses.replace(model.config, n_kv_head=None)  # as many as query heads
    assert not again.training and all(parameter.requires_grad for parameter in again.parameters())
    assert_same_weights(model, again)


@pytest.mark.parametrize(
    "changes", [{}, {"n_inner": 50}, {"vocab_size": 64}, {"tied_head": False}, {"norm_eps": 0.1}], ids=str
)
def test_what_is_exported_loads_in_transformers_and_computes_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(**changes)
    model.save_hf(tmp_path / "out")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    theirs, report = loaded
    assert not any(report.values()), report
    assert theirs.dtype == torch.float32
    assert_same_function(model, theirs.eval())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_inner": 50},
        {"activation_function": "gelu_pytorch_tanh"},
        {"tie_word_embeddings": False},
        {"layer_norm_epsilon": 0.1},
    ],
    ids=str,
)
def test_what_transformers_saves_is_imported_and_computes_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = hf_model(**changes)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = GPT.from_hf(str(tmp_path / "theirs"))
    assert ours.n_params == sum(parameter.numel() for parameter in theirs.parameters())
    assert_same_function(ours, theirs)


def test_a_model_saved_without_its_head_lacks_the_prefix(saved: Path, tmp_path: Path) -> None:
    hf_model().transformer.save_pretrained(tmp_path / "bare")
    assert "wte.weight" in load_file(tmp_path / "bare" / WEIGHTS)
    assert_same_weights(GPT.from_hf(tmp_path / "bare"), GPT.from_hf(saved))


def test_sharded_files_with_an_index_are_read(saved: Path, tmp_path: Path) -> None:
    hf_model().save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 2
    assert_same_weights(GPT.from_hf(tmp_path / "sharded"), GPT.from_hf(saved))


def test_files_of_older_versions_hold_the_head_again_and_causal_masks(saved: Path) -> None:
    expected = GPT.from_hf(saved)
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 17, 17).tril().bool() for n in range(2)}
    masks |= {f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(2)}
    rewrite(saved, lambda tensors: {**tensors, **masks, "lm_head.weight": tensors["transformer.wte.weight"].clone()})
    assert_same_weights(GPT.from_hf(saved), expected)


def test_half_precision_weights_become_fp32(tmp_path: Path) -> None:
    theirs = hf_model().to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "half")
    ours = GPT.from_hf(tmp_path / "half")
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float32}
    assert_same_function(ours, theirs.float())


def test_an_imported_model_does_not_change_with_its_file(saved: Path) -> None:
    ours = GPT.from_hf(saved)
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    content = bytearray((saved / WEIGHTS).read_bytes())
    with (saved / WEIGHTS).open("r+b") as file:
        file.seek(len(content) - 1000)
        file.write(b"\x00" * 1000)
    assert all(torch.equal(weight, before[name]) for name, weight in ours.state_dict().items())


def test_importing_draws_no_random_numbers(saved: Path) -> None:
    before = torch.get_rng_state()
    GPT.from_hf(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_without_biases_is_exported_with_biases_of_zero(tmp_path: Path) -> None:
    model = model_of(bias=False)
    model.save_hf(tmp_path / "out")
    assert_same_function(model, AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval())
    again = GPT.from_hf(tmp_path / "out")
    assert_same_function(model, again)
    assert again.config == dataclasses.replace(model.config, bias=True)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"position": "rope"}, "position rope"),
        ({"position": "sinusoidal"}, "position sinusoidal"),
        ({"position": "none"}, "position none"),
        ({"n_kv_head": 1}, "n_kv_head 1"),
        ({"mask": "window", "window": 4}, "mask window, window 4"),
        ({"norm_placement": "post"}, "norm_placement post"),
        ({"norm_placement": "post", "position": "rope"}, "position rope, norm_placement post"),
    ],
    ids=str,
)
def test_what_gpt2_does_not_have_is_not_exported_and_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = GPT(GPTConfig(**{**SHAPE, "n_embd": 48, **changes}))
    with pytest.raises(InputError, match=f"nearest is GPT2LMHeadModel, but the model has {said};") as caught:
        model.save_hf(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_every_published_size_has_hugging_faces_names_and_shapes() -> None:
    for name in ("distilgpt2", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        config = GPTConfig.preset(name)
        with torch.device("meta"):
            theirs = GPT2LMHeadModel(GPT2Config(**{k: v for k, v in config_to_hf(config).items() if k != "model_type"}))
            ours = GPT(config).state_dict()
        shapes = {key: weight.shape for key, weight in theirs.transformer.state_dict().items()}
        assert {key: weight.shape for key, weight in to_hf(config, ours).items()} == shapes, name
        assert config_from_hf(json.loads(theirs.config.to_json_string(use_diff=False)), name) == config


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        lambda heads, width, **sizes: GPTConfig(n_head=heads, n_embd=heads * width, **sizes),
        heads=st.integers(1, 32),
        width=st.integers(1, 128),
        n_layer=st.integers(1, 99),
        n_ctx=st.integers(1, 4096),
        vocab_size=st.integers(1, 100_000),
        n_inner=st.none() | st.integers(1, 9999),
        dropout=st.floats(0, 0.9),
    )
)
def test_any_configuration_of_gpt2_survives_both_ways(config: GPTConfig) -> None:
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config))), "here") == config


def test_an_empty_directory_is_filled_and_any_other_kept(tmp_path: Path) -> None:
    model, out = model_of(), tmp_path / "out"
    out.mkdir()
    model.save_hf(out)
    saved = (out / WEIGHTS).read_bytes()
    with pytest.raises(InputError, match="out exists"):
        model_of(n_layer=1).save_hf(out)
    assert (out / WEIGHTS).read_bytes() == saved


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise InputError("no room")

    monkeypatch.setattr("gpt2lab.model.huggingface.write_json", full)
    with pytest.raises(InputError, match="no room"):
        model_of().save_hf(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mistral"}, "the architecture is mistral; those that can be imported are gpt2, llama, qwen3"),
        ({"activation_function": "relu"}, "activation_function is relu and must be gelu_new or gelu_pytorch_tanh"),
        ({"layer_norm_epsilon": "1e-6"}, "layer_norm_epsilon is '1e-6' and must be a number"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"tie_word_embeddings": False}, "missing: lm_head.weight"),
        ({"resid_pdrop": 0.3}, "'resid_pdrop': 0.3"),
        ({"attn_pdrop": None}, "attn_pdrop is None and must be a number"),
        ({"attn_pdrop": []}, "attn_pdrop is [] and must be a number"),
        ({"n_layer": "two"}, "n_layer is 'two' and must be a whole number"),
        ({"n_inner": 2.5}, "n_inner is 2.5"),
        ({"n_head": 5}, "n_embd 24 is not divisible by n_head 5"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"n_layer": 40}, "missing: h.2.ln_1.weight, h.2.ln_1.bias"),
        ({"n_layer": 40}, "and 450 more"),
        ({"n_head": 2.0, "scale_attn_weights": False}, "scale_attn_weights is False and must be True; n_head is 2.0"),
    ],
    ids=str,
)
def test_another_architecture_is_named_with_all_that_is_wrong(saved: Path, changes: dict[str, Any], said: str) -> None:
    reconfigure(saved, **changes)
    assert said in refusal(saved)


def test_the_other_names_of_the_sizes_are_understood(saved: Path) -> None:
    expected, path = GPT.from_hf(saved), saved / CONFIG
    values = json.loads(path.read_text())
    aliases = GPT2Config.attribute_map
    assert aliases.keys() == {"num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings"}
    path.write_text(json.dumps(values | {alias: values.pop(name) for alias, name in aliases.items()}))
    assert GPT2Config.from_pretrained(saved).n_head == 3
    assert GPT.from_hf(saved).config == expected.config
    reconfigure(saved, n_head=4)
    assert "n_head and num_attention_heads are two names of one size and differ" in refusal(saved)
    reconfigure(saved, n_head=3)
    assert_same_weights(GPT.from_hf(saved), expected)


def test_missing_extra_and_misshapen_weights_are_listed_in_one_line(saved: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del tensors["transformer.h.1.ln_2.bias"]
        tensors["score.weight"] = torch.zeros(2, 24)
        tensors["transformer.wpe.weight"] = torch.zeros(18, 24)
        tensors["transformer.ln_f.bias"] = torch.zeros(24, dtype=torch.int8)
        tensors["transformer.h.0.ln_1.weight"][3] = math.nan
        return tensors

    rewrite(saved, change)
    said = refusal(saved)
    shape, kind, nan = "wpe.weight (18, 24), not (17, 24)", "ln_f.bias torch.int8", "NaN or infinite: h.0.ln_1.weight"
    for part in ("missing: h.1.ln_2.bias", "score.weight", shape, kind, nan):
        assert part in said


DAMAGES: dict[str, Callable[[Path], object]] = {
    "config.json is missing": lambda saved: (saved / CONFIG).unlink(),
    "does not exist": shutil.rmtree,
    "not a safetensors file": lambda saved: os.truncate(saved / WEIGHTS, (saved / WEIGHTS).stat().st_size - 100),
    "lm_head.weight is not wte.weight": lambda saved: rewrite(saved, with_embedding_as("lm_head.weight")),
    "wte.weight twice": lambda saved: rewrite(saved, with_embedding_as("wte.weight")),
}
"""By what is said of it."""


def with_embedding_as(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {**tensors, name: tensors["transformer.wte.weight"] + 1}


@pytest.mark.parametrize("said", DAMAGES)
def test_damaged_directories_are_refused(saved: Path, said: str) -> None:
    DAMAGES[said](saved)
    assert said in refusal(saved)


def test_a_pickle_is_refused_with_how_to_convert_it(saved: Path) -> None:
    torch.save(load_file(saved / WEIGHTS), saved / "pytorch_model.bin")
    (saved / WEIGHTS).unlink()
    said = refusal(saved)
    assert "pytorch_model.bin" in said and "save_pretrained" in said
    (saved / "pytorch_model.bin").rename(saved / WEIGHTS)
    assert "not a safetensors file" in refusal(saved)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"weight_map": {"wte.weight": "../secret"}}, "no weight_map"),
        ({"weight_map": {"wte.weight": "model-1-of-1.safetensors"}}, "model-1-of-1.safetensors is missing"),
        ({"weight_map": {"nothing.weight": "part.safetensors"}}, "lacks nothing.weight"),
        ([], "no weight_map"),
    ],
    ids=str,
)
def test_a_damaged_index_is_refused(saved: Path, index: Any, said: str) -> None:
    (saved / WEIGHTS).rename(saved / "part.safetensors")
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert said in refusal(saved)
