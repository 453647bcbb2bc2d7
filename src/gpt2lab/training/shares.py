"""Tensors that FSDP shares out over ranks (`DTensor`), and the whole ones that everything else has, treated alike.

    rows 0 1 2 3 of a parameter      rank 0 keeps rows 0 1      rank 1 keeps rows 2 3

Each function gives back a tensor that is not shared out as it is, without asking any other process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_shared_out(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """Return whether this process has only a part of a tensor."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor  # takes a second to import

    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor, gathered where it is shared out: then every rank must call this."""
    return tensor.full_tensor() if is_shared_out(tensor) else tensor


def own_share(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return what this rank keeps of a whole tensor that all have: its part where ``like`` is shared out, else all."""
    if not is_shared_out(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # No source rank: each takes its rows from its own copy, and nothing is sent.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
