"""Weights as Hugging Face keeps them, in and out: GPT-2's, and those of later models that have parts we have.

    GPT2LMHeadModel                       LlamaForCausalLM, Qwen3ForCausalLM           ours
    transformer.wte.weight (V, C)         model.embed_tokens.weight (V, C)             wte.weight, V padded to 64
    transformer.h.0.attn.c_attn (C, 3C)   model.layers.0.self_attn.{q,k,v}_proj        h.0.attn.c_attn (3C, C): q, k, v
    transformer.h.0.mlp.c_fc (C, F)       model.layers.0.mlp.{gate,up}_proj (F, C)     h.0.mlp.c_fc (2F, C): gate, up
    lm_head.weight, if untied (V, C)      lm_head.weight, if untied                    lm_head.weight

An `Architecture` is a table: the parts it is made of, its names for options and weights, and what it must not ask for.
GPT-2's matrices are transposed: theirs, a "Conv1D", computes x W + b, and nn.Linear x W^T + b. A file of a model
without its head lacks the prefix; a large model is cut into several files, which ``model.safetensors.index.json``
names; old files also hold what is computed from the configuration (``attn.bias``, the causal mask).
Nothing but safetensors is read: a pickle runs whatever its author wrote.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gpt2lab.errors import InputError
from gpt2lab.files import read_json, write_json
from gpt2lab.model.config import GPTConfig

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FILES = (CONFIG, WEIGHTS, INDEX, "model-*-of-*.safetensors", "tokenizer.json", "vocab.json", "merges.txt")
"""What a directory of theirs may hold that is read here: patterns."""
_WITHOUT_EFFECT = {"kernel", "dropout", "z_loss", "import_sha256"}
"""Options of ours that change no logit of a trained model."""
_PARTIAL, _TRAINED = "partial_rotary_factor", "original_max_position_embeddings"
_SCALINGS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "rope_factor"},
    "yarn": {"factor": "rope_factor", _TRAINED: "rope_original_ctx"},
}
"""The kinds of rotary positions that are the same there and here: their names for what a kind needs, and ours."""
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
}
"""By the annotation of an option: the types of JSON that stand for it."""
_ROTATED = re.compile(r"\.[qk]_(proj|norm)\.")
_LISTED = 6  # names in a message


@dataclass(frozen=True)
class Architecture:
    """A model class of Hugging Face, described by the options and modules of ours."""

    name: str
    model_type: str
    parts: GPTConfig
    """What it is made of: an option of ours must be as here unless it is one of ``options``."""
    options: Mapping[str, Mapping[str, Any]]
    """Options of ours that it holds at any value: its names for each, all of one value, and what leaving one out means.
    """
    fixed: Mapping[str, tuple[Any, ...]]
    """What its configuration may ask for and is not a choice here; the first value is written, and is the default."""
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Its names for modules of ours, several where ours joins their rows; the others have our name."""
    prefix: str = "model."
    """Of every weight but the head's."""
    blocks: str = "layers"
    computed: str = ""
    """Names in old files that are no weights: a regular expression."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names for its options."""
    head_dim: int | None = None
    """Width of a head where its configuration leaves it out; None is that of GPT-2."""
    is_gpt2: bool = False
    """Matrices of blocks are transposed, every layer has biases, and positions are learned."""

    @property
    def defaults(self) -> dict[str, Any]:
        """What its configuration means where it leaves out an option that is a choice here."""
        return {name: value for names in self.options.values() for name, value in names.items()}

    def names(self, name: str) -> list[str]:
        """Return the names, without prefix, of the weights that make up one of ours."""
        found = re.fullmatch(r"(?:h\.(\d+)\.)?(.+)\.(\w+)", name)
        assert found is not None
        layer, module, kind = found.groups()
        where = "" if layer is None else f"{self.blocks}.{layer}."
        return [f"{where}{theirs}.{kind}" for theirs in self.modules.get(module, (module,))]

    def differences(self, config: GPTConfig) -> list[str]:
        """Return the options of a model that this architecture cannot hold."""
        held = {*self.options, *_WITHOUT_EFFECT}
        if self.is_gpt2:
            held.add("bias")
        elif config.rope_scaling != "ntk":
            held |= {"rope_base", "rope_pairing", "rope_scaling", "rope_factor", "rope_original_ctx"}
        names = (option.name for option in dataclasses.fields(config) if option.name not in held)
        return [name for name in names if getattr(config, name) != getattr(self.parts, name)]


