"""Several processes of one run on this machine, as torchrun would start them, without its seconds of importing."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from gpt2lab.errors import InputError
from gpt2lab.training import loop, monitoring
from gpt2lab.training.distributed import Interrupted

SECONDS = 120
"""A launch that takes longer hangs."""
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server that has torch")


def launch(world: int, work: Callable[..., Any], *arguments: Any, restarts: int = 0) -> list[str]:
    """Run ``work(*arguments)`` in processes of ranks 0 to world - 1.

    Returns:
        What each said that it could not go on for: an `InputError`'s or `Interrupted`'s line, or nothing.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpt2lab.training", "torch.distributed.fsdp", "torch.distributed.checkpoint"])
    said = context.SimpleQueue()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # kept here, as torchrun keeps it
    processes = [
        context.Process(target=_rank, args=(rank, world, store.port, restarts, said, work, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
    for process in processes:
        process.kill()
        process.join()
    assert [process.exitcode for process in processes] == [0] * world
    lines = dict(said.get() for _ in processes)
    said.close()
    return [lines[rank] for rank in range(world)]


def _rank(
    rank: int, world: int, port: int, restarts: int, said: Any, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(restarts), "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "GPT2LAB_RENDEZVOUS_SECONDS": "60",
    }  # fmt: skip
    torch.set_num_threads(1)
    loop.peak_flops = lambda device, precision: (1e12, "not measured")
    monitoring.draw = lambda run, path=None: Path(run.path)
    try:
        work(*arguments)
    except (InputError, Interrupted) as error:
        said.put((rank, f"{type(error).__name__}: {error}"))
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    else:
        said.put((rank, ""))


def this_rank() -> int:
    """Return the rank of the process that calls."""
    return int(os.environ["RANK"])


def another_meeting() -> None:
    """Let the processes meet the next time by a store of rank 0's, at a port of its own."""
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
