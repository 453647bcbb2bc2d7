from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.shards import UINT16, ShardWriter, TokenStream, open_shard
from gpt2lab.errors import InputError
from gpt2lab.evaluation.perplexity import Perplexity, perplexity_of
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.tokenizer.tokenizer import Tokenizer

V, CONTEXT = 61, 24


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=3, n_embd=24, n_ctx=CONTEXT, vocab_size=V, dropout=0.2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def make_stream(directory: Path, tokens: int) -> TokenStream:
    writer = ShardWriter(directory, "test", UINT16, 37)
    writer.write(np.random.default_rng(0).integers(0, V, tokens))
    writer.finish()
    return TokenStream("test", [open_shard(path) for path in writer.paths])


@torch.no_grad()
def plain_loop(theirs: Any, ids: torch.Tensor, context: int, stride: int) -> tuple[float, int]:
    """One window after another through Hugging Face's model: mean loss, tokens scored."""
    losses: list[float] = []
    last = len(ids) - 1 - context
    begins = [*range(0, last, stride), last]
    done = 0  # targets up to this position are scored
    for begin in begins:
        logits = theirs(ids[None, begin : begin + context]).logits[0]
        each = F.cross_entropy(logits, ids[begin + 1 : begin + context + 1], reduction="none")
        losses += each[done - begin :].tolist() if done else each.tolist()
        done = begin + context
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("stride", [CONTEXT, 12, 5])
@pytest.mark.parametrize("tokens", [205, 1 + CONTEXT * 4, 30])
def test_equals_a_plain_loop_over_hugging_faces_model(
    tokens: int, stride: int, model: GPT, hugging_face_twin: Callable[[GPT], Any], tmp_path: Path
) -> None:
    stream = make_stream(tmp_path, tokens)
    ids = torch.from_numpy(stream.read(np.array([0]), tokens)[0].astype(np.int64))
    loss, scored = plain_loop(hugging_face_twin(model), ids, CONTEXT, stride)
    found = perplexity_of(model, stream, 100, stride=stride)
    assert found.tokens == scored == tokens - 1
    assert found.loss == pytest.approx(loss, abs=1e-4)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert (found.context, found.stride) == (CONTEXT, stride)


@pytest.mark.parametrize("stride", [None, 7])
def test_does_not_depend_on_the_batch_size(stride: int | None, model: GPT, tmp_path: Path) -> None:
    stream = make_stream(tmp_path, 500)
    losses = [perplexity_of(model, stream, 1, stride=stride, batch_size=n).loss for n in (1, 2, 8, 1000)]
    assert max(losses) - min(losses) < 1e-6


@torch.no_grad()
def test_by_document_each_is_read_from_its_beginning(
    model: GPT, hugging_face_twin: Callable[[GPT], Any], tmp_path: Path
) -> None:
    """Documents of 1 to 60 tokens, one by one through Hugging Face's model."""
    stream = make_stream(tmp_path, 300)
    ids = torch.from_numpy(stream.read(np.array([0]), 300)[0].astype(np.int64))
    eot = int(ids[0])
    begins = [*(ids == eot).nonzero().flatten().tolist(), 299]
    assert len(begins) > 4
    theirs, total = hugging_face_twin(model), 0.0
    for begin, end in pairwise(begins):
        for first in range(begin, end, CONTEXT):
            stop = min(first + CONTEXT, end)
            start = max(begin, stop - CONTEXT)  # the last window is moved back
            logits = theirs(ids[None, start:stop]).logits[0]
            losses = F.cross_entropy(logits, ids[start + 1 : stop + 1], reduction="none")
            total += float(losses[first - start :].sum())
    found = [perplexity_of(model, stream, 1, stride=CONTEXT, eot=eot, batch_size=n) for n in (1, 5)]
    assert [f.loss for f in found] == pytest.approx([total / 299] * 2, abs=1e-4)
    assert "windows stay within documents" in found[0].protocol


def test_runs_in_evaluation_mode_and_leaves_the_model_as_it_was(model: GPT, tmp_path: Path) -> None:
    stream = make_stream(tmp_path, 100)
    expected = perplexity_of(model.eval(), stream, 1).loss
    assert perplexity_of(model.train(), stream, 1).loss == expected
    assert model.training


