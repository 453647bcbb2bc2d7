from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.shards import TokenStream
from gpt2lab.evaluation.perplexity import Perplexity, cut_windows, perplexity_of
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.tokenizer.tokenizer import Tokenizer

V, CONTEXT = 61, 24
StreamOf = Callable[[Any], TokenStream]


def random_ids(tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, V, tokens)


@torch.no_grad()
def hugging_face_losses(theirs: Any, ids: np.ndarray, start: int, stop: int) -> list[float]:
    """Losses of the targets start + 1 ... stop, in one window."""
    window = torch.from_numpy(ids[start : stop + 1])
    return F.cross_entropy(theirs(window[None, :-1]).logits[0], window[1:], reduction="none").tolist()


@pytest.mark.parametrize("stride", [CONTEXT, 12, 5])
@pytest.mark.parametrize("tokens", [205, 1 + CONTEXT * 4, 30])
def test_loss_equals_a_plain_loop_over_hugging_faces_model(
    tokens: int, stride: int, model: GPT, hugging_face_twin: Callable[[GPT], Any], stream_of: StreamOf
) -> None:
    ids, last = random_ids(tokens), tokens - 1 - CONTEXT
    theirs, losses = hugging_face_twin(model), []
    for start in (*range(0, last, stride), last):
        losses += hugging_face_losses(theirs, ids, start, start + CONTEXT)[len(losses) - start :]
    found = perplexity_of(model, stream_of(ids), 100, stride=stride)
    loss = sum(losses) / len(losses)
    assert found.tokens == len(losses) == tokens - 1
    assert found.loss == pytest.approx(loss, abs=1e-4)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert (found.context, found.stride) == (CONTEXT, stride)


def test_by_document_each_is_read_from_its_start(
    model: GPT, hugging_face_twin: Callable[[GPT], Any], stream_of: StreamOf
) -> None:
    """Documents of 1 to 60 tokens, one by one with Hugging Face's model."""
    ids = random_ids(300)
    starts = [*np.flatnonzero(ids == ids[0]).tolist(), 299]
    assert len(starts) > 4
    theirs, total = hugging_face_twin(model), 0.0
    for begin, end in pairwise(starts):
        for first in range(begin, end, CONTEXT):
            stop = min(first + CONTEXT, end)
            start = max(begin, stop - CONTEXT)  # the last window is moved back
            total += sum(hugging_face_losses(theirs, ids, start, stop)[first - start :])
    stream = stream_of(ids)
    found = [perplexity_of(model, stream, 1, stride=CONTEXT, eot=int(ids[0]), batch_size=n) for n in (1, 5)]
    assert [f.loss for f in found] == pytest.approx([total / 299] * 2, abs=1e-4)
    assert "windows stay within documents" in found[0].protocol


@pytest.mark.parametrize("stride", [None, 7])
def test_batch_size_does_not_affect_the_loss(stride: int | None, model: GPT, stream_of: StreamOf) -> None:
    stream = stream_of(random_ids(500))
    losses = [perplexity_of(model, stream, 1, stride=stride, batch_size=n).loss for n in (1, 2, 8, 1000)]
    assert max(losses) - min(losses) < 1e-6


def test_evaluation_mode_defaults_and_progress(model: GPT, stream_of: StreamOf) -> None:
    stream, seen = stream_of(random_ids(200)), list[tuple[int, int]]()
    expected = perplexity_of(model.eval(), stream, 1)
    assert (expected.context, expected.stride) == (CONTEXT, CONTEXT // 2)
    found = perplexity_of(model.train(), stream, 1, batch_size=3, progress=lambda *now: seen.append(now))
    assert model.training
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)
    assert perplexity_of(model.train(), stream, 1).loss == expected.loss
    assert seen == sorted(seen) and len(seen) > 2 and seen[-1] == (199, 199)
    shorter = perplexity_of(model, stream, 1, context=9)
    assert (shorter.context, shorter.stride) == (9, 5)


@pytest.mark.parametrize("tokens", [2, 3, CONTEXT])
def test_stream_shorter_than_the_context_is_one_window(tokens: int, model: GPT, stream_of: StreamOf) -> None:
    found = perplexity_of(model, stream_of(random_ids(tokens)), 1)
    assert (found.tokens, found.context) == (tokens - 1, tokens - 1)


def result(loss: float, **values: Any) -> Perplexity:
    return Perplexity(**{"loss": loss, "tokens": 300, "bytes": 1000, "context": 64, "stride": 16, **values})


