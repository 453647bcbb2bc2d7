"""Processes forked from a server that has imported torch: several ranks, set up as torchrun does or by its agent."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from gpt2lab.errors import InputError
from gpt2lab.training import loop
from gpt2lab.training.distributed import Interrupted

TIMEOUT = 120
"""Seconds after which a launch counts as hanging."""
PRELOAD = ["torch.distributed.fsdp", "torch.distributed.checkpoint.hf_storage", "torch.distributed.tensor"]
PRELOAD += ["torch._dynamo"]  # FSDP imports it when it shards
FORKED: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
"""Processes that begin with torch imported."""
FORKED.set_forkserver_preload(["gpt2lab.cli.train", "gpt2lab.training.session", "pytest", *PRELOAD])
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server that has torch")


def begin(environment: dict[str, str]) -> None:
    """Begin as a forked process: with the environment of the test; what was imported is no garbage to look through."""
    os.environ.update(environment)
    gc.freeze()


@contextmanager
def quickly() -> Iterator[None]:
    """Leave out what costs more than a small run: threads, measuring the machine's peak, pictures (tested apart)."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "peak_flops", lambda device, precision: (1e12, "not measured"))
        patch.setattr(loop, "draw_curves", lambda run: None)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def launch(world_size: int, work: Callable[..., Any], *arguments: Any, restarts: int = 0) -> list[str]:
    """Run ``work(*arguments)`` on every rank; return each rank's error as `launch_each` does."""
    return launch_each(world_size, [partial(work, *arguments)], restarts)[0]


def launch_each(world_size: int, works: Sequence[Callable[[], Any]], restarts: int = 0) -> list[list[str]]:
    """Run each work on every rank, one after another in the same processes.

    Returns:
        For each work, the line of the `InputError` or `Interrupted` that it raised on each rank, or nothing.
    """
    results = FORKED.SimpleQueue()
    # As under torchrun, the stores outlive the ranks. Each work has a store of its own.
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in works]
    jobs = [(store.port, work) for store, work in zip(stores, works, strict=True)]
    environment = dict(os.environ)
    processes = [
        FORKED.Process(target=_run, args=(environment, rank, world_size, restarts, jobs, results))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    for process in processes:
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * world_size
    lines = dict(results.get() for _ in processes)
    results.close()
    return [[lines[rank][index] for rank in range(world_size)] for index in range(len(works))]


def _run(
    environment: dict[str, str],
    rank: int,
    world_size: int,
    restarts: int,
    jobs: list[tuple[int, Callable[[], Any]]],
    results: Any,
) -> None:
    os.environ |= environment | {
        "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_RESTART_COUNT": str(restarts), "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "GPT2LAB_RENDEZVOUS_SECONDS": "60",
    }  # fmt: skip
    lines = []
    with quickly():
        for port, work in jobs:
            os.environ["MASTER_PORT"] = str(port)
            try:
                work()
                lines.append("")
            except (InputError, Interrupted) as error:
                lines.append(f"{type(error).__name__}: {error}")
            except BaseException:
                traceback.print_exc()
                os._exit(1)
    results.put((rank, lines))


def this_rank() -> int:
    """Return the rank of the calling process."""
    return int(os.environ["RANK"])


def run_under_agent(folder: Path, work: Callable[..., Any], *arguments: Any, restarts: int = 0) -> None:
    """Run ``work(*arguments)`` on two ranks under torchrun's agent; what they print goes to files in ``folder``.

    Raises:
        ChildFailedError: From torch: a rank failed, and no restart is left.
    """
    agent = LaunchConfig(1, 1, 2, DefaultLogsSpecs(str(folder), redirects=Std.ALL), max_restarts=restarts)
    agent.run_id, agent.rdzv_backend, agent.rdzv_endpoint = "tests", "c10d", "localhost:0"
    agent.start_method = FORKED.get_start_method()
    elastic_launch(agent, _quick)(work, *arguments)


def _quick(work: Callable[..., Any], *arguments: Any) -> None:
    gc.freeze()
    with quickly():
        work(*arguments)
