from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gpt2lab.errors import InputError
from gpt2lab.evaluation.hellaswag import STYLES, HellaSwagItem, hellaswag, read_hellaswag
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.tokenizer.tokenizer import Tokenizer

ITEM = {
    "ind": 24,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "endings": ["is using wrap.", "is ripping tiles off.", "is holding a cube.", "starts pulling up roofing."],
    "label": 3,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["A man is sitting on a roof. He is holding a cube. " * 20], 300)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, n_ctx=128, vocab_size=tokenizer.n_vocab))


def write(path: Path, *items: dict[str, Any] | str) -> Path:
    lines = [item if isinstance(item, str) else json.dumps(item) for item in items]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@torch.no_grad()
def test_completion_style_is_the_published_one(
    model: GPT, tokenizer: Tokenizer, tmp_path: Path, hugging_face_twin: Callable[[GPT], Any]
) -> None:
    """Context and " " + ending encoded apart; the mean is over tokens; the lowest loss is chosen."""
    items = read_hellaswag(write(tmp_path / "a.jsonl", ITEM, {**ITEM, "ctx": "He is", "label": "1"}))
    theirs = hugging_face_twin(model)
    found = hellaswag(model, tokenizer, items)
    for item, by_sum, by_mean in zip(items, found.by_sum, found.by_mean, strict=True):
        sums, means = [], []
        for ending in item.endings:
            context, ids = tokenizer.encode(item.context), tokenizer.encode(" " + ending)
            logits = theirs(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1]
            losses = F.cross_entropy(logits, torch.tensor(ids), reduction="none")
            sums.append(float(losses.sum()))
            means.append(float(losses.mean()))
        assert (by_sum, by_mean) == (sums.index(min(sums)), means.index(min(means)))
    assert found.labels == (3, 1)
    assert found.figures == {
        "acc": sum(a == b for a, b in zip(found.by_sum, (3, 1), strict=True)) / 2,
        "acc_norm": sum(a == b for a, b in zip(found.by_mean, (3, 1), strict=True)) / 2,
    }


def test_the_harness_words_official_items_by_their_halves(tokenizer: Tokenizer) -> None:
    endings = ("is [sic] using  wrap.", "b.", "c.", "d.")
    item = HellaSwagItem(0, "Roof", "A man. [title] sits he", endings, 0, ("A man. [title] sits", "he"))
    encoded = STYLES["harness"].encode(tokenizer, item)
    assert tokenizer.decode(list(encoded[0].context)) == "Roof: A man.. sits He"
    assert tokenizer.decode(list(encoded[0].ids)) == " is using wrap."
    assert STYLES["harness"].lengths(item, encoded) == [len("is using wrap."), 2, 2, 2]


def test_the_space_before_a_last_mark_belongs_to_the_endings_as_in_the_harness(tokenizer: Tokenizer) -> None:
    from lm_eval.api.model import TemplateLM

    endings = ("[substeps] is holding.", "a roof.", "c.", "d.")
    item = HellaSwagItem(0, "Roof", "A man sits. [step]", endings, 0, ("A man sits. [step]", ""))
    theirs = SimpleNamespace(backend="causal", tok_encode=tokenizer.encode)
    for ours, ending in zip(STYLES["harness"].encode(tokenizer, item), (" is holding.", *endings[1:]), strict=True):
        pair = TemplateLM._encode_pair(theirs, "Roof: A man sits. ", f" {ending}")  # type: ignore[arg-type]
        assert (list(ours.context), list(ours.ids)) == pair


def test_an_ending_of_nothing_but_marks_is_never_chosen_by_its_mean(model: GPT, tokenizer: Tokenizer) -> None:
    """The harness divides by its 0 characters, which gives -inf."""
    item = HellaSwagItem(0, "Roof", "A man sits", ("[step]", "b.", "c.", "d."), 0)
    assert hellaswag(model, tokenizer, [item], "harness").by_mean[0] > 0


@pytest.mark.parametrize("name", STYLES)
def test_the_protocol_names_style_and_items(name: str, model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    found = hellaswag(model, tokenizer, read_hellaswag(write(tmp_path / "a.jsonl", *[ITEM] * 5)), name)
    assert STYLES[name].about in found.protocol and "5 items" in found.protocol


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in ITEM.items() if key != name}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"ind": 3', "line 2: not JSON"),
        ("[1, 2]", "line 2: not an object"),
        (without("ctx"), 'line 2: field "ctx" is missing; it must be text'),
        (without("endings"), 'line 2: field "endings" is missing'),
        (without("activity_label"), 'line 2: field "activity_label" is missing'),
        (without("label"), 'line 2: field "label" is ""; it must be 0, 1, 2 or 3'),
        ({**ITEM, "label": 4}, 'line 2: field "label" is "4"'),
        ({**ITEM, "ind": "x"}, 'line 2: field "ind" is x; it must be a whole number'),
        ({**ITEM, "ctx": 7}, 'line 2: field "ctx" is 7; it must be text'),
        ({**ITEM, "ctx": " "}, 'line 2: field "ctx" is empty'),
        ({**ITEM, "endings": ["a", "b", "c"]}, 'line 2: field "endings" is .* list of 4 texts'),
        ({**ITEM, "endings": ["a", "b", "c", ""]}, 'line 2: field "endings"'),
    ],
)
def test_a_bad_line_is_named_with_its_field(line: dict[str, Any] | str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", ITEM, line)
    with pytest.raises(InputError, match=message) as caught:
        read_hellaswag(path)
    assert "bad.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_hold_no_items_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no item"):
        read_hellaswag(write(tmp_path / "empty.jsonl", "", ""))
    with pytest.raises(InputError, match="cannot be read"):
        read_hellaswag(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8 at byte 3"):
        read_hellaswag(tmp_path / "latin.jsonl")


def test_an_ending_longer_than_the_context_is_named(model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    items = read_hellaswag(write(tmp_path / "a.jsonl", {**ITEM, "endings": ["zq" * 100, "b", "c", "d"]}))
    with pytest.raises(InputError, match="item 24: an ending of 201 tokens; the model reads 128"):
        hellaswag(model, tokenizer, items)
    with pytest.raises(InputError, match="there are no HellaSwag items"):
        hellaswag(model, tokenizer, [])
    with pytest.raises(InputError, match=r'unknown style "completions" .*did you mean "completion"'):
        hellaswag(model, tokenizer, items, "completions")
