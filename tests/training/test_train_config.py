"""The tree of options: to JSON and back, recipes, and what each bad value is told."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import refusal

from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.training.config import RECIPES, OptimConfig, TrainConfig, from_dict, to_dict

positive = st.integers(1, 10**6)
unit = st.floats(0, 1, exclude_max=True)
optims = st.builds(
    OptimConfig,
    name=st.sampled_from(["adamw", "muon"]),
    lr=st.floats(1e-12, 0.9),
    min_lr=st.none() | st.just(0.0) | st.just(1e-13),
    warmup_steps=st.none() | st.integers(0, 10**6),
    schedule=st.sampled_from(["cosine", "linear", "wsd"]),
    beta1=unit,
    beta2=unit,
    eps=st.floats(1e-30, 1),
    weight_decay=st.floats(0, 10),
    grad_clip=st.floats(1e-6, 1e6),
)
models = st.builds(
    GPTConfig,
    n_layer=positive,
    n_head=st.sampled_from([1, 2, 4]),
    n_embd=st.sampled_from([16, 64]),
    n_ctx=st.integers(16, 4096),
    vocab_size=positive,
    n_inner=st.none() | positive,
    bias=st.booleans(),
    dropout=unit,
    kernel=st.sampled_from(["auto", "reference", "matmul", "sdpa"]),
    position=st.sampled_from(["learned", "sinusoidal", "rope", "none"]),
    rope_base=st.floats(1.5, 1e9),
    n_kv_head=st.none() | st.just(1),
    mask=st.just("global"),
    window=st.integers(1, 16),
    prefix=st.integers(1, 16),
    norm=st.sampled_from(["pre", "post"]),
)
lengths = st.fixed_dictionaries({}, optional={"steps": positive}) | st.one_of(
    st.fixed_dictionaries({"epochs": st.floats(1e-6, 1e6)}), st.fixed_dictionaries({"max_tokens": positive})
)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
others = st.fixed_dictionaries(
    {
        "data": names.map(Path),
        "out": st.none() | names.map(Path),
        "preset": st.sampled_from(sorted(PRESETS)),
        "model": models,
        "optim": optims,
        "seq_len": st.none() | st.integers(1, 16),
        "batch_tokens": positive,
        "micro_batch": st.just("auto") | positive,
        "seed": st.integers(),
        "device": st.sampled_from(["auto", "cpu", "cuda:1"]),
        "precision": st.sampled_from(["auto", "fp32", "tf32", "bf16", "fp16"]),
        "activation_checkpointing": st.booleans(),
        "deterministic": st.booleans(),
        "on_spike": st.sampled_from(["warn", "skip", "off"]),
        "tracker": st.sampled_from(["none", "tensorboard", "wandb"]),
        "profile_steps": st.none() | st.just("10:15"),
        "compile": st.sampled_from(["auto", "on", "off"]),
        "log_every": positive,
        "eval_tokens": st.integers(0, 10**9),
        "sample_prompt": st.text(st.characters(codec="utf-8")),
        "patience": st.integers(0, 99),
        "resume": st.none() | st.sampled_from(["last", "100"]),
    }
)


@given(others, lengths)
def test_to_json_and_back(values: dict[str, Any], length: dict[str, Any]) -> None:
    config = TrainConfig(**values, **length)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_json_holds_every_option() -> None:
    values = to_dict(TrainConfig().filled_in())
    assert values.keys() == {field.name for field in dataclasses.fields(TrainConfig)}
    assert values["model"].keys() == {field.name for field in dataclasses.fields(GPTConfig)}
    assert values["optim"].keys() == {field.name for field in dataclasses.fields(OptimConfig)}


def test_what_is_left_out_has_its_default() -> None:
    assert from_dict({}) == TrainConfig()
    assert from_dict({"preset": "tiny", "steps": 5}) == TrainConfig(preset="tiny", steps=5)
    assert from_dict({"optim": {"lr": 0.5}}).optim == OptimConfig(lr=0.5)


def test_integers_stand_for_numbers() -> None:
    epochs = from_dict({"epochs": 3}).epochs
    assert epochs == 3.0
    assert type(epochs) is float


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_brings_its_architecture_and_recipe(preset: str) -> None:
    recipe = TrainConfig(preset=preset).recipe()
    assert recipe == RECIPES[preset]
    assert recipe.model == PRESETS[preset]
    assert recipe.batch_tokens % recipe.model.n_ctx == 0


def test_muon_has_a_rate_of_its_own() -> None:
    config = TrainConfig(optim=OptimConfig(name="muon", muon_lr=0.05))
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_the_published_sizes_have_the_published_recipes() -> None:
    # Brown et al. 2020, table 2.1: 125M, 350M, 760M, 1.3B.
    published = {"gpt2": (6e-4, 2**19), "gpt2-medium": (3e-4, 2**19), "gpt2-large": (2.5e-4, 2**19)}
    published["gpt2-xl"] = (2e-4, 2**20)
    for preset, expected in published.items():
        config = TrainConfig(preset=preset).recipe()
        assert (config.optim.lr, config.batch_tokens) == expected
        assert (config.optim.beta1, config.optim.beta2, config.optim.weight_decay) == (0.9, 0.95, 0.1)
        assert config.optim.grad_clip == 1.0
        assert config.model.dropout == 0.1


def test_options_on_top_replace_the_recipe() -> None:
    config = TrainConfig(preset="nano", batch_tokens=256, model=GPTConfig.preset("nano", n_layer=3)).recipe()
    assert (config.batch_tokens, config.model.n_layer, config.optim) == (256, 3, RECIPES["nano"].optim)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stepz": 5}, r'run\.json: unknown option "stepz" \(did you mean "steps"\?\)'),
        ({"optim": {"name": "sgd"}}, r"run\.json: optim\.name is 'sgd'; it must be adamw, muon"),
        ({"optim": {"weightdecay": 0.0}}, 'unknown option "optim.weightdecay" .did you mean "weight_decay"'),
        ({"model": {"n_heads": 4}}, 'unknown option "model.n_heads" .did you mean "n_head"'),
        ({"qqqq": "red"}, 'unknown option "qqqq"$'),
        ({"steps": "5"}, "steps is '5'; it must be an integer or null"),
        ({"steps": 5.0}, "steps is 5.0; it must be an integer"),
        ({"steps": True}, "steps is True; it must be an integer"),
        ({"epochs": "x"}, "epochs is 'x'; it must be a number or null"),
        ({"epochs": 10**400}, "epochs is 1000.*; it must be a number"),
        ({"data": 5}, "data is 5; it must be a path"),
        ({"data": None}, "data is None; it must be a path"),
        ({"preset": 5}, "preset is 5; it must be text"),
        ({"precision": "fp8"}, "precision is 'fp8'; it must be auto, fp32, tf32, bf16, fp16"),
        ({"micro_batch": "some"}, "micro_batch is 'some'; it must be an integer or auto"),
        ({"model": "big"}, "model is 'big'; it must be options by name"),
        ({"model": 3}, "model is 3; it must be options by name"),
        ({"model": {"bias": 1}}, "model.bias is 1; it must be true or false"),
        ({"model": {"n_embd": 10, "n_head": 3}}, "run.json: n_embd 10 is not divisible by n_head 3"),
        ({"optim": {"lr": 5}}, "run.json: optim.lr is 5.0; it must be above 0 and below 1"),
        ([], "run.json holds list, not the options of a run by name"),
        (None, "run.json holds NoneType"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_file_that_does_not_hold_options_is_told_why(values: Any, said: str) -> None:
    refusal(lambda: from_dict(values, "run.json"), said)


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (OptimConfig, {"warmup_steps": 5, "warmup_tokens": 9}, "the warm-up is given twice: .*_steps 5 .*_tokens 9"),
    (OptimConfig, {"schedule": "constant", "min_lr": 1e-5}, "min_lr is 1e-05, but a constant schedule has no decay"),
    (OptimConfig, {"decay_fraction": 0.1}, "schedule is cosine; it must be wsd where optim.decay_fraction is given"),
    (
        OptimConfig,
        {"schedule": "wsd", "decay_fraction": 1.5},
        "decay_fraction is 1.5; it must be above 0 and at",
    ),
    (OptimConfig, {"schedule": "cosin"}, r'unknown optim.schedule "cosin" \(did you mean "cosine"\?\)'),
    (OptimConfig, {"muon_lr": 0.01}, "optim.name is adamw; it must be muon where optim.muon_lr is given"),
    *(
        (TrainConfig, dict(two), "the length is given twice: .*" + ".*".join(name for name, _ in two))
        for two in combinations({"steps": 5, "epochs": 1.0, "max_tokens": 9}.items(), 2)
    ),
    (TrainConfig, {"preset": "gpt2-larg"}, r'unknown preset "gpt2-larg" \(did you mean "gpt2-large"\?\)'),
    (TrainConfig, {"init": Path("run"), "preset": "gpt2"}, "preset gpt2 and init run both determine the model"),
    (TrainConfig, {"hellaswag_every": 5}, "hellaswag is None; it must be a file to evaluate on"),
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
