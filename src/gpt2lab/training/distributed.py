"""The processes of one run: how they meet, agree, and fail together, and how they share the model.

    torchrun --nproc-per-node 4 ...     rank 0 | rank 1 | rank 2 | rank 3        world size 4

`torchrun` starts the processes and gives each its rank in the environment. They form a process group: NCCL between
GPUs, gloo between CPUs and for the few values that they agree on. A process that runs on alone would wait forever in
the next collective, so an error on one rank ends all of them, and is reported once:

    expected errors      `Communicator.raise_on_all_ranks`: the ranks exchange their errors at the end of a block
    any other error      `fail_on_all_ranks`: the rank leaves the reason in a store that all ranks can read
        rank 0  ... no space left             stores the reason and raises
        rank 1  ... exchanges with rank 0     its collective breaks once rank 0 is gone; it finds the reason
        rank 2  ... computes, or waits for    a thread polls the store, finds the reason, and ends the process
                    NCCL, which does not see that rank 0 is gone

Without torchrun there is one process, and each collective returns what it was given.

Each rank reads its own sequences of a step; the gradient of the step is the mean over ranks. Parallelism is applied
from outside to a model whose code does not know of it:

    none    one process
    ddp     every rank holds the whole model; gradients are averaged while the backward pass runs
            (Li et al. 2020, "PyTorch Distributed")
    fsdp    every rank holds 1/world_size of each parameter, gradient and optimizer state; a block's weights are
            gathered before it runs and freed after, its gradients are averaged and sharded again
            (Rajbhandari et al. 2020, "ZeRO", stage 3; Zhao et al. 2023, "PyTorch FSDP")

Weights, gradients and AdamW's state in fp32 take 16 bytes per parameter on each rank, under fsdp 16 / world_size.
Gradients are averaged once per step, in its last micro-step; the micro-steps before it only accumulate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from gpt2lab import runtime
from gpt2lab.errors import InputError, ReportedElsewhere
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import make_model
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.training.memory import n_params

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")
RENDEZVOUS_SECONDS = 120
"""How long processes wait for one another at the start, unless ``GPT2LAB_RENDEZVOUS_SECONDS`` is set."""
MAX_RENDEZVOUS_SECONDS = 86_400
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Timeout of every later collective: rank 0's slowest save must fit in."""
FAILURE_KEY = "gpt2lab/failure"
POLL_SECONDS = 1.0
"""How often each rank's thread looks for a failure of another rank."""
GRACE_SECONDS = 5.0
"""How long a rank may take to end by itself before its thread ends it."""
STATE_BYTES = 16
"""Bytes per parameter in fp32: weight, gradient and the two moments of AdamW."""


