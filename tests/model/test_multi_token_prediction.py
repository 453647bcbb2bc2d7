"""Multi-token prediction: the loss of the further heads by hand, and a model that is the same without them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import random_ids, random_model

from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT, without_mtp
from gpt2lab.model.loss import targets_ahead

N, T = 2, 12
SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_ctx": T, "vocab_size": 61, "mtp_depth": N}


def of_head(model: GPT, head: int) -> GPT:
    """The ordinary model whose last block is a head's; head 0 is the model's own last block."""
    plain = GPT(dataclasses.replace(model.config, mtp_depth=0, mtp_weight=1.0))
    weights = model.state_dict()
    own = {name: weights[name.replace("h.1.", f"h.{1 + head}.")] for name in plain.state_dict()}
    plain.load_state_dict(own)
    return plain.eval()


def by_hand(model: GPT, tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor | None) -> torch.Tensor:
    """The loss of a training step: a sum over heads, rows and positions of what ordinary models give."""
    total, count = torch.zeros(()), (targets != -100).sum()
    for head in range(N + 1):
        logits = of_head(model, head)(tokens, documents=documents).logits
        assert logits is not None
        log_p, weight = logits.log_softmax(-1), model.config.mtp_weight if head else 1.0
        for b in range(len(tokens)):
            for t in range(T - head):
                counts = documents is None or documents[b, t] == documents[b, t + head]
                if counts and targets[b, t + head] != -100:
                    total = total - weight * log_p[b, t, targets[b, t + head]] / count
    return total


DOCUMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 11 + [1]])
CASES: list[tuple[dict[str, Any], bool, bool]] = [
    ({}, False, False),
    ({"differential_attention": True}, False, False),
    ({"mtp_weight": 0.3, "position": "rope", "tied_head": False, "logit_softcap": 5.0}, True, False),
    ({"norm": "rmsnorm", "norm_placement": "sandwich", "mask": "window,causal", "window": 3}, False, True),
    ({"norm_placement": "post", "value_residual": True, "mup_base_width": 8}, True, True),
]


@pytest.mark.parametrize(("options", "masked", "documents"), CASES)
def test_the_training_loss_is_the_sum_over_the_heads(options: dict[str, Any], masked: bool, documents: bool) -> None:
    model, tokens, targets = random_model(SHAPE | options), random_ids(61, 2, T), random_ids(61, 2, T, seed=1)
    if masked:
        targets[0, 4:8], targets[1, :9] = -100, -100
    given = DOCUMENTS if documents else None
    loss = model.train()(tokens, targets, documents=given).loss
    assert loss is not None
    torch.testing.assert_close(loss, by_hand(model, tokens, targets, given))
    plain = of_head(model, 0)(tokens, targets, documents=given).loss
    assert model.eval()(tokens, targets, documents=given).loss == plain, "validation is of the next token alone"


def test_its_gradient_is_that_of_the_sum() -> None:
    model, tokens, targets = random_model(SHAPE), random_ids(61, 2, T), random_ids(61, 2, T, seed=1)
    loss = model.train()(tokens, targets).loss
    assert loss is not None
    loss.backward()
    total = torch.zeros(())
    log_p = [model.head(x).log_softmax(-1) for x in model._streams(tokens, None, None, None, None, N)]
    for head, log in enumerate(log_p):
        total = total - log[:, : T - head].gather(2, targets[:, head:, None]).sum() / targets.numel()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    theirs = torch.autograd.grad(total, [*model.parameters()])
    for (name, gradient), expected in zip(ours.items(), theirs, strict=True):
        torch.testing.assert_close(gradient, expected, msg=name)


def test_micro_batches_in_which_different_numbers_of_targets_count_add_up_to_the_batch() -> None:
    model, tokens, targets = random_model(SHAPE).train(), random_ids(61, 2, T), random_ids(61, 2, T, seed=1)
    targets[0, 2:] = -100
    whole = model(tokens, targets).loss
    parts = [model(tokens[[row]], targets[[row]]).loss * (targets[row] != -100).sum() / 14 for row in (0, 1)]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_no_target_is_of_another_document_or_beyond_the_row() -> None:
    targets, documents = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[0, 0, 1, 1, 1]])
    assert targets_ahead(targets, 2, None).tolist() == [[[2, 3, 4, 5, -100]], [[3, 4, 5, -100, -100]]]
    assert targets_ahead(targets, 2, documents).tolist() == [[[2, -100, 4, 5, -100]], [[-100, -100, 5, -100, -100]]]


def test_without_the_heads_it_is_the_same_model(tmp_path: Path) -> None:
    model = random_model(SHAPE).eval()
    plain, tokens = without_mtp(model), random_ids(61, 2, T)
    assert plain.config.mtp_depth == 0 and plain.state_dict().keys() == of_head(model, 0).state_dict().keys()
    assert torch.equal(plain.hidden(tokens), model.hidden(tokens)) and len(model.h) == 4
    model.save_hf(tmp_path / "hf")
    assert torch.equal(GPT.from_hf(tmp_path / "hf").hidden(tokens), model.hidden(tokens))


def test_flops_count_a_block_and_a_product_with_the_output_head_for_each() -> None:
    config = GPTConfig(**SHAPE)
    more = config.flops_per_token(T) - dataclasses.replace(config, mtp_depth=0).flops_per_token(T)
    assert more == N * (6 * (12 * 16 * 16 + 61 * 16) + 12 * 16 * T)


def test_heads_that_cannot_be_trained_are_refused() -> None:
    with pytest.raises(InputError, match="mtp_depth is 12; it must be at least 0 and below n_ctx 12"):
        dataclasses.replace(GPTConfig(**SHAPE), mtp_depth=12)
    with pytest.raises(InputError, match=r"mtp_weight 0\.5 with mtp_depth 0, which has no heads; give mtp_depth too"):
        GPTConfig(mtp_weight=0.5)
