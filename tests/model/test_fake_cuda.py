"""A GPU's tensors without a GPU: those of `FakeTensorMode` have a device, a shape and a dtype, and no values.

They say what values cannot: no pass mixes a tensor of the CPU in, none of training waits for the device (a value would
be needed), and what each module returns has the precision that is meant.
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt2lab.generation import DecodingStrategy, next_logits, sample_next, stream
from gpt2lab.model.cache import BatchCache
from gpt2lab.model.config import _CHOICES as CHOICES
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.model.layers import RMSNorm
from gpt2lab.model.masks import MASKS
from gpt2lab.training.config import OptimConfig
from gpt2lab.training.optim import make_optimizer, state_names

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its libraries name the device guards otherwise")

CUDA, V, T, B = "cuda:0", 70, 16, 2
ROPE: dict[str, Any] = {"position": "rope"}
CASES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": ROPE
    | {"norm": "rmsnorm", "activation": "swiglu", "n_inner": 24, "bias": False, "tied_head": False, "n_kv_head": 2}
    | {"qk_norm": True, "attention_gate": True, "mask": "global", "window": 4, "prefix": 2, "kernel": "sdpa"}
    | {"rope_scaling": "ntk", "rope_factor": 2.0},
    "gemma": ROPE
    | {"norm_placement": "sandwich", "norm": "rmsnorm", "norm_eps": 1e-6, "activation": "geglu", "dropout": 0.0}
    | {"attention_softcap": 50.0, "logit_softcap": 30.0, "attention_sinks": True, "embedding_norm": True}
    | {"mask": "window,causal", "window": 5, "kernel": "matmul", "n_kv_head": 1}
    | {"rope_scaling": "yarn", "rope_factor": 2.0, "rope_original_ctx": 8},
    "gpt-j": ROPE
    | {"parallel_blocks": True, "rope_pairing": "interleaved", "rope_fraction": 0.5, "rope_base": 500.0}
    | {"rope_scaling": "linear", "rope_factor": 2.0, "activation": "silu", "kernel": "reference"},
    "gpt-1": {"position": "sinusoidal", "norm_placement": "post", "activation": "gelu", "mask": "prefix", "prefix": 3},
    "bloom": {"position": "alibi", "mask": "window", "window": 4, "kernel": "banded", "norm_affine": False}
    | {"mup_base_width": 16},
    "resformer": {"position": "none", "value_residual": True, "activation": "glu"}
    | {"mask": "strided,bidirectional", "window": 4},
    "differential": {"differential_attention": True, "activation": "relu2", "mtp_depth": 2, "mtp_weight": 0.3},
    "latent": ROPE | {"latent_dim": 12, "nope_every": 2, "activation": "relu", "z_loss": 1e-4},
}
"""Every option of a GPT in at least one, and every choice, except kernel flex, which must be compiled for a GPU."""
LOOKS_AHEAD = ("gpt-1", "resformer")
OWN = {"n_layer", "n_head", "n_embd", "n_ctx", "vocab_size", "feed_forward", "block", "network", "import_sha256"}
STEPS = [(case, torch.bfloat16) for case in CASES] + [(case, torch.float32) for case in ("gemma", "bloom")]
"""In bf16 by itself, in fp32 within documents."""


def config_of(case: str) -> GPTConfig:
    options: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": T, "vocab_size": V}
    return GPTConfig(**options | CASES[case])


def device_guards() -> Any:
    """The device guards of torch's C++, by type of device: 1 is CUDA, 14 is meta, whose guard does nothing.

    Autograd asks the guard for a stream. In a build without CUDA there is none, and `FakeTensorMode`, which in others
    brings one that does nothing, leaves it so.
    """
    library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("*c10.*"))))
    return (ctypes.c_void_p * 20).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")


class OnlyCuda(TorchDispatchMode):
    """Refuses every operation on a tensor of the CPU: even a number of shape () would have to be copied."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        where = {str(x.device) for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
        assert where <= {CUDA}, f"{func} works on {where}"
        return out


@pytest.fixture(autouse=True)
def _fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make tensors fake, and let autocast believe in CUDA."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    guards = device_guards()
    before, guards[1] = guards[1], guards[1] or guards[14]
    with FakeTensorMode(allow_non_fake_inputs=False):
        yield
    guards[1] = before


def fake_gpt(case: str) -> GPT:
    """A model on the fake GPU."""
    with unset_fake_temporarily():
        model = GPT(config_of(case))
    return model._apply(lambda x: torch.empty(x.shape, dtype=x.dtype, device=CUDA))


def ids(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.long, device=CUDA)


