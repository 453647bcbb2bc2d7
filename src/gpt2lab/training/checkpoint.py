"""Checkpoints: everything that is needed to go on, complete or not there at all, and safe to read.

    checkpoints/step_00001000/
        model.safetensors        weights
        optimizer.safetensors    the optimiser's state of each parameter; under fsdp a folder, optimizer/, with a file
                                 of each rank (see `moments`)
        state.json               step, losses, settings and the fingerprints of tokenizer and data
        manifest.json            SHA-256 and size of each of the above

A checkpoint is written into a folder with a temporary name, synced, and renamed; to be removed it is renamed back
first, so that at every moment it is there whole or not at all. `verify` tells one that was damaged later. Nothing is
ever unpickled. Weights are always whole, and state in either form can be read by any number of processes. There is no
random state to keep: dropout is seeded from (seed, step, micro-step, rank), and the order of the data is a function of
the step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from gpt2lab.errors import InputError
from gpt2lab.files import free_path, read_json, sha256_of, sync_directory, temporary_name, write_json
from gpt2lab.model.gpt import GPT
from gpt2lab.model.huggingface import load_tensors
from gpt2lab.runs import Run
from gpt2lab.training.config import saved_model
from gpt2lab.training.distributed import SINGLE_PROCESS, Communicator
from gpt2lab.training.optim import state_names
from gpt2lab.training.parallel import full_state_dict, is_sharded, local_shard

WHOLE, SHARES = "optimizer.safetensors", "optimizer"
"""The file and the folder."""


def optimizer_state(model: GPT, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimiser's state by name, such as ``wpe.weight.exp_avg``; shared out where the parameters are."""
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state[parameter].items()
    }


def write_sharded_state(moments: dict[str, torch.Tensor], folder: Path) -> None:
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


def load_optimizer_state(folder: Path, model: GPT, optimiser: torch.optim.Optimizer) -> None:
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
    return {name: moved[name] if key == "step" else local_shard(moved[name], p) for name, (p, key) in wanted.items()}


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


