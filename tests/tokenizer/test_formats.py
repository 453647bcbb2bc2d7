from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers
import tokenizers.trainers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe
from transformers import PreTrainedTokenizerFast

from gpt2lab import Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.bpe import bytes_to_unicode
from gpt2lab.tokenizer.pretokenize import GPT2

KNOWN = st.characters(exclude_categories=["Cs", "Cn"])
MIXED = st.text(st.one_of(KNOWN, st.sampled_from(" \t\n'sdmtlvraeéA19=-你😀")), max_size=40)
SAMPLE = "It's  the <|endoftext|> best\n\n of naïve café 你好 😀, 12345 don't\t"


@pytest.fixture(scope="module")
def corpus(wikitext2: Path) -> list[str]:
    return [wikitext2.read_text(encoding="utf-8")[:300_000]]


@pytest.fixture(scope="module", params=["gpt2", "cl100k", r"[a-z]+|\s+"])
def trained(request: pytest.FixtureRequest, corpus: list[str]) -> Tokenizer:
    return Tokenizer.train(corpus, 1000, ["<|endoftext|>", "<|pad|>"], pattern=request.param)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.train(["low low lower lower"], 262)


def test_what_is_saved_gives_the_same_ids_in_hugging_faces_libraries(
    trained: Tokenizer, tmp_path: Path, wikitext2: Path
) -> None:
    trained.save(tmp_path)
    text = wikitext2.read_text(encoding="utf-8")[300_000:400_000] + SAMPLE
    expected = trained.encode(text, "all")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(text).ids == expected
    assert theirs.decode(expected, skip_special_tokens=False) == text
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert fast.encode(text) == expected
    assert len(fast) == trained.n_vocab


