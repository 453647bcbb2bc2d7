"""Log-probabilities of continuations against Hugging Face's model, and the recall probe on models with known recall."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.evaluation import likelihood
from gpt2lab.evaluation.likelihood import Continuation, doubling_distances, recall_probe, repeat_losses, score
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT

V, N_CTX = 61, 24


def make(contexts: int, endings: int, seed: int) -> list[Continuation]:
    """Contexts of 1 to 30 tokens, each with several endings of 1 to 12."""
    generator = torch.Generator().manual_seed(seed)

    def ids(longest: int) -> tuple[int, ...]:
        length = int(torch.randint(1, longest + 1, (1,), generator=generator))
        return tuple(torch.randint(V, (length,), generator=generator).tolist())

    return [Continuation(context, ids(12)) for context in [ids(30) for _ in range(contexts)] for _ in range(endings)]


@torch.no_grad()
def score_alone(theirs: Any, continuation: Continuation) -> tuple[float, bool]:
    """Score one continuation with Hugging Face's model, which reads all of it."""
    whole = torch.tensor([*continuation.context, *continuation.ids])[-(N_CTX + 1) :]
    log_probabilities = theirs(whole[None, :-1]).logits[0].log_softmax(-1)[-len(continuation.ids) :]
    wanted = whole[-len(continuation.ids) :]
    chosen = log_probabilities.gather(1, wanted[:, None])
    return -float(chosen.sum()), bool((log_probabilities.argmax(-1) == wanted).all())


@pytest.mark.parametrize("pass_tokens", [30, 200, 4096])
def test_scores_equal_those_of_hugging_face_one_by_one(
    model: GPT, hugging_face_twin: Callable[[GPT], Any], pass_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "PASS_TOKENS", pass_tokens)
    theirs = hugging_face_twin(model)
    continuations = make(9, 4, seed=pass_tokens)
    found = score(model, continuations)
    expected = [score_alone(theirs, continuation) for continuation in continuations]
    assert [s.nats for s in found] == pytest.approx([nats for nats, _ in expected], abs=1e-3)
    assert [s.greedy for s in found] == [greedy for _, greedy in expected]


@torch.no_grad()
def test_only_the_output_of_greedy_decoding_is_greedy(model: GPT) -> None:
    context = (3, 1, 4)
    ids: list[int] = []
    for _ in range(5):
        logits = model.eval()(torch.tensor([[*context, *ids]])).logits
        assert logits is not None
        ids.append(int(logits[0, -1].argmax()))
    other = (*ids[:4], (ids[4] + 1) % V)
    found = score(model, [Continuation(context, tuple(ids)), Continuation(context, other)])
    assert [s.greedy for s in found] == [True, False]


def test_scoring_runs_in_evaluation_mode_and_reports_progress(model: GPT) -> None:
    seen: list[tuple[int, int]] = []
    continuations = make(5, 3, seed=1)
    expected = [s.nats for s in score(model.eval(), continuations)]
    assert [s.nats for s in score(model.train(), continuations, lambda *now: seen.append(now))] == expected
    assert model.training
    assert seen == sorted(seen) and seen[-1] == (15, 15)


@given(st.lists(st.integers(1, 80), max_size=60), st.integers(1, 400), st.integers(0, 30))
def test_batches_hold_every_row_once_with_little_padding(lengths: list[int], budget: int, cached: int) -> None:
    batches = likelihood.batches_by_length(lengths, budget, cached)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        rows = [lengths[index] for index in batch]
        assert min(rows) >= 0.8 * max(rows)
        assert len(rows) == 1 or len(rows) * (max(rows) + cached) <= budget


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


def test_same_seed_gives_the_same_losses_and_only_the_given_ids_are_drawn() -> None:
    model = GPT(CONFIG)
    assert recall_probe(model, sequences=4) == recall_probe(model, sequences=4)
    few = recall_probe(Lookup(CONFIG), [4], sequences=8, ids=range(4))
    assert few.second == pytest.approx([-math.log(0.9)])
    assert few.chance == pytest.approx(math.log(4)) and "drawn from 4 " in few.protocol


def test_distances_end_with_the_largest_that_fits() -> None:
    assert doubling_distances(128) == (4, 8, 16, 32, 64)
    assert doubling_distances(100) == (4, 8, 16, 32, 50)
