"""The tree of options: to JSON and back, presets and recipes, and what each bad value is told."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import refusal

from gpt2lab.files import from_json
from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.training.config import BY_PRESET, OptimConfig, TrainConfig, to_dict

OPTIM: dict[str, Any] = {
    "name": "muon", "lr": 0.1 + 0.2, "muon_lr": 0.05, "min_lr": 1e-13, "schedule": "wsd", "decay_fraction": 0.1,
    "warmup_steps": 7, "beta1": 0.0, "beta2": 1 / 3, "eps": 1e-30, "weight_decay": 10.0, "grad_clip": 1e6,
}  # fmt: skip
MODEL: dict[str, Any] = {
    "n_layer": 3, "n_head": 4, "n_embd": 64, "n_ctx": 4096, "vocab_size": 1000, "n_inner": 96, "bias": False,
    "dropout": 0.3, "kernel": "matmul", "position": "rope", "rope_base": 1e9, "n_kv_head": 2, "mask": "global",
    "window": 16, "prefix": 8, "norm": "rmsnorm", "norm_placement": "post", "norm_eps": 1e-6, "norm_affine": False,
    "qk_norm": True, "attention_softcap": 50.0, "attention_sinks": True, "attention_gate": True,
    "value_residual": True, "differential_attention": True,
    "activation": "swiglu", "tied_head": False, "logit_softcap": 30.0, "z_loss": 1e-4,
    "embedding_norm": True, "rope_pairing": "interleaved", "rope_fraction": 0.5, "rope_scaling": "yarn",
    "rope_factor": 4.0, "rope_original_ctx": 1024, "nope_every": 3,
}  # fmt: skip
EVERY: dict[str, Any] = {
    "data": Path("stream:fineweb"), "out": Path("runs/ä b"), "preset": "tiny", "recipe": "fast",
    "model": GPTConfig(**MODEL), "optim": OptimConfig(**OPTIM),
    "tokenizer": Path("tok"), "column": "words", "max_disk": "20GB", "seq_len": 16,
    "batch_tokens": 10**6, "grow_batch": "0.25:0.5", "grow_seq_len": "off",
    "micro_batch": 3, "sampling": "random", "mask_documents": True, "loader_workers": 0,
    "seed": -(2**70),
    "device": "cuda:1", "precision": "tf32", "compile": "on", "parallel": "fsdp", "activation_checkpointing": True,
    "deterministic": True, "on_spike": "skip", "spike_z": 0.5, "tracker": "wandb", "profile_steps": "10:15",
    "log_every": 1, "eval_every": 2, "eval_tokens": 0, "sample_every": 3, "sample_prompt": "\x00\n{\"",
    "hellaswag": Path("h.jsonl"), "hellaswag_every": 4, "checkpoint_every": 5, "keep_last": 6, "patience": 9,
    "resume": "100",
}  # fmt: skip
"""Every option that goes with the others, none at its default."""
LENGTH: list[dict[str, Any]] = [{}, {"steps": 5}, {"max_tokens": 10**12}, {"epochs": 0.1}]


def assert_survives_json(config: TrainConfig) -> None:
    assert from_json(TrainConfig, json.loads(json.dumps(to_dict(config))), "") == config


@pytest.mark.parametrize("length", LENGTH)
def test_to_json_and_back(length: dict[str, Any]) -> None:
    data = {"data": Path("data"), "tokenizer": None, "column": None, "max_disk": None} if "epochs" in length else {}
    assert_survives_json(TrainConfig(**(EVERY | data | length)))
    assert_survives_json(TrainConfig(init=Path("run"), model=GPTConfig(dropout=0.0), **length))
    for kind, values in ((TrainConfig, EVERY), (OptimConfig, OPTIM), (GPTConfig, MODEL)):
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        free = {"init", "steps", "epochs", "max_tokens", "warmup_tokens"}
        free |= {
            "import_sha256",
            "parallel_blocks",
            "mup_base_width",
            "feed_forward",
            "block",
            "network",
            "mtp_depth",
            "mtp_weight",
            "latent_dim",
        }
        assert defaults.keys() - values.keys() <= free
        assert all(value != defaults[name] for name, value in values.items()), kind


@settings(max_examples=40)
@given(st.floats(1e-12, 0.9), st.floats(1e-6, 1e6), st.integers(), st.text(st.characters(codec="utf-8")))
def test_numbers_and_texts_to_json_and_back(lr: float, epochs: float, seed: int, prompt: str) -> None:
    assert_survives_json(TrainConfig(optim=OptimConfig(lr=lr), epochs=epochs, seed=seed, sample_prompt=prompt))


def test_json_holds_every_option() -> None:
    values = to_dict(TrainConfig().filled_in())
    assert values.keys() == {field.name for field in dataclasses.fields(TrainConfig)}
    assert values["model"].keys() == {field.name for field in dataclasses.fields(GPTConfig)}
    assert values["optim"].keys() == {field.name for field in dataclasses.fields(OptimConfig)}


def test_what_is_left_out_has_its_default() -> None:
    values = {"preset": "tiny", "epochs": 3, "optim": {"lr": 0.5}}
    config = from_json(TrainConfig, values, "")
    assert config == TrainConfig(preset="tiny", epochs=3.0, optim=OptimConfig(lr=0.5))
    assert type(config.epochs) is float  # an integer stands for a number


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_brings_its_architecture_and_batch(preset: str) -> None:
    found = TrainConfig(preset=preset).essentials()
    assert found == BY_PRESET[preset]
    assert found.model == PRESETS[preset]
    assert found.batch_tokens % found.model.n_ctx == 0


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_recipe_changes_how_a_preset_is_trained_and_not_its_size(preset: str) -> None:
    plain, fast = (TrainConfig(preset=preset, recipe=recipe).essentials() for recipe in ("gpt2", "fast"))
    assert (plain.optim.name, fast.optim.name, fast.model.dropout) == ("adamw", "muon", 0.0)
    for size in ("n_layer", "n_head", "n_embd", "n_ctx", "vocab_size"):
        assert getattr(fast.model, size) == getattr(plain.model, size)
    assert fast.batch_tokens == plain.batch_tokens


def test_the_published_sizes_have_the_published_rates_and_batches() -> None:
    # Brown et al. 2020, table 2.1: 125M, 350M, 760M, 1.3B.
    published = {"gpt2": (6e-4, 2**19), "gpt2-medium": (3e-4, 2**19), "gpt2-large": (2.5e-4, 2**19)}
    published["gpt2-xl"] = (2e-4, 2**20)
    for preset, expected in published.items():
        config = TrainConfig(preset=preset).essentials()
        assert (config.optim.lr, config.batch_tokens) == expected
        assert (config.optim.beta1, config.optim.beta2, config.optim.weight_decay) == (0.9, 0.95, 0.1)
        assert config.optim.grad_clip == 1.0
        assert config.model.dropout == 0.1


def test_options_on_top_replace_single_values() -> None:
    config = TrainConfig(preset="nano", batch_tokens=256, model=GPTConfig.preset("nano", n_layer=3)).essentials()
    assert (config.batch_tokens, config.model.n_layer, config.optim) == (256, 3, BY_PRESET["nano"].optim)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stepz": 5}, r'run\.json: unknown field "stepz" \(did you mean "steps"\?\)'),
        ({"optim": {"name": "sgd"}}, r"run\.json: optim\.name is 'sgd'; it must be adamw, muon"),
        ({"optim": {"weightdecay": 0.0}}, 'unknown field "optim.weightdecay" .did you mean "weight_decay"'),
        ({"model": {"n_heads": 4}}, 'unknown field "model.n_heads" .did you mean "n_head"'),
        ({"qqqq": "red"}, 'unknown field "qqqq"$'),
        ({"steps": "5"}, "steps is '5'; it must be an integer or null"),
        ({"steps": 5.0}, "steps is 5.0; it must be an integer"),
        ({"steps": True}, "steps is true; it must be an integer"),
        ({"epochs": "x"}, "epochs is 'x'; it must be a number or null"),
        ({"epochs": 10**400}, "epochs is 1000.*; it must be a number"),
        ({"spike_z": math.nan}, "spike_z is NaN; it must be a number"),
        ({"data": 5}, "data is 5; it must be a path"),
        ({"data": None}, "data is null; it must be a path"),
        ({"preset": 5}, "preset is 5; it must be text"),
        ({"precision": "fp8"}, "precision is 'fp8'; it must be auto, fp32, tf32, bf16, fp16"),
        ({"micro_batch": "some"}, "micro_batch is 'some'; it must be an integer or auto"),
        ({"model": "big"}, "model is 'big'; it must be an object"),
        ({"model": 3}, "model is 3; it must be an object"),
        ({"model": {"bias": 1}}, "model.bias is 1; it must be true or false"),
        ({"model": {"n_embd": 10, "n_head": 3}}, "run.json: n_embd 10 is not divisible by n_head 3"),
        ({"optim": {"lr": 5}}, "run.json: optim.lr is 5.0; it must be above 0 and below 1"),
        ([], r"run.json: the content is \[\]; it must be an object"),
        (None, "run.json: the content is null; it must be an object"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_file_that_does_not_hold_options_is_told_why(values: Any, said: str) -> None:
    refusal(lambda: from_json(TrainConfig, values, "run.json"), said)


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (OptimConfig, {"warmup_steps": 5, "warmup_tokens": 9}, "the warm-up is given twice: .*_steps 5 .*_tokens 9"),
    (OptimConfig, {"schedule": "constant", "min_lr": 1e-5}, "min_lr is 1e-05, but a constant schedule has no decay"),
    (OptimConfig, {"decay_fraction": 0.1}, "decay_fraction 0.1 with optim.schedule cosine; only wsd takes it"),
    (OptimConfig, {"schedule": "wsd", "decay_fraction": 1.5}, "decay_fraction is 1.5; it must be above 0 and at"),
    (OptimConfig, {"schedule": "cosin"}, r'unknown optim.schedule "cosin" \(did you mean "cosine"\?\)'),
    (OptimConfig, {"muon_lr": 0.01}, "optim.muon_lr 0.01 with optim.name adamw; only muon takes it: leave it out"),
    *(
        (TrainConfig, dict(two), "the length is given twice: .*" + ".*".join(name for name, _ in two))
        for two in combinations({"steps": 5, "epochs": 1.0, "max_tokens": 9}.items(), 2)
    ),
    (TrainConfig, {"preset": "gpt2-larg"}, r'unknown preset "gpt2-larg" \(did you mean "gpt2-large"\?\)'),
    (TrainConfig, {"recipe": "fst"}, r'unknown recipe "fst" \(did you mean "fast"\?\); choose from gpt2, fast'),
    (TrainConfig, {"init": Path("run"), "recipe": "fast"}, "recipe fast with init run: a recipe is for training from"),
    (TrainConfig, {"init": Path("run"), "preset": "gpt2"}, "preset gpt2 and init run both determine the model"),
    (TrainConfig, {"sampling": "randm"}, r'unknown sampling "randm" \(did you mean "random"\?\)'),
    (TrainConfig, {"hellaswag_every": 5}, "hellaswag_every needs --hellaswag FILE"),
    *(
        (TrainConfig, {name: value}, f"^{name} {value} is for --data stream:CORPUS, not for data")
        for name, value in (("tokenizer", Path("tok")), ("max_disk", "5GB"), ("column", "text"))
    ),
]


@pytest.mark.parametrize(("kind", "values", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_options_that_contradict_one_another(kind: Any, values: dict[str, Any], said: str) -> None:
    refusal(lambda: kind(**values), said)


BELOW_ONE = ("log_every", "eval_every", "checkpoint_every", "keep_last", "batch_tokens", "micro_batch", "steps")
BOUNDS = [
    *((name, value) for name in BELOW_ONE for value in (0, -1)),
    *((name, -1) for name in ("eval_tokens", "sample_every", "hellaswag_every", "patience", "loader_workers")),
    *(("epochs", value) for value in (0.0, -1.0, math.nan, math.inf)),
    *(("max_tokens", value) for value in (0, -1)),
    *(("seq_len", value) for value in (0, -1, 129)),
    *((name, value) for name in ("grow_batch", "grow_seq_len") for value in ("1.5", "0.0", "0.5,0.7", "x", ":", "0:5")),
    *(("spike_z", value) for value in (0.0, -1.0, math.nan, math.inf)),
    *(("profile_steps", value) for value in ("", "5", "0:3", "6:5", "1:2:3", "a:b", "-1:2")),
]
OPTIM_BOUNDS = [
    *(("lr", value) for value in (0.0, -1.0, 1.0, math.nan)),
    *(("min_lr", value) for value in (-1e-9, 0.5, math.nan)),
    *(("muon_lr", value) for value in (0.0, 1.0, math.nan)),
    *((name, -1) for name in ("warmup_steps", "warmup_tokens")),
    *((name, value) for name in ("beta1", "beta2") for value in (-0.1, 1.0, math.nan)),
    *((name, value) for name in ("eps", "grad_clip") for value in (0.0, -1.0, math.inf, math.nan)),
    *(("weight_decay", value) for value in (-0.1, math.inf, math.nan)),
]


@pytest.mark.parametrize(("name", "value"), BOUNDS)
def test_every_bound(name: str, value: Any) -> None:
    refusal(lambda: TrainConfig(**{name: value}), rf"^{name} is {value}; it must be ")


@pytest.mark.parametrize(("name", "value"), OPTIM_BOUNDS)
def test_every_bound_of_the_optimizer(name: str, value: Any) -> None:
    refusal(lambda: OptimConfig(**{name: value}), rf"^optim\.{name} is {value}; it must be ")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().steps = 5  # type: ignore[misc]
