"""The associative-recall probe, on models with known recall."""

from __future__ import annotations

import math

import pytest
import torch

from gpt2lab.evaluation.recall import doubling_distances, recall_probe, repeat_losses
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=64, vocab_size=50, dropout=0.0)


class Lookup(GPT):
    """Finds the last occurrence of the previous token and predicts what followed it, with probability 0.9."""

    def token_losses(self, tokens: torch.Tensor, targets: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        losses = torch.full(targets.shape, math.log(self.config.vocab_size))
        for row in range(len(tokens)):
            for t in range(tokens.shape[1]):
                earlier = (tokens[row, :t] == tokens[row, t]).nonzero().flatten()
                if len(earlier):
                    right = tokens[row, int(earlier[-1]) + 1] == targets[row, t]
                    losses[row, t] = -math.log(0.9 if right else 0.1)
        return losses


def test_model_with_recall_has_a_high_loss_on_the_first_occurrence_only() -> None:
    found = recall_probe(Lookup(CONFIG), sequences=3)
    assert found.distances == (4, 8, 16, 32)
    assert found.first == pytest.approx([math.log(50)] * 4)
    assert found.second == pytest.approx([-math.log(0.9)] * 4)
    assert found.chance == pytest.approx(math.log(50))


def test_losses_are_those_of_the_logits() -> None:
    model = GPT(CONFIG)
    tokens = torch.arange(30).view(3, 10)
    twice = torch.cat([tokens, tokens], dim=1)
    logits = model(twice).logits
    assert logits is not None
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), twice[:, 1:], reduction="none")
    first, second = repeat_losses(model, tokens)
    assert first == pytest.approx(losses[:, :9].mean().item(), abs=1e-5)
    assert second == pytest.approx(losses[:, 10:].mean().item(), abs=1e-5)


def test_same_seed_gives_the_same_losses_and_avoided_ids_are_not_drawn() -> None:
    model = GPT(CONFIG)
    assert recall_probe(model, sequences=4) == recall_probe(model, sequences=4)
    kept = recall_probe(Lookup(CONFIG), [4], sequences=8, avoid=range(4, 50))  # leaves four ids
    assert kept.second == pytest.approx([-math.log(0.9)])


def test_distances_end_with_the_largest_that_fits() -> None:
    assert doubling_distances(128) == (4, 8, 16, 32, 64)
    assert doubling_distances(100) == (4, 8, 16, 32, 50)
