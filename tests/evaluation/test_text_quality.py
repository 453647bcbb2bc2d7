"""Metrics of texts by hand and by sacrebleu, and the comparison of decoding strategies that they make."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import sentence_bleu

from gpt2lab import runtime
from gpt2lab.cli.evaluate import table_of
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import texts
from gpt2lab.errors import InputError
from gpt2lab.evaluation.text_quality import (
    HELD_OUT,
    METRICS,
    TEXT_FILE,
    Row,
    ScoredText,
    TextQuality,
    TextSet,
    choose_prompts,
    ends_in_a_loop,
    judge_stories,
    measure_texts,
    save_text_quality,
    text_stats,
)
from gpt2lab.generation import DecodingStrategy
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.stories.corpus import parse, stories
from gpt2lab.tokenizer.tokenizer import Tokenizer

STORIES = [story.text for story in islice(stories(seed=5), 8)]


def texts_of(*continuations: str, prompt: str = "") -> TextSet:
    """Texts in which each word is a token of 1 nat."""
    texts = tuple(
        ScoredText(prompt, text, tuple(hash(word) for word in text.split()), float(len(text.split())), True)
        for text in continuations
    )
    return TextSet(texts, continuations, stories=False)


UNEQUAL = (ScoredText("", "a", (1, 2, 3), 6.0, True), ScoredText("", "b", (4,), 1.0, True))
CATS = ["the cat sat on the mat .", "the dog sat on the mat .", "a boat came to the old harbor at night ."]
CATS_BLEU = sum(sentence_bleu(text, [other for other in CATS if other != text]).score for text in CATS) / 3
LOST = "One day Lily lost her big red boat in the park."


@pytest.mark.parametrize(
    ("metric", "texts", "expected"),
    [
        ("perplexity", TextSet(UNEQUAL, ("", ""), False), math.exp(7 / 4)),  # over all tokens
        ("mean_length", TextSet(UNEQUAL, ("", ""), False), 2.0),
        ("distinct_1", texts_of("a b a b", "a c"), 3 / 6),
        ("distinct_2", texts_of("a b a b", "a c"), 3 / 4),  # ab ba ab ac
        ("distinct_3", texts_of("a b a b", "a c"), 2 / 2),  # aba bab
        ("distinct_3", texts_of("a b", "c"), None),
        ("repetition", texts_of("so on so on so on", "it ended well", "a b a b a b", "a"), 0.5),
        ("self_bleu", texts_of(*CATS), CATS_BLEU),
        ("self_bleu", texts_of("same words in each", "same words in each"), 100.0),
        ("self_bleu", texts_of("only one"), None),
        ("relevance", texts_of("Lily found the boat.", "He slept.", prompt=LOST), 2 / 3 / 2),
        ("relevance", texts_of("A lily in a boat in the park.", prompt=LOST), 1.0),  # no other names and objects
        ("relevance", texts_of("Lily slept.", prompt="then and there"), None),
        ("grammatical", texts_of(*STORIES), None),
    ],
)
def test_metrics_by_hand(metric: str, texts: TextSet, expected: float | None) -> None:
    assert text_stats(texts).get(metric) == METRICS[metric](texts) == (expected and pytest.approx(expected))


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([1, 2, 1, 2, 1, 2], True),
        ([9, 9, 1, 2, 3, 1, 2, 3, 1, 2, 3], True),
        ([1, 2, 3, 1, 2, 3, 1, 2], False),
        ([1, 2, 1, 2], False),
        ([5, 5, 5], False),
        ([5] * 6, True),
        ([], False),
    ],
)
def test_loop_is_a_phrase_of_two_tokens_three_times_at_the_end(ids: list[int], loops: bool) -> None:
    assert ends_in_a_loop(ids) == loops


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9), min_size=2, max_size=6))
def test_any_phrase_three_times_is_a_loop_whatever_precedes_it(before: list[int], phrase: list[int]) -> None:
    assert ends_in_a_loop([*before, *phrase * 3])
    assert not ends_in_a_loop([*range(10, 10 + len(before)), *dict.fromkeys(phrase)])


def test_truncated_stories_count_as_wrong() -> None:
    texts = tuple(ScoredText(text[:20], text[20:], (1,), 1.0, True) for text in STORIES[:4])
    figures = text_stats(TextSet(texts, (), stories=True))
    assert (figures["grammatical"], figures["consistent"]) == (1.0, 1.0)
    cut = tuple(ScoredText(t.prompt, t.continuation, t.ids, t.nats, n < 2) for n, t in enumerate(texts))
    assert text_stats(TextSet(cut, (), stories=True))["grammatical"] == 0.5


def test_metric_is_registered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example in docs/metrics.md."""
    from sacrebleu.metrics.bleu import BLEU

    def bleu(text_set: TextSet) -> float:
        return BLEU().corpus_score([text.continuation for text in text_set.texts], [list(text_set.references)]).score

    monkeypatch.setitem(METRICS, "bleu", bleu)
    assert text_stats(texts_of("the cat sat on the mat .", "a boat came at night ."))["bleu"] == pytest.approx(100.0)