FORMAT = 1
_NAME = re.compile(r"step_(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds the state after ``step`` updates."""

    path: Path
    step: int
    val_loss: float | None
    """Validation loss at this step, where it was taken there."""

    @property
    def state(self) -> dict[str, Any]:
        """The scalars of the training state."""
        return read_json(self.path / "state.json")

    @property
    def data_fingerprint(self) -> str | None:
        """Of the data that the weights were trained on; None where they were imported."""
        return self.state["fingerprints"].get("data")


def save(
    run: Run, model: GPT, optimiser: torch.optim.Optimizer, state: dict[str, Any], comm: Communicator = SINGLE_PROCESS
) -> Checkpoint:
    """Write the checkpoint of ``state["step"]``, of which there must be none yet. Every process must call it.

    Raises:
        InputError: The disk is full, or the folder cannot be written; what was there is as it was.
    """
    final = run.checkpoints / f"step_{state['step']:08d}"
    beside = Path(comm.broadcast(str(temporary_name(final))))
    kept = optimizer_state(model, optimiser)
    shared_out = any(is_sharded(value) for value in kept.values())
    weights = full_state_dict(model, keep=comm.is_main)

    def write() -> None:
        _save_tensors(weights, beside / "model.safetensors")
        if not shared_out:
            _save_tensors({name: value.contiguous().cpu() for name, value in kept.items()}, beside / WHOLE)
        write_json(beside / "state.json", state)

    try:
        comm.run_on_main(beside.mkdir)
        if shared_out:
            write_sharded_state(kept, beside / SHARES)
        comm.run_on_main(write)
        manifest = {"format": FORMAT, "files": _written(beside, comm)}
        comm.run_on_main(lambda: _publish(beside, manifest, final))
    except (OSError, InputError) as error:
        if comm.is_main:
            shutil.rmtree(beside, ignore_errors=True)
        raise comm.error(f"{final} cannot be written ({error}); make room, then go on with --resume") from error
    return Checkpoint(final, state["step"], state["val_loss"])


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _written(folder: Path, comm: Communicator) -> dict[str, dict[str, str | int]]:
    """Return size and SHA-256 of each file of a folder; every rank reads what it wrote."""
    entries: dict[str, dict[str, str | int]] = {}
    with comm.raise_on_all_ranks():
        own = [*folder.glob(f"{SHARES}/shard-{comm.rank + 1:05d}-*")]
        if comm.is_main:
            own += [path for path in folder.iterdir() if path.is_file()]
        for path in own:
            name = path.relative_to(folder).as_posix()
            entries[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    parts = comm.all_gather_text(json.dumps(entries))
    return {name: entry for part in parts for name, entry in json.loads(part).items()}


def _publish(beside: Path, manifest: dict[str, Any], final: Path) -> None:
    """Make a folder whose files are all written a checkpoint: its manifest, then its name."""
    write_json(beside / "manifest.json", manifest)
    for folder in (*(path for path in beside.iterdir() if path.is_dir()), beside):
        sync_directory(folder)
    beside.rename(final)
    sync_directory(final.parent)


def list_checkpoints(run: Run) -> list[Checkpoint]:
    """Return the checkpoints by step, damaged ones too: those say so when they are verified."""
    return [Checkpoint(folder, step, _val_loss(folder)) for step, folder in _folders(run)]


def _folders(run: Run) -> list[tuple[int, Path]]:
    folders = run.checkpoints.iterdir() if run.checkpoints.is_dir() else ()
    return sorted((int(match[1]), folder) for folder in folders if (match := _NAME.fullmatch(folder.name)))


def _val_loss(folder: Path) -> float | None:
    try:
        loss = read_json(folder / "state.json")["val_loss"]
    except (InputError, KeyError, TypeError):
        return None
    return loss if isinstance(loss, float) else None


def best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint with the lowest validation loss, the earliest of equals."""
    evaluated = [c for c in checkpoints if c.val_loss is not None]
    return min(evaluated, key=lambda c: (c.val_loss, c.step), default=None)


def verify(checkpoint: Checkpoint) -> None:
    """Check every file of a checkpoint against its manifest, before a tensor is read.

    Raises:
        InputError: A file is missing, truncated or altered (named).
    """
    files = _manifest(checkpoint.path / "manifest.json")
    for name, (size, sha256) in files.items():
        path = checkpoint.path / name
        if not path.is_file():
            raise InputError(f"{path} is missing: the checkpoint is incomplete; use an earlier one")
        if path.stat().st_size != size:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes, not {size}: it was cut off or altered; "
                "use an earlier checkpoint"
            )
        if sha256_of(path) != sha256:
            raise InputError(f"{path} does not match its SHA-256: it was altered; use an earlier checkpoint")
    for path in checkpoint.path.glob(f"{SHARES}/*"):  # all of them would be read
        if path.relative_to(checkpoint.path).as_posix() not in files:
            raise InputError(f"{path} is not named by the manifest; move it elsewhere")
    if (step := checkpoint.state["step"]) != checkpoint.step:
        raise InputError(f"{checkpoint.path} holds step {step}: it was renamed; give it its own name again")


def _manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Return the size and SHA-256 of each file of a checkpoint."""
    manifest = read_json(path)
    try:
        if manifest["format"] != FORMAT:
            raise InputError(f"{path}: format {manifest['format']}; this version reads format {FORMAT}")
        files = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); use an earlier checkpoint") from error
    shares = [name for name in files if re.fullmatch(rf"{SHARES}/shard-\d+-[\w.-]+\.safetensors", name)]
    expected = {"model.safetensors", "state.json", *(shares or [WHOLE])}
    if files.keys() != expected:
        odd = ", ".join(sorted(files.keys() ^ expected))
        raise InputError(f"{path} is damaged: it lacks, or should not name, {odd}; use an earlier checkpoint")
    return files


def find(run: Run, which: str) -> Checkpoint:
    """Return a checkpoint by ``best``, ``last`` or its step.

    Raises:
        InputError: There is none, or none of that step.
    """
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise InputError(
            f"{run.path} has no checkpoint yet, the first comes after checkpoint_every steps; "
            "start the run anew with another --out"
        )
    if which == "last":
        return checkpoints[-1]
    if which == "best":
        return best(checkpoints) or checkpoints[-1]
    for checkpoint in checkpoints:
        if which == str(checkpoint.step):
            return checkpoint
    steps = ", ".join(str(c.step) for c in checkpoints)
    raise InputError(f'{run.path} has no checkpoint "{which}"; it has best, last and the steps {steps}')


def newest_valid(run: Run, warn: Callable[[str], None]) -> Checkpoint:
    """Return the newest checkpoint whose files match their manifest; say which newer ones were passed over.

    Raises:
        InputError: There is none.
    """
    last = find(run, "last")
    for checkpoint in reversed(list_checkpoints(run)):
        try:
            verify(checkpoint)
        except InputError as error:
            warn(f"passed over a damaged checkpoint: {error}")
            continue
        return checkpoint
    raise InputError(f"{last.path.parent}: every checkpoint is damaged; start the run anew")


def load_into(checkpoint: Checkpoint, model: GPT, optimiser: torch.optim.Optimizer | None = None) -> None:
    """Load weights, and the optimiser's state where one is given, of each rank what it keeps. Call `verify` first.

    Raises:
        InputError: Names or shapes differ from the model's (listed).
    """
    weights = load_tensors(checkpoint.path / "model.safetensors")
    expected = model.state_dict()
    different = sorted(weights.keys() ^ expected.keys())
    different += [n for n in weights.keys() & expected.keys() if weights[n].shape != expected[n].shape]
    if different:
        raise InputError(f"{checkpoint.path}: the weights are another architecture's: {', '.join(different[:8])}")
    model.load_state_dict({n: local_shard(value.to(expected[n].device), expected[n]) for n, value in weights.items()})
    if optimiser is not None:
        load_optimizer_state(checkpoint.path, model, optimiser)


def load_model(run: Run, which: str = "best", device: torch.device | None = None) -> tuple[GPT, Checkpoint]:
    """Return the model of a run in evaluation mode, from its best (or last, or a given) checkpoint.

    Raises:
        InputError: There is no such checkpoint, or it is damaged.
    """
    checkpoint = find(run, which)
    verify(checkpoint)
    model = GPT(saved_model(run))
    load_into(checkpoint, model)
    return model.to(device or torch.device("cpu")).eval(), checkpoint


def prune(run: Run, keep_last: int) -> None:
    """Remove all but the newest ``keep_last`` checkpoints and the best."""
    checkpoints = list_checkpoints(run)
    kept = [*checkpoints[-keep_last:], best(checkpoints)]
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            stray = checkpoint.path.rename(temporary_name(checkpoint.path))
            shutil.rmtree(stray)


def set_aside(run: Run, after: int) -> list[str]:
    """Rename the checkpoints of later steps than ``after``, where a run is about to go on; return their names."""
    later = [folder for step, folder in _folders(run) if step > after]
    return [p.rename(free_path(p.with_name(f"{p.name}.before_resume_at_{after}"))).name for p in later]