GPT2 = Architecture(
    name="GPT2LMHeadModel",
    model_type="gpt2",
    parts=GPTConfig(),
    options={
        "n_layer": {"n_layer": 12},
        "n_head": {"n_head": 12},
        "n_embd": {"n_embd": 768},
        "n_ctx": {"n_positions": 1024},
        "vocab_size": {"vocab_size": 50257},
        "n_inner": {"n_inner": None},
        "dropout": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
        "norm_eps": {"layer_norm_epsilon": 1e-5},
        "tied_head": {"tie_word_embeddings": True},
    },
    fixed={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    prefix="transformer.",
    blocks="h",
    computed=r"h\.\d+\.attn\.(masked_)?bias",
    aliases={
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
    },
    is_gpt2=True,
)
_LLAMA = Architecture(
    name="LlamaForCausalLM",
    model_type="llama",
    parts=GPTConfig(norm="rmsnorm", position="rope", activation="swiglu", bias=False, tied_head=False, dropout=0.0),
    options={
        "n_layer": {"num_hidden_layers": 32},
        "n_head": {"num_attention_heads": 32},
        "n_kv_head": {"num_key_value_heads": None},
        "n_embd": {"hidden_size": 4096},
        "n_inner": {"intermediate_size": 11008},
        "n_ctx": {"max_position_embeddings": 2048},
        "vocab_size": {"vocab_size": 32000},
        "norm_eps": {"rms_norm_eps": 1e-6},
        "tied_head": {"tie_word_embeddings": False},
        "bias": {"attention_bias": False, "mlp_bias": False},
    },
    fixed={"hidden_act": ("silu", "swish"), "attention_dropout": (0.0,), "pretraining_tp": (1,)},
    modules={
        "wte": ("embed_tokens",),
        "ln_1": ("input_layernorm",),
        "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.c_proj": ("self_attn.o_proj",),
        "ln_2": ("post_attention_layernorm",),
        "mlp.c_fc": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.c_proj": ("mlp.down_proj",),
        "ln_f": ("norm",),
    },
    computed=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)
_QWEN3 = dataclasses.replace(
    _LLAMA,
    name="Qwen3ForCausalLM",
    model_type="qwen3",
    parts=dataclasses.replace(_LLAMA.parts, qk_norm=True),
    options={name: theirs for name, theirs in _LLAMA.options.items() if name != "bias"}
    | {
        "n_kv_head": {"num_key_value_heads": 32},
        "n_inner": {"intermediate_size": 22016},
        "n_ctx": {"max_position_embeddings": 32768},
        "vocab_size": {"vocab_size": 151936},
    },
    fixed={
        "hidden_act": ("silu", "swish"),
        "attention_dropout": (0.0,),
        "attention_bias": (False,),
        "use_sliding_window": (False,),
    },
    modules={**_LLAMA.modules, "attn.q_norm": ("self_attn.q_norm",), "attn.k_norm": ("self_attn.k_norm",)},
    head_dim=128,
)
ARCHITECTURES = (GPT2, _LLAMA, _QWEN3)

# A directory ----------------------------------------------------------------------------------------------------------


def read_config(directory: Path) -> GPTConfig:
    """Return the configuration of a Hugging Face directory.

    Raises:
        InputError: It is not there, is another architecture, or asks for what is fixed here (listed).
    """
    if not (directory / CONFIG).is_file():
        what = "holds no model (config.json is missing)" if directory.is_dir() else "does not exist"
        raise InputError(f"{directory} {what}; give a directory that save_pretrained wrote")
    return config_from_hf(read_json(directory / CONFIG), str(directory / CONFIG))


def read_weights(directory: Path, config: GPTConfig, expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of a Hugging Face directory, fp32, by our names and in our layout.

    Args:
        directory: The directory.
        config: Its configuration.
        expected: The state dictionary of a model of that configuration, on any device.

    Raises:
        InputError: They are not safetensors, or weights are missing, too many or of other shapes than the configuration
            says, or not finite (listed).
    """
    architecture = architecture_of(config)
    theirs = _only_weights(architecture, _read_tensors(directory))
    shapes = {name: tuple(weight.shape) for name, weight in to_hf(config, expected).items()}
    (embedding,), head = architecture.names("wte.weight"), "lm_head.weight"
    with_head = {head: shapes[embedding]} if head in theirs else {}
    _require_same(theirs, shapes | with_head, directory)
    if config.tied_head and head in theirs and not torch.equal(theirs[head], theirs[embedding]):
        raise InputError(
            f"{directory}: {head} is not {embedding}, but the head is tied (tie_word_embeddings); save the model again"
        )
    return {name: _join(architecture, name, theirs, weight.shape) for name, weight in expected.items()}


def write_hf(config: GPTConfig, weights: Mapping[str, torch.Tensor], directory: Path, eot: int | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors`` into a directory that exists.

    A GPT-2 without biases gets biases of 0, which compute the same.

    Args:
        config: The architecture.
        weights: Its state dictionary.
        directory: Where to write.
        eot: Id of the token at which generation begins and ends; None leaves that open.

    Raises:
        InputError: No architecture of theirs has the model's parts, or the disk is full.
    """
    values = config_to_hf(config) | {"bos_token_id": eot, "eos_token_id": eot}
    prefix = architecture_of(config).prefix
    theirs = {
        name if name.startswith("lm_head.") else prefix + name: weight.contiguous().cpu()
        for name, weight in to_hf(config, weights).items()
    }
    try:
        save_file(theirs, directory / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(f"{directory / WEIGHTS} cannot be written ({error}); make room and try again") from error
    write_json(directory / CONFIG, values | {"dtype": str(weights["wte.weight"].dtype).removeprefix("torch.")})


# The configuration ----------------------------------------------------------------------------------------------------


def architecture_of(config: GPTConfig) -> Architecture:
    """Return the architecture of theirs that has the parts of a model.

    Raises:
        InputError: There is none; the nearest is named, with all that differs.
    """
    config = _without_defaults(config)
    nearest = min(ARCHITECTURES, key=lambda architecture: len(architecture.differences(config)))
    if names := nearest.differences(config):
        raise InputError(
            f"no architecture of Hugging Face has all parts of this model: the nearest is {nearest.name}, but the "
            f"model has {named(config, names)}; what can be exported has {named(nearest.parts, names)}"
        )
    return nearest


def config_from_hf(values: Any, where: str) -> GPTConfig:
    """Return the configuration that their ``config.json`` means; what it leaves out is as in their class.

    Raises:
        InputError: Another architecture, or an option that is fixed here (all are listed).
    """
    kind = values.get("model_type") if isinstance(values, dict) else None
    architecture = next((known for known in ARCHITECTURES if known.model_type == kind), None)
    if architecture is None:
        known = ", ".join(known.model_type for known in ARCHITECTURES)
        raise InputError(f"{where}: the architecture is {kind or 'not named'}; those that can be imported are {known}")
    values, wrong = _by_first_name(architecture, values)
    options: dict[str, Any] = {}
    if not architecture.is_gpt2:
        options, unlike = _rotary(architecture.defaults | values)
        wrong += unlike + _heads(architecture, architecture.defaults | values)
    wrong += [
        f"{name} is {values[name]} and must be {' or '.join(map(str, allowed))}"
        for name, allowed in architecture.fixed.items()
        if name in values and values[name] not in allowed
    ]
    for option, names in architecture.options.items():
        given = {name: values.get(name, default) for name, default in names.items()}
        options[option], *others = given.values()
        nullable = (
            None in names.values() or option == "n_kv_head"
        )  # null means the number of query heads in every class
        wrong += _of_another_type(option, given, nullable)
        if any(str(other) != str(options[option]) for other in others):
            wrong.append(f"{' and '.join(given)} differ ({given}); here they must be the same")
    if wrong:
        raise InputError(f"{where}: {'; '.join(wrong)}")
    try:
        return _without_defaults(dataclasses.replace(architecture.parts, **options))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def config_to_hf(config: GPTConfig) -> dict[str, Any]:
    """Return their ``config.json`` of a configuration.

    Raises:
        InputError: No architecture of theirs has the model's parts (see `architecture_of`).
    """
    architecture = architecture_of(config)
    values = {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        **{name: getattr(config, option) for option, names in architecture.options.items() for name in names},
        **{name: allowed[0] for name, allowed in architecture.fixed.items()},
    }
    if architecture.is_gpt2:
        return values
    return values | {
        "intermediate_size": config.inner,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_base,
        "rope_scaling": None if config.rope_scaling == "none" else _rope_scaling(config),
    }


def _rope_scaling(config: GPTConfig) -> dict[str, Any]:
    options = _SCALINGS[config.rope_scaling]
    return {"rope_type": config.rope_scaling, **{theirs: getattr(config, ours) for theirs, ours in options.items()}}


def _by_first_name(architecture: Architecture, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values without aliases, and what is given under two names that differ."""
    values, wrong = dict(values), []
    for alias, name in architecture.aliases.items():
        if alias in values:
            value = values.pop(alias)
            if values.setdefault(name, value) != value:
                wrong.append(f"{name} and {alias} are two names of one size and differ ({values[name]} and {value})")
    return values, wrong


def _of_another_type(option: str, given: Mapping[str, Any], nullable: bool = False) -> list[str]:
    """Return what is wrong with the type of values for an option of ours."""
    (kind,) = (
        str(known.type).removesuffix(" | None") for known in dataclasses.fields(GPTConfig) if known.name == option
    )
    allowed, what = _TYPES[kind]
    return [
        f"{name} is {value!r} and must be {what}" + (" or null" if nullable else "")
        for name, value in given.items()
        if type(value) not in allowed and not (value is None and nullable)
    ]


def _rotary(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the rotary positions as options of ours, and what of them cannot be imported.

    They stand in ``rope_parameters``; older files have ``rope_theta``, and ``rope_scaling`` if there is any.
    """
    given = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    rope = values.get(given) or {}
    if not isinstance(rope, dict):
        return {}, [f"{given} is {rope!r} and must be null"]
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    if kind not in _SCALINGS:
        return {}, [f"{given} has rope_type {kind}; those that can be imported are {', '.join(_SCALINGS)}"]
    needed = {"rope_theta": "rope_base", **_SCALINGS[kind]}
    defaults = {"rope_theta": values.get("rope_theta", 10_000.0), _TRAINED: values["max_position_embeddings"]}
    wrong = [
        f"{given} has {key} {value}, which cannot be imported"
        for key, value in rope.items()
        if key not in (*needed, "rope_type", "type") and value is not None
    ]
    wrong += [
        f"{name} is {values[name]} and must be left out" + ("" if name == _PARTIAL else f": it belongs in {given}")
        for name in (_PARTIAL, _TRAINED)
        if values.get(name) not in (None, 1.0)
    ]
    options: dict[str, Any] = {} if kind == "default" else {"rope_scaling": kind}
    for theirs, ours in needed.items():
        options[ours] = rope.get(theirs, defaults.get(theirs))
        wrong += _of_another_type(ours, {theirs: options[ours]})
    return options, wrong


def _heads(architecture: Architecture, values: Mapping[str, Any]) -> list[str]:
    """Return what of heads and layers is not as here."""
    wrong = []
    C, H, D = values["hidden_size"], values["num_attention_heads"], values.get("head_dim", architecture.head_dim)
    if D is not None and type(C) is type(H) is int and H > 0 and C != H * D:
        wrong.append(f"head_dim is {D} and must be hidden_size / num_attention_heads = {C // H}")
    layers = values.get("layer_types") or []
    if not isinstance(layers, list) or any(layer != "full_attention" for layer in layers):
        wrong.append(f"layer_types is {layers!r:.60} and must be full_attention throughout")
    return wrong


def _without_defaults(config: GPTConfig) -> GPTConfig:
    """Leave out numbers that are what they would be by default: as many key heads as query heads, a gate's width."""
    if config.kv_heads == config.n_head:
        config = dataclasses.replace(config, n_kv_head=None)
    default = dataclasses.replace(config, n_inner=None)
    return default if config.is_gated and config.inner == default.inner else config


def named(config: GPTConfig, names: Iterable[str]) -> str:
    """Return options with their values, for a message."""
    return ", ".join(f"{name} {str(getattr(config, name)).lower()}" for name in names)


# The weights ----------------------------------------------------------------------------------------------------------


def to_hf(config: GPTConfig, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dictionary of ours by their names without prefix, in their layout."""
    architecture = architecture_of(config)
    if architecture.is_gpt2:
        weights = with_biases(weights)
    D, K = config.head_dim, config.kv_heads
    rows = {"c_attn": [config.n_head * D, K * D, K * D], "c_fc": [config.inner, config.inner]}
    theirs: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        if name in ("wte.weight", "lm_head.weight"):
            weight = weight[: config.vocab_size]
        names = architecture.names(name)
        parts = weight.split(rows[name.split(".")[-2]]) if len(names) > 1 else [weight]
        theirs |= {part: _transposed(architecture, name, value) for part, value in zip(names, parts, strict=True)}
    if config.rope_pairing == "interleaved":
        theirs |= {name: _as_halves(weight, D) for name, weight in theirs.items() if _ROTATED.search(name)}
    return theirs


def _as_halves(weight: torch.Tensor, D: int) -> torch.Tensor:
    """Reorder the D rows of each head so that the pair of rows 2i and 2i + 1 becomes that of i and i + D/2."""
    return weight.unflatten(0, (-1, D // 2, 2)).transpose(1, 2).flatten(0, 2)


def _join(architecture: Architecture, name: str, theirs: Mapping[str, torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """Return one of our weights, a copy in fp32, from those of theirs that make it up; padding is 0."""
    ours, row = torch.zeros(shape, device="cpu"), 0
    for part in architecture.names(name):
        weight = _transposed(architecture, name, theirs[part])
        ours[row : row + len(weight)] = weight
        row += len(weight)
    return ours


def _transposed(architecture: Architecture, name: str, weight: torch.Tensor) -> torch.Tensor:
    return weight.T if architecture.is_gpt2 and name.startswith("h.") and weight.dim() == 2 else weight


def with_biases(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add a bias of 0 to each layer without one."""
    biased = (name for name in weights if name.endswith(".weight") and not name.startswith(("wte", "wpe", "lm_head")))
    zero = {f"{name.removesuffix('weight')}bias": weights[name].new_zeros(len(weights[name])) for name in biased}
    return {**weights} | {name: bias for name, bias in zero.items() if name not in weights}


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file. Raises InputError where it is missing or anything else."""
    if not path.is_file():
        raise InputError(f"{path} is missing; fetch or save it again")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a safetensors file ({error}); nothing else is read here") from error


def _read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Read the one file of weights, or those that the index names."""
    if (directory / WEIGHTS).is_file():
        return load_tensors(directory / WEIGHTS)
    if not (directory / INDEX).is_file():
        raise InputError(
            f"{directory} holds no {WEIGHTS}; a pickle (pytorch_model.bin) is not read, for it can run anything: if "
            'you trust it, convert it with python -c "from transformers import AutoModelForCausalLM as M; '
            "M.from_pretrained('DIR').save_pretrained('NEW')\""
        )
    index = read_json(directory / INDEX)
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in files.values()
    ):
        raise InputError(f"{directory / INDEX}: no weight_map of names to files beside it; fetch or save it again")
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(files.values())):
        held = load_tensors(directory / file)
        absent = [name for name, where in files.items() if where == file and name not in held]
        if absent:
            raise InputError(
                f"{directory / file} lacks {_listed(absent)}, which the index places there; fetch it again"
            )
        tensors |= held
    return tensors


def _only_weights(architecture: Architecture, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights by their names without prefix, without what old files hold besides."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(architecture.prefix)
        if short in named:
            raise InputError(f"the weights hold {short} twice, with and without {architecture.prefix}; save them again")
        if not re.fullmatch(architecture.computed, short):
            named[short] = tensor
    return named


def _require_same(theirs: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    """Raise InputError unless these are the weights that the configuration says."""
    missing = [name for name in expected if name not in theirs]
    extra = [name for name in theirs if name not in expected]
    misshapen = [
        f"{name} {tuple(theirs[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in theirs and tuple(theirs[name].shape) != shape
    ]
    integer = [f"{name} {tensor.dtype}" for name, tensor in theirs.items() if not tensor.is_floating_point()]
    not_finite = [name for name, tensor in theirs.items() if not bool(tensor.isfinite().all())]
    parts = {
        "missing": missing,
        "unexpected": extra,
        "of another shape": misshapen,
        "not floating-point": integer,
        "NaN or infinite": not_finite,
    }
    if wrong := [f"{what}: {_listed(names)}" for what, names in parts.items() if names]:
        raise InputError(f"{directory}: the weights do not fit {CONFIG}; {'; '.join(wrong)}")


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more
