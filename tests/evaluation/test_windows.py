"""Every token is scored once, in the first window that has it, whatever the context, stride and documents."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.data.shards import UINT16, ShardWriter, TokenStream, open_shard
from gpt2lab.errors import InputError
from gpt2lab.evaluation.perplexity import cut_windows


def make_stream(directory: Path | str, tokens: np.ndarray) -> TokenStream:
    writer = ShardWriter(Path(directory), "test", UINT16, 11)
    writer.write(tokens)
    writer.finish()
    return TokenStream("test", [open_shard(path) for path in writer.paths])


@given(st.integers(2, 120), st.data())
@settings(deadline=None, max_examples=60)
def test_each_token_but_the_first_is_scored_once(tokens: int, data: st.DataObject) -> None:
    context = data.draw(st.integers(1, tokens - 1))
    stride = data.draw(st.integers(1, context))
    scored: Counter[int] = Counter()
    with TemporaryDirectory() as directory:
        stream = make_stream(directory, np.arange(tokens))
        windows = cut_windows(stream, context, stride)
        for batch in windows.batches(stream, data.draw(st.integers(1, 5))):
            assert (batch.targets == batch.tokens + 1).all()
            assert batch.tokens.shape == batch.targets.shape == batch.scored.shape == (len(batch.tokens), context)
            scored.update(batch.targets[batch.scored].tolist())
            late = batch.scored & (batch.tokens[:, :1] > 0)  # in windows after the first
            assert not late[:, : context - stride].any()
    assert scored == Counter(range(1, tokens))
    assert windows.scored == tokens - 1


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.data())
@settings(deadline=None, max_examples=60)
def test_by_document_a_window_begins_and_ends_in_one(lengths: list[int], data: st.DataObject) -> None:
    """Ids tell document and place: 0 begins each, then 100 * document + place."""
    ids = [i for d, n in enumerate(lengths) for i in (0, *range(100 * d + 1, 100 * d + 1 + n))]
    context = data.draw(st.integers(1, 20))
    stride = data.draw(st.integers(1, context))
    scored: Counter[int] = Counter()
    if len(ids) < 2:
        return
    with TemporaryDirectory() as directory:
        stream = make_stream(directory, np.array(ids))
        for batch in cut_windows(stream, context, stride, eot=0).batches(stream, data.draw(st.integers(1, 5))):
            scored.update(batch.targets[batch.scored].tolist())
            for tokens, row in zip(batch.tokens.tolist(), batch.scored.tolist(), strict=True):
                read = tokens[: max(place for place, is_scored in enumerate(row) if is_scored) + 1]
                assert 0 not in read[1:]  # nothing after the end of its document
                assert len({token // 100 for token in read if token}) <= 1
    assert scored == Counter(ids[1:])


def test_windows_follow_each_other_and_the_last_ends_with_the_stream(tmp_path: Path) -> None:
    windows = cut_windows(make_stream(tmp_path, np.arange(1000)), 100, 100)
    assert windows.starts.tolist() == [0, 100, 200, 300, 400, 500, 600, 700, 800, 899]
    assert windows.firsts.tolist() == [0] * 9 + [1]


def test_short_documents_are_batched_by_length(tmp_path: Path) -> None:
    lengths = [3, 50, 4, 51, 2, 49] * 10
    stream = make_stream(tmp_path, np.concatenate([np.arange(n) for n in lengths]))
    batches = list(cut_windows(stream, 64, 32, eot=0).batches(stream, 10))
    assert sum(batch.tokens.numel() for batch in batches) < 1.02 * sum(lengths)


def test_a_stream_that_begins_in_a_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not begin with the end-of-text token 7"):
        cut_windows(make_stream(tmp_path, np.arange(20)), 4, 4, eot=7)