def test_figures_by_hand() -> None:
    known = result(2 * math.log(2), entropy_bits=500.0)
    expected = {"loss": 2 * math.log(2), "perplexity": 4.0, "bits_per_byte": 0.6}
    assert known.figures == pytest.approx({**expected, "entropy_floor": 0.5, "gap_percent": 20.0})
    unknown = result(2 * math.log(2))
    assert unknown.figures == pytest.approx(expected)
    assert unknown.entropy_floor is unknown.gap_percent is unknown.word_perplexity is None
    words = result(math.log(2), words=100)
    assert words.figures["word_perplexity"] == pytest.approx(8.0)
    assert words.protocol.endswith("bytes of the text, word perplexity over its 100 whitespace-separated words.")
    assert result(800.0).perplexity == math.inf
    assert math.isnan(result(math.nan).perplexity)


def test_protocol_states_windows_context_and_bytes() -> None:
    assert result(1.0, tokens=12345, bytes=54321, context=1024, stride=512).protocol == (
        "Each of 12,345 tokens (all but the first of the stream) is scored once, in windows of 1,024 tokens with "
        "stride 512, after at least 513 tokens of context (fewer in the first window); windows reach across document "
        "boundaries; bits per byte are over the 54,321 bytes of the text."
    )


def test_on_stories_the_gap_to_the_entropy_is_known(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a"], 257)
    prepare(["stories"], tokenizer, tmp_path / "data", max_documents=300)
    dataset = TokenDataset(tmp_path / "data")
    split = dataset.manifest.splits["test"]
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, n_ctx=64, vocab_size=tokenizer.n_vocab))
    found = perplexity_of(model, dataset.stream("test"), split.bytes, entropy_bits=split.entropy_bits)
    assert found.tokens == split.tokens - 1
    assert found.bits_per_byte == pytest.approx(8.0, abs=0.2)  # knows nothing: log2(257) for each byte
    assert found.entropy_floor is not None
    assert 0.0 < found.entropy_floor < 2.0
    assert found.gap_percent == pytest.approx(100 * (found.bits_per_byte / found.entropy_floor - 1))


@given(st.integers(2, 120), st.data())
@settings(max_examples=60)
def test_windows_score_each_token_but_the_first_once(stream_of: StreamOf, tokens: int, data: st.DataObject) -> None:
    context = data.draw(st.integers(1, tokens - 1))
    stride = data.draw(st.integers(1, context))
    scored: Counter[int] = Counter()
    stream = stream_of(np.arange(tokens))
    windows = cut_windows(stream, context, stride)
    for batch in windows.batches(stream, data.draw(st.integers(1, 5))):
        assert (batch.targets == batch.tokens + 1).all()
        assert batch.tokens.shape == batch.targets.shape == batch.scored.shape == (len(batch.tokens), context)
        scored.update(batch.targets[batch.scored].tolist())
        late = batch.scored & (batch.tokens[:, :1] > 0)  # in windows after the first
        assert not late[:, : context - stride].any()
    assert scored == Counter(range(1, tokens))
    assert windows.scored == tokens - 1


@given(st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda n: sum(n) + len(n) > 1), st.data())
@settings(max_examples=60)
def test_by_document_windows_stay_within_one(stream_of: StreamOf, lengths: list[int], data: st.DataObject) -> None:
    """Ids tell document and position: 0 begins each, then 100 * document + position."""
    ids = [i for d, n in enumerate(lengths) for i in (0, *range(100 * d + 1, 100 * d + 1 + n))]
    context = data.draw(st.integers(1, 20))
    stride = data.draw(st.integers(1, context))
    scored: Counter[int] = Counter()
    stream = stream_of(ids)
    for batch in cut_windows(stream, context, stride, eot=0).batches(stream, data.draw(st.integers(1, 5))):
        scored.update(batch.targets[batch.scored].tolist())
        for tokens, row in zip(batch.tokens.tolist(), batch.scored.tolist(), strict=True):
            read = tokens[: max(position for position, is_scored in enumerate(row) if is_scored) + 1]
            assert 0 not in read[1:]  # nothing after the end of its document
            assert len({token // 100 for token in read if token}) <= 1
    assert scored == Counter(ids[1:])


def test_the_last_window_ends_with_the_stream(stream_of: StreamOf) -> None:
    windows = cut_windows(stream_of(np.arange(1000)), 100, 100)
    assert windows.starts.tolist() == [0, 100, 200, 300, 400, 500, 600, 700, 800, 899]
    assert windows.firsts.tolist() == [0] * 9 + [1]


def test_short_documents_are_batched_by_length(stream_of: StreamOf) -> None:
    lengths = [3, 50, 4, 51, 2, 49] * 10
    stream = stream_of(np.concatenate([np.arange(n) for n in lengths]))
    batches = list(cut_windows(stream, 64, 32, eot=0).batches(stream, 10))
    assert sum(batch.tokens.numel() for batch in batches) < 1.02 * sum(lengths)