@dataclass(frozen=True)
class Communicator:
    """The process group as one of its ranks sees it; by default a single process.

    The collectives work on small CPU values. Every rank must call them, in the same order.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank on its own machine, and index of its GPU."""
    launch_id: str | None = None
    """Identifies the call of torchrun; unchanged when torchrun restarts the processes."""
    restarts: int = 0
    """How often torchrun has restarted the processes."""

    @classmethod
    def from_environment(cls) -> Communicator:
        """Read the variables that torchrun sets.

        Raises:
            InputError: Some of them are missing or not numbers.
        """
        if "RANK" not in os.environ:
            return cls()
        try:
            rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            local_rank = int(os.environ["LOCAL_RANK"])
            restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
            _ = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        except (KeyError, ValueError) as error:
            raise InputError(
                f"RANK is set, but another variable of torchrun is missing or invalid ({error}); start with torchrun, "
                "or unset RANK"
            ) from error
        launch_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        if launch_id == "none":  # torchrun had no --rdzv-id
            launch_id = f"{socket.gethostname()}:{os.getppid()}"
        return cls(rank, world_size, local_rank, launch_id, restarts)

    @property
    def launched(self) -> bool:
        """Whether torchrun started this process, even if it is the only one."""
        return self.launch_id is not None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes the run's files and prints."""
        return self.rank == 0

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values (n,) of every rank, shape (world_size, n)."""
        if self.world_size == 1:
            return values[None]
        gathered = values.new_empty((self.world_size, *values.shape))
        dist.all_gather(list(gathered.unbind()), values)
        return gathered

    def all_reduce_max(self, value: int) -> int:
        """Return the largest of the ranks' integers."""
        if self.world_size == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def all_gather_object(self, value: T) -> list[T]:
        """Return the values of all ranks, in order of rank."""
        if self.world_size == 1:
            return [value]
        gathered = [value] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast(self, value: T) -> T:
        """Return rank 0's value."""
        return self.all_gather_object(value)[0]

    def is_first_on_node(self, path: str) -> bool:
        """Return whether no lower rank of this machine has the same path: one rank of a machine checks it for all."""
        paths = self.all_gather_object((self.rank - self.local_rank, path))  # torchrun numbers ranks by machine
        return paths.index(paths[self.rank]) == self.rank

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Run a block without collectives. All raise `InputError` if one rank raises it or `OSError`."""
        message = ""
        try:
            yield
        except (InputError, OSError) as error:
            if self.world_size == 1:
                raise
            message = str(error)
        failed = {rank: text for rank, text in enumerate(self.all_gather_object(message)) if text}
        if failed:
            rank, text = next(iter(failed.items()))
            raise self.error(text if rank == 0 else f"rank {rank}: {text}")

    def run_on_main(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 only; return its value on all ranks. If it fails, all raise `InputError`."""
        value: Any = None
        with self.raise_on_all_ranks():
            if self.is_main:
                value = function()
        return self.broadcast(value)

    def error(self, message: str) -> InputError:
        """Return the exception for an error that all ranks know of; only rank 0's is printed."""
        return InputError(message) if self.is_main else ReportedElsewhere(message)

    def require_same(self, what: str, values: Mapping[str, Any]) -> None:
        """Compare the named values, such as options, of all ranks.

        Raises:
            InputError: A rank differs from rank 0; names the first difference.
        """
        first, *others = self.all_gather_object(dict(values))
        for rank, other in enumerate(others, start=1):
            if other != first:
                name = next(name for name in sorted(first | other) if first.get(name) != other.get(name))
                raise self.error(
                    f"the {what} of rank {rank} differs from that of rank 0: {name} is {other.get(name)}, on rank 0 "
                    f"{first.get(name)}; start all ranks with the same"
                )


SINGLE_PROCESS = Communicator()
"""A run that torchrun did not start."""


@contextmanager
def process_group(device: str) -> Iterator[Communicator]:
    """Form the process group that torchrun's environment describes, and destroy it at the end.

    Args:
        device: ``auto`` or a device that torch names. Of several GPUs each process takes its own.

    Raises:
        InputError: The processes did not meet in time, or cannot share the device.
    """
    comm = Communicator.from_environment()
    if not comm.launched:
        yield comm
        return
    resolved = runtime.resolve(device).device
    _set_device(resolved, comm)
    store = _rendezvous("cpu:gloo,cuda:nccl" if resolved.type == "cuda" else "gloo", comm)
    try:
        # On several machines, only the one whose process died counts the restart.
        comm = dataclasses.replace(comm, restarts=comm.all_reduce_max(comm.restarts))
        own = PrefixStore(comm.broadcast(uuid4().hex), store)  # a restart must not find the reason of the last failure
        with fail_on_all_ranks(own, comm.rank):
            yield comm
    except BaseException as error:
        _clear_frames(error)
        raise
    finally:
        gc.collect()
        dist.destroy_process_group()


