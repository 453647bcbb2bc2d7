"""Where a program runs: device, precision and its peak rate, compiler, seeds, allocator.

`Runtime` is a frozen value that is passed in, never a global. Every ``auto`` is resolved here, once, together with the
reason, so that a run can record what it used and why.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import random
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy
import torch

from gpt2lab.errors import InputError, one_of
from gpt2lab.formatting import plural

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,  # stored as fp32, multiplied with 10 bits of mantissa
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
FAST_BF16 = 1.2
"""bf16 is chosen on a CPU if its products are at least this many times as fast as those of fp32."""
GB = 10**9


class Gpu(NamedTuple):
    """What the vendor's data sheet says of a GPU."""

    memory: int
    """Bytes."""
    flops: dict[str, float]
    """Rate of dense matrix products by precision, in operations per second."""


GPUS = {
    # The A100 is the larger one. The first that is a word of torch's device name counts.
    "GB200": Gpu(186 * GB, {"bf16": 2500e12, "fp16": 2500e12, "tf32": 1250e12}),
    "B200": Gpu(180 * GB, {"bf16": 2250e12, "fp16": 2250e12, "tf32": 1125e12}),
    "H200": Gpu(141 * GB, {"bf16": 989e12, "fp16": 989e12, "tf32": 495e12, "fp32": 67e12}),
    "H100 PCIe": Gpu(80 * GB, {"bf16": 756e12, "fp16": 756e12, "tf32": 378e12, "fp32": 51e12}),
    "H100 NVL": Gpu(94 * GB, {"bf16": 835e12, "fp16": 835e12, "tf32": 418e12, "fp32": 60e12}),
    "H100": Gpu(80 * GB, {"bf16": 989e12, "fp16": 989e12, "tf32": 495e12, "fp32": 67e12}),
    "A100": Gpu(80 * GB, {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12}),
    "A10G": Gpu(24 * GB, {"bf16": 70e12, "fp16": 70e12, "tf32": 35e12, "fp32": 31.5e12}),
    "A40": Gpu(48 * GB, {"bf16": 150e12, "fp16": 150e12, "tf32": 75e12, "fp32": 37.4e12}),
    "L40S": Gpu(48 * GB, {"bf16": 362e12, "fp16": 362e12, "tf32": 183e12, "fp32": 91.6e12}),
    "L4": Gpu(24 * GB, {"bf16": 121e12, "fp16": 121e12, "tf32": 60e12, "fp32": 30.3e12}),
    "RTX 4090": Gpu(24 * GB, {"bf16": 165e12, "fp16": 165e12, "tf32": 82.6e12, "fp32": 82.6e12}),
    "RTX 3090": Gpu(24 * GB, {"bf16": 71e12, "fp16": 71e12, "tf32": 35.6e12, "fp32": 35.6e12}),
    "V100": Gpu(32 * GB, {"fp16": 125e12, "fp32": 15.7e12}),
    "T4": Gpu(16 * GB, {"fp16": 65e12, "fp32": 8.1e12}),
}
COMPILE_FROM_STEPS = 5_000
"""Steps from which compiling pays off on a CPU: it costs some 10 s and saves about 2 ms per step of a small model."""


@dataclass(frozen=True)
class Runtime:
    """What a program runs on."""

    device: torch.device
    precision: Precision
    precision_reason: str = "asked for"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which matrix products run in this precision."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        return DTYPES[self.precision]

    @contextmanager
    def numerics(self, deterministic: bool = False) -> Iterator[None]:
        """Set what torch has only as globals, TF32 matrix products and deterministic algorithms, for a block.

        cuBLAS reads its workspace from the environment at the first product, so enter this before it.
        """
        precision = torch.get_float32_matmul_precision()
        was_deterministic = torch.are_deterministic_algorithms_enabled()
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            torch.use_deterministic_algorithms(was_deterministic)


