"""One model on several ranks, applied from outside: the network's code knows nothing of it.

Every rank reads its own sequences of the step; the gradient of the step is the mean of theirs.

    none    one process
    ddp     every rank has the whole model; gradients are averaged while the backward pass runs
            (Li et al. 2020, "PyTorch Distributed")
    fsdp    every rank keeps 1/world of each parameter, gradient and moment; a block's weights are gathered before it
            runs and dropped after, its gradients are averaged and shared out again
            (Rajbhandari et al. 2020, "ZeRO", stage 3; Zhao et al. 2023, "PyTorch FSDP")

Weights, gradients and AdamW's two moments in fp32 take 16 bytes a parameter on each rank, under fsdp 16 / world.
Gradients are averaged once a step, in the last of its micro-steps: those before only add up.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gpt2lab.errors import InputError
from gpt2lab.model import GPT, GPTConfig
from gpt2lab.runtime import Runtime
from gpt2lab.training.processes import Processes
from gpt2lab.training.shares import whole

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
