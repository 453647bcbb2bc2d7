"""Files of other programs hold the same tokenizer, and GPT-2's vocabulary is found wherever it may be."""

from __future__ import annotations

import hashlib
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
import tokenizers.processors
import tokenizers.trainers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe
from transformers import PreTrainedTokenizerFast

from gpt2lab import Tokenizer
from gpt2lab.cli.main import main
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.bpe import BYTES, Vocabulary, bytes_to_unicode
from gpt2lab.tokenizer.pretokenize import GPT2
from loopback_hub import gpt2lab_with, hub_client, loopback_hub

KNOWN = st.characters(exclude_categories=["Cs", "Cn"])
MIXED = st.text(st.one_of(KNOWN, st.sampled_from(" \t\n'sdmtlvraeéA19=-你😀")), max_size=40)
SAMPLE = "It's  the <|endoftext|> best\n\n of naïve café 你好 😀, 12345 don't\t"
URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
CACHED = [hashlib.sha1(f"{URL}{name}".encode()).hexdigest() for name in ("encoder.json", "vocab.bpe")]
"""The names under which tiktoken caches GPT-2's files."""


@pytest.fixture(scope="module")
def corpus(wikitext2: Path) -> list[str]:
    return [wikitext2.read_text(encoding="utf-8")[:300_000]]


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", r"[a-z]+|\s+"])
def test_hugging_faces_libraries_give_a_saved_tokenizers_ids(
    pattern: str, corpus: list[str], tmp_path: Path, wikitext2: Path
) -> None:
    trained = Tokenizer.train(corpus, 1000, ["<|endoftext|>", "<|pad|>"], pattern=pattern)
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
def exported_gpt2(gpt2: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    """GPT-2 as exported to Hugging Face's library."""
    gpt2.save(folder := tmp_path_factory.mktemp("gpt2"))
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@given(text=MIXED)
@settings(max_examples=200)
def test_any_text_gets_the_same_ids_in_hugging_faces_library(
    text: str, gpt2: Tokenizer, exported_gpt2: tokenizers.Tokenizer
) -> None:
    assert exported_gpt2.encode(text).ids == gpt2.encode(text, "all")


@pytest.mark.parametrize("specials", [["<|endoftext|>"], ["<s>", "</s>"], []])
def test_a_tokenizer_that_hugging_face_trained_loads(specials: list[str], corpus: list[str], tmp_path: Path) -> None:
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


@pytest.mark.parametrize("specials_at", [(0, 1), (7, 200), (0, 262), (261, 262)], ids=str)
def test_special_tokens_keep_their_ids_in_hugging_faces_library(
    specials_at: tuple[int, int], tiny: Tokenizer, tmp_path: Path
) -> None:
    """Hugging Face's trainer puts special tokens first; GPT-2 has them last."""
    vocabulary = Vocabulary.from_pairs([], (), GPT2)
    free = [number for number in range(len(tiny.merges) + 258) if number not in specials_at]
    tokens = [*vocabulary.ids, *(left + right for left, right in tiny.merges)]
    specials = dict(zip(["<|endoftext|>", "<|pad it|>"], specials_at, strict=True))
    ours = Tokenizer(Vocabulary(dict(zip(tokens, free, strict=True)), tiny.merges, specials, GPT2))
    ours.save(tmp_path)
    text = "low<|endoftext|>er <|pad it|>newest<|endoftext|>"
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode(text).ids == ours.encode(text, "all")
    assert {name: theirs.token_to_id(name) for name in specials} == specials
    assert theirs.get_vocab_size() == ours.n_vocab
    assert Tokenizer.load(tmp_path).fingerprint == ours.fingerprint


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer_config.json"])
def test_special_tokens_in_the_files_beside_it_are_read(file: str, tiny: Tokenizer, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    fast.add_tokens(["<|user|>"], special_tokens=True)
    added = {"id": 262, "content": "<|user|>", "special": True}
    content = {"<|user|>": 262} if file == "added_tokens.json" else {"added_tokens_decoder": {"262": added}}
    (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
    ours = Tokenizer.load(tmp_path)
    text = "low<|user|>er"
    assert ours.special_tokens["<|user|>"] == 262
    assert ours.encode(text, "all") == fast.encode(text)


@pytest.mark.parametrize("setting", ["truncation", "padding", "post_processor", "add_bos_token"])
def test_settings_that_only_add_or_cut_ids_are_named(
    setting: str, tiny: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    theirs = tokenizers.Tokenizer.from_file(str(path))
    if setting == "truncation":
        theirs.enable_truncation(2)
    elif setting == "padding":
        theirs.enable_padding(length=9)
    elif setting == "post_processor":
        theirs.post_processor = tokenizers.processors.BertProcessing(("<|endoftext|>", 261), ("<|endoftext|>", 261))
    else:
        (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}', encoding="utf-8")
    theirs.save(str(path))
    assert Tokenizer.load(tmp_path).encode("low low lower") == tiny.encode("low low lower")
    assert f"{setting} ignored; ids are those of the text itself" in caplog.text


# Merges that no training makes: in any order, of parts made later, one token made in two ways.
PARTS = st.sampled_from([b"a", b"b", b"c", b"ab", b"bc", b"abc", b"aa", b"aab", b"ca", b"cab"])


@given(
    merges=st.lists(st.tuples(PARTS, PARTS), unique=True, max_size=12),
    words=st.lists(st.text("abc", max_size=12), max_size=6),
)
@settings(max_examples=300)
def test_merges_in_any_order_encode_as_in_hugging_faces_library(
    merges: list[tuple[bytes, bytes]], words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokens = [*BYTES, *(token for left, right in merges for token in (left, right, left + right))]
    vocab = {bytes_to_unicode(token): number for number, token in enumerate(dict.fromkeys(tokens))}
    lines = [" ".join(map(bytes_to_unicode, merge)) for merge in merges]
    pre_tokenizer = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": vocab, "merges": lines}
    tree = {"version": "1.0", "added_tokens": [], "pre_tokenizer": pre_tokenizer, "model": model}
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(tree), encoding="utf-8")
    text = " ".join(words)
    assert Tokenizer.load(file).encode(text) == tokenizers.Tokenizer.from_file(str(file)).encode(text).ids


def test_gpt2s_files_are_read_and_written_under_all_their_names(
    gpt2: Tokenizer, gpt2_vocabulary: Path, tmp_path: Path
) -> None:
    files = gpt2.export(tmp_path, "gpt2")
    assert [file.name for file in files] == ["vocab.json", "merges.txt"]
    assert json.loads(files[0].read_bytes()) == json.loads((gpt2_vocabulary / "encoder.json").read_bytes())
    assert files[1].read_bytes() == (gpt2_vocabulary / "vocab.bpe").read_bytes()
    assert Tokenizer.gpt2(tmp_path).fingerprint == Tokenizer.load(gpt2_vocabulary).fingerprint == gpt2.fingerprint


def test_tiktoken_gives_the_same_ids_with_exported_ranks(corpus: list[str], tmp_path: Path) -> None:
    ours = Tokenizer.train(corpus, 1000)
    (file,) = ours.export(tmp_path, "tiktoken")
    theirs = tiktoken.Encoding(
        "exported", pat_str=GPT2.published, mergeable_ranks=load_tiktoken_bpe(str(file)), special_tokens={}
    )
    assert theirs.encode_ordinary(corpus[0]) == ours.encode(corpus[0])


def test_ignore_merges_is_accepted_if_merges_make_every_word(edited: Callable[..., Path]) -> None:
    file = edited(lambda tree: tree["model"].update(ignore_merges=True))
    text = "low lower lowest new newer"
    assert Tokenizer.load(file).encode(text) == tokenizers.Tokenizer.from_file(str(file)).encode(text).ids


def test_newlines_of_windows_are_read(tiny: Tokenizer, tmp_path: Path) -> None:
    tiny.export(tmp_path, "gpt2")
    merges = (tmp_path / "merges.txt").read_bytes()
    (tmp_path / "merges.txt").write_bytes(merges.replace(b"\n", b"\r\n"))
    assert Tokenizer.gpt2(tmp_path).fingerprint == tiny.fingerprint


def test_the_layout_of_a_file_does_not_change_the_fingerprint(tiny: Tokenizer, edited: Callable[..., Path]) -> None:
    def change(tree: dict[str, Any]) -> None:
        model = tree["model"]
        vocab, merges = reversed(model["vocab"].items()), [merge.split(" ") for merge in model["merges"]]
        model |= {"vocab": dict(vocab), "merges": merges}

    assert Tokenizer.load(edited(change)).fingerprint == tiny.fingerprint


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
def test_tiktokens_cache_is_found(
    variable: str, tiny: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(InputError, match="holds no GPT-2 vocabulary"):
        Tokenizer.gpt2("tiktoken")
    for file, cached in zip(tiny.export(tmp_path, "gpt2"), CACHED, strict=True):
        file.rename(tmp_path / cached)
    assert Tokenizer.gpt2("tiktoken").fingerprint == Tokenizer.gpt2(tmp_path).fingerprint == tiny.fingerprint


def test_a_name_on_the_hub_is_downloaded_once_and_a_missing_one_is_one_line(
    tiny: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {file.name: file.read_bytes() for file in tiny.export(tmp_path / "files", "gpt2")}
    export = ["tokenizer", "export", "hub:owner/tiny", "--out"]
    prepare = ["data", "prepare", "stories", "--max-documents", "9", "--tokenizer", "gpt2", "--out"]
    models = {"owner/tiny": files, "gpt2": files, "owner/empty": {"README.md": b"nothing"}}
    with loopback_hub(models) as hub, hub_client(hub.address, tmp_path / "hub"):
        assert main([*export, str(tmp_path / "first")]) == main([*prepare, str(tmp_path / "data")]) == 0
        for name, message in {
            "owner/tin": '"owner/tin" is not a local directory, and the Hub has no such public model',
            "owner/empty": "holds no tokenizer; it needs tokenizer.json, or vocab.json and merges.txt",
        }.items():
            capsys.readouterr()
            assert main(["tokenizer", "show", f"hub:{name}"]) == 2
            assert message in capsys.readouterr().err.splitlines()[-1]
    assert Tokenizer.load(tmp_path / "first").merges == tiny.merges
    assert Tokenizer.load(tmp_path / "data").fingerprint == tiny.fingerprint
    # The server is gone, its cache is not; the client of a new process reads its environment.
    done = gpt2lab_with("http://127.0.0.1:9", tmp_path, *export, str(tmp_path / "second"), offline=True)
    assert done.returncode == 0, done.stderr
    with hub_client("http://127.0.0.1:9", tmp_path / "none"):
        capsys.readouterr()
        assert main([*export, str(tmp_path / "third")]) == 2
    message = '"owner/tiny" is not a local directory, is not in the cache, and the Hub is unreachable'
    assert message in capsys.readouterr().err.splitlines()[-1]