def resolve(device: str = "auto", precision: str = "auto") -> Runtime:
    """Resolve the names that a user gives to a `Runtime`.

    Args:
        device: ``auto`` (CUDA, else MPS, else CPU) or a torch device, such as ``cuda:1``.
        precision: ``auto``, ``fp32``, ``tf32``, ``bf16`` or ``fp16``.

    Raises:
        InputError: The device does not exist, or does not support the precision.
    """
    where = _device(device)
    one_of("precision", precision, ("auto", *DTYPES))
    best, why = _best_precision(where)
    if precision == "auto":
        return Runtime(where, best, why)
    if precision == "fp16" and where.type == "cpu":
        raise InputError(f"precision fp16 is for GPUs; on this CPU use {best} ({why})")
    if precision == "tf32" and not (where.type == "cuda" and torch.cuda.get_device_capability(where)[0] >= 8):
        raise InputError(f"precision tf32 needs CUDA and Ampere or later, this is {where.type}; use {best} ({why})")
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
            return "bf16", f"compute capability {major}.{minor} has fast bf16"
        return "fp16", f"compute capability {major}.{minor} has fast fp16 but no bf16"
    if device.type == "cpu":
        speedup = bf16_speedup()
        why = f"bf16 products run at {speedup:.2g} times the speed of fp32 on this CPU"
        return ("bf16" if has_fast_bf16() else "fp32"), why
    return "fp32", f"{device.type} is not known to be faster in lower precision"


def has_fast_bf16() -> bool:
    """Return whether bf16 products are faster than those of fp32 on this CPU."""
    return bf16_speedup() >= FAST_BF16


@functools.cache
def bf16_speedup() -> float:
    """Return the speed of bf16 matrix products on this CPU relative to fp32, by timing both for some milliseconds.

    Timing follows what the libraries will use, such as ``ONEDNN_MAX_CPU_ISA``, where the CPU's flags do not. One thread
    is timed by its own clock, so other work on the machine does not change the answer.
    """
    clock = time.perf_counter if sys.platform == "win32" else time.thread_time  # there it counts in 16 ms

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones(256, 256, dtype=dtype, device="cpu")
        times = []
        for _ in range(4):
            begin = clock()
            torch.mm(a, a)
            times.append(clock() - begin)
        return min(times)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return seconds(torch.float32) / seconds(torch.bfloat16)
    finally:
        torch.set_num_threads(threads)


@contextmanager
def products_of(rows: int) -> Iterator[None]:
    """Set how matrices are multiplied by this many rows inside the block; other threads are affected too.

    For a product in bf16 on a CPU, oneDNN copies the matrix into another layout, which takes longer than multiplying it
    by one row. PyTorch's own product of one row reads the matrix once, and is twice as fast.
    """
    enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = enabled and rows > 1
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = enabled


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """Return the peak rate for a precision (``bf16 fp16 tf32 fp32``) in operations a second, and where it is from.

    A GPU in the table has its data sheet's figure; any other device is measured with a large matrix product.
    """
    if device.type == "cuda":
        known = data_sheet(torch.cuda.get_device_name(device))
        if known is not None and precision in GPUS[known].flops:
            return GPUS[known].flops[precision], f"{known} data sheet, {precision}"
    return _measured(device, precision), f"measured matrix product on {device.type}, {precision}"


def data_sheet(device_name: str) -> str | None:
    """Return the name in `GPUS` of a GPU as torch names it ("NVIDIA H100 80GB HBM3"); None if unknown."""
    return next((known for known in GPUS if re.search(rf"\b{known}\b", device_name)), None)


