from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

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
def model(tokenizer: Tokenizer) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, n_ctx=128, vocab_size=tokenizer.n_vocab))


def written(folder: Path, *items: dict[str, Any]) -> list[HellaSwagItem]:
    """Write items to a file and read them."""
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return read_hellaswag(folder / "items.jsonl")


@torch.no_grad()
def test_completion_style_chooses_the_lowest_loss_of_hugging_faces_model(
    model: GPT, tokenizer: Tokenizer, tmp_path: Path, hugging_face_twin: Callable[[GPT], Any]
) -> None:
    """Context and " " + ending are encoded separately; the mean is over tokens."""
    items = written(tmp_path, ITEM, {**ITEM, "ctx": "He is", "label": "1"})
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


def test_harness_style_capitalizes_the_second_half_of_the_context(tokenizer: Tokenizer) -> None:
    endings = ("is [sic] using  wrap.", "b.", "c.", "d.")
    item = HellaSwagItem(0, "Roof", "A man. [title] sits he", endings, 0, ("A man. [title] sits", "he"))
    encoded, lengths = STYLES["harness"].encode(tokenizer, item)
    assert tokenizer.decode(list(encoded[0].context)) == "Roof: A man.. sits He"
    assert tokenizer.decode(list(encoded[0].ids)) == " is using wrap."
    assert lengths == [len("is using wrap."), 2, 2, 2]


def test_space_before_a_final_marker_belongs_to_the_endings_as_in_the_harness(tokenizer: Tokenizer) -> None:
    from lm_eval.api.model import TemplateLM

    endings = ("[substeps] is holding.", "a roof.", "c.", "d.")
    item = HellaSwagItem(0, "Roof", "A man sits. [step]", endings, 0, ("A man sits. [step]", ""))
    theirs = SimpleNamespace(backend="causal", tok_encode=tokenizer.encode)
    for ours, ending in zip(STYLES["harness"].encode(tokenizer, item)[0], (" is holding.", *endings[1:]), strict=True):
        pair = TemplateLM._encode_pair(theirs, "Roof: A man sits. ", f" {ending}")  # type: ignore[arg-type]
        assert (list(ours.context), list(ours.ids)) == pair


def test_ending_with_nothing_but_markers_is_never_chosen_by_mean(model: GPT, tokenizer: Tokenizer) -> None:
    """The harness divides by its 0 characters, which gives -inf."""
    item = HellaSwagItem(0, "Roof", "A man sits", ("[step]", "b.", "c.", "d."), 0)
    assert hellaswag(model, tokenizer, [item], "harness").by_mean[0] > 0


@pytest.mark.parametrize("name", STYLES)
def test_protocol_names_style_and_number_of_items(name: str, model: GPT, tokenizer: Tokenizer, tmp_path: Path) -> None:
    found = hellaswag(model, tokenizer, written(tmp_path, *[ITEM] * 5), name)
    assert STYLES[name].about in found.protocol and "5 items" in found.protocol
