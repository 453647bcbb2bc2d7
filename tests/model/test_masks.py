from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from random_models import random_ids, random_model

from gpt2lab.errors import InputError
from gpt2lab.model.attention import AttentionPattern
from gpt2lab.model.cache import KVCache
from gpt2lab.model.gpt import GPT
from gpt2lab.model.masks import MASKS, Mask, causal, dense, document, global_window, sliding_window, strided

CPU = torch.device("cpu")


def rows(mask: Mask, T: int) -> list[str]:
    positions = torch.arange(T)
    return [
        "".join("#" if allowed else "." for allowed in row) for row in dense(mask, 1, 1, positions, positions)[0, 0]
    ]


def test_masks_by_hand() -> None:
    assert rows(sliding_window(2), 4) == ["#...", "##..", ".##.", "..##"]
    assert rows(global_window(2, 1), 5) == ["#....", "##...", "###..", "#.##.", "#..##"]
    assert rows(strided(3), 6) == ["#.....", "##....", "###...", "####..", ".####.", "..####"]
    assert rows(MASKS["prefix"](prefix=2), 4) == ["##..", "##..", "###.", "####"]
    assert rows(MASKS["bidirectional"](), 2) == ["##", "##"]


def test_masks_combine_and_keep_what_is_known_of_them() -> None:
    near, wide = sliding_window(2), global_window(4, 3)
    assert rows(near | Mask(lambda b, h, q, k: k == 0), 4) == ["#...", "##..", "###.", "#.##"]
    assert ((near & wide).reach, (near & wide).leading) == (2, 0)
    assert ((near | wide).reach, (near | wide).leading) == (4, 3)
    assert (near | causal()).reach is None
    assert not (near & MASKS["bidirectional"]()).looks_ahead
    assert (near | MASKS["bidirectional"]()).looks_ahead


def dilated(window: int) -> Mask:
    """The example of docs/attention.md."""
    return causal() & Mask(lambda b, h, q, k: ((q - k) % 2 == 0) & (q - k < 2 * window), reach=2 * window)


def own(window: int) -> Mask:
    """Heads differ: the first reads its window, the others all; place 0 of head 0 reads nothing."""
    return causal() & Mask(lambda b, h, q, k: ((q - k < window) & (q > 0)) | (h > 0))


def mine_of(window: int) -> Callable[[], Mask]:
    return lambda: sliding_window(window)


def model_of(seed: int = 0, **changes: Any) -> GPT:
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 16, "n_ctx": 24, "vocab_size": 50, **changes}
    return random_model(shape, seed=seed).eval()


@pytest.mark.parametrize("kernel", ["auto", "matmul", "sdpa", "banded"])
def test_a_mask_of_ones_own_trains_caches_and_rolls(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MASKS, "dilated", dilated)
    changes = {"mask": "dilated", "window": 3, "position": "rope"}
    model, reference = model_of(kernel=kernel, **changes), model_of(kernel="reference", **changes)
    tokens = random_ids(50, 2, 24)
    torch.testing.assert_close(model(tokens).logits, reference(tokens).logits, atol=1e-5, rtol=1e-5)
    cache = KVCache(model.config, 2, CPU, torch.float32)
    assert cache.rolling
    with torch.no_grad():
        for place in range(24):
            found = model.hidden(tokens[:, place : place + 1], cache=cache)
            torch.testing.assert_close(found[:, 0], reference.hidden(tokens)[:, place], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["auto", "matmul", "sdpa", "reference"])
