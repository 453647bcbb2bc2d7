"""Tensors that FSDP shares out over ranks (`DTensor`), and the whole ones that everything else has, treated alike.

    rows 0 1 2 3 of a parameter      rank 0 keeps rows 0 1      rank 1 keeps rows 2 3

Each function gives back a tensor that is not shared out as it is, without asking any other process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeGuard
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
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_shared_out(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Return whether this process has only a part of a tensor."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor  # takes a second to import

    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor, gathered where it is shared out: then every rank must call this."""
    return tensor.full_tensor() if is_shared_out(tensor) else tensor


def own_share(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return what this rank keeps of a whole tensor that all have: its part where ``like`` is shared out, else all."""
    if not is_shared_out(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # No source rank: each takes its rows from its own copy, and nothing is sent.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


class Interrupted(Exception):
    """A signal ended the run after its state was saved; ``signal`` is its number, ``verb`` what goes on with it."""

    def __init__(self, signal: int, run: Run, step: int, verb: str = "train") -> None:
        super().__init__(f"stopped after step {step} and saved; go on with: gpt2lab {verb} --out {run.path} --resume")
        self.signal, self.run, self.step = signal, run, step


@contextmanager
def catch_signals() -> Iterator[Callable[[], int | None]]:
    """Yield a function that says which of SIGINT and SIGTERM has come, if any; a second one takes effect at once.

    Outside the main thread signals cannot be caught, and nothing is changed.
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


REASON = "gpt2lab/reason"
LOOK_SECONDS = 1.0
"""How often the thread looks for another rank's failure."""
GRACE_SECONDS = 5.0
"""How long a rank has to end by itself before its thread ends it."""


@contextmanager
def failing_together(store: Store, rank: int) -> Iterator[None]:
    """Run a rank's part of a run. Where it fails by itself, the other ranks end too.

    Args:
        store: Where the ranks leave reasons: one that only this meeting of them uses.
        rank: The rank.

    Raises:
        ReportedElsewhere: Another rank failed first; this one ends because of it.
    """
    over = threading.Event()
    thread = threading.Thread(target=_look, args=(store, over), name="gpt2lab-failures", daemon=True)
    thread.start()
    try:
        yield
    except (ReportedElsewhere, Interrupted):  # all ranks know
        raise
    except BaseException as error:
        mine = f"rank {rank}: {type(error).__name__}: {error}"
        first = _leave(store, mine)
        if first != mine:
            raise ReportedElsewhere(first) from error
        raise
    finally:
        over.set()
        thread.join()


def _leave(store: Store, reason: str) -> str:
    """Leave a reason unless there is one; return the one that is there then."""
    try:
        return store.compare_set(REASON, "", reason).decode()
    except dist.DistError:  # the store went with the process that kept it; then nobody reads it
        return reason


def _look(store: Store, over: threading.Event) -> None:
    """End this process where another rank has failed and this one stays."""
    while not over.wait(LOOK_SECONDS):
        try:
            failed = store.check([REASON])
        except dist.DistError:  # as in `_leave`
            return
        if failed and not over.wait(GRACE_SECONDS):
            os._exit(2)


MEETING_SECONDS = 120
"""How long processes wait for one another at the start; ``GPT2LAB_MEETING_SECONDS`` sets another time."""
MOST_SECONDS = 86_400
EXCHANGE_TIMEOUT = timedelta(minutes=30)
"""How long one waits in an exchange later: for the slowest save on rank 0."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run as one of them sees them."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """Its number on its machine, and so of its GPU."""
    launch: str | None = None
    """What tells this call of torchrun from others; the same after it restarted the processes."""
    restarts: int = 0
    """How often torchrun has restarted them."""

    @classmethod
    def from_environment(cls) -> Processes:
        """Read what torchrun says in the environment.

        Raises:
            InputError: Some of its variables are missing or no numbers.
        """
        if "RANK" not in os.environ:
            return cls()
        try:
            rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            local_rank = int(os.environ["LOCAL_RANK"])
            restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
            _ = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        except (KeyError, ValueError) as error:
            raise InputError(
                f"RANK is set, but not all that torchrun sets with it ({error}); start with torchrun, or unset RANK"
            ) from error
        return cls(rank, world, local_rank, _launch(), restarts)

    @property
    def launched(self) -> bool:
        """Whether torchrun started this process, were it the only one."""
        return self.launch is not None

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes the run's files and prints."""
        return self.rank == 0

    def by_rank(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values (n,) of every rank, shape (world, n)."""
        if self.world == 1:
            return values[None]
        gathered = values.new_empty((self.world, *values.shape))
        dist.all_gather(list(gathered.unbind()), values)
        return gathered

    def highest(self, value: int) -> int:
        """Return the highest of the ranks' numbers."""
        if self.world == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def texts(self, text: str) -> list[str]:
        """Return the texts of all ranks, by rank."""
        if self.world == 1:
            return [text]
        mine = torch.frombuffer(bytearray(text.encode() + b"\0"), dtype=torch.uint8)
        padded = torch.zeros(self.highest(len(mine)), dtype=torch.uint8)
        padded[: len(mine)] = mine
        return [bytes(row).rstrip(b"\0").decode() for row in self.by_rank(padded).tolist()]

    def from_main(self, text: str) -> str:
        """Return rank 0's text."""
        return self.texts(text)[0]

    def is_first_with(self, path: str) -> bool:
        """Return whether no lower rank of this machine has the same path: whether to check what lies there for all."""
        paths = self.texts(f"{self.rank - self.local_rank} {path}")  # torchrun numbers ranks machine by machine
        return paths.index(paths[self.rank]) == self.rank

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a block that exchanges nothing; where one rank's input or files fail, raise `InputError` on all."""
        said = ""
        try:
            yield
        except (InputError, OSError) as error:
            if self.world == 1:
                raise
            said = str(error)
        failed = {rank: text for rank, text in enumerate(self.texts(said)) if text}
        if failed:
            rank, text = next(iter(failed.items()))
            raise self.error(text if rank == 0 else f"rank {rank}: {text}")

    def on_main(self, act: Callable[[], object]) -> None:
        """Let rank 0 do something while the others wait; where it fails, raise `InputError` on all."""
        with self.together():
            if self.main:
                act()

    def error(self, message: str) -> InputError:
        """Return the exception for what all ranks know to be wrong: rank 0's is the one that is shown."""
        return InputError(message) if self.main else ReportedElsewhere(message)

    def require_same(self, what: str, mine: Mapping[str, Any]) -> None:
        """Compare what each rank was given, such as options by name.

        Raises:
            InputError: A rank's differs from rank 0's; says where, with both fingerprints.
        """
        texts = self.texts(json.dumps(mine, sort_keys=True))
        first = json.loads(texts[0])
        for rank, text in enumerate(texts):
            if text != texts[0]:
                other = json.loads(text)
                names = [name for name in sorted(first | other) if first.get(name) != other.get(name)]
                raise self.error(
                    f"rank {rank} has another {what} than rank 0: fingerprint {_fingerprint(text)}, rank 0's is "
                    f"{_fingerprint(texts[0])}; {names[0]} is {other.get(names[0])} there and {first.get(names[0])} on "
                    "rank 0; give all the same"
                )


ALONE = Processes()
"""The one process of a run that torchrun did not start."""


def _fingerprint(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def _launch() -> str:
    """Return what tells a call of torchrun from others: its --rdzv-id, or, without one, its process."""
    given = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"{socket.gethostname()}:{os.getppid()}" if given == "none" else given


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Meet the other processes that torchrun started; yield what this one knows of them, and part at the end.

    Args:
        device: ``auto`` or a device that torch names; of several GPUs each process takes its own.

    Raises:
        InputError: They did not meet in time, or the device cannot be shared by several.
    """
    processes = Processes.from_environment()
    if not processes.launched:
        yield processes
        return
    where = runtime.resolve(device).device
    _take_device(where, processes)
    store = _meet("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo", processes)
    try:
        # Of several machines only the one where a process died counts the restart.
        processes = dataclasses.replace(processes, restarts=processes.highest(processes.restarts))
        own = PrefixStore(processes.from_main(uuid4().hex), store)  # a restart must not find what the last try left
        with failing_together(own, processes.rank):
            yield processes
    except BaseException as error:
        _let_go(error)
        raise
    finally:
        gc.collect()
        dist.destroy_process_group()


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an exception hold.

    DDP's reducer must go before the process group does: where it is the last to hold the group, it waits for gloo's
    thread, which waits for the interpreter's lock, for ever.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _take_device(device: torch.device, processes: Processes) -> None:
    if device.type == "mps":
        raise InputError("mps cannot exchange gradients between processes; start one without torchrun")
    if device.index is not None:
        raise InputError(f"device is {device}, but under torchrun each process takes its own; use {device.type}")
    if device.type == "cuda":
        if processes.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {processes.local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}; "
                "start as many with --nproc-per-node, or use --device cpu"
            )
        torch.cuda.set_device(processes.local_rank)


def _meeting_seconds() -> float:
    given = os.environ.get("GPT2LAB_MEETING_SECONDS", str(MEETING_SECONDS))
    with contextlib.suppress(ValueError):
        if 0 < float(given) <= MOST_SECONDS:
            return float(given)
    raise InputError(f'GPT2LAB_MEETING_SECONDS is "{given}"; give seconds, above 0 and at most {MOST_SECONDS}')


def _meet(backend: str, processes: Processes) -> Store:
    """Form the process group, and return the store by which the processes found one another."""
    seconds = _meeting_seconds()
    rank, world = processes.rank, processes.world
    try:
        store, rank, world = next(rendezvous("env://", rank, world, timeout=timedelta(seconds=seconds)))
        store.set_timeout(EXCHANGE_TIMEOUT)
        if world == int(os.environ.get("LOCAL_WORLD_SIZE", "0")):
            # On one machine the store outlives a restart: addresses of those that died would be found in it.
            store = PrefixStore(f"restart_{processes.restarts}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=EXCHANGE_TIMEOUT)
        return store
    except (dist.DistError, RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(
            f"rank {rank} of {world} did not meet the others at {where} within {seconds:.0f} s "
            f"({str(error).splitlines()[0][:400]}); see that rank 0 runs, that this machine reaches that address and "
            "port, and that as many processes were started (docs/scaling.md)"
        ) from error


STATE_BYTES = 16
"""Bytes of training a parameter in fp32: weight, gradient and AdamW's two moments."""


class Single:
    """A model in one process, and what the other two have in common with it."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        """The model, whose parameters the optimiser updates."""
        self.network: nn.Module = model
        """What is called to train: the same model, with what averages its gradients around it."""

    def exchange_gradients(self, wanted: bool) -> None:
        """Say whether the next forward and backward pass is the step's last one, after which gradients are averaged."""

    def drop_gathered(self) -> None:
        """Free the weights that evaluating gathered."""

    def whole_model(self, keep: bool) -> GPT | None:
        """Return the model with all weights on the ranks that want it, else None. Every rank must call it."""
        return self.model if keep else None


class Replicated(Single):
    """DDP: a copy on every rank."""

    def __init__(self, model: GPT) -> None:
        super().__init__(model)
        self._ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)  # gradients are sent, not a copy
        self.network = self._ddp

    def exchange_gradients(self, wanted: bool) -> None:
        """Average over the ranks in this backward pass, or only add up."""
        self._ddp.require_backward_grad_sync = wanted


class Sharded(Single):
    """FSDP: a share of every parameter on every rank."""

    def __init__(self, model: GPT, where: Runtime) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import (
            FSDPModule,
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )

        super().__init__(model)
        mesh = init_device_mesh(where.device.type, (where.world,))
        # Weights travel in the dtype of the products, which halves what is sent; averages are taken in fp32.
        travels = None if where.dtype == torch.float32 else where.dtype
        policy = MixedPrecisionPolicy(param_dtype=travels, reduce_dtype=torch.float32)
        for block in model.h:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)  # embeddings, which are the head too, and the last norm
        register_fsdp_forward_method(model, "token_losses")  # validation: gathers as a forward pass does
        assert isinstance(model, FSDPModule)
        self._fsdp: FSDPModule = model

    def exchange_gradients(self, wanted: bool) -> None:
        """Average over the ranks and share out in this backward pass, or only add up."""
        self._fsdp.set_requires_gradient_sync(wanted)

    def drop_gathered(self) -> None:
        """Free the embeddings, which FSDP keeps after a forward pass for the backward pass that validation lacks."""
        self._fsdp.reshard()

    def whole_model(self, keep: bool) -> GPT | None:
        """Return a copy with all weights, in evaluation mode, on the ranks that want it; it needs their memory."""
        weights = whole_weights(self.model, keep)
        if not keep:
            return None
        model = GPT(self.model.config)
        model.load_state_dict(weights)
        return model.to(next(self.model.parameters()).device).eval()


MODES: dict[str, Callable[[GPT, Runtime], Single]] = {
    "none": lambda model, where: Single(model),
    "ddp": lambda model, where: Replicated(model),
    "fsdp": Sharded,
}


def choose(asked: str, model: GPTConfig, where: Runtime, processes: Processes) -> tuple[str, str]:
    """Return the mode for ``auto``, ``none``, ``ddp`` or ``fsdp``, and why.

    Raises:
        InputError: Several processes and no mode, or a mode and no torchrun.
    """
    if asked == "none" and processes.world > 1:
        raise InputError(f"parallel is none, but torchrun started {processes.world} processes; use auto, ddp or fsdp")
    if asked in ("ddp", "fsdp") and not processes.launched:
        raise InputError(
            f"parallel {asked} needs torchrun: torchrun --standalone --nproc-per-node 2 -m gpt2lab train ... "
            "(docs/scaling.md); leave it at auto for one process"
        )
    if asked != "auto":
        return asked, "asked for"
    if processes.world == 1:
        return "none", "one process"
    if where.device.type != "cuda":
        return "ddp", f"{processes.world} processes"
    return by_memory(model, torch.cuda.get_device_properties(where.device).total_memory)


def by_memory(model: GPTConfig, memory: int) -> tuple[str, str]:
    """Return the mode for GPUs of so many bytes, all told: what is free differs between equal GPUs; and why."""
    state = STATE_BYTES * _parameters(model)
    share = f"weights, gradients and moments take {state / memory:.0%} of a GPU"
    return ("fsdp", share) if state > memory / 2 else ("ddp", share)


def _parameters(config: GPTConfig) -> int:
    with torch.device("meta"):
        return GPT(config).n_params


def whole_weights(model: GPT, keep: bool) -> dict[str, torch.Tensor]:
    """Return the model's weights by name on the CPU; under fsdp they are gathered one by one, by all ranks at once.

    Args:
        model: The model.
        keep: Whether this rank wants them; the others return nothing.
    """
    gathered = ((name, whole(value)) for name, value in model.state_dict().items())
    return {name: value.contiguous().cpu() for name, value in gathered if keep}


def clip_gradients(model: GPT, largest: float) -> float:
    """Scale the gradient of all parameters down to a norm; return the norm that it had, over all ranks' shares."""
    return whole(torch.nn.utils.clip_grad_norm_(model.parameters(), largest)).item()
