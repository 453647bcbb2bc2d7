"""Rows that join and leave a batch get the logits that each would get from a whole pass of its own."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from random_models import random_model

from gpt2lab.errors import InputError
from gpt2lab.generation import next_logits
from gpt2lab.model.cache import BatchCache
from gpt2lab.model.gpt import GPT
from gpt2lab.model.masks import MASKS, Mask, causal

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 40, "vocab_size": 61}
VARIANTS: dict[str, dict[str, Any]] = {
    "learned": {},
    "sinusoidal": {"position": "sinusoidal"},
    "rope": {"position": "rope"},
    "alibi": {"position": "alibi"},
    "alibi window": {"position": "alibi", "mask": "window", "window": 5},
    "grouped": {"n_kv_head": 2, "position": "rope"},
    "one key head": {"n_kv_head": 1},
    "window": {"mask": "window", "window": 5},
    "window of the context": {"mask": "window", "window": 40},
    "global": {"mask": "global", "window": 6, "prefix": 3, "position": "rope"},
    "strided": {"mask": "strided", "window": 4},
    "by layer": {"mask": "window,causal", "window": 5, "position": "rope"},
    "sinks and soft caps": {"attention_sinks": True, "attention_softcap": 5.0, "position": "rope"},
    "gated, norms of heads": {"attention_gate": True, "qk_norm": True, "position": "rope"},
    "value residuals": {"value_residual": True, "n_kv_head": 2},
    "differential": {"differential_attention": True, "n_kv_head": 2, "position": "rope"},
    "latent": {"latent_dim": 12, "position": "rope"},
    "latent in a window": {"latent_dim": 12, "mask": "window", "window": 5},
    "reference": {"kernel": "reference", "n_kv_head": 2},
    "matmul": {"kernel": "matmul", "mask": "window", "window": 5},
}


@torch.no_grad()
def whole(model: GPT, ids: list[int]) -> torch.Tensor:
    """The definition: the logits (V,) after the ids, from one pass over all of them."""
    return model(torch.tensor([ids])).logits[0, -1]


def joined(model: GPT, batch: BatchCache, ids: list[int]) -> int:
    """Read a prompt alone and join."""
    cache = model.new_cache(1)
    next_logits(model, torch.tensor([ids]), cache)
    return batch.join(cache)


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_that_come_and_go_get_the_logits_of_whole_passes(name: str) -> None:
    model = random_model(SHAPE | VARIANTS[name]).eval()
    draw = random.Random(name)
    batch = BatchCache(model.config, 5, CPU, torch.float32)
    rows: list[list[int]] = []
    for _ in range(25):
        if len(rows) < 5 and (not rows or draw.random() < 0.4):
            ids = [draw.randrange(61) for _ in range(draw.randint(1, 30))]
            assert joined(model, batch, ids) == len(rows)
            rows.append(ids)
        for row in reversed(range(len(rows))):
            if len(rows[row]) == model.config.n_ctx or draw.random() < 0.05:
                batch.leave(row)
                rows[row] = rows[-1]
                del rows[-1]
        if not rows:
            continue
        column = [draw.randrange(61) for _ in rows]
        found = next_logits(model, torch.tensor(column)[:, None], batch)
        for ids, token in zip(rows, column, strict=True):
            ids.append(token)
        assert batch.lengths == [len(ids) for ids in rows]
        expected = torch.stack([whole(model, ids) for ids in rows])
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_a_rolling_row_outgrows_the_context() -> None:
    model = random_model(SHAPE | VARIANTS["global"]).eval()
    one, batch = model.new_cache(1), BatchCache(model.config, 2, CPU, torch.float32)
    ids = torch.arange(100) % 61
    next_logits(model, ids[None, :2], one)
    for _ in range(2):
        batch.join(one)
    for position in range(2, 100):
        expected = next_logits(model, ids[None, position : position + 1], one)
        found = next_logits(model, ids[position].expand(2, 1), batch)
        torch.testing.assert_close(found, expected.expand(2, -1), atol=2e-5, rtol=2e-5)
    assert all(layer.keys.shape[2] <= 9 for layer in batch.layers)


def test_what_a_damaged_row_leaves_behind_reaches_no_other() -> None:
    model = random_model(SHAPE).eval()
    batch = BatchCache(model.config, 2, CPU, torch.float32)
    joined(model, batch, [1, 2, 3])
    joined(model, batch, list(range(20)))
    for layer in batch.layers:
        layer.keys[1], layer.values[1] = torch.nan, torch.inf
    batch.leave(1)
    joined(model, batch, [4])
    found = next_logits(model, torch.tensor([[5], [6]]), batch)
    torch.testing.assert_close(found, torch.stack([whole(model, [1, 2, 3, 5]), whole(model, [4, 6])]))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="other products sum in another order")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["rope", "grouped", "alibi", "global"])
def test_in_bf16_a_row_is_the_same_to_the_last_bit_beside_others(name: str, threads: int) -> None:
    model = random_model(SHAPE | {"n_embd": 64, "n_inner": 3072, "n_ctx": 128} | VARIANTS[name]).eval()
    prompts = [[n] * length for n, length in enumerate((3, 70, 17, 31, 64, 1, 90))]

    def run(members: list[int]) -> torch.Tensor:
        batch = BatchCache(model.config, 8, CPU, torch.float32, least=2)
        for n in members:
            joined(model, batch, prompts[n])
        members = members + members[-1:] * (2 - len(members))
        columns = ([[(7 * n + step) % 61] for n in members] for step in range(6))
        return torch.stack([next_logits(model, torch.tensor(column), batch) for column in columns], dim=1)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            together = run(list(range(7)))
            for n in range(7):
                assert torch.equal(run([n])[0], together[n])
            assert torch.equal(run([5, 1])[0], together[5])
    finally:
        torch.set_num_threads(before)


def test_memory_is_that_of_the_rows_and_given_back() -> None:
    model = random_model(SHAPE).eval()
    batch = BatchCache(model.config, 32, CPU, torch.float32)
    for length in (3, 18, 7):
        joined(model, batch, [1] * length)
    assert all(layer.keys.shape == (4, 4, 18, 8) for layer in batch.layers)
    for _ in range(3):
        batch.leave(0)
    assert all(not layer.keys.numel() for layer in batch.layers)


def test_the_batch_refuses() -> None:
    model = random_model(SHAPE | {"n_ctx": 4}).eval()
    batch = BatchCache(model.config, 1, CPU, torch.float32)
    joined(model, batch, [1, 2, 3, 4])
    with pytest.raises(InputError, match="all 1 rows of the batch are taken"):
        joined(model, batch, [1])
    with pytest.raises(InputError, match="a row holds 4 of 4 positions, 1 more were asked for; a pass adds 1"):
        next_logits(model, torch.tensor([[1]]), batch)


def test_a_mask_of_ones_own_sees_the_positions_of_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def even() -> Mask:
        return causal() & Mask(lambda b, h, q, k: (k % 2 == 0) | (h == 0) | (q == k))

    monkeypatch.setitem(MASKS, "even", even)
    model = random_model(SHAPE | {"mask": "even"}).eval()
    batch = BatchCache(model.config, 2, CPU, torch.float32)
    joined(model, batch, [3, 1, 4])
    joined(model, batch, [1, 5, 9, 2, 6])
    found = next_logits(model, torch.tensor([[7], [8]]), batch)
    expected = torch.stack([whole(model, [3, 1, 4, 7]), whole(model, [1, 5, 9, 2, 6, 8])])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)