@pytest.fixture(scope="module")
def gpt2_both(
    gpt2_vocabulary: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """GPT-2 here, and as exported in Hugging Face's library."""
    ours = Tokenizer.gpt2(gpt2_vocabulary)
    ours.save(folder := tmp_path_factory.mktemp("gpt2"))
    return ours, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@given(text=MIXED)
@settings(max_examples=200, deadline=None)
def test_any_text_gets_the_same_ids_in_hugging_faces_library(
    text: str, gpt2_both: tuple[Tokenizer, tokenizers.Tokenizer]
) -> None:
    ours, theirs = gpt2_both
    assert theirs.encode(text).ids == ours.encode(text, "all")


@pytest.mark.parametrize("specials", [["<|endoftext|>"], ["<s>", "</s>"], []])
def test_what_hugging_face_trained_loads_here(specials: list[str], corpus: list[str], tmp_path: Path) -> None:
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    theirs.train_from_iterator(
        corpus,
        tokenizers.trainers.BpeTrainer(
            vocab_size=800, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.load(tmp_path)
    assert list(ours.special_tokens) == specials
    assert ours.n_vocab == theirs.get_vocab_size()
    text = corpus[0][:20_000] + "".join(specials) + SAMPLE
    assert ours.encode(text, "all") == theirs.encode(text).ids
    assert ours.encode_reference(text) == ours.encode(text)
    assert ours.decode(ours.encode(text)) == text


# Merges that no training makes: in any order, of parts made later, one token made in two ways.
PARTS = st.sampled_from([b"a", b"b", b"c", b"ab", b"bc", b"abc", b"aa", b"aab", b"ca", b"cab"])
LISTS = st.lists(st.tuples(PARTS, PARTS), unique=True, max_size=12)


@given(merges=LISTS, words=st.lists(st.text("abc", max_size=12), max_size=6))
@settings(max_examples=300, deadline=None)
def test_merges_in_any_order_encode_as_in_hugging_faces_library(
    merges: list[tuple[bytes, bytes]], words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokens = {
        bytes([byte]): i for i, byte in enumerate(sorted(range(256), key=lambda byte: bytes_to_unicode(bytes([byte]))))
    }
    for left, right in merges:
        for token in (left, right, left + right):
            tokens.setdefault(token, len(tokens))
    vocab = {bytes_to_unicode(token): number for token, number in tokens.items()}
    model = {
        "type": "BPE",
        "vocab": vocab,
        "merges": [f"{bytes_to_unicode(left)} {bytes_to_unicode(right)}" for left, right in merges],
    }
    file = tmp_path_factory.mktemp("any") / "tokenizer.json"
    pre_tokenizer = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tree = {"version": "1.0", "added_tokens": [], "pre_tokenizer": pre_tokenizer, "model": model}
    file.write_text(json.dumps(tree), encoding="utf-8")
    theirs = tokenizers.Tokenizer.from_file(str(file))
    text = " ".join(words)
    assert Tokenizer.load(file).encode(text) == theirs.encode(text).ids


def test_gpt2_names_and_hugging_face_names_give_one_tokenizer(gpt2_vocabulary: Path, tmp_path: Path) -> None:
    gpt2 = Tokenizer.gpt2(gpt2_vocabulary)
    files = gpt2.export(tmp_path, "gpt2")
    assert [file.name for file in files] == ["vocab.json", "merges.txt"]
    assert json.loads(files[0].read_bytes()) == json.loads((gpt2_vocabulary / "encoder.json").read_bytes())
    assert files[1].read_bytes() == (gpt2_vocabulary / "vocab.bpe").read_bytes()
    assert Tokenizer.gpt2(tmp_path).fingerprint == gpt2.fingerprint


def test_gpt2_is_read_from_tiktokens_cache(gpt2_vocabulary: Path, tmp_path: Path) -> None:
    names = {
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    }
    for name, cached in names.items():
        (tmp_path / cached).write_bytes((gpt2_vocabulary / name).read_bytes())
    assert Tokenizer.gpt2(tmp_path).n_vocab == 50257


def test_exported_ranks_give_the_same_ids_in_tiktoken(corpus: list[str], tmp_path: Path) -> None:
    ours = Tokenizer.train(corpus, 1000)
    (file,) = ours.export(tmp_path, "tiktoken")
    theirs = tiktoken.Encoding(
        "exported", pat_str=GPT2.published, mergeable_ranks=load_tiktoken_bpe(str(file)), special_tokens={}
    )
    assert theirs.encode_ordinary(corpus[0]) == ours.encode(corpus[0])


def test_exports_overwrite_nothing(small: Tokenizer, tmp_path: Path) -> None:
    for form in ("gpt2", "tiktoken"):
        files = small.export(tmp_path, form)
        before = [file.read_bytes() for file in files]
        with pytest.raises(InputError, match="exists; choose another directory"):
            small.export(tmp_path, form)
        assert [file.read_bytes() for file in files] == before


def test_an_unknown_format_is_refused_with_the_nearest(small: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'unknown format "tiktokn" \(did you mean "tiktoken"\?\)'):
        small.export(tmp_path, "tiktokn")


def test_files_that_cannot_hold_the_pattern_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"imply GPT-2's splitting pattern, but this tokenizer has cl100k; use tokenizer.json"
    ):
        Tokenizer.train([], 256, (), pattern="cl100k").export(tmp_path, "gpt2")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_a_file_is_refused(small: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="is a file, or lies below one; give a directory"):
            small.export(path, "tiktoken")


Edit = Callable[[dict[str, Any]], object]


def _delete_token(tree: dict[str, Any]) -> None:
    del tree["model"]["vocab"]["low"]


def _skip_merging(tree: dict[str, Any]) -> None:
    tree["model"]["ignore_merges"] = True
    tree["model"]["vocab"]["lowlow"] = 262


def _delete_byte(tree: dict[str, Any]) -> None:
    del tree["model"]["vocab"]["a"]


def _duplicate_special(tree: dict[str, Any]) -> None:
    tree["added_tokens"].append({**tree["added_tokens"][0], "id": 5})


EDITS: dict[str, tuple[Edit, str]] = {
    "another model": (lambda tree: tree["model"].update(type="WordPiece"), "its model is WordPiece, not BPE"),
    "fallback": (lambda tree: tree["model"].update(byte_fallback=True), "its model has byte_fallback=True"),
    "dropout": (lambda tree: tree["model"].update(dropout=0.1), "its model has dropout=0.1"),
    "normalizer": (lambda tree: tree.update(normalizer={"type": "NFC"}), r"changes the text first \(normalizer NFC\)"),
    "decoder": (lambda tree: tree.update(decoder={"type": "Metaspace"}), "its decoder is Metaspace, not ByteLevel"),
    "prefix space": (lambda tree: tree["pre_tokenizer"].update(add_prefix_space=True), "puts a space before each text"),
    "no splitting": (lambda tree: tree.update(pre_tokenizer=None), r"pre_tokenizer \(none\) is neither ByteLevel"),
    "other splitting": (lambda tree: tree["pre_tokenizer"].update(type="Whitespace"), r"pre_tokenizer \(Whitespace\)"),
    "stripping": (lambda tree: tree["added_tokens"][0].update(lstrip=True), "has lstrip, which is not supported"),
    "a hole": (
        lambda tree: tree["model"]["vocab"].update(low=999),
        "of 262 tokens has no id 257; ids must be 0 to 261",
    ),
    "an id twice": (lambda tree: tree["model"]["vocab"].update(low=3), "has no id 257"),
    "an id that is no number": (lambda tree: tree["model"]["vocab"].update(low="7"), "'low' has the id '7'"),
    "words that skip merging": (_skip_merging, r"its merges would not make every word"),
    "no token for a merge": (_delete_token, r"merge 1 \(lo w\) names 'low', which is not in the vocabulary"),
    "an unknown part": (lambda tree: tree["model"]["merges"].append("xx y"), r"merge 5 \(xx y\) names 'xx'"),
    "no token for a byte": (_delete_byte, "no token for the byte 0x61"),
    "a token that is no bytes": (lambda tree: tree["model"]["vocab"].update({"你": 262}), "'你' stands for no byte"),
    "a special token twice": (_duplicate_special, r"the special token '<\|endoftext\|>' is given twice"),
    "a merge of three": (lambda tree: tree["model"]["merges"].append("l o w"), "not a tokenizer.json as Hugging Face"),
    "no vocabulary": (lambda tree: tree["model"].pop("vocab"), "not a tokenizer.json as Hugging Face"),
    "no model": (lambda tree: tree.pop("model"), "not a tokenizer.json as Hugging Face"),
}


@pytest.mark.parametrize(("edit", "message"), EDITS.values(), ids=EDITS)
def test_a_file_that_is_not_plain_byte_level_bpe_is_refused(
    edit: Edit, message: str, small: Tokenizer, tmp_path: Path
) -> None:
    small.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    tree = json.loads(file.read_bytes())
    edit(tree)
    file.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_skipping_merges_is_no_matter_where_they_make_every_word(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    tree = json.loads(file.read_bytes())
    tree["model"]["ignore_merges"] = True
    file.write_text(json.dumps(tree), encoding="utf-8")
    text = "low lower lowest new newer"
    assert Tokenizer.load(tmp_path).encode(text) == tokenizers.Tokenizer.from_file(str(file)).encode(text).ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON at line 1"),
        (b'{"model": {"type": "BPE", "vocab": {"a"', "not JSON at line 1"),
        (b"\xff\xfe{}", "not UTF-8 text at byte 0"),
        (b"[1, 2]", "not a tokenizer.json as Hugging Face writes it"),
    ],
)
def test_a_damaged_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        Tokenizer.load(tmp_path)


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"does not exist; give the directory of a tokenizer\.json"):
            Tokenizer.load(path)


@pytest.mark.parametrize("present", [[], ["encoder.json"], ["merges.txt"], ["encoder.json", "merges.txt"]])
def test_half_of_gpt2s_files_is_refused(present: list[str], tmp_path: Path) -> None:
    for name in present:
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"it needs encoder.json and vocab.bpe, or vocab.json and merges.txt"):
        Tokenizer.gpt2(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("merges.txt", b"#version: 0.2\nl o\nl o w\n", r"merges.txt, line 3: 'l o w' is not a merge"),
        ("merges.txt", b"#version: 0.2\nl o\nlo", r"merges.txt, line 3: 'lo' is not a merge"),
        ("merges.txt", b"l o\n\xff", r"merges.txt: not UTF-8 text at byte 4"),
        ("vocab.json", b"[]", "not a JSON object of tokens and ids"),
        ("vocab.json", b'{"a": 0', "not JSON at line 1"),
    ],
)
def test_damaged_gpt2_files_are_refused(
    name: str, content: bytes, message: str, small: Tokenizer, tmp_path: Path
) -> None:
    small.export(tmp_path, "gpt2")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        Tokenizer.gpt2(tmp_path)


def test_merges_files_of_windows_are_read(small: Tokenizer, tmp_path: Path) -> None:
    small.export(tmp_path, "gpt2")
    merges = (tmp_path / "merges.txt").read_bytes()
    (tmp_path / "merges.txt").write_bytes(merges.replace(b"\n", b"\r\n"))
    assert Tokenizer.gpt2(tmp_path).fingerprint == small.fingerprint


def test_formatting_of_the_file_does_not_change_the_fingerprint(small: Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    tree = json.loads(file.read_bytes())
    model = tree["model"]
    model["vocab"] = dict(reversed(model["vocab"].items()))
    model["merges"] = [merge.split(" ") for merge in model["merges"]]
    file.write_text(json.dumps(tree, indent=None), encoding="utf-8")
    assert Tokenizer.load(file).fingerprint == small.fingerprint
