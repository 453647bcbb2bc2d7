"""The processes of a run: how they meet, agree, and fail together.

    torchrun --nproc-per-node 4 ...     rank 0 | rank 1 | rank 2 | rank 3        world 4

`torchrun` starts them and tells each its rank in the environment. They meet in a process group: NCCL between GPUs, gloo
between CPUs, and gloo for the small things that are agreed on. Whatever one process finds wrong must end all of them:
one that goes on alone waits for ever in the next exchange. What is checked before the first step runs inside
`together`; what fails later, anywhere, ends the others through `failing_together`.

Without torchrun there is one process; then each function here gives back what it was given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from gpt2lab import runtime
from gpt2lab.errors import InputError, ReportedElsewhere
from gpt2lab.training.failing_together import failing_together

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
