"""Rows of a cache, copied: what is read behind them is what is read behind the whole text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT

VARIANTS: list[dict[str, Any]] = [{}, {"n_kv_head": 2, "position": "rope"}, {"mask": "window", "window": 5}]


@pytest.mark.parametrize("change", VARIANTS, ids=str)
@torch.no_grad()
def test_reading_behind_copied_rows_is_reading_all_of_them(change: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=16, n_ctx=16, vocab_size=31, **change)).eval()
    contexts, endings = torch.randint(31, (2, 9)), torch.randint(31, (5, 4))
    rows = torch.tensor([1, 0, 0, 1, 1])
    behind = model.new_cache(2, room=9)
    model.hidden(contexts, cache=behind)
    cache = model.new_cache(5, room=13)
    cache.copy_rows(behind, rows)
    found = model.hidden(endings, cache=cache)
    expected = model.hidden(torch.cat([contexts[rows], endings], dim=1))[:, 9:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_that_do_not_fit_are_refused() -> None:
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, n_ctx=16, vocab_size=31)).eval()
    behind = model.new_cache(1, room=9)
    model.hidden(torch.zeros(1, 9, dtype=torch.long), cache=behind)
    with pytest.raises(InputError, match="0 of 8 positions and 9 more"):
        model.new_cache(1, room=8).copy_rows(behind, torch.tensor([0]))