def backward(loss: torch.Tensor) -> None:
    """`Tensor.backward`, node by node in Python, since torch's engine wants an accelerator.

    As there, a gradient takes the shape and dtype of what it is for, and adds up in ``grad``.
    """
    last: Any = loss.grad_fn  # torch's nodes, of which its types do not know all
    grads: dict[Any, dict[int, torch.Tensor]] = {last: {0: torch.ones_like(loss)}}
    for node in reversed(ordered(last, {})):
        given: list[Any] = [grads[node].get(i) for i in range(len(node._input_metadata))]
        if isinstance(variable := getattr(node, "variable", None), torch.Tensor):
            variable.grad = variable.grad + given[0] if isinstance(variable.grad, torch.Tensor) else given[0]
            continue
        found = getattr(node, "apply", node)(*given)
        for (after, i), grad in zip(node.next_functions, found if isinstance(found, tuple) else (found,), strict=False):
            if after is not None and grad is not None:
                grad = grad.sum_to_size(after._input_metadata[i].shape).to(after._input_metadata[i].dtype)
                into = grads.setdefault(after, {})
                into[i] = into[i] + grad if i in into else grad


def ordered(node: Any, seen: dict[Any, None]) -> list[Any]:
    """The nodes that a node leads to, each after all that it leads to, and itself."""
    for after, _ in node.next_functions:
        if after is not None and after not in seen:
            ordered(after, seen)
    seen[node] = None
    return list(seen)


def watched(model: GPT) -> dict[str, torch.dtype]:
    """The dtype of what every norm takes (CUDA's autocast returns fp32) and every other module returns, from now on."""
    found: dict[str, torch.dtype] = {}

    def note(name: str, module: nn.Module, given: Any, out: torch.Tensor) -> None:
        found[name] = (given[0] if isinstance(module, nn.LayerNorm | RMSNorm) else out).dtype

    for name, module in model.named_modules():
        if name not in ("", "wte", "wpe", "ln_0"):  # what is looked up is fp32
            module.register_forward_hook(partial(note, name))
    return found


def autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cuda", dtype, enabled=dtype != torch.float32)


@pytest.mark.filterwarnings("ignore:the mask lets tokens attend")
@pytest.mark.parametrize(("case", "dtype"), STEPS)
def test_a_training_step_stays_on_the_gpu_and_in_its_precision(case: str, dtype: torch.dtype) -> None:
    model = fake_gpt(case)
    found = watched(model)
    documents = (None, ids(B, T), ids(B, T)) if dtype == torch.float32 else ()
    with OnlyCuda():
        with autocast(dtype):
            loss = model(ids(B, T), ids(B, T), *documents).loss
        assert loss is not None
        assert loss.dtype == torch.float32
        backward(loss)
    assert found == dict.fromkeys(found, dtype)
    assert {"h.0", "h.1.attn.c_proj", "h.1.mlp", "ln_f"} <= found.keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.dtype, str(parameter.grad.device)) == (torch.float32, CUDA), name


@pytest.mark.parametrize("case", [case for case in CASES if case not in LOOKS_AHEAD])
def test_tokens_are_chosen_on_the_gpu_with_a_cache_in_its_precision(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda _: False)  # no NaN, nobody has ended
    monkeypatch.setattr(torch.Tensor, "__int__", lambda _: 0)
    model = fake_gpt(case).eval()
    generator: Any = SimpleNamespace(device=torch.device(CUDA))
    seen: list[torch.Tensor] = []
    with torch.no_grad(), autocast(torch.bfloat16):
        columns = stream(model, ids(B, T - 2), 5, DecodingStrategy(greedy=True), generator, 0, on_logits=seen.append)
        seen += [*columns]  # beyond the context
        seen.append(next_logits(model, ids(B, 9), model.new_cache(B, padding=ids(B))))
        cache = model.new_cache(1)
        seen.append(next_logits(model, ids(1, 9), cache))
        batch = BatchCache(model.config, 2, torch.device(CUDA), torch.bfloat16)
        for _ in range(2):
            batch.join(cache)
        for _ in range(2):
            logits = next_logits(model, ids(2, 1), batch)
            seen += [logits, sample_next(logits, DecodingStrategy(top_k=5, top_p=0.9))]
    assert {(str(x.device), x.dtype) for x in seen} == {(CUDA, torch.bfloat16), (CUDA, torch.long)}
    kept = [x for layer in (*cache.layers, *batch.layers) for x in (layer.keys, layer.values)]
    assert {(str(x.device), x.dtype) for x in kept} == {(CUDA, torch.bfloat16)}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimizer_updates_weights_on_the_gpu(name: Any) -> None:
    model = fake_gpt("llama")
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer = make_optimizer(model, OptimConfig(name=name))
    with OnlyCuda():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    assert len(kept) == sum(map(len, state_names(optimizer).values()))
    assert {(str(value.device), value.dtype) for value in kept} == {(CUDA, torch.float32)}


def test_every_option_of_a_gpt_is_in_a_case() -> None:
    tried = {name for case in CASES.values() for name in case}
    assert {field.name for field in dataclasses.fields(GPTConfig)} == tried | OWN
    for name, choices in CHOICES.items():
        assert {getattr(config_of(case), name) for case in CASES} == set(get_args(choices)) - {"flex"}, name
    assert {mask for case in CASES for mask in config_of(case).mask_names} == MASKS.keys()
