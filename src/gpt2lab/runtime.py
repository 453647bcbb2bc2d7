"""Where a program runs: device, precision, compiler, seeds. A frozen value that is passed in, never a global.

Every ``auto`` is resolved here, once, together with the reason, so that a run can record what it used and why.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gpt2lab.errors import InputError, one_of

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,  # kept as fp32, multiplied with 10 bits of mantissa
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
COMPILE_FROM_STEPS = 5_000
"""Steps from which compiling pays on a CPU: it costs some 10 s and saves about 2 ms a step of a small model."""


@dataclass(frozen=True)
class Runtime:
    """What a program runs on."""

    device: torch.device
    precision: Precision
    precision_reason: str = "asked for"
    rank: int = 0
    world: int = 1

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model's products run in this precision."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return DTYPES[self.precision]

    @contextmanager
    def numerics(self, deterministic: bool = False) -> Iterator[None]:
        """Set for a while what torch knows only as a global: TF32 products, and algorithms that repeat their bits.

        cuBLAS reads its workspace from the environment when the first product runs, so enter this before it.
        """
        products, repeats = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(products)
            torch.use_deterministic_algorithms(repeats)


def resolve(device: str = "auto", precision: str = "auto") -> Runtime:
    """Turn the names that a user gives into a `Runtime`.

    Args:
        device: ``auto`` (CUDA, else MPS, else CPU) or a device that torch names, such as ``cuda:1``.
        precision: ``auto``, ``fp32``, ``tf32``, ``bf16`` or ``fp16``.

    Raises:
        InputError: The device is not there, or cannot do the precision.
    """
    where = _device(device)
    one_of("precision", precision, ("auto", *DTYPES))
    best, why = _best_precision(where)
    if precision == "auto":
        return Runtime(where, best, why)
    if precision == "fp16" and where.type == "cpu":
        raise InputError(f"precision fp16 is for GPUs; on this CPU use {best} ({why})")
    if precision == "tf32" and not (where.type == "cuda" and torch.cuda.get_device_capability(where)[0] >= 8):
        raise InputError(f"precision tf32 needs CUDA from Ampere on, this is {where.type}; use {best} ({why})")
    return Runtime(where, precision)  # type: ignore[arg-type]


def _device(name: str) -> torch.device:
    present = ["cpu"]
    if torch.cuda.is_available():
        present += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        present.append("mps")
    if name == "auto":
        return torch.device("cuda" if "cuda" in present else "mps" if "mps" in present else "cpu")
    if name not in present:
        raise InputError(f'there is no device "{name}" here; this machine has {", ".join(present)}')
    return torch.device(name)


def _best_precision(device: torch.device) -> tuple[Precision, str]:
    """bf16 wherever the hardware multiplies it fast, fp16 on older GPUs, else fp32."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return "bf16", f"compute capability {major}.{minor} multiplies bf16 in hardware"
        return "fp16", f"compute capability {major}.{minor} has fp16 products but no bf16"
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        for flag in ("amx_bf16", "avx512_bf16", "bf16"):
            if has.get(flag):
                return "bf16", f"this CPU has {flag}"
        return "fp32", "this CPU has no fast bf16 products"
    return "fp32", f"{device.type} is not known to be faster in less"


def can_compile(device: torch.device) -> tuple[bool, str]:
    """Return whether ``torch.compile`` has what it needs on a device, and what that is."""
    if sys.version_info >= (3, 14):
        return False, "torch.compile does not support this Python"
    if device.type == "cuda":
        found = _importable("triton")
        return found, "Triton is installed" if found else "Triton is not installed"
    if device.type == "cpu":
        compiler = next((c for c in (os.environ.get("CXX"), "g++", "clang++", "cl") if c and shutil.which(c)), None)
        return compiler is not None, f"C++ compiler {compiler}" if compiler else "no C++ compiler on the path"
    return False, f"not on {device.type}"


def _importable(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def resolve_compile(choice: str, device: torch.device, steps: int) -> tuple[bool, str]:
    """Resolve ``compile`` (``auto``, ``on``, ``off``) for a run of so many steps; return it with the reason.

    Raises:
        InputError: It was asked for and cannot be done.
    """
    one_of("compile", choice, ("auto", "on", "off"))
    able, why = can_compile(device)
    if choice == "off":
        return False, "asked for"
    if choice == "on":
        if not able:
            raise InputError(f"cannot compile here: {why}; leave compile at auto or off")
        return True, why
    if able and device.type == "cpu" and steps < COMPILE_FROM_STEPS:
        return False, f"{steps:,} steps on a CPU do not repay it (from {COMPILE_FROM_STEPS:,})"
    return able, why


def seed_step(seed: int, *position: int) -> None:
    """Seed torch's generators from a position in the run, such as (step, micro-step, rank).

    The random state of dropout is so a function of where training stands, and needs no place in a checkpoint.
    """
    mixed = _splitmix64(seed & _MASK)  # or step 1 of seed 0 would be step 0 of seed 1
    for number in position:
        mixed = _splitmix64((mixed ^ number) & _MASK)
    torch.manual_seed(mixed)


_MASK = (1 << 64) - 1


def _splitmix64(x: int) -> int:
    """Mix 64 bits (Steele, Lea & Flood 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def tune_allocator() -> bool:
    """Tell glibc to keep large freed blocks; return whether it was told.

    By default each large temporary is mapped anew and its pages faulted in one by one, which costs more than the
    arithmetic: training GPT-2 on a CPU doubles in speed without it. Call once, before the first tensor. Set
    ``GPT2LAB_MALLOC=default`` to leave the allocator alone. Does nothing where the C library is not glibc.
    """
    if os.environ.get("GPT2LAB_MALLOC") == "default" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory in MiB that the process has held: on the GPU where it trains on one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return _windows_peak_mb()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _windows_peak_mb() -> float:
    """Ask Windows for the peak working set (untested: no such machine was at hand)."""
    import ctypes.wintypes as w

    class Counters(ctypes.Structure):
        _fields_ = [("cb", w.DWORD), ("faults", w.DWORD)] + [
            (name, ctypes.c_size_t) for name in ("peak", "now", "a", "b", "c", "d", "pagefile", "peak_pagefile")
        ]

    counters = Counters()
    counters.cb = ctypes.sizeof(counters)
    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    kernel32.K32GetProcessMemoryInfo(kernel32.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
    return counters.peak / 2**20


def available_memory(device: torch.device) -> int:
    """Return the bytes of memory that a run on the device can have without anything being swapped out."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (found := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"))):
        return int(found[1]) * 1024  # what is free, and what the system only caches
    return 4 * 2**30  # Windows, macOS: assume a small machine


def device_name(device: torch.device) -> str:
    """Return what the device is called, such as ``NVIDIA H200`` or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = str(torch.cpu.get_capabilities().get("cpu_name", "")) or platform.processor() or platform.machine()
    return f"{name} ({torch.get_num_threads()} threads)" if device.type == "cpu" else name


def environment() -> dict[str, str | int]:
    """Return what another person needs to repeat a run: versions, machine, threads."""
    import numpy

    import gpt2lab

    return {
        "gpt2lab": gpt2lab.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "gpus": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
        "malloc": os.environ.get("GPT2LAB_MALLOC", "tuned" if platform.libc_ver()[0] == "glibc" else "system"),
    }


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules uncompiled: evaluation and sampling change shapes, which would compile them again."""
    with torch.compiler.set_stance("force_eager"):
        yield
