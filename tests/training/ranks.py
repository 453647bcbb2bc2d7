"""Several ranks on this machine, set up as torchrun does but forked from a server that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from gpt2lab.errors import InputError
from gpt2lab.training import loop
from gpt2lab.training.distributed import Interrupted

TIMEOUT = 120
"""Seconds after which a launch counts as hanging."""
PRELOAD = ["torch.distributed.fsdp", "torch.distributed.checkpoint.hf_storage", "torch.distributed.tensor"]
FORKED: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
"""Processes that begin with torch imported."""
FORKED.set_forkserver_preload(["gpt2lab.training.session", "pytest", *PRELOAD])
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server that has torch")


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
    processes = [
        FORKED.Process(target=_run, args=(rank, world_size, restarts, jobs, results)) for rank in range(world_size)
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


def _run(rank: int, world_size: int, restarts: int, jobs: list[tuple[int, Callable[[], Any]]], results: Any) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_RESTART_COUNT": str(restarts), "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "GPT2LAB_RENDEZVOUS_SECONDS": "60",
    }  # fmt: skip
    torch.set_num_threads(1)
    loop.peak_flops = lambda device, precision: (1e12, "not measured")
    loop.draw_curves = lambda run: None
    lines = []
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
