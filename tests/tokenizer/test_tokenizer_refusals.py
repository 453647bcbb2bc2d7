"""Everything that the tokenizer refuses, with its message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2lab import Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.pretokenize import find_pattern

DAMAGED = "not in the expected format"
GPT2_NEEDS = r"it needs encoder.json and vocab.bpe, or vocab.json and merges.txt"


def train(vocab_size: int = 300, special_tokens: Any = ("<|endoftext|>",), texts: Any = ("low low",), **more: Any):
    return lambda tiny, folder: Tokenizer.train(texts, vocab_size, special_tokens, **more)


def decode(number: int):
    return lambda tiny, folder: tiny.decode([1, number])


def pattern(expression: str):
    return lambda tiny, folder: find_pattern(expression)


def load(*below: str):
    return lambda tiny, folder: Tokenizer.load(folder.joinpath(*below))


def export(form: str, *below: str, pattern: str = "gpt2"):
    def action(tiny: Tokenizer, folder: Path) -> None:
        (folder / "file").write_text("x", encoding="utf-8")
        Tokenizer.train([], 256, (), pattern=pattern).export(folder.joinpath(*below), form)

    return action


def damaged(name: str, content: bytes):
    """Save the tokenizer and export GPT-2's files, replace one, and read it."""

    def action(tiny: Tokenizer, folder: Path) -> None:
        tiny.export(folder, "gpt2")
        tiny.save(folder)
        (folder / name).write_bytes(content)
        (Tokenizer.gpt2 if name in ("vocab.json", "merges.txt") else Tokenizer.load)(folder)

    return action


def gpt2_with(*present: str):
    def action(tiny: Tokenizer, folder: Path) -> None:
        for name in present:
            (folder / name).write_text("{}", encoding="utf-8")
        Tokenizer.gpt2(folder)

    return action


