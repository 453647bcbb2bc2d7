"""Device, precision, compiler and seeds: what is chosen, why, and what cannot be had."""

from __future__ import annotations

import itertools
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gpt2lab
from gpt2lab import runtime
from gpt2lab.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a CPU only."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(("speedup", "precision"), [(2.04, "bf16"), (1.3, "bf16"), (1.1, "fp32"), (0.03, "fp32")])
def test_bf16_on_a_cpu(monkeypatch: pytest.MonkeyPatch, no_gpu: None, speedup: float, precision: str) -> None:
    monkeypatch.setattr(runtime, "bf16_speedup", lambda: speedup)
    found = runtime.resolve()
    why = f"bf16 products run at {speedup:.2g} times the speed of fp32 on this CPU"
    assert (found.device, found.precision, found.precision_reason) == (CPU, precision, why)
    assert found.dtype == runtime.DTYPES[precision]
    with pytest.raises(InputError, match=f"fp16 is for GPUs; on this CPU use {precision}"):
        runtime.resolve("cpu", "fp16")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86")
def test_the_choice_follows_the_instruction_sets_that_the_libraries_may_use() -> None:
    program = "import torch; from gpt2lab import runtime; torch.manual_seed(0); before = torch.rand(1, 1).item(); "
    program += "torch.manual_seed(0); found = runtime.resolve('cpu').precision; "
    program += "print(found, torch.rand(1, 1).item() == before, torch.get_num_threads())"
    limits = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "2"}
    said = subprocess.check_output([sys.executable, "-c", program], env=os.environ | limits, text=True)
    assert said == "fp32 True 2\n"


@pytest.mark.parametrize(
    ("capability", "precision"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_bf16_on_gpus_from_ampere(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = runtime.resolve()
    assert (found.device, found.precision) == (torch.device("cuda"), precision)
    assert runtime.resolve("cuda:1").device == torch.device("cuda:1")
    with pytest.raises(InputError, match='no device "cuda:2" here; this machine has cpu, cuda, cuda:0, cuda:1'):
        runtime.resolve("cuda:2")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        *(
            (lambda name=name: runtime.resolve(name), f'there is no device "{name}" here; this machine has cpu$')
            for name in ("cuda", "mps", "cuda:0", "gpu", "tpu", "")
        ),
        (lambda: runtime.resolve("cpu", "bf61"), r'unknown precision "bf61" \(did you mean "bf16"\?\)'),
        (lambda: runtime.resolve_compile("of", CPU, 1), r'unknown compile "of" \(did you mean "off"\?\)'),
    ],
)
def test_unavailable_choices_are_refused(action: Callable[[], object], message: str, no_gpu: None) -> None:
    with pytest.raises(InputError, match=message):
        action()


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_given_precision_is_used_for_products(precision: str, dtype: torch.dtype, no_gpu: None) -> None:
    found = runtime.resolve("cpu", precision)
    assert (found.precision, found.precision_reason) == (precision, "asked for")
    with found.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == found.dtype == dtype


@pytest.mark.parametrize(
    ("choice", "device", "steps", "able", "expected"),
    [
        ("auto", "cpu", runtime.COMPILE_FROM_STEPS, True, True),
        ("auto", "cpu", runtime.COMPILE_FROM_STEPS - 1, True, False),
        ("auto", "cpu", 10**6, False, False),
        ("auto", "cuda", 10, True, True),
        ("auto", "cuda", 10, False, False),
        ("off", "cuda", 10**6, True, False),
        ("on", "cpu", 1, True, True),
    ],
)
def test_compile_is_resolved_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, choice: str, device: str, steps: int, able: bool, expected: bool
) -> None:
    monkeypatch.setattr(runtime, "can_compile", lambda device: (able, "the reason"))
    compiled, why = runtime.resolve_compile(choice, torch.device(device), steps)
    assert compiled is expected
    assert why


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 12))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"cannot compile here: no C\+\+ compiler on the PATH; leave compile at auto"):
        runtime.resolve_compile("on", CPU, 10**6)
    assert runtime.resolve_compile("auto", CPU, 10**6) == (False, "no C++ compiler on the PATH")


def test_the_seed_comes_from_the_published_generator() -> None:
    runtime.seed_step(0)
    assert torch.initial_seed() == 0xE220A8397B1DCDAF  # splitmix64's first output from seed 0 (Steele et al. 2014)