def contradict(text: str) -> str:
    """Change one word of a story so that it remains grammatical but contradicts itself."""
    words = sorted({word.strip(".,!?\"'") for word in text.split()} - {""})
    for old in words:
        for new in words:
            changed = new.join(text.rsplit(old, 1))
            verdict = parse(changed)
            if verdict.grammatical and not verdict.consistent:
                return changed
    raise AssertionError("no word of this story can be changed so")


def test_stories_are_judged_whole_and_their_first_errors_are_named() -> None:
    quality = judge_stories(STORIES)
    assert (quality.texts, quality.figures, quality.errors) == (8, {"grammatical": 1.0, "consistent": 1.0}, ())
    assert quality.protocol.startswith("Shares of 8 whole texts that the grammar of the stories can generate")
    texts = [*STORIES[2:6], STORIES[0][:-20], contradict(STORIES[1]), "Hello.", ""]
    quality = judge_stories(texts)
    assert quality.figures == {"grammatical": 5 / 8, "consistent": 4 / 8}
    assert [error.split(",")[0] for error in quality.errors] == ["text 4", "text 5", "text 6", "text 7"]
    for limit in (0, 2):
        assert judge_stories(texts, errors=limit).errors == quality.errors[:limit]


def test_errors_name_the_character_and_show_the_surrounding_text() -> None:
    text = STORIES[0]
    wrong = text[: text.index(" ", len(text) // 2) + 1] + "zebras\nsing."
    (broken,) = judge_stories([text, wrong]).errors
    verdict = parse(wrong)
    excerpt = broken.removeprefix(f"text 1, character {verdict.offset}: {verdict.message}: ")
    assert excerpt != broken and ">>>" in excerpt
    assert excerpt.replace(">>>", "") in wrong.replace("\n", " ")


N_CTX = 256
SMALL = {"samples": 8, "prompt_tokens": 205, "max_new_tokens": 48}
"""Most of a story is given, so that little is left to write."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    tokenizer = Tokenizer.train(texts(["stories"], max_documents=200), 1024)
    return prepare(
        ["stories"], tokenizer, tmp_path_factory.mktemp("quality") / "data", max_documents=400, test_fraction=0.5
    )


@pytest.fixture(scope="module")
def model(dataset: TokenDataset) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=1, n_head=1, n_embd=16, n_ctx=N_CTX, vocab_size=dataset.manifest.tokenizer.n_vocab))


@pytest.fixture(scope="module")
def quality(model: GPT, dataset: TokenDataset) -> TextQuality:
    prompts = choose_prompts(dataset, "test", N_CTX, **SMALL)
    return measure_texts(model, dataset.tokenizer(), prompts, runtime.resolve("cpu", "fp32"), seed=1)


def test_prompts_begin_documents_that_fit_whole(dataset: TokenDataset) -> None:
    prompts = choose_prompts(dataset, "test", N_CTX, 8, prompt_tokens=20)
    tokenizer, held_out = dataset.tokenizer(), set(dataset.documents("test"))
    assert prompts.tokens.shape == (8, 21) and prompts.whole and prompts.stories
    for beginning, ending in zip(prompts.tokens.tolist(), prompts.endings, strict=True):
        assert (beginning[0], ending[-1]) == (prompts.eot, prompts.eot)
        assert len(beginning) + len(ending) <= N_CTX + 1
        assert tokenizer.decode([*beginning[1:], *ending[:-1]]) in held_out


def test_of_few_long_documents_stretches_are_taken(tmp_path: Path, dataset: TokenDataset) -> None:
    text = tmp_path / "long.txt"
    text.write_text(" ".join(f"word{n % 97}" for n in range(3000)), encoding="utf-8")
    one = prepare([str(text)], dataset.tokenizer(), tmp_path / "data", val_fraction=0, test_fraction=0.5)
    prompts = choose_prompts(one, "test", 64, 5)
    assert prompts.tokens.shape == (5, 16) and not prompts.whole and not prompts.stories
    assert [len(ending) for ending in prompts.endings] == [48] * 5


def test_every_setting_is_measured_beside_the_held_out_text(quality: TextQuality) -> None:
    names = [row.name for row in quality.rows]
    assert names[:2] == [HELD_OUT, "greedy"] and len(names) == len(set(names)) == 12
    assert {"temperature 0.8", "top-k 50", "nucleus 0.95"} <= set(names)
    for row in quality.rows:
        assert row.figures.keys() <= METRICS.keys() and "perplexity" in row.figures and "grammatical" in row.figures
    held_out = quality.rows[0].figures
    assert (held_out["grammatical"], held_out["consistent"], held_out["repetition"]) == (1.0, 1.0, 0.0)
    by_name = {row.name: row.figures for row in quality.rows}
    assert by_name["greedy"]["perplexity"] < by_name["top-k 5"]["perplexity"] < by_name["temperature 1.0"]["perplexity"]
    assert "8 prompts" in quality.protocol


def test_the_same_seed_writes_the_same_texts(quality: TextQuality, model: GPT, dataset: TokenDataset) -> None:
    prompts = choose_prompts(dataset, "test", N_CTX, **SMALL)
    where = runtime.resolve("cpu", "fp32")
    again = measure_texts(model, dataset.tokenizer(), prompts, where, seed=1)
    other = measure_texts(model, dataset.tokenizer(), prompts, where, seed=2)
    assert again.examples == quality.examples
    assert other.examples != quality.examples
    assert [e.held_out for e in other.examples] == [e.held_out for e in quality.examples]


def test_it_is_kept_as_json_with_a_picture(quality: TextQuality, tmp_path: Path) -> None:
    file, picture, page = save_text_quality(Run(tmp_path), 30, "test", quality)
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert (kept["step"], kept["split"], kept["protocol"]) == (30, "test", quality.protocol)
    assert [row["name"] for row in kept["rows"]] == [row.name for row in quality.rows]
    assert kept["rows"][0]["strategy"] is None and kept["rows"][1]["strategy"]["greedy"] is True
    assert kept["rows"][3]["figures"] == quality.rows[3].figures
    assert kept["examples"][0]["completions"].keys() == {row.name for row in quality.rows[1:]}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert table_of(quality, "a title").row_count == 12
    assert Run(tmp_path).saved_evaluation(TEXT_FILE, TextQuality) == quality
    read = page.read_text(encoding="utf-8")
    assert "](text.png)" in read and quality.protocol in read and "| nucleus 0.95 |" in read
    for name in (HELD_OUT, "greedy", "temperature 1.0", "nucleus 0.9"):
        assert read.count(f"> *{name}:* ") == len(quality.examples) == 4


def row(name: str, strategy: DecodingStrategy | None, perplexity: float, self_bleu: float, grammatical: float) -> Row:
    figures = {"perplexity": perplexity, "self_bleu": self_bleu, "grammatical": grammatical, "repetition": 0.25}
    return Row(name, strategy, figures)


def test_strategies_as_diverse_as_the_held_out_text_are_compared() -> None:
    rows = (
        row(HELD_OUT, None, 2.0, 70.0, 1.0),
        row("greedy", DecodingStrategy(greedy=True), 1.5, 95.0, 1.0),
        row("temperature 0.5", DecodingStrategy(temperature=0.5), 1.8, 80.0, 0.99),
        row("temperature 1.0", DecodingStrategy(), 2.1, 69.0, 0.625),
        row("nucleus 0.9", DecodingStrategy(top_p=0.9), 1.9, 70.5, 0.97),
        row("nucleus 0.5", DecodingStrategy(top_p=0.5), 1.7, 85.0, 1.0),
    )
    likeliest, diverse = TextQuality(rows, (), "a protocol").findings
    assert "self-BLEU 95.0 against 70.0" in likeliest and "25.0\u00a0% of its texts end in a loop" in likeliest
    assert "temperature 1.0 (self-BLEU 69.0): perplexity 2.10, 62.5\u00a0% grammatical" in diverse
    assert "nucleus 0.9 (self-BLEU 70.5): perplexity 1.90, 97.0\u00a0% grammatical" in diverse
    assert "0.5" not in diverse.replace("70.5", "")
    assert TextQuality(rows[1:], (), "without held-out text").findings == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": 1}, "samples is 1"),
        ({"prompt_tokens": 0}, "prompt_tokens is 0"),
        ({"prompt_tokens": 200, "max_new_tokens": 57}, "both together at most the 256 tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"samples": 100_000}, "too few for 100000 prompts"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(values: dict[str, int], message: str, dataset: TokenDataset) -> None:
    with pytest.raises(InputError, match=message):
        choose_prompts(dataset, "test", N_CTX, **{"samples": 4, **values})