@functools.cache
def _measured(device: torch.device, precision: str) -> float:
    """Return the best of a few square matrix products, which is what a model's products could reach."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    n = 1536 if device.type == "cpu" else 4096
    a = torch.rand(n, n, device=device).to(dtype)
    out = torch.empty_like(a)
    rates = []

    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    for _ in range(6):
        wait()
        begin = time.perf_counter()
        torch.mm(a, a, out=out)
        wait()
        rates.append(2.0 * n**3 / (time.perf_counter() - begin))
    return max(rates)


def can_compile(device: torch.device) -> tuple[bool, str]:
    """Return whether ``torch.compile`` has what it needs on a device, and the reason."""
    if sys.version_info >= (3, 14):
        return False, "torch.compile does not support this Python"
    if device.type == "cuda":
        found = find_spec("triton") is not None
        return found, "Triton is installed" if found else "Triton is not installed"
    if device.type == "cpu":
        compiler = next((c for c in (os.environ.get("CXX"), "g++", "clang++", "cl") if c and shutil.which(c)), None)
        return compiler is not None, f"C++ compiler {compiler}" if compiler else "no C++ compiler on the PATH"
    return False, f"torch.compile is not used on {device.type}"


def resolve_compile(choice: str, device: torch.device, steps: int) -> tuple[bool, str]:
    """Resolve ``compile`` (``auto``, ``on``, ``off``) for a run of ``steps``; return it with the reason.

    Raises:
        InputError: It is ``on``, but not possible.
    """
    one_of("compile", choice, ("auto", "on", "off"))
    if choice == "off":
        return False, "asked for"
    able, why = can_compile(device)
    if choice == "on" and not able:
        raise InputError(f"cannot compile here: {why}; leave compile at auto or off")
    if choice == "auto" and able and device.type == "cpu" and steps < COMPILE_FROM_STEPS:
        return False, f"too few steps on a CPU to amortize compilation ({steps:,} < {COMPILE_FROM_STEPS:,})"
    return able, why


def key_compiled_code() -> None:
    """Let torch find compiled code again only on a CPU with the same vector instructions. Call before compiling.

    Torch 2.13 looks a compiled graph up in its cache on disk whatever the CPU. One compiled for AVX-512 and found where
    only AVX2 is used, as with a home directory that machines share, crashes or computes NaN.
    """
    tag, capability = torch.compiler.config.cache_key_tag, torch.backends.cpu.get_cpu_capability()
    if capability not in tag:
        torch.compiler.config.cache_key_tag = f"{tag}{capability}"


def seed_step(seed: int, *position: int, every: bool = False) -> None:
    """Seed torch's generators, or every usual one, from a position in the run, such as (step, micro-step, rank).

    The random state of dropout is thus a function of training progress, and a checkpoint need not contain it.
    """
    mixed = _splitmix64(seed & _MASK)  # otherwise step 1 of seed 0 would equal step 0 of seed 1
    for number in position:
        mixed = _splitmix64((mixed ^ number) & _MASK)
    torch.manual_seed(mixed)
    if every:  # code that is not ours may draw from these
        random.seed(mixed)
        numpy.random.seed(mixed & 0xFFFFFFFF)


_MASK = (1 << 64) - 1


def _splitmix64(x: int) -> int:
    """Mix 64 bits (Steele, Lea & Flood 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def tune_allocator() -> bool:
    """Tell glibc to keep large freed blocks; return whether it accepted.

    By default each large temporary is mapped again and its pages are faulted in one by one, which costs more than the
    arithmetic: without it, training GPT-2 on a CPU is twice as fast. Call once, before the first tensor. Set
    ``GPT2LAB_MALLOC=default`` to leave the allocator alone. Does nothing if the C library is not glibc.
    """
    if os.environ.get("GPT2LAB_MALLOC") == "default" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of the process in MiB: allocated on the GPU, or resident for any other device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return _windows_peak_mb()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _windows_peak_mb() -> float:
    """Ask Windows for the peak working set (untested)."""
    import ctypes.wintypes as w

    class Counters(ctypes.Structure):
        _fields_ = (("cb", w.DWORD), ("faults", w.DWORD), ("peak", ctypes.c_size_t), ("rest", ctypes.c_size_t * 7))

    counters = Counters(cb=ctypes.sizeof(Counters))
    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    kernel32.K32GetProcessMemoryInfo(kernel32.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
    return counters.peak / 2**20


def available_memory(device: torch.device) -> int:
    """Return the bytes of memory that a run on the device can use without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (found := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"))):
        return int(found[1]) * 1024  # free memory, and what the system only caches
    return 4 * 2**30  # Windows, macOS: assume a small machine


def device_name(device: torch.device) -> str:
    """Return the name of the device, such as ``NVIDIA H200`` or that of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = str(torch.cpu.get_capabilities().get("cpu_name", "")) or platform.processor() or platform.machine()
    return f"{name} ({plural(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else name


def environment() -> dict[str, str | int]:
    """Return what is needed to repeat a run: versions, machine, threads."""
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
    """Run compiled modules eagerly: evaluation and sampling change shapes, which would recompile them."""
    with torch.compiler.set_stance("force_eager"):  # takes effect where it is constructed
        yield