def test_every_position_has_its_own_seed() -> None:
    seen = set()
    for position in itertools.product(range(4), range(20), range(4), range(4)):  # seed, step, micro-step, rank
        runtime.seed_step(*position)
        seen.add(torch.initial_seed())
    assert len(seen) == 4 * 20 * 4 * 4


@given(st.integers(), st.integers(0, 10**9), st.integers(0, 100))
def test_the_same_position_has_the_same_random_numbers(seed: int, step: int, micro_step: int) -> None:
    runtime.seed_step(seed, step, micro_step)
    first = torch.rand(3)
    runtime.seed_step(seed, step, micro_step)
    assert torch.equal(torch.rand(3), first)


def test_the_allocator_can_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2LAB_MALLOC", "default")
    assert runtime.tune_allocator() is False


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_the_allocator_keeps_freed_memory() -> None:
    # In its own process. Memory given back to the system would be faulted in again, page by page.
    script = """
import resource
from gpt2lab import runtime
import torch
print(runtime.tune_allocator())
for _ in range(40): torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    environment = {k: v for k, v in os.environ.items() if k != "GPT2LAB_MALLOC"}
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    told, faults = said.stdout.split()
    assert told == "True"
    assert int(faults) < 40 * 2**24 * 4 // os.sysconf("SC_PAGE_SIZE") / 2


def test_peak_memory_is_that_of_this_process() -> None:
    before = runtime.peak_memory_mb(CPU)
    held = torch.ones(2**26)  # 256 MiB, touched
    after = runtime.peak_memory_mb(CPU)
    assert 50 < before <= after < 64 * 1024
    assert after >= held.nbytes / 2**20


@pytest.mark.parametrize(("threads", "said"), [(1, "(1 thread)"), (4, "(4 threads)")])
def test_a_processor_is_named_with_its_threads(threads: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert said in runtime.device_name(CPU)


def test_the_environment_describes_the_machine() -> None:
    assert 2**24 < runtime.available_memory(CPU) < 2**45
    found = runtime.environment()
    assert found["gpt2lab"] == gpt2lab.__version__
    assert found["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert {"python", "numpy", "platform", "processor", "gpus", "malloc"} <= found.keys()


@pytest.mark.parametrize(
    ("name", "precision", "rate", "sheet"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12, "H100"),
        ("NVIDIA H100 PCIe", "bf16", 756e12, "H100 PCIe"),
        ("NVIDIA H100 NVL", "bf16", 835e12, "H100 NVL"),
        ("NVIDIA H200", "fp16", 989e12, "H200"),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312e12, "A100"),
        ("Tesla T4", "fp16", 65e12, "T4"),
        ("Tesla V100-SXM2-16GB", "fp32", 15.7e12, "V100"),
        ("NVIDIA L4", "bf16", 121e12, "L4"),
        ("NVIDIA L40S", "bf16", 362e12, "L40S"),
        ("NVIDIA GeForce RTX 4090", "bf16", 165e12, "RTX 4090"),
    ],
)
def test_known_gpus_have_their_data_sheets_rate(
    name: str, precision: str, rate: float, sheet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert runtime.peak_flops(torch.device("cuda"), precision) == (rate, f"{sheet} data sheet, {precision}")


@pytest.mark.parametrize("name", ["NVIDIA RTX A4000", "NVIDIA L40", "NVIDIA T400", "NVIDIA GeForce GTX 1080"])
def test_a_gpu_whose_name_only_looks_alike_has_no_data_sheet(name: str) -> None:
    assert runtime.data_sheet(name) is None


def test_a_cpu_is_measured() -> None:
    rate, source = runtime.peak_flops(CPU, "fp32")
    assert source == "measured matrix product on cpu, fp32"
    assert 1e8 < rate < 1e15
    assert math.isfinite(rate)


def test_compiled_code_is_found_again_only_on_the_same_type_of_cpu() -> None:
    with torch.compiler.config.patch(cache_key_tag="mine "):  # type: ignore[attr-defined]
        for _ in range(2):
            runtime.key_compiled_code()
        assert torch.compiler.config.cache_key_tag == f"mine {torch.backends.cpu.get_cpu_capability()}"


def test_eager_does_not_compile() -> None:
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph

    doubled = torch.compile(lambda x: x + x, backend=backend)
    for rows, stance, expected in ((1, runtime.eager(), 0), (1, nullcontext(), 1), (3, runtime.eager(), 1)):
        with stance:
            doubled(torch.ones(rows, 2))
        assert len(compiled) == expected
