"""The optimiser's state of each parameter by name, to and from files: whole, or each rank its share.

    optimizer.safetensors                                whole: NAME.exp_avg, NAME.exp_avg_sq, NAME.step (AdamW);
                                                         NAME.momentum_buffer (Muon)
    optimizer/shard-00001-model-00001-of-00001.safetensors ...       under fsdp, a file a rank

The second form is that of `torch.distributed.checkpoint` in safetensors: each file says in its header where its rows
belong, so that any number of processes, one too, can read them. Its reader takes every such file in a folder, hence a
folder that holds nothing else; `checkpoint.verify` sees to it. Files hold tensors only and nothing is pickled.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from gpt2lab.errors import InputError
from gpt2lab.model import GPT
from gpt2lab.model.weights import load_tensors
from gpt2lab.training.optim import state_names
from gpt2lab.training.shares import own_share

WHOLE, SHARES = "optimizer.safetensors", "optimizer"
"""The file and the folder."""


def of(model: GPT, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimiser's state by name, such as ``wpe.weight.exp_avg``; shared out where the parameters are."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state[parameter].items()
    }


def write_shares(moments: dict[str, torch.Tensor], folder: Path) -> None:
    """Write what each rank has to a file of its own. Every rank must call it; all fail where one does.

    Raises:
        InputError: A rank could not write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    # The form has no tensors without dimensions, such as AdamW's count of steps.
    rows = {name: value.reshape(1) if value.dim() == 0 else value for name, value in moments.items()}
    try:
        save(rows, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        rank, (reason, _) = next(iter(error.failures.items()))
        raise InputError(f"{folder} cannot be written on rank {rank} ({reason})") from error


def load(folder: Path, model: GPT, optimiser: torch.optim.Optimizer) -> None:
    """Load the state that a checkpoint holds in either form into an optimiser, each rank what it keeps.

    Raises:
        InputError: A parameter's is missing or has another shape (named).
    """
    kept = state_names(optimiser)
    wanted = {
        f"{name}.{key}": (parameter, key) for name, parameter in model.named_parameters() for key in kept[parameter]
    }
    shares = folder / SHARES
    read = _read_shares(shares, wanted) if shares.is_dir() else _read_whole(folder / WHOLE, wanted)
    for name, (parameter, key) in wanted.items():
        optimiser.state[parameter][key] = read[name]


_Wanted = dict[str, tuple[torch.nn.Parameter, str]]


def _read_whole(path: Path, wanted: _Wanted) -> dict[str, torch.Tensor]:
    tensors = load_tensors(path)
    _require_all(path, wanted, {name: tuple(value.shape) for name, value in tensors.items()})
    # A fused optimiser keeps its step count beside the moments, on the parameter's device.
    moved = {name: tensors[name].to(parameter.device) for name, (parameter, _) in wanted.items()}
    return {name: moved[name] if key == "step" else own_share(moved[name], p) for name, (p, key) in wanted.items()}


def _read_shares(folder: Path, wanted: _Wanted) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load as read_into

    reader = HuggingFaceStorageReader(str(folder))
    held = reader.read_metadata().state_dict_metadata
    shapes = {name: tuple(entry.size) for name, entry in held.items() if isinstance(entry, TensorStorageMetadata)}
    _require_all(folder, wanted, shapes)
    rows = {
        name: torch.empty(1, device=parameter.device) if key == "step" else torch.empty_like(parameter.detach())
        for name, (parameter, key) in wanted.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        read_into(rows, storage_reader=reader, no_dist=True)  # as it is meant: each rank finds its rows by itself
    return {name: value.reshape(()) if wanted[name][1] == "step" else value for name, value in rows.items()}


def _require_all(path: Path, wanted: _Wanted, held: dict[str, tuple[int, ...]]) -> None:
    missing = [name for name in wanted if name not in held]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing[:4])}; use another checkpoint")
    for name, (parameter, key) in wanted.items():
        if key != "step" and held[name] != tuple(parameter.shape):
            shape = tuple(parameter.shape)
            raise InputError(f"{path}: {name} has shape {held[name]}, the model needs {shape}; use another checkpoint")
