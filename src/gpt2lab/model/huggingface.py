"""GPT-2's weights as Hugging Face keeps them, in and out.

    theirs                                          ours
    config.json: n_positions, three dropouts        `GPTConfig`: n_ctx, one dropout
    transformer.wte.weight       (V, C)             wte.weight (V padded to a multiple of 64, C)
    transformer.h.0.attn.c_attn.weight (C, 3 C)     h.0.attn.c_attn.weight (3 C, C)
    lm_head.weight               (V, C)             none: the head is the token embedding

Matrices of the blocks are transposed: theirs, a "Conv1D", computes x W + b, and nn.Linear x W^T + b. A file of the
model without its head lacks the ``transformer.`` prefix; a large model is cut into several files, which
``model.safetensors.index.json`` names; old files also hold the causal mask of each layer (``attn.bias``), no weight.
Nothing but safetensors is read: a pickle runs whatever its author wrote.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
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
_SIZES = {
    "n_layer": ("n_layer", "num_hidden_layers"),
    "n_head": ("n_head", "num_attention_heads"),
    "n_embd": ("n_embd", "hidden_size"),
    "n_ctx": ("n_positions", "max_position_embeddings"),
    "vocab_size": ("vocab_size",),
}
"""The names that GPT2Config takes for each size of ours; the first is the one it writes."""
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
_FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
"""What their configuration may say, and is not a choice here: the first value is GPT-2's, and the default."""
_OF_GPT2 = {"n_layer", "n_head", "n_embd", "n_ctx", "vocab_size", "n_inner", "bias", "dropout", "kernel"}
"""Options of ours that their form of GPT-2 can hold at any value; the others must be as GPT-2 has them."""
_PREFIX = "transformer."
_MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
_LISTED = 6  # names in a message


def read_hf(directory: Path) -> tuple[GPTConfig, dict[str, torch.Tensor]]:
    """Return the configuration and the weights (fp32, by our names, in our layout) of a Hugging Face directory.

    Raises:
        InputError: It is not there, not GPT-2's architecture, not safetensors, or weights are missing, too many or of
            other shapes than its configuration says, or not finite (listed).
    """
    if not (directory / CONFIG).is_file():
        what = "holds no model (config.json is missing)" if directory.is_dir() else "does not exist"
        raise InputError(f"{directory} {what}; give a directory that save_pretrained wrote")
    config = config_from_hf(read_json(directory / CONFIG), str(directory / CONFIG))
    theirs = _only_weights(_read_tensors(directory))
    _require_same(theirs, hf_shapes(config), directory)
    head = theirs.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head, theirs["wte.weight"]):
        raise InputError(f"{directory}: lm_head.weight is not wte.weight; GPT-2's head is its token embedding")
    return config, {name: _to_ours(name, weight, config) for name, weight in theirs.items()}


