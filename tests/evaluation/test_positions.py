from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2lab.data.shards import TokenStream
from gpt2lab.evaluation.perplexity import perplexity_of
from gpt2lab.evaluation.positions import loss_by_position
from gpt2lab.model.gpt import GPT

V, CONTEXT = 61, 24
IDS = np.random.default_rng(3).integers(0, V, 1 + 6 * CONTEXT)
IDS[[0, 20, 27, 60]] = 0


def test_each_position_is_the_mean_over_windows_without_overlap(model: GPT, stream_of: Callable[..., Any]) -> None:
    inputs, targets = (torch.from_numpy(ids).view(6, CONTEXT) for ids in (IDS[:-1], IDS[1:]))
    with torch.no_grad():
        logits = model.eval()(inputs).logits
    assert logits is not None
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(6, CONTEXT).mean(0)
    curve = loss_by_position(model, stream_of(IDS), batch_size=4)
    assert curve.losses == pytest.approx(expected.tolist(), abs=1e-5)
    assert curve.tokens == (6,) * CONTEXT


@pytest.mark.parametrize("eot", [None, 0])
def test_mean_over_positions_is_the_loss_of_the_perplexity(
    eot: int | None, model: GPT, stream_of: Callable[..., TokenStream]
) -> None:
    stream = stream_of(IDS)
    curve = loss_by_position(model, stream, eot=eot)
    whole = perplexity_of(model, stream, 1, stride=CONTEXT, eot=eot)
    scored = [(loss, n) for loss, n in zip(curve.losses, curve.tokens, strict=True) if n]
    assert sum(n for _, n in scored) == whole.tokens
    assert sum(loss * n for loss, n in scored) / whole.tokens == pytest.approx(whole.loss, abs=1e-6)


def test_position_that_no_document_reaches_has_no_loss(model: GPT, stream_of: Callable[..., TokenStream]) -> None:
    curve = loss_by_position(model, stream_of([0, 1, 2, 0, 3, 0, 4, 5, 6, 0, 7, 8]), context=8, eot=0)
    assert curve.tokens == (4, 4, 2, 1, 0, 0, 0, 0)
    assert np.isnan(curve.losses).tolist() == [False] * 4 + [True] * 4
    assert "within documents" in curve.protocol