def test_heads_may_differ_and_a_head_may_read_nothing(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MASKS, "own", own)
    model = model_of(mask="own", window=3, kernel=kernel, n_kv_head=2)
    tokens = random_ids(50, 2, 24)
    table = torch.ones(4, 24, 24, dtype=torch.bool).tril()
    table[0] &= ~torch.ones(24, 24, dtype=torch.bool).tril(-3)
    table[0, 0] = False
    expected = model_of(kernel="reference", n_kv_head=2)(tokens, mask=table.expand(2, 4, 24, 24)).logits
    found = model.train()(tokens, tokens)
    torch.testing.assert_close(model.eval()(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    found.loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("kernel", ["auto", "matmul", "sdpa"])
def test_a_mask_may_leave_out_what_it_does_not_depend_on(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MASKS, "first", lambda prefix: Mask(lambda b, h, q, k: k < prefix, looks_ahead=True))
    model = model_of(mask="first", prefix=5, kernel=kernel, n_kv_head=2)
    tokens, table = torch.arange(24)[None].repeat(2, 1), (torch.arange(24) < 5).expand(24, 24)
    expected = model_of(kernel="reference", n_kv_head=2)(tokens, mask=table).logits
    torch.testing.assert_close(model(tokens).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_blocks_that_flex_leaves_out_are_found_for_each_head_and_row_that_differ() -> None:
    positions, documents = torch.arange(24), torch.arange(2 * 24).view(2, 24) // 5
    for mask, differing in ((causal(), (1, 1)), (own(3), (1, 4)), (causal() & document(documents), (2, 1))):
        bias: Any = AttentionPattern(mask, 2, 4, positions, positions).bias("flex", torch.float32, training=False)
        assert bias.mask[0].shape[:2] == differing


def test_a_name_may_be_given_to_another_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.arange(24)[None]
    for window in (3, 7):
        monkeypatch.setitem(MASKS, "mine", mine_of(window))
        expected = model_of(mask="window", window=window)(tokens).logits
        torch.testing.assert_close(model_of(mask="mine")(tokens).logits, expected)


def test_a_mask_that_is_not_what_it_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MASKS, "ahead", lambda: Mask(lambda b, h, q, k: k <= q + (h == 2)))
    monkeypatch.setitem(MASKS, "far", lambda window: causal() & Mask(lambda b, h, q, k: k == k, reach=window))
    with pytest.raises(
        InputError, match='mask "ahead" lets head 2 at position 0 attend to position 1, which is later; combine it'
    ):
        model_of(mask="ahead")
    with pytest.raises(
        InputError, match='mask "far" lets head 0 at position 5 attend to position 0, beyond its reach of 5'
    ):
        model_of(mask="far", window=5)


def test_a_mask_with_an_option_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MASKS, "odd", lambda stride: causal())
    with pytest.raises(InputError, match="mask odd takes stride; its options can be window and prefix"):
        model_of(mask="odd")


@pytest.mark.parametrize("name", ["causal", "window", "global", "strided", "prefix"])
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_documents_in_a_row_are_read_as_each_would_be_alone(name: str, position: str) -> None:
    options = {"window": 4} if name in ("window", "strided") else {"prefix": 3} if name == "prefix" else {}
    options = {"window": 4, "prefix": 2} if name == "global" else options
    model = model_of(mask=name, position=position, **options)
    tokens = random_ids(50, 2, 24)
    lengths = [[9, 15], [5, 19]]
    documents = torch.stack([torch.repeat_interleave(torch.tensor([7, 3]), torch.tensor(each)) for each in lengths])
    positions = torch.stack([torch.cat([torch.arange(n) for n in each]) for each in lengths])
    with torch.no_grad():
        found = model(tokens, documents=documents, positions=positions).logits
        for row, (first, _) in enumerate(lengths):
            for part in (slice(0, first), slice(first, 24)):
                alone = model(tokens[row : row + 1, part]).logits[0]
                torch.testing.assert_close(found[row, part], alone, atol=1e-5, rtol=1e-5)


def test_documents_narrow_a_tensor_too() -> None:
    model = model_of()
    tokens, documents = torch.arange(24)[None], (torch.arange(24) >= 10).long()[None]
    whole = torch.ones(24, 24, dtype=torch.bool).tril()
    a, b = model(tokens, mask=whole, documents=documents).logits, model(tokens, documents=documents).logits
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cache_refuses_what_it_cannot_serve() -> None:
    tokens = torch.zeros(1, 5, dtype=torch.long)
    rolling, ahead = model_of(mask="window", window=3), model_of(mask="prefix", prefix=3)
    with pytest.raises(InputError, match="the cache of mask window drops keys that a mask tensor may need"):
        rolling.hidden(tokens, torch.ones(5, 5), KVCache(rolling.config, 1, CPU, torch.float32))
    with pytest.raises(InputError, match="documents cannot be used with a cache"):
        rolling.hidden(tokens, cache=KVCache(rolling.config, 1, CPU, torch.float32), documents=tokens)
    cache = KVCache(ahead.config, 1, CPU, torch.float32)
    ahead.hidden(tokens, cache=cache)
    with pytest.raises(InputError, match="mask prefix attends to later tokens, so cached keys would change"):
        ahead.hidden(tokens, cache=cache)


@pytest.mark.parametrize("mask", [None, torch.ones(5, 5)])
def test_training_under_a_mask_that_looks_ahead_warns_that_the_loss_leaks(mask: torch.Tensor | None) -> None:
    model = (model_of(mask="bidirectional") if mask is None else model_of()).train()
    tokens = torch.zeros(1, 5, dtype=torch.long)
    with pytest.warns(UserWarning, match="the mask lets tokens attend to later ones.*the loss leaks"):
        model(tokens, tokens, mask)
    model.eval()(tokens, tokens, mask)
    model.train()(tokens, tokens, torch.ones(5, 5).tril())
