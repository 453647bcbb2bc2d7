"""One model on several ranks, applied from outside: the model's code does not know of it.

Each rank reads its own sequences of a step; the gradient of the step is the mean over ranks.

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

from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.runtime import Runtime
from gpt2lab.training.distributed import Communicator
from gpt2lab.training.memory import n_params

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

STATE_BYTES = 16
"""Bytes per parameter in fp32: weight, gradient and the two moments of AdamW."""


class Plain:
    """A model in one process, and the interface of the other two modes."""

    def __init__(self, model: GPT, where: Runtime) -> None:
        self.model = model
        """The model whose parameters the optimizer updates."""
        self.network: nn.Module = model
        """What is called in training: the model, under ddp in its wrapper."""

    def sync_gradients(self, enabled: bool) -> None:
        """Say whether the next backward pass averages gradients over ranks, or only accumulates them."""

    def reshard(self) -> None:
        """Free the weights that an evaluation gathered."""

    def full_model(self, keep: bool) -> GPT | None:
        """Return the model with all its weights if ``keep``, else None. Every rank must call it."""
        return self.model if keep else None


class Replicated(Plain):
    """DDP: a copy of the model on every rank."""

    def __init__(self, model: GPT, where: Runtime) -> None:
        super().__init__(model, where)
        self._ddp = DistributedDataParallel(model, gradient_as_bucket_view=True)  # saves a copy of the gradients
        self.network = self._ddp

    def sync_gradients(self, enabled: bool) -> None:
        """Average in the next backward pass, or only accumulate."""
        self._ddp.require_backward_grad_sync = enabled


class Sharded(Plain):
    """FSDP: a shard of every parameter on every rank."""

    def __init__(self, model: GPT, where: Runtime) -> None:
        from torch.distributed import fsdp
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__(model, where)
        mesh = init_device_mesh(where.device.type, (where.world,))
        # Weights are gathered in the dtype of the products, which halves the traffic; gradients are averaged in fp32.
        gathered = None if where.dtype == torch.float32 else where.dtype
        policy = fsdp.MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32)
        for block in model.h:
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

    def full_model(self, keep: bool) -> GPT | None:
        """Return a copy in evaluation mode with all weights if ``keep``; it takes the memory of all of them."""
        weights = full_state_dict(self.model, keep)
        if not keep:
            return None
        model = GPT(self.model.config)
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


def full_state_dict(model: GPT, keep: bool) -> dict[str, torch.Tensor]:
    """Return the full weights by name on the CPU, gathered one by one. Every rank must call it.

    Args:
        model: The model.
        keep: Whether this rank keeps them; the other ranks return an empty dictionary.
    """
    gathered = ((name, full_tensor(value)) for name, value in model.state_dict().items())
    return {name: value.contiguous().cpu() for name, value in gathered if keep}


def clip_gradients(model: GPT, max_norm: float) -> float:
    """Scale all gradients down to a total norm; return the norm before, over the shards of all ranks."""
    return full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)).item()
