"""Associative recall: how well a model repeats random tokens that it has read once.

    a b c d e ... a b c d e ...        loss on the second occurrence of each token, by the distance to the first
    |-- d tokens --|-- again --|

Only the first occurrence tells what comes next, so a model without recall spends ln V nats or more on both. A model
that looks up "what followed this token before" (the induction heads of Olsson et al. 2022; the associative recall of
Arora et al. 2023, "Zoology", section 3) spends far less on the second. How the loss grows with the distance shows how
far back an attention pattern or a position encoding can look.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gpt2lab.errors import InputError
from gpt2lab.evaluation.likelihood import require_causal_mask
from gpt2lab.model.gpt import GPT, evaluating

PASS_TOKENS = 8_192
"""Tokens in a forward pass at most."""


@dataclass(frozen=True)
class Recall:
    """Mean losses in nats; each entry belongs to one distance."""

    distances: tuple[int, ...]
    """Tokens from a token to its second occurrence."""
    first: tuple[float, ...]
    """Mean loss on the first occurrence."""
    second: tuple[float, ...]
    """Mean loss on the second occurrence."""
    sequences: int
    """Random sequences for each distance."""
    vocab_size: int

    @property
    def chance(self) -> float:
        """Loss of a uniform guess, ln V, in nats."""
        return math.log(self.vocab_size)

    @property
    def protocol(self) -> str:
        """How the losses were measured, in one sentence."""
        return (
            f"{self.sequences} sequences of random tokens, without repetition if the vocabulary allows it, each "
            "given twice in a row; mean loss over the tokens of each occurrence except its first; a uniform guess "
            f"costs {self.chance:.3f} nats."
        )


def recall_probe(
    model: GPT, distances: Sequence[int] | None = None, sequences: int = 64, avoid: Sequence[int] = (), seed: int = 0
) -> Recall:
    """Measure the recall of a model at several distances, in evaluation mode and under the caller's autocast.

    Args:
        model: The model; its mask must be causal.
        distances: Tokens between the two occurrences; by default `doubling_distances` of its context length.
        sequences: Random sequences for each distance.
        avoid: Ids that are not drawn, such as end-of-text.
        seed: The same seed draws the same sequences, for every model with the same vocabulary size.

    Raises:
        InputError: A distance that does not fit the context, or a mask that is not causal.
    """
    distances = doubling_distances(model.config.n_ctx) if distances is None else distances
    ids = torch.tensor([i for i in range(model.config.vocab_size) if i not in set(avoid)])
    device = model.wte.weight.device
    pairs = []
    for d in distances:
        tokens = _random_sequences(ids, sequences, d, torch.Generator().manual_seed(seed + d)).to(device)
        parts = tokens.split(max(1, PASS_TOKENS // (2 * d)))
        losses = torch.tensor([repeat_losses(model, part) for part in parts], dtype=torch.float64)
        weights = torch.tensor([float(len(part)) for part in parts], dtype=torch.float64)
        pairs.append(((losses * weights[:, None]).sum(0) / weights.sum()).tolist())
    first, second = zip(*pairs, strict=True)
    return Recall(tuple(distances), first, second, sequences, model.config.vocab_size)


def doubling_distances(n_ctx: int) -> tuple[int, ...]:
    """Return 4, 8, 16 ... as long as two occurrences fit into a context, then the largest distance that fits."""
    last = n_ctx // 2
    return (*(2**k for k in range(2, last.bit_length()) if 2**k < last), last)


def repeat_losses(model: GPT, tokens: torch.Tensor) -> tuple[float, float]:
    """Return the mean loss in nats on the first and on the second occurrence of sequences given twice in a row.

    Args:
        model: The model; it runs in evaluation mode, under the caller's autocast.
        tokens: (B, d) ids; 2 d is at most the context length of the model.

    Raises:
        InputError: Sequences of one token or too long for the context, or a mask that is not causal.
    """
    require_causal_mask(model.config)
    d, n_ctx = tokens.shape[1], model.config.n_ctx
    if not 2 <= d <= n_ctx // 2:
        raise InputError(f"the repeated sequence has {d} tokens; give 2 to {n_ctx // 2}, half of the model's context")
    twice = torch.cat([tokens, tokens], dim=1)  # (B, 2 d)
    with evaluating(model):
        losses = model.token_losses(twice[:, :-1], twice[:, 1:])  # (B, 2 d - 1); entry i is of token i + 1
    return losses[:, : d - 1].double().mean().item(), losses[:, d:].double().mean().item()


def _random_sequences(ids: torch.Tensor, rows: int, d: int, generator: torch.Generator) -> torch.Tensor:
    """Draw (rows, d) ids, without replacement within a row unless there are fewer ids than d."""
    if d > len(ids):
        return ids[torch.randint(len(ids), (rows, d), generator=generator)]
    return torch.stack([ids[torch.randperm(len(ids), generator=generator)[:d]] for _ in range(rows)])
