"""The loss on held-out text that is taken while a run goes on."""

from __future__ import annotations

import numpy as np
import torch

from gpt2lab.data import TokenStream, count_windows, within_documents
from gpt2lab.model import GPT
from gpt2lab.training.processes import ALONE, Processes

PASS_TOKENS = 4_096
"""Tokens of a pass: fixed, so that the loss has the same bits whatever the training batch."""


def validation_loss(
    model: GPT,
    stream: TokenStream,
    seq_len: int,
    max_tokens: int,
    eot: int | None = None,
    processes: Processes = ALONE,
) -> float:
    """Return the mean loss in nats over whole windows spread evenly over a stream: the same ones at every call.

    Args:
        model: In evaluation mode.
        stream: The validation split.
        seq_len: Tokens of a window.
        max_tokens: Use at most so many; 0 uses every whole window.
        eot: The id that documents begin with, where attention is to stay within them.
        processes: Those that share the windows; every one of them must call it.
    """
    windows = count_windows(stream, seq_len)
    used = min(windows, max(1, max_tokens // seq_len)) if max_tokens else windows
    starts = np.arange(used) * windows // used * seq_len
    rows = max(1, PASS_TOKENS // seq_len)
    device = model.wte.weight.device
    parts = np.array_split(starts, -(-used // rows))
    totals = torch.zeros(-(-len(parts) // processes.world), dtype=torch.float64)
    for turn in range(len(totals)):
        index = turn * processes.world + processes.rank
        # A rank that has no part left takes part all the same: under fsdp each pass gathers weights from all ranks.
        part = parts[min(index, len(parts) - 1)]
        read = torch.from_numpy(stream.read(part, seq_len + 1).astype(np.int64)).to(device)
        tokens, targets = read[:, :-1], read[:, 1:]
        apart = (None, None) if eot is None else within_documents(tokens, eot)
        losses = model.token_losses(tokens, targets, *apart)
        if index < len(parts):
            totals[turn] = losses.double().sum()
    in_order = processes.by_rank(totals).T.flatten().tolist()  # as one process would add them up
    return sum(in_order) / (used * seq_len)