REFUSALS: dict[str, tuple[Callable[[Tokenizer, Path], object], str]] = {
    # training
    "no room for bytes": (train(0, []), "a vocabulary of 0 is too small: give at least 256"),
    "no room for special tokens": (train(256), "is too small: give at least 257 (256 bytes and 1 special tokens)"),
    "special token twice": (train(special_tokens=["<|a|>", "b", "<|a|>"]), "'<|a|>' is given 2 times; give each once"),
    "empty special token": (train(special_tokens=[""]), "a special token is empty"),
    "ordinary special token": (train(special_tokens=["a"]), "the special token 'a' is also an ordinary token"),
    "surrogate in a special token": (train(special_tokens=["\ud800"]), "holds half a surrogate pair"),
    "no texts": (train(texts=[]), "there is no text to train a tokenizer on"),
    "an empty text": (train(texts=[""]), "there is no text to train a tokenizer on"),
    "empty texts": (train(texts=["", ""]), "there is no text to train a tokenizer on"),
    "min_frequency 0": (train(min_frequency=0), "min_frequency 0 and processes None must be 1 or more"),
    "no processes": (train(processes=0), "min_frequency 2 and processes 0 must be 1 or more"),
    "a single str": (train(texts="some text"), "the texts to train on are a single str; give a list"),
    # patterns
    "unknown pattern": (
        pattern("gtp2"),
        'unknown splitting pattern "gtp2" (did you mean "gpt2"?); choose from gpt2, cl',
    ),
    "invalid pattern": (pattern("("), "'(' is not a regular expression: missing )"),
    "pattern of nothing": (pattern(r"\d*"), "matches the empty text; each match must take a character"),
    "pattern of another dialect": (pattern("[[a-z]&&[aeiou]]+"), "which engines read differently; list characters"),
    "pattern unknown to tiktoken": (pattern(r"\p{L}{1000}|b"), "cannot be read by tiktoken"),
    # encoding and decoding
    "negative id": (decode(-1), "the id -1 is outside the vocabulary; ids are 0 to 261"),
    "id after the last": (decode(262), "the id 262 is outside the vocabulary"),
    "huge id": (decode(10**9), "the id 1000000000 is outside the vocabulary"),
    "unknown special token": (
        lambda tiny, folder: tiny.encode("a", allowed_special=["<|endtext|>"]),
        'unknown special token "<|endtext|>" (did you mean "<|endoftext|>"?)',
    ),
    # writing
    "unknown format": (export("tiktokn"), 'unknown format "tiktokn" (did you mean "tiktoken"?)'),
    "format without patterns": (
        export("gpt2", pattern="cl100k"),
        "pattern, but this tokenizer has cl100k; use tokenizer",
    ),
    "directory that is a file": (export("tiktoken", "file"), "is a file, or lies below one; give a directory"),
    "directory below a file": (export("tiktoken", "file", "below"), "is a file, or lies below one; give a directory"),
    # reading
    "directory without tokenizer": (
        load(),
        "holds no tokenizer; it needs tokenizer.json, or vocab.json and merges.txt",
    ),
    "missing directory": (load("no"), "does not exist; give a directory, or a name on the Hub: gpt2 or hub:OWNER/NAME"),
    "empty file": (damaged("tokenizer.json", b""), "not JSON at line 1"),
    "truncated file": (damaged("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a"'), "not JSON at line 1"),
    "binary file": (damaged("tokenizer.json", b"\xff\xfe{}"), "not UTF-8 text at byte 0"),
    "JSON list": (damaged("tokenizer.json", b"[1, 2]"), f"tokenizer.json: {DAMAGED}"),
    "a special token with two ids": (
        damaged("added_tokens.json", b'{"<|endoftext|>": 4}'),
        "the special token '<|endoftext|>' has two ids, 261 and 4",
    ),
    "a space before each text": (
        damaged("tokenizer_config.json", b'{"add_prefix_space": true}'),
        "tokenizer_config.json: it puts a space before each text (add_prefix_space)",
    ),
    "an added token that strips": (
        damaged("tokenizer_config.json", b'{"added_tokens_decoder": {"9": {"content": "<m>", "lstrip": 1}}}'),
        "tokenizer_config.json: its added token '<m>' has lstrip",
    ),
    "settings that are no object": (damaged("tokenizer_config.json", b"[1]"), f"tokenizer_config.json: {DAMAGED}"),
    "added tokens that are no object": (damaged("added_tokens.json", b"[1]"), f"added_tokens.json: {DAMAGED}"),
    "none of GPT-2's files": (gpt2_with(), GPT2_NEEDS),
    "GPT-2's ids only": (gpt2_with("encoder.json"), GPT2_NEEDS),
    "GPT-2's merges only": (gpt2_with("merges.txt"), GPT2_NEEDS),
    "files of two names": (gpt2_with("encoder.json", "merges.txt"), GPT2_NEEDS),
    "merge of three": (damaged("merges.txt", b"#version: 0.2\nl o\nl o w\n"), "txt, line 3: 'l o w' is not a merge"),
    "merge of one": (damaged("merges.txt", b"#version: 0.2\nl o\nlo"), "merges.txt, line 3: 'lo' is not a merge"),
    "binary merges": (damaged("merges.txt", b"l o\n\xff"), "merges.txt: not UTF-8 text at byte 4"),
    "list of ids": (damaged("vocab.json", b"[]"), "not a JSON object of tokens and ids"),
    "truncated ids": (damaged("vocab.json", b'{"a": 0'), "not JSON at line 1"),
}


@pytest.mark.parametrize(("action", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusal(action: Callable[[Tokenizer, Path], object], message: str, tiny: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        action(tiny, tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


Edit = Callable[[dict[str, Any]], object]


def model(**changes: Any) -> Edit:
    return lambda tree: tree["model"].update(changes)


def vocab(**changes: Any) -> Edit:
    return lambda tree: tree["model"]["vocab"].update(changes)


def merges(more: str) -> Edit:
    return lambda tree: tree["model"]["merges"].append(more)


def splitting(**changes: Any) -> Edit:
    return lambda tree: tree["pre_tokenizer"].update(changes)


def skip_merging(tree: dict[str, Any]) -> None:
    tree["model"].update(ignore_merges=True)
    tree["model"]["vocab"]["lowlow"] = 262


def split_by(expression: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}


EDITS: dict[str, tuple[Edit, str]] = {
    "another model": (model(type="WordPiece"), "its model is WordPiece, not BPE"),
    "fallback": (model(byte_fallback=True), "its model has byte_fallback=True"),
    "dropout": (model(dropout=0.1), "its model has dropout=0.1"),
    "normalizer": (lambda tree: tree.update(normalizer={"type": "NFC"}), "it changes the text first (normalizer NFC)"),
    "decoder": (lambda tree: tree.update(decoder={"type": "Metaspace"}), "its decoder is Metaspace, not ByteLevel"),
    "prefix space": (splitting(add_prefix_space=True), "it puts a space before each text (add_prefix_space)"),
    "no splitting": (lambda tree: tree.update(pre_tokenizer=None), "its pre_tokenizer (none) is neither ByteLevel"),
    "other splitting": (splitting(type="Whitespace"), "its pre_tokenizer (Whitespace)"),
    "splitting that others read differently": (
        splitting(**split_by(r"\p{N}{1,3}+|\P{N}")),
        r"the splitting pattern '\\p{N}{1,3}+|\\P{N}' has '{1,3}+', which engines read differently",
    ),
    "stripping": (
        lambda tree: tree["added_tokens"][0].update(lstrip=True),
        "its added token '<|endoftext|>' has lstrip; only plain byte-level BPE is supported",
    ),
    "a missing id": (vocab(low=999), "the vocabulary of 262 tokens has no id 257; ids must be 0 to 261"),
    "an id twice": (vocab(low=3), "the vocabulary of 262 tokens has no id 257"),
    "an id that is not a number": (vocab(low="7"), "the token 'low' has the id '7'"),
    "words that skip merging": (skip_merging, "it has ignore_merges, and its merges would not make every word"),
    "no token for a merge": (
        lambda tree: tree["model"]["vocab"].pop("low"),
        "merge 1 (lo w) names 'low', which is not in the vocabulary",
    ),
    "an unknown part": (merges("xx y"), "merge 5 (xx y) names 'xx'"),
    "no token for a byte": (
        lambda tree: tree["model"]["vocab"].pop("a"),
        "the vocabulary has no token for the byte 0x61",
    ),
    "a token that is not bytes": (
        vocab(你=262),
        "the token '你' is not from a byte-level vocabulary: '你' stands for no",
    ),
    "a special token twice": (
        lambda tree: tree["added_tokens"].append({**tree["added_tokens"][0], "id": 5}),
        "the special token '<|endoftext|>' is given twice",
    ),
    "a merge of three": (merges("l o w"), DAMAGED),
    "no vocabulary": (lambda tree: tree["model"].pop("vocab"), DAMAGED),
    "no model": (lambda tree: tree.pop("model"), DAMAGED),
}


@pytest.mark.parametrize(("edit", "message"), EDITS.values(), ids=EDITS)
def test_a_file_that_is_not_plain_byte_level_bpe_is_refused(
    edit: Edit, message: str, edited: Callable[[Edit], Path]
) -> None:
    file = edited(edit)
    with pytest.raises(InputError) as caught:
        Tokenizer.load(file)
    assert str(caught.value).startswith(f"{file}: {message}") and "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["gpt2", "tiktoken"])
def test_an_export_overwrites_nothing(form: str, tiny: Tokenizer, tmp_path: Path) -> None:
    files = tiny.export(tmp_path, form)
    before = [file.read_bytes() for file in files]
    with pytest.raises(InputError, match="exists; choose another directory"):
        tiny.export(tmp_path, form)
    assert [file.read_bytes() for file in files] == before


def test_saving_over_the_same_tokenizer_is_fine_and_over_another_refused(tmp_path: Path, tiny: Tokenizer) -> None:
    tiny.save(tmp_path)
    tiny.save(tmp_path)
    with pytest.raises(InputError, match="is another tokenizer"):
        Tokenizer.train([], 256, ()).save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tiny.fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("./no/where", r"\./no/where does not exist; give a directory, or a name on the Hub: gpt2 or hub:OWNER/NAME"),
        ("tokeniser", r'tokeniser does not exist \(did you mean "tokenizer"\?\); give a directory'),
        ("runs/tok", r'runs/tok does not exist \(did you mean "runs/toks"\?\); give a directory'),
        ("gpt2-xxl", r'gpt2-xxl does not exist \(did you mean "gpt2-xl"\?\)'),
        ("hub:../x", r"hub:\.\./x does not exist"),
    ],
)
def test_a_mistyped_path_is_not_asked_of_the_hub(
    given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "runs" / "toks").mkdir(parents=True)
    with pytest.raises(InputError, match=message):
        Tokenizer.gpt2(given)
