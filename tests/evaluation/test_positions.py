from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2lab.data.shards import UINT16, ShardWriter, TokenStream, open_shard
from gpt2lab.errors import InputError
from gpt2lab.evaluation.perplexity import perplexity_of
from gpt2lab.evaluation.positions import loss_by_position
from gpt2lab.evaluation.recall import recall_probe
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT

V, CONTEXT = 50, 16


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(1)
    return GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=CONTEXT, vocab_size=V))


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    ids = np.random.default_rng(3).integers(0, V, 1 + 6 * CONTEXT)
    ids[[0, 20, 27, 60]] = 0
    writer = ShardWriter(tmp_path, "test", UINT16, 1000)
    writer.write(ids)
    writer.finish()
    return TokenStream("test", [open_shard(path) for path in writer.paths])


def test_each_place_is_the_mean_over_windows_that_follow_each_other(model: GPT, stream: TokenStream) -> None:
    ids = torch.from_numpy(stream.read(np.array([0]), len(stream))[0].astype(np.int64))
    inputs, targets = ids[:-1].view(6, CONTEXT), ids[1:].view(6, CONTEXT)
    with torch.no_grad():
        logits = model.eval()(inputs).logits
    assert logits is not None
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(6, CONTEXT).mean(0)
    curve = loss_by_position(model, stream, batch_size=4)
    assert curve.losses == pytest.approx(expected.tolist(), abs=1e-5)
    assert curve.tokens == (6,) * CONTEXT


@pytest.mark.parametrize("eot", [None, 0])
def test_its_mean_is_the_loss_of_the_perplexity(model: GPT, stream: TokenStream, eot: int | None) -> None:
    curve = loss_by_position(model, stream, eot=eot)
    whole = perplexity_of(model, stream, 1, stride=CONTEXT, eot=eot)
    scored = [(loss, n) for loss, n in zip(curve.losses, curve.tokens, strict=True) if n]
    assert sum(n for _, n in scored) == whole.tokens
    assert sum(loss * n for loss, n in scored) / whole.tokens == pytest.approx(whole.loss, abs=1e-6)


def test_a_place_that_no_document_reaches_has_no_loss(model: GPT, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "test", UINT16, 1000)
    writer.write(np.array([0, 1, 2, 0, 3, 0, 4, 5, 6, 0, 7, 8]))
    writer.finish()
    short = TokenStream("test", [open_shard(path) for path in writer.paths])
    curve = loss_by_position(model, short, context=8, eot=0)
    assert curve.tokens == (4, 4, 2, 1, 0, 0, 0, 0)
    assert np.isnan(curve.losses).tolist() == [False] * 4 + [True] * 4
    assert "within documents" in curve.protocol


@pytest.mark.parametrize("options", [{"mask": "prefix", "prefix": 4}, {"mask": "bidirectional"}])
def test_no_loss_is_measured_under_a_mask_that_looks_ahead(options: dict[str, Any], stream: TokenStream) -> None:
    ahead = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, n_ctx=CONTEXT, vocab_size=V, **options))
    for measure in (lambda: perplexity_of(ahead, stream, 1), lambda: loss_by_position(ahead, stream)):
        with pytest.raises(InputError, match=f"mask {options['mask']} lets a token read what follows it"):
            measure()
    with pytest.raises(InputError, match=f"mask {options['mask']} lets a token read what follows it"):
        recall_probe(ahead)
