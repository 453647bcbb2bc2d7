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

from gpt2lab.data.prepare import prepare
from gpt2lab.evaluation.measure import wikitext
from gpt2lab.evaluation.perplexity import HeldOut, Perplexity, cut_windows, loss_by_position, perplexity_of
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.tokenizer.tokenizer import Tokenizer

V, CONTEXT = 61, 24
HeldOutOf = Callable[..., HeldOut]


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
    tokens: int, stride: int, model: GPT, hugging_face_twin: Callable[[GPT], Any], held_out_of: HeldOutOf
) -> None:
    ids, last = random_ids(tokens), tokens - 1 - CONTEXT
    theirs, losses = hugging_face_twin(model), []
    for start in (*range(0, last, stride), last):
        losses += hugging_face_losses(theirs, ids, start, start + CONTEXT)[len(losses) - start :]
    found = perplexity_of(model, held_out_of(ids), stride=stride)
    loss = sum(losses) / len(losses)
    assert found.tokens == len(losses) == tokens - 1
    assert found.loss == pytest.approx(loss, abs=1e-4)
    assert found.figures["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert (found.context, found.stride) == (CONTEXT, stride)


def test_by_document_each_is_read_from_its_start(
    model: GPT, hugging_face_twin: Callable[[GPT], Any], held_out_of: HeldOutOf
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
    text = held_out_of(ids, eot=int(ids[0]))
    found = [perplexity_of(model, text, stride=CONTEXT, by_document=True, batch_size=n) for n in (1, 5)]
    assert [f.loss for f in found] == pytest.approx([total / 299] * 2, abs=1e-4)
    assert "windows stay within documents" in found[0].protocol


@pytest.mark.parametrize("stride", [None, 7])
def test_neither_batch_size_nor_training_mode_affects_the_loss(
    stride: int | None, model: GPT, held_out_of: HeldOutOf
) -> None:
    text, seen = held_out_of(random_ids(500)), list[tuple[int, int]]()
    expected = perplexity_of(model.eval(), text, stride=stride).loss
    assert perplexity_of(model.train(), text, stride=stride, progress=lambda *now: seen.append(now)).loss == expected
    assert model.training
    assert seen == sorted(seen) and len(seen) > 2 and seen[-1] == (499, 499)
    for batch_size in (1, 2, 3, 1000):
        found = perplexity_of(model, text, stride=stride, batch_size=batch_size)
        assert found.loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "context", "window", "stride"),
    [(200, None, CONTEXT, CONTEXT // 2), (200, 9, 9, 5), (2, None, 1, 1), (3, None, 2, 1), (CONTEXT, None, 23, 12)],
)
def test_default_window_is_the_context_or_a_shorter_stream_and_the_stride_half_of_it(
    tokens: int, context: int | None, window: int, stride: int, model: GPT, held_out_of: HeldOutOf
) -> None:
    found = perplexity_of(model, held_out_of(random_ids(tokens)), context)
    assert (found.tokens, found.context, found.stride) == (tokens - 1, window, stride)


def test_figures_and_protocol_by_hand(held_out_of: HeldOutOf) -> None:
    def result(loss: float, tokens: int = 300, context: int = 64, stride: int = 16, **text: Any) -> Perplexity:
        return Perplexity(loss, tokens, context, stride, False, held_out_of([0, 1], **text))

    known = result(2 * math.log(2), entropy_bits=500.0)
    expected = {"loss": 2 * math.log(2), "perplexity": 4.0, "bits_per_byte": 0.6}
    assert known.figures == pytest.approx({**expected, "entropy_floor": 0.5, "gap_percent": 20.0})
    assert result(2 * math.log(2)).figures == pytest.approx(expected)
    words = result(math.log(2), words=100)
    assert words.figures["word_perplexity"] == pytest.approx(8.0)
    assert words.protocol.endswith("bytes of the text, word perplexity over its 100 whitespace-separated words.")
    assert result(800.0).figures["perplexity"] == math.inf
    assert math.isnan(result(math.nan).figures["perplexity"])
    assert result(1.0, 12345, 1024, 512, n_bytes=54321, preparation="Cleaned. ").protocol == (
        "Cleaned. Each of 12,345 tokens (all but the first of the stream) is scored once, in windows of 1,024 tokens "
        "with stride 512, after at least 513 tokens of context (fewer in the first window); windows reach across "
        "document boundaries; bits per byte are over the 54,321 bytes of the text."
    )


def test_on_stories_the_gap_to_the_entropy_is_known(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a"], 257)
    dataset = prepare(["stories"], tokenizer, tmp_path / "data", max_documents=300)
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, n_ctx=64, vocab_size=tokenizer.n_vocab))
    found = perplexity_of(model, HeldOut.of_split(dataset, "test"))
    assert found.tokens == dataset.manifest.splits["test"].tokens - 1
    bits, floor, gap = (found.figures[name] for name in ("bits_per_byte", "entropy_floor", "gap_percent"))
    assert bits == pytest.approx(8.0, abs=0.2)  # knows nothing: log2(257) for each byte
    assert 0.0 < floor < 2.0
    assert gap == pytest.approx(100 * (bits / floor - 1))


@given(st.integers(2, 120), st.data())
@settings(max_examples=60)
def test_windows_score_each_token_but_the_first_once(held_out_of: HeldOutOf, tokens: int, data: st.DataObject) -> None:
    context = data.draw(st.integers(1, tokens - 1))
    stride = data.draw(st.integers(1, context))
    scored: Counter[int] = Counter()
    stream = held_out_of(np.arange(tokens)).stream
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
def test_by_document_windows_stay_within_one(held_out_of: HeldOutOf, lengths: list[int], data: st.DataObject) -> None:
    """Ids tell document and position: 0 begins each, then 100 * document + position."""
    ids = [i for d, n in enumerate(lengths) for i in (0, *range(100 * d + 1, 100 * d + 1 + n))]
    context = data.draw(st.integers(1, 20))
    stride = data.draw(st.integers(1, context))
    scored: Counter[int] = Counter()
    stream = held_out_of(ids).stream
    for batch in cut_windows(stream, context, stride, eot=0).batches(stream, data.draw(st.integers(1, 5))):
        scored.update(batch.targets[batch.scored].tolist())
        for tokens, row in zip(batch.tokens.tolist(), batch.scored.tolist(), strict=True):
            read = tokens[: max(position for position, is_scored in enumerate(row) if is_scored) + 1]
            assert 0 not in read[1:]  # nothing after the end of its document
            assert len({token // 100 for token in read if token}) <= 1
    assert scored == Counter(ids[1:])


def test_the_last_window_ends_with_the_stream_and_short_documents_are_batched_by_length(held_out_of: HeldOutOf) -> None:
    windows = cut_windows(held_out_of(np.arange(1000)).stream, 100, 100)
    assert windows.starts.tolist() == [0, 100, 200, 300, 400, 500, 600, 700, 800, 899]
    assert windows.firsts.tolist() == [0] * 9 + [1]
    lengths = [3, 50, 4, 51, 2, 49] * 10
    stream = held_out_of(np.concatenate([np.arange(n) for n in lengths])).stream
    batches = list(cut_windows(stream, 64, 32, eot=0).batches(stream, 10))
    assert sum(batch.tokens.numel() for batch in batches) < 1.02 * sum(lengths)


IDS = np.random.default_rng(3).integers(0, V, 1 + 6 * CONTEXT)
IDS[[0, 20, 27, 60]] = 0


def test_loss_at_each_position_is_the_mean_over_windows_without_overlap(model: GPT, held_out_of: HeldOutOf) -> None:
    inputs, targets = (torch.from_numpy(ids).view(6, CONTEXT) for ids in (IDS[:-1], IDS[1:]))
    with torch.no_grad():
        logits = model.eval()(inputs).logits
    assert logits is not None
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(6, CONTEXT).mean(0)
    curve = loss_by_position(model, held_out_of(IDS), batch_size=4)
    assert curve.losses == pytest.approx(expected.tolist(), abs=1e-5)
    assert curve.tokens == (6,) * CONTEXT


@pytest.mark.parametrize("by_document", [False, True])
def test_mean_over_positions_is_the_loss_of_the_perplexity(
    by_document: bool, model: GPT, held_out_of: HeldOutOf
) -> None:
    text = held_out_of(IDS)
    curve = loss_by_position(model, text, by_document=by_document)
    whole = perplexity_of(model, text, stride=CONTEXT, by_document=by_document)
    scored = [(loss, n) for loss, n in zip(curve.losses, curve.tokens, strict=True) if loss is not None]
    assert sum(n for _, n in scored) == whole.tokens
    assert sum(loss * n for loss, n in scored) / whole.tokens == pytest.approx(whole.loss, abs=1e-6)


def test_position_that_no_document_reaches_has_no_loss(model: GPT, held_out_of: HeldOutOf) -> None:
    curve = loss_by_position(model, held_out_of([0, 1, 2, 0, 3, 0, 4, 5, 6, 0, 7, 8]), context=8, by_document=True)
    assert curve.tokens == (4, 4, 2, 1, 0, 0, 0, 0)
    assert [loss is None for loss in curve.losses] == [False] * 4 + [True] * 4
    assert "within documents" in curve.protocol


@pytest.mark.parametrize(
    ("given", "as_written"),
    [
        (" = Homarus gammarus = \n", "= Homarus gammarus =\n"),
        (" = = = Early life = = = \n", "=== Early life ===\n"),
        (" 1 @,@ 200 km ( 750 mi ) , 0 @.@ 5 % , a far @-@ off isle \n", "1,200 km (750 mi), 0.5%, a far-off isle\n"),
        (' It was " a <unk> " , he said . ', 'It was "a <unk>", he said.'),
        (" The dogs ' owner 's hat ; they 've gone , I 'm not . ", "The dogs' owner's hat; they've gone, I'm not."),
        (" weighing $ 5 – 6 and £ 7 [ sic ] : ", "weighing $5–6 and £7 [sic]:"),
        ("Nothing to do here - \"really\".", "Nothing to do here - \"really\"."),
    ],
)  # fmt: skip
def test_wikitext_becomes_ordinary_text(given: str, as_written: str) -> None:
    assert wikitext(given) == as_written


def test_no_artifact_of_the_tokenization_remains(wikitext2: Path) -> None:
    given = wikitext2.read_text(encoding="utf-8")
    text = wikitext(given)
    assert text.count("\n") == given.count("\n")
    for artifact in (" @-@ ", " @,@ ", " @.@ ", " , ", " . ", " )", "( ", " 's ", " \n", "\n "):
        assert artifact not in text
    assert text.count("<unk>") == given.count("<unk>")
