"""Checkpoints: everything needed to resume a run, complete or absent, and safe to read.

    checkpoints/step_00001000/
        model.safetensors        the full weights
        optimizer.safetensors    the optimizer state: NAME.exp_avg, NAME.exp_avg_sq, NAME.step (AdamW);
                                 NAME.momentum_buffer (Muon). Under fsdp instead one file per rank:
                                 optimizer/shard-00001-model-00001-of-00001.safetensors ...
        state.json               step, losses, and the fingerprints of tokenizer and data
        manifest.json            SHA-256 and size of each of the above

A checkpoint is written to a folder with a temporary name, synced, and renamed; before it is deleted it is renamed back.
So it exists completely or not at all. `verify` finds later damage. Files hold tensors and JSON only; nothing is ever
unpickled.

Either form of the optimizer state can be read by any number of processes. The sharded one is the safetensors form of
`torch.distributed.checkpoint`: each file says in its header where its rows belong. Its reader takes every file of a
folder, hence a folder of its own, and `verify` refuses files that the manifest does not name.

No random state is stored: dropout is seeded by (seed, step, micro-step, rank), and the order of the data is a function
of the step.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from gpt2lab.errors import InputError
from gpt2lab.files import (
    free_path,
    read_checked_json,
    sha256_of,
    sync,
    temporary_name,
    write_checked_json,
)
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import make_model
from gpt2lab.model.huggingface import load_tensors
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.model.quantized import CODECS, QuantizedGPT, Width
from gpt2lab.runs import Run
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.config import saved_model
from gpt2lab.training.distributed import SINGLE_PROCESS, Communicator, full_state_dict, is_sharded, local_shard
from gpt2lab.training.optim import state_names

FORMAT = 1
FULL_STATE, SHARDED_STATE = "optimizer.safetensors", "optimizer"
"""File and folder of the optimizer state."""
_NAME = re.compile(r"step_\d{8,}")
_SHARD = re.compile(rf"{SHARDED_STATE}/shard-\d+-[\w.-]+\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds the state after ``step`` updates, whether or not it is damaged: `verify` tells."""

    path: Path

    @property
    def step(self) -> int:
        """The step that the folder is named after."""
        return int(self.path.name.removeprefix("step_"))

    @property
    def val_loss(self) -> float | None:
        """Validation loss at this step; None if it was not evaluated there, or the folder is damaged."""
        try:
            loss = self.state["val_loss"]
        except (InputError, KeyError, TypeError):
            return None
        return loss if isinstance(loss, float) else None

    @property
    def state(self) -> dict[str, Any]:
        """The scalars of the training state."""
        return read_checked_json(self.path / "state.json")

    @property
    def width(self) -> Width | None:
        """``int8`` or ``int4`` if the weights are quantized (see `model.quantized`), else None."""
        return self.state.get("width")

    @property
    def data_fingerprint(self) -> str | None:
        """Fingerprint of the data that the weights were trained on; None if they were imported."""
        return self.state["fingerprints"].get("data")


def save(
    run: Run,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    comm: Communicator = SINGLE_PROCESS,
) -> Checkpoint:
    """Write the checkpoint of ``state["step"]``, which must not exist. Every rank must call it.

    Raises:
        InputError: The disk is full, or the folder cannot be written; existing checkpoints are unchanged.
    """
    final = run.checkpoints / f"step_{state['step']:08d}"
    folder = Path(comm.broadcast(str(temporary_name(final))))
    tensors = optimizer_state(model, optimizer)
    sharded = any(map(is_sharded, tensors.values()))
    weights = full_state_dict(model, keep=comm.is_main)

    def write() -> None:
        _save_tensors(weights, folder / "model.safetensors")
        if not sharded:
            _save_tensors({name: value.contiguous().cpu() for name, value in tensors.items()}, folder / FULL_STATE)
        write_checked_json(folder / "state.json", state)

    try:
        comm.run_on_main(folder.mkdir)
        if sharded:
            write_sharded_state(tensors, folder / SHARDED_STATE)
        comm.run_on_main(write)
        manifest = {"format": FORMAT, "files": _describe_files(folder, comm)}
        comm.run_on_main(lambda: _publish(folder, manifest, final))
    except (OSError, InputError) as error:
        if comm.is_main:
            shutil.rmtree(folder, ignore_errors=True)
        raise comm.error(f"{final} cannot be written ({error}); free space, then resume with --resume") from error
    return Checkpoint(final)


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    sync(path)