def test_context_and_stride_default_to_the_models_and_half_of_it(model: GPT, tmp_path: Path) -> None:
    stream = make_stream(tmp_path, 100)
    found = perplexity_of(model, stream, 1)
    assert (found.context, found.stride) == (CONTEXT, CONTEXT // 2)
    found = perplexity_of(model, stream, 1, context=9)
    assert (found.context, found.stride) == (9, 5)


@pytest.mark.parametrize("tokens", [2, 3, CONTEXT])
def test_a_stream_shorter_than_the_context_is_one_window(tokens: int, model: GPT, tmp_path: Path) -> None:
    found = perplexity_of(model, make_stream(tmp_path, tokens), 1)
    assert (found.tokens, found.context) == (tokens - 1, tokens - 1)


def test_progress_counts_scored_tokens_to_the_last(model: GPT, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    perplexity_of(model, make_stream(tmp_path, 200), 1, batch_size=3, progress=lambda *now: seen.append(now))
    assert seen == sorted(seen)
    assert len(seen) > 2
    assert seen[-1] == (199, 199)


def test_figures_by_hand() -> None:
    found = Perplexity(loss=2 * math.log(2), tokens=300, bytes=1000, context=64, stride=16, entropy_bits=500.0)
    assert found.figures == pytest.approx(
        {"loss": 2 * math.log(2), "perplexity": 4.0, "bits_per_byte": 0.6, "entropy_floor": 0.5, "gap_percent": 20.0}
    )


def test_without_a_known_entropy_there_is_no_gap() -> None:
    found = Perplexity(loss=1.0, tokens=3, bytes=9, context=4, stride=2)
    assert found.entropy_floor is None
    assert found.gap_percent is None
    assert set(found.figures) == {"loss", "perplexity", "bits_per_byte"}


def test_per_word_by_hand() -> None:
    found = Perplexity(loss=math.log(2), tokens=300, bytes=1000, context=64, stride=16, words=100)
    assert found.figures["word_perplexity"] == pytest.approx(8.0)
    assert found.protocol.endswith("bytes of the text, word perplexity over its 100 whitespace-separated words.")


def test_a_hopeless_model_has_an_infinite_perplexity() -> None:
    assert Perplexity(loss=800.0, tokens=3, bytes=9, context=4, stride=2).perplexity == math.inf
    assert math.isnan(Perplexity(loss=math.nan, tokens=3, bytes=9, context=4, stride=2).perplexity)


def test_the_protocol_says_all_of_it_in_one_sentence() -> None:
    found = Perplexity(loss=1.0, tokens=12345, bytes=54321, context=1024, stride=512)
    assert found.protocol == (
        "Each of 12,345 tokens (all but the first of the stream) is scored once, in windows of 1,024 tokens with "
        "stride 512, after at least 513 tokens of context (fewer in the first window); windows reach across document "
        "boundaries; bits per byte are over the 54,321 bytes of the text."
    )


def test_on_stories_the_gap_to_the_entropy_is_known(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a"], 257)
    directory = tmp_path / "data"
    prepare(["stories"], tokenizer, directory, max_documents=300)
    dataset = TokenDataset(directory)
    split = dataset.manifest.splits["test"]
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, n_ctx=64, vocab_size=tokenizer.n_vocab))
    found = perplexity_of(model, dataset.stream("test"), split.bytes, entropy_bits=split.entropy_bits)
    assert found.tokens == split.tokens - 1
    assert found.bits_per_byte == pytest.approx(8.0, abs=0.2)  # knows nothing: log2(257) for each byte
    assert found.entropy_floor is not None
    assert 0.0 < found.entropy_floor < 2.0
    assert found.gap_percent == pytest.approx(100 * (found.bits_per_byte / found.entropy_floor - 1))


@pytest.mark.parametrize(
    ("tokens", "values", "message"),
    [
        (100, {"context": CONTEXT + 1}, "context is 25; it must be between 1 and 24, the context length of the model"),
        (100, {"context": 0}, "context is 0; it must be between 1"),
        (100, {"stride": 0}, "stride is 0; it must be between 1 and 24, the length of a window"),
        (100, {"stride": 25}, "stride is 25"),
        (100, {"context": 5, "stride": 6}, "stride is 6; it must be between 1 and 5, the length of a window"),
        (100, {"batch_size": 0}, "batch size is 0"),
        (100, {"text_bytes": 0}, "test: the text has 0 bytes; it must not be empty"),
        (100, {"words": 0}, "test: the text has 0 words"),
        (1, {}, "test: 1 tokens, fewer than one window"),
        (10, {"context": 10}, "test: 10 tokens, fewer than one window of seq_len 10"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    tokens: int, values: dict[str, Any], message: str, model: GPT, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        perplexity_of(model, make_stream(tmp_path, tokens), **{"text_bytes": 1, **values})
    assert "\n" not in str(caught.value)