def _clear_frames(error: BaseException | None) -> None:
    """Free what the frames of an exception hold.

    DDP's reducer must be freed before the process group is destroyed. If it held the last reference to the group, it
    would wait for gloo's thread while holding the GIL, which that thread waits for: a deadlock.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _set_device(device: torch.device, comm: Communicator) -> None:
    if device.type == "mps":
        raise InputError("mps cannot exchange gradients between processes; start one process without torchrun")
    if device.index is not None:
        raise InputError(f"device is {device}, but under torchrun each process takes its own; use {device.type}")
    if device.type == "cuda":
        if comm.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {comm.local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; lower "
                "--nproc-per-node, or use --device cpu"
            )
        torch.cuda.set_device(comm.local_rank)


def _rendezvous_seconds() -> float:
    given = os.environ.get("GPT2LAB_RENDEZVOUS_SECONDS", str(RENDEZVOUS_SECONDS))
    with contextlib.suppress(ValueError):
        if 0 < float(given) <= MAX_RENDEZVOUS_SECONDS:
            return float(given)
    raise InputError(
        f'GPT2LAB_RENDEZVOUS_SECONDS is "{given}"; give a number of seconds above 0 and at most '
        f"{MAX_RENDEZVOUS_SECONDS}"
    )


def _rendezvous(backend: str, comm: Communicator) -> Store:
    """Initialize torch's process group; return the store through which the ranks found one another."""
    seconds = _rendezvous_seconds()
    rank, world_size = comm.rank, comm.world_size
    try:
        store, rank, world_size = next(rendezvous("env://", rank, world_size, timeout=timedelta(seconds=seconds)))
        store.set_timeout(COLLECTIVE_TIMEOUT)
        if world_size == int(os.environ.get("LOCAL_WORLD_SIZE", "0")):
            # On one machine the store outlives a restart, and still holds the addresses of the processes that died.
            store = PrefixStore(f"restart_{comm.restarts}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
        return store
    except (dist.DistError, RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(
            f"rank {rank} of {world_size} could not reach the other ranks at {address} within {seconds:.0f} s "
            f"({str(error).splitlines()[0][:400]}); check that rank 0 runs, that this machine can reach that address "
            f"and port, and that all {world_size} processes were started (docs/scaling.md)"
        ) from error


@contextmanager
def fail_on_all_ranks(store: Store, rank: int) -> Iterator[None]:
    """Run a rank's part of a run. If it fails on one rank, the other ranks end too.

    Args:
        store: Where the failing rank leaves the reason; used by this process group only.
        rank: The rank of this process.

    Raises:
        ReportedElsewhere: Another rank failed first, and this one ends because of it.
    """
    done = threading.Event()
    thread = threading.Thread(target=_exit_on_failure, args=(store, done), name="gpt2lab-failures", daemon=True)
    thread.start()
    try:
        yield
    except (ReportedElsewhere, Interrupted):  # all ranks know
        raise
    except BaseException as error:
        reason = first = f"rank {rank}: {type(error).__name__}: {error}"
        with contextlib.suppress(dist.DistError):  # the store's process may be gone, and all who would read the reason
            first = store.compare_set(FAILURE_KEY, "", reason).decode()
        if first != reason:
            raise ReportedElsewhere(first) from error
        raise
    finally:
        done.set()
        thread.join()


def _exit_on_failure(store: Store, done: threading.Event) -> None:
    """End this process if another rank has failed and this one does not end by itself."""
    with contextlib.suppress(dist.DistError):  # as in `fail_on_all_ranks`
        while not done.wait(POLL_SECONDS):
            if store.check([FAILURE_KEY]) and not done.wait(GRACE_SECONDS):
                os._exit(2)


class Interrupted(Exception):
    """A signal stopped the run after its state was saved; the command ``verb`` resumes it."""

    def __init__(self, signal: int, run: Run, step: int, verb: str = "train") -> None:
        super().__init__(
            f"stopped after step {step}, state saved; resume with: gpt2lab {verb} --out {run.path} --resume"
        )
        self.signal, self.run, self.step = signal, run, step


@contextmanager
def catch_signals() -> Iterator[Callable[[], int | None]]:
    """Defer SIGINT and SIGTERM: yield a function that returns the first one received, or None.

    A second signal takes effect at once. Signals can only be caught in the main thread; elsewhere nothing changes.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Plain:
    """A model in one process, and the interface of the other two modes."""

    def __init__(self, model: LanguageModel, where: Runtime) -> None:
        self.model = model
        """The model whose parameters the optimizer updates."""
        self.network: nn.Module = model
        """What is called in training: the model, under ddp in its wrapper."""

    def sync_gradients(self, enabled: bool) -> None:
        """Say whether the next backward pass averages gradients over ranks, or only accumulates them."""

    def reshard(self) -> None:
        """Free the weights that an evaluation gathered."""

    def full_model(self, keep: bool) -> LanguageModel | None:
        """Return the model with all its weights if ``keep``, else None. Every rank must call it."""
        return self.model if keep else None


class Replicated(Plain):
    """DDP: a copy of the model on every rank."""

    def __init__(self, model: LanguageModel, where: Runtime) -> None:
        super().__init__(model, where)
        self._ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)  # saves a copy of the gradients
        self.network = self._ddp

    def sync_gradients(self, enabled: bool) -> None:
        """Average in the next backward pass, or only accumulate."""
        self._ddp.require_backward_grad_sync = enabled


class Sharded(Plain):
    """FSDP: a shard of every parameter on every rank."""

    def __init__(self, model: LanguageModel, where: Runtime) -> None:
        from torch.distributed import fsdp
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__(model, where)
        mesh = init_device_mesh(where.device.type, (dist.get_world_size(),))
        # Weights are gathered in the dtype of the products, which halves the traffic; gradients are averaged in fp32.
        gathered = None if where.dtype == torch.float32 else where.dtype
        policy = fsdp.MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32)
        for block in model.blocks:
            fsdp.fully_shard(block, mesh=mesh, mp_policy=policy)
        fsdp.fully_shard(model, mesh=mesh, mp_policy=policy)  # embeddings, tied to the head, and the last norm
        fsdp.register_fsdp_forward_method(model, "token_losses")  # validation: gathers weights as a forward pass does
        assert isinstance(model, fsdp.FSDPModule)
        self._fsdp: fsdp.FSDPModule = model

    def sync_gradients(self, enabled: bool) -> None:
        """Average and shard in the next backward pass, or only accumulate."""
        self._fsdp.set_requires_gradient_sync(enabled)

    def reshard(self) -> None:
        """Free the embeddings, which FSDP keeps after a forward pass for a backward pass that does not come."""
        self._fsdp.reshard()

    def full_model(self, keep: bool) -> LanguageModel | None:
        """Return a copy in evaluation mode with all weights if ``keep``; it takes the memory of all of them."""
        weights = full_state_dict(self.model, keep)
        if not keep:
            return None
        model = make_model(self.model.config)
        model.load_state_dict(weights)
        return model.to(next(self.model.parameters()).device).eval()


MODES: dict[str, type[Plain]] = {"none": Plain, "ddp": Replicated, "fsdp": Sharded}


def choose_mode(asked: str, model: GPTConfig, where: Runtime, comm: Communicator) -> tuple[str, str]:
    """Return the mode for ``auto``, ``none``, ``ddp`` or ``fsdp``, and the reason.

    Raises:
        InputError: ``none`` with several processes, or ``ddp`` or ``fsdp`` without torchrun.
    """
    if asked == "none" and comm.world_size > 1:
        raise InputError(f"parallel is none, but torchrun started {comm.world_size} processes; use auto, ddp or fsdp")
    if asked in ("ddp", "fsdp") and not comm.launched:
        raise InputError(
            f"parallel {asked} needs torchrun: torchrun --standalone --nproc-per-node 2 -m gpt2lab train ... "
            "(docs/scaling.md); leave it at auto for one process"
        )
    if asked != "auto":
        return asked, "asked for"
    if comm.world_size == 1:
        return "none", "one process"
    if where.device.type != "cuda":
        return "ddp", f"{comm.world_size} processes"
    return mode_by_memory(model, torch.cuda.get_device_properties(where.device).total_memory)


def mode_by_memory(model: GPTConfig, memory: int) -> tuple[str, str]:
    """Return ``ddp`` or ``fsdp`` for GPUs of ``memory`` bytes, and the reason.

    It goes by the total memory, which is the same on equal GPUs; the free memory is not.
    """
    state = STATE_BYTES * n_params(model)
    reason = f"weights, gradients and optimizer state take {state / memory:.0%} of a GPU"
    return ("fsdp", reason) if state > memory / 2 else ("ddp", reason)


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Return whether this rank holds only a shard of a tensor."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor  # takes a second to import

    return isinstance(tensor, DTensor)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the full tensor. A sharded one is gathered, so every rank must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_shard(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Shard a full tensor that every rank has in the way that ``like`` is sharded, if it is."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # No source rank: each takes its rows from its own copy, and nothing is sent.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def full_state_dict(model: LanguageModel, keep: bool) -> dict[str, torch.Tensor]:
    """Return the full weights by name on the CPU, gathered one by one. Every rank must call it.

    Args:
        model: The model.
        keep: Whether this rank keeps them; the other ranks return an empty dictionary.
    """
    gathered = ((name, full_tensor(value)) for name, value in model.state_dict().items())
    return {name: value.contiguous().cpu() for name, value in gathered if keep}


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Scale all gradients down to a total norm; return the norm before, over the shards of all ranks."""
    return full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)).item()
