"""Everything that evaluation refuses, each with one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2lab import runtime
from gpt2lab.errors import InputError
from gpt2lab.evaluation.hellaswag import encode_items, hellaswag_item, read_hellaswag
from gpt2lab.evaluation.likelihood import Continuation, recall_probe, repeat_losses, score
from gpt2lab.evaluation.perplexity import HeldOut, cut_windows, loss_by_position, perplexity_of
from gpt2lab.evaluation.text_quality import judge_stories
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.tokenizer.tokenizer import Tokenizer

ENDINGS = ["is using wrap.", "is ripping tiles off.", "is holding a cube.", "starts pulling up roofing."]
ITEM = {"ind": 24, "activity_label": "Roof", "ctx": "A man is sitting on a roof. he", "endings": ENDINGS, "label": 3}


@dataclass
class Setup:
    """What the refused actions work on."""

    model: GPT
    """With a context of 24 tokens."""
    held_out_of: Callable[..., HeldOut]
    tokenizer: Tokenizer
    folder: Path

    def measure(self, tokens: int = 100, n_bytes: int = 1, words: int | None = None, **values: Any) -> object:
        return perplexity_of(self.model, self.held_out_of(np.arange(tokens) % 61, n_bytes, words=words), **values)

    def read(self, *lines: dict[str, Any] | list[int] | bytes) -> object:
        path = self.folder / "items.jsonl"
        encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(encoded))
        return read_hellaswag(path)

    def choose(self, *items: dict[str, Any], style: str = "completion") -> object:
        return encode_items(self.tokenizer, [hellaswag_item(item, "", 0) for item in items], 24, style)


@pytest.fixture
def setup(model: GPT, held_out_of: Callable[..., HeldOut], tokenizer: Tokenizer, tmp_path: Path) -> Setup:
    return Setup(model, held_out_of, tokenizer, tmp_path)


def damaged_model() -> GPT:
    model = GPT(TINY)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    return model


def scoring(context: tuple[int, ...], ids: tuple[int, ...]) -> Callable[[Setup], object]:
    return lambda s: score(s.model, [Continuation((1, 2), (3,)), Continuation(context, ids)])


def wrap_for_harness(s: Setup) -> object:
    from gpt2lab.evaluation.harness import HarnessModel

    return HarnessModel(s.model, Tokenizer.train(["a"], 256, special_tokens=()), runtime.resolve("cpu", "fp32"))


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in ITEM.items() if key != name}


REFUSALS: dict[str, tuple[Callable[[Setup], object], str]] = {
    "empty context": (scoring((), (1,)), "need at least one token each"),
    "empty continuation": (scoring((1,), ()), "need at least one token each"),
    "long continuation": (scoring((1,), (1,) * 25), "has 25 tokens, but the context length of the model is 24"),
    "NaN weights": (
        lambda s: score(damaged_model(), [Continuation((1,), (2,))]),
        "outputs NaN; its weights are",
    ),
    "long context": (lambda s: s.measure(context=25), "context is 25; it must be between 1 and 24, the context length"),
    "no context": (lambda s: s.measure(context=0), "context is 0; it must be between 1"),
    "no stride": (lambda s: s.measure(stride=0), "stride is 0; it must be between 1 and 24, the length of a window"),
    "long stride": (lambda s: s.measure(stride=25), "stride is 25"),
    "stride beyond context": (lambda s: s.measure(context=5, stride=6), "stride is 6; it must be between 1 and 5, the"),
    "no batch": (lambda s: s.measure(batch_size=0), "batch size is 0"),
    "no bytes": (lambda s: s.measure(n_bytes=0), "test: the text has 0 bytes; it must not be empty"),
    "no words": (lambda s: s.measure(words=0), "test: the text has 0 words"),
    "one token": (lambda s: s.measure(1), "test: 1 tokens, fewer than one window"),
    "short stream": (lambda s: s.measure(10, context=10), "test: 10 tokens, fewer than one window of seq_len 10"),
    "starts within a document": (
        lambda s: cut_windows(s.held_out_of(np.arange(20)).stream, 4, 4, eot=7),
        "does not begin with the end-of-text token 7",
    ),
    "short repetition": (
        lambda s: repeat_losses(s.model, torch.zeros(1, 1, dtype=torch.long)),
        "must be 2 to 12",
    ),
    "long repetition": (
        lambda s: repeat_losses(s.model, torch.zeros(1, 13, dtype=torch.long)),
        "must be 2 to 12",
    ),
    "no stories": (lambda s: judge_stories([]), "there are no stories to judge"),
    "harness without eot": (
        wrap_for_harness,
        r"begins each text with <\|endoftext\|>, which the tokenizer",
    ),
    "no items": (lambda s: s.choose(), "there are no HellaSwag items"),
    "unknown style": (lambda s: s.choose(ITEM, style="completions"), 'unknown style "completions" .*mean "completion"'),
    "long endings only": (
        lambda s: s.choose({**ITEM, "endings": ["zq" * 100, "b", "c", "d"]}),
        "none of the 1 HellaSwag items can be scored: each has an ending longer than the model's context of 24 tokens",
    ),
    "empty file": (lambda s: s.read(b"", b""), "items.jsonl: has no items"),
    "missing file": (lambda s: read_hellaswag(s.folder / "none.jsonl"), "none.jsonl: cannot be read"),
    "Latin-1 file": (lambda s: s.read(b"caf\xe9"), "items.jsonl: not UTF-8 text at byte 3"),
}
BAD_LINES: list[tuple[dict[str, Any] | list[int] | bytes, str]] = [
    (b'{"ind": 3', "not JSON"),
    ([1, 2], "not a JSON object"),
    (without("ctx"), 'field "ctx" is missing; it must be text'),
    (without("endings"), 'field "endings" is missing'),
    (without("activity_label"), 'field "activity_label" is missing'),
    (without("label"), 'field "label" is missing; it must be 0, 1, 2 or 3'),
    ({**ITEM, "label": 4}, "field \"label\" is '4'"),
    ({**ITEM, "ind": "x"}, "field \"ind\" is 'x'; it must be a whole number"),
    ({**ITEM, "ctx": 7}, "field \"ctx\" is '7'; it must be text"),
    ({**ITEM, "ctx": " \n"}, 'field "ctx" is .*; it must be text'),
    ({**ITEM, "endings": ["a", "b", "c"]}, 'field "endings" is .* list of 4 texts'),
    ({**ITEM, "endings": ["a", "b", "c", ""]}, 'field "endings"'),
]
for line, message in BAD_LINES:
    REFUSALS[message] = (lambda s, line=line: s.read(ITEM, line), rf"items\.jsonl: line 2: {message}")
TINY = GPTConfig(n_layer=1, n_head=1, n_embd=8, n_ctx=24, vocab_size=61)
for config in (replace(TINY, mask="prefix", prefix=4), replace(TINY, mask="bidirectional")):
    for name, measure in {
        "a token": lambda s, ahead: score(ahead, [Continuation((1,), (4, 5))]),
        "a continuation": lambda s, ahead: score(ahead, [Continuation((1, 2, 3), (4, 5))]),
        "perplexity": lambda s, ahead: perplexity_of(ahead, s.held_out_of(np.arange(50))),
        "positions": lambda s, ahead: loss_by_position(ahead, s.held_out_of(np.arange(50))),
        "recall": lambda s, ahead: recall_probe(ahead),
    }.items():
        REFUSALS[f"{name} under a {config.mask} mask"] = (
            lambda s, measure=measure, config=config: measure(s, GPT(config)),
            f"mask {config.mask} lets tokens attend to later ones",
        )


@pytest.mark.parametrize("case", REFUSALS)
def test_evaluation_refuses(case: str, setup: Setup) -> None:
    action, message = REFUSALS[case]
    with pytest.raises(InputError, match=message) as caught:
        action(setup)
    assert "\n" not in str(caught.value)