def _describe_files(folder: Path, comm: Communicator) -> dict[str, dict[str, str | int]]:
    """Return the size and SHA-256 of each file of a folder; every rank reads the files that it wrote."""
    with comm.raise_on_all_ranks():
        own = [*folder.glob(f"{SHARDED_STATE}/shard-{comm.rank + 1:05d}-*")]
        own += [path for path in folder.iterdir() if path.is_file() and comm.is_main]
        entries: dict[str, dict[str, str | int]] = {
            path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in own
        }
    return {name: entry for part in comm.all_gather_object(entries) for name, entry in part.items()}


def _publish(folder: Path, manifest: dict[str, Any], final: Path) -> None:
    """Turn a folder whose files are written into a checkpoint: write its manifest, sync, rename."""
    write_checked_json(folder / "manifest.json", manifest)
    for directory in (*(path for path in folder.iterdir() if path.is_dir()), folder):
        sync(directory)
    folder.rename(final)
    sync(final.parent)


def optimizer_state(model: LanguageModel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer state by name, such as ``wpe.weight.exp_avg``; sharded if the parameters are.

    Parameters that have had no gradient yet, such as those of an unused expert, have the zeros that theirs starts with.
    Before the first step there is no state.
    """
    found: dict[str, torch.Tensor] = {}
    if not any(optimizer.state.values()):
        return found
    for name, (parameter, key) in _expected(model, optimizer).items():
        start = torch.empty((), device=parameter.device) if key == "step" else parameter.detach()
        state = optimizer.state[parameter]
        found[name] = state[key] if key in state else torch.zeros_like(start)
    return found


def write_sharded_state(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Write each rank's shards to a file of its own. Every rank must call it; if one fails, all fail.

    Raises:
        InputError: A rank could not write.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    # The format has no tensors without dimensions, such as AdamW's step count.
    rows = {name: value.reshape(1) if value.dim() == 0 else value for name, value in tensors.items()}
    try:
        save(rows, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        rank, (reason, _) = next(iter(error.failures.items()))
        raise InputError(f"{folder} cannot be written on rank {rank} ({reason})") from error


_Expected = dict[str, tuple[torch.nn.Parameter, str]]
"""Parameter and key, such as ``exp_avg``, of each tensor of the optimizer state."""


def _expected(model: LanguageModel, optimizer: torch.optim.Optimizer) -> _Expected:
    keys, named = state_names(optimizer), model.named_parameters()
    return {f"{name}.{key}": (parameter, key) for name, parameter in named for key in keys.get(parameter, ())}


def load_optimizer_state(folder: Path, model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer state of a checkpoint, full or sharded; each rank keeps its shards.

    Raises:
        InputError: The state of a parameter is missing or has another shape (named).
    """
    expected = _expected(model, optimizer)
    sharded = folder / SHARDED_STATE
    read = _read_sharded(sharded, expected) if sharded.is_dir() else _read_full(folder / FULL_STATE, expected)
    for name, (parameter, key) in expected.items():
        optimizer.state[parameter][key] = read[name]


def _read_full(path: Path, expected: _Expected) -> dict[str, torch.Tensor]:
    tensors = load_tensors(path)
    _require_shapes(path, expected, {name: tuple(value.shape) for name, value in tensors.items()})
    # A fused optimizer keeps its step count on the parameter's device too.
    moved = {name: tensors[name].to(parameter.device) for name, (parameter, _) in expected.items()}
    return {name: moved[name] if key == "step" else local_shard(moved[name], p) for name, (p, key) in expected.items()}


def _read_sharded(folder: Path, expected: _Expected) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    shapes = {name: tuple(entry.size) for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
    _require_shapes(folder, expected, shapes)
    rows = {
        name: torch.empty(1, device=parameter.device) if key == "step" else torch.empty_like(parameter.detach())
        for name, (parameter, key) in expected.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(rows, storage_reader=reader, no_dist=True)  # each rank reads its rows by itself
    return {name: value.reshape(()) if expected[name][1] == "step" else value for name, value in rows.items()}


def _require_shapes(path: Path, expected: _Expected, shapes: dict[str, tuple[int, ...]]) -> None:
    if missing := [name for name in expected if name not in shapes]:
        raise InputError(f"{path} lacks {', '.join(missing[:4])}; use another checkpoint")
    for name, (parameter, key) in expected.items():
        needed = tuple(parameter.shape)
        if key != "step" and shapes[name] != needed:
            raise InputError(
                f"{path}: {name} has shape {shapes[name]}, the model needs {needed}; use another checkpoint"
            )


def list_checkpoints(run: Run) -> list[Checkpoint]:
    """Return the checkpoints in order of step, damaged ones included."""
    folders = run.checkpoints.iterdir() if run.checkpoints.is_dir() else ()
    return sorted((Checkpoint(path) for path in folders if _NAME.fullmatch(path.name)), key=lambda found: found.step)


def best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint with the lowest validation loss, the earliest of equals."""
    losses = {checkpoint: loss for checkpoint in checkpoints if (loss := checkpoint.val_loss) is not None}
    return min(losses, key=lambda found: (losses[found], found.step), default=None)


def find(run: Run, which: str) -> Checkpoint:
    """Return a checkpoint by ``best``, ``last`` or its step.

    Raises:
        InputError: The run has no checkpoint, or none of that step.
    """
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise InputError(
            f"{run.path} has no checkpoint yet: the first is written after checkpoint_every steps; start a new run "
            "with another --out"
        )
    if which == "last":
        return checkpoints[-1]
    if which == "best":
        for checkpoint in checkpoints:  # a damaged one might have been the best
            try:
                _ = checkpoint.state
            except InputError as error:
                raise InputError(
                    f"{checkpoint.path}/state.json is damaged, so the best checkpoint is not known: give --checkpoint "
                    "last or a step, or move this checkpoint away"
                ) from error
        return best(checkpoints) or checkpoints[-1]
    for checkpoint in checkpoints:
        if which == str(checkpoint.step):
            return checkpoint
    steps = ", ".join(str(c.step) for c in checkpoints)
    raise InputError(f'{run.path} has no checkpoint "{which}"; choose best, last or a step: {steps}')


def newest_valid(run: Run) -> tuple[Checkpoint, list[str]]:
    """Return the newest checkpoint that passes `verify`, and a warning for each newer one that does not.

    Raises:
        InputError: There is none.
    """
    last, skipped = find(run, "last"), []
    for checkpoint in reversed(list_checkpoints(run)):
        try:
            verify(checkpoint)
            return checkpoint, skipped
        except InputError as error:
            skipped.append(f"skipped a damaged checkpoint: {error}")
    raise InputError(f"{last.path.parent}: every checkpoint is damaged; start a new run")


def verify(checkpoint: Checkpoint) -> None:
    """Check every file of a checkpoint against its manifest, before any tensor is read.

    Raises:
        InputError: A file is missing, truncated or altered (named).
    """
    files = _read_manifest(checkpoint.path / "manifest.json")
    for name, (size, sha256) in files.items():
        path = checkpoint.path / name
        if not path.is_file():
            raise InputError(f"{path} is missing: the checkpoint is incomplete; use an earlier one")
        if path.stat().st_size != size:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes instead of {size}: it was truncated or altered; use an "
                "earlier checkpoint"
            )
        if sha256_of(path) != sha256:
            raise InputError(f"{path} does not match its SHA-256: it was altered; use an earlier checkpoint")
    for path in checkpoint.path.glob(f"{SHARDED_STATE}/*"):  # the reader would take all of them
        if path.relative_to(checkpoint.path).as_posix() not in files:
            raise InputError(f"{path} is not listed in the manifest; move it elsewhere")
    if (step := checkpoint.state["step"]) != checkpoint.step:
        raise InputError(f"{checkpoint.path} holds step {step}: it was renamed; rename it back")


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Return the size and SHA-256 of each file of a checkpoint."""
    manifest = read_checked_json(path)
    try:
        if manifest["format"] != FORMAT:
            raise InputError(f"{path}: format {manifest['format']}; this version reads format {FORMAT}")
        files = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}); use an earlier checkpoint") from error
    expected = {"model.safetensors", "state.json", *([*filter(_SHARD.fullmatch, files)] or [FULL_STATE])}
    if files.keys() != expected:
        odd = ", ".join(sorted(files.keys() ^ expected))
        raise InputError(f"{path} is damaged: missing or unexpected entries {odd}; use an earlier checkpoint")
    return files


def load_into(
    checkpoint: Checkpoint,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer | None = None,
    vocab_size: int | None = None,
) -> None:
    """Load the weights, and the optimizer state if an optimizer is given; each rank keeps its shards.

    Call `verify` first.

    Args:
        checkpoint: The checkpoint.
        model: The model.
        optimizer: The optimizer.
        vocab_size: Entries of the checkpoint's vocabulary if the model's may be larger; see `with_new_rows`.

    Raises:
        InputError: Names or shapes differ from the model's (listed), or the weights are quantized.
    """
    if checkpoint.width is not None:
        raise InputError(
            f"{checkpoint.path}: the weights are {checkpoint.width}, which cannot be trained; use the run that they "
            "were made from"
        )
    weights = load_tensors(checkpoint.path / "model.safetensors")
    expected = model.state_dict()
    if vocab_size is not None and model.config.network is None:
        for name in weights.keys() & {"wte.weight", "lm_head.weight"}:
            weights[name] = with_new_rows(weights[name], vocab_size, model.config)
    _require_same(checkpoint.path, weights, expected)
    model.load_state_dict({n: local_shard(value.to(expected[n].device), expected[n]) for n, value in weights.items()})
    if optimizer is not None:
        load_optimizer_state(checkpoint.path, model, optimizer)


def _require_same(path: Path, weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise `InputError` if names or shapes differ."""
    different = sorted(weights.keys() ^ expected.keys())
    different += [n for n in weights.keys() & expected.keys() if weights[n].shape != expected[n].shape]
    if different:
        raise InputError(f"{path}: the weights are of another architecture: {', '.join(different[:8])}")


def with_new_rows(weight: torch.Tensor, vocab_size: int, config: GPTConfig) -> torch.Tensor:
    """Return an embedding or output head (padded V, C) with the rows that a larger vocabulary adds.

    A new row is the mean of the ``vocab_size`` old ones. Its token then has at most the probability 1 / V before it is
    trained, whatever the context; a random row may have a large one where all others are improbable (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models").
    """
    old, rows = weight[:vocab_size], weight.new_zeros(config.padded_vocab, weight.shape[1])
    rows[:vocab_size], rows[vocab_size : config.vocab_size] = old, old.mean(dim=0)
    return rows


def load_model(run: Run, which: str = "best", device: torch.device | None = None) -> tuple[LanguageModel, Checkpoint]:
    """Return the model of a run in evaluation mode, from its checkpoint ``best``, ``last`` or a step.

    Raises:
        InputError: There is no such checkpoint, it is damaged, or its weights are quantized and the device is no CPU.
    """
    checkpoint = find(run, which)
    verify(checkpoint)
    if checkpoint.width is not None:
        if device is not None and device.type != "cpu":
            raise InputError(f"{checkpoint.path}: {checkpoint.width} weights need a CPU; give --device cpu")
        return _load_quantized(checkpoint, saved_model(run)), checkpoint
    model = make_model(saved_model(run))
    load_into(checkpoint, model)
    return model.to(device or torch.device("cpu")).eval(), checkpoint


def _load_quantized(checkpoint: Checkpoint, config: GPTConfig) -> QuantizedGPT:
    if checkpoint.width not in CODECS:
        raise InputError(f"{checkpoint.path}: weights of {checkpoint.width} are unknown; known are {', '.join(CODECS)}")
    model = QuantizedGPT(config, checkpoint.width)
    weights = load_tensors(checkpoint.path / "model.safetensors")
    _require_same(checkpoint.path, weights, model.state_dict())
    model.load_state_dict(weights, assign=True)
    return model.eval()


def load_tokenizer(run: Run, checkpoint: Checkpoint) -> Tokenizer:
    """Return the tokenizer of a run.

    Raises:
        InputError: It cannot be read, or is not the one that the checkpoint was trained with.
    """
    tokenizer, expected = Tokenizer.load(run.tokenizer), checkpoint.state["fingerprints"]["tokenizer"]
    if tokenizer.fingerprint != expected:
        raise InputError(
            f"{run.tokenizer}: its fingerprint is {tokenizer.fingerprint[:16]}, but the model was trained with "
            f"{expected[:16]}: it was altered; restore it from a copy"
        )
    return tokenizer


def prune(run: Run, keep_last: int) -> None:
    """Delete all checkpoints but the newest ``keep_last`` and the best."""
    checkpoints = list_checkpoints(run)
    kept = [*checkpoints[-keep_last:], best(checkpoints)]
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            shutil.rmtree(checkpoint.path.rename(temporary_name(checkpoint.path)))


def set_aside(run: Run, after: int) -> list[str]:
    """Rename the checkpoints of steps later than ``after``, from which a run is resumed; return their new names."""
    later = [found.path for found in list_checkpoints(run) if found.step > after]
    return [p.rename(free_path(p.with_name(f"{p.name}.before_resume_at_{after}"))).name for p in later]