def write_hf(config: GPTConfig, weights: Mapping[str, torch.Tensor], directory: Path, eot: int | None = None) -> None:
    """Write ``config.json`` and ``model.safetensors`` into a directory that exists.

    A model without biases gets biases of 0, which compute the same.

    Args:
        config: The architecture.
        weights: Its state dictionary.
        directory: Where to write.
        eot: Id of the token at which generation begins and ends; None leaves that open.

    Raises:
        InputError: The architecture is not GPT-2's, or the disk is full.
    """
    values = config_to_hf(config) | {"bos_token_id": eot, "eos_token_id": eot}
    dtype = weights["wte.weight"].dtype
    zero = {name: torch.zeros(shape, dtype=dtype) for name, shape in hf_shapes(config).items() if name.endswith("bias")}
    theirs = zero | {name: _to_theirs(name, weight, config) for name, weight in weights.items()}
    try:
        named = {_PREFIX + name: theirs[name] for name in hf_shapes(config)}
        save_file(named, directory / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise InputError(f"{directory / WEIGHTS} cannot be written ({error}); make room and try again") from error
    write_json(directory / CONFIG, values | {"dtype": str(dtype).removeprefix("torch.")})


def config_from_hf(values: Any, where: str) -> GPTConfig:
    """Return the configuration that their ``config.json`` means; what it leaves out is as in GPT-2 124M.

    Raises:
        InputError: Another architecture, or an option that is fixed here (all are listed).
    """
    if not isinstance(values, dict) or values.get("model_type") != "gpt2":
        kind = values.get("model_type") if isinstance(values, dict) else None
        raise InputError(f"{where}: the architecture is {kind or 'not named'}; only gpt2 can be imported")
    wrong = [
        f"{name} is {values[name]} and must be {' or '.join(map(str, allowed))}"
        for name, allowed in _FIXED.items()
        if name in values and values[name] not in allowed
    ]
    sizes: dict[str, Any] = {}
    for ours, names in _SIZES.items():
        given = {name: values[name] for name in names if name in values}
        wrong += [
            f"{name} is {value!r} and must be a whole number" for name, value in given.items() if type(value) is not int
        ]
        if len(set(map(str, given.values()))) > 1:
            wrong.append(f"{' and '.join(given)} are two names of one size and differ ({given})")
        if given:
            sizes[ours] = next(iter(given.values()))
    inner = values.get("n_inner")
    if inner is not None and type(inner) is not int:
        wrong.append(f"n_inner is {inner!r} and must be a whole number or null")
    dropouts = {name: values.get(name, 0.1) for name in _DROPOUTS}
    if any(type(value) not in (int, float) for value in dropouts.values()):
        wrong.append(f"the dropouts are {dropouts} and must be a number")
    elif len(set(dropouts.values())) > 1:
        wrong.append(f"the dropouts differ ({dropouts}) and must be one number, which matters in training only")
    if wrong:
        raise InputError(f"{where}: {'; '.join(wrong)}")
    try:
        return GPTConfig(**sizes, n_inner=inner, dropout=float(dropouts["resid_pdrop"]))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def config_to_hf(config: GPTConfig) -> dict[str, Any]:
    """Return their ``config.json`` of a configuration.

    Raises:
        InputError: An option that GPT-2 does not have (all are listed).
    """
    gpt2 = GPTConfig()
    if config.kv_heads == config.n_head:  # given, and as GPT-2 has it
        config = dataclasses.replace(config, n_kv_head=None)
    other = {
        field.name: value
        for field in dataclasses.fields(config)
        if field.name not in _OF_GPT2 | {"import_sha256"}
        and (value := getattr(config, field.name)) != getattr(gpt2, field.name)
    }
    if other:
        said = ", ".join(f"{name} {value}" for name, value in other.items())
        raise InputError(f"Hugging Face's GPT-2 cannot hold this model: it has {said}; only GPT-2's own options export")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{names[0]: getattr(config, ours) for ours, names in _SIZES.items()},
        "n_inner": config.n_inner,
        **dict.fromkeys(_DROPOUTS, config.dropout),
        **{name: allowed[0] for name, allowed in _FIXED.items()},
    }


def hf_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight as Hugging Face keeps it, by its name without prefix."""
    C, F = config.n_embd, config.inner
    matrices = {"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C), "mlp.c_fc": (C, F), "mlp.c_proj": (F, C)}
    block: dict[str, tuple[int, ...]] = {
        f"{norm}.{part}": (C,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")
    }
    block |= {f"{name}.weight": shape for name, shape in matrices.items()}
    block |= {f"{name}.bias": (shape[1],) for name, shape in matrices.items()}
    layers = {f"h.{layer}.{name}": shape for layer in range(config.n_layer) for name, shape in block.items()}
    embeddings = {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.n_ctx, C)}
    return {**embeddings, **layers, "ln_f.weight": (C,), "ln_f.bias": (C,)}


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
            'you trust it, convert it with python -c "from transformers import GPT2LMHeadModel as M; '
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


def _only_weights(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights by their names without prefix, the masks of old files left out."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(_PREFIX)
        if short in named:
            raise InputError(f"the weights hold {short} twice, with and without {_PREFIX}; save them again")
        if not _MASK.fullmatch(short):
            named[short] = tensor
    return named


def _require_same(theirs: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    """Raise InputError unless these are the weights that the configuration says."""
    expected = dict(expected)
    if "lm_head.weight" in theirs:
        expected["lm_head.weight"] = expected["wte.weight"]
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
        "not GPT-2's": extra,
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


def _transposed(name: str, weight: torch.Tensor) -> torch.Tensor:
    return weight.T if name.startswith("h.") and weight.dim() == 2 else weight


def _to_ours(name: str, weight: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    """Return a copy: what is read stays tied to its file."""
    weight = _transposed(name, weight)
    ours = torch.zeros(config.padded_vocab if name == "wte.weight" else len(weight), *weight.shape[1:])
    ours[: len(weight)] = weight
    return ours


def _to_theirs(name: str, weight: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    weight = weight[: config.vocab_size] if name == "wte.weight" else weight
    return _transposed(name, weight).contiguous().cpu()
