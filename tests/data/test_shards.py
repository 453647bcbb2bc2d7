"""Token files: written as llm.c's are, read whoever wrote them, imported, and every damage told."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import files_below, ids_of, write, write_shards

from gpt2lab.data.dataset import TokenDataset, import_shards
from gpt2lab.data.prepare import prepare
from gpt2lab.data.shards import (
    UINT16,
    UINT32,
    Shard,
    ShardFormat,
    ShardWriter,
    TokenStream,
    checked_sha256,
    format_for,
    open_shard,
)
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.tokenizer import Tokenizer

DOCUMENTS = ["low lower", "the sea", "a cat 🐈", "one"] * 6


def llmc(ids: list[int], magic: int = 20240520, version: int = 1, code: str = "H") -> bytes:
    """A token file as llm.c's documentation of the format has it, packed by hand."""
    header = struct.pack("<256i", magic, version, len(ids), *[0] * 253)
    return header + struct.pack(f"<{len(ids)}{code}", *ids)


def llama3(ids: list[int]) -> bytes:
    """The same for large vocabularies."""
    return llmc(ids, 20240801, 7, "I")


def nanogpt(ids: list[int]) -> bytes:
    """A token file of nanoGPT."""
    return np.array(ids, dtype="<u2").tobytes()


def npy(array: np.ndarray) -> bytes:
    """An array as NumPy saves it: build-nanogpt's token files."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def tokens_of(shard: Shard) -> list[int]:
    return TokenStream("shard", [shard]).read(np.array([0]), shard.tokens)[0].tolist()


@pytest.mark.parametrize(
    ("n_vocab", "form", "ids"),
    [(65_536, llmc, [0, 50256, 65535]), (65_537, llama3, [0, 65536, 65535]), (128_256, llama3, [128_000, 5, 128_255])],
)
def test_files_are_those_of_llmc_to_the_byte(
    tmp_path: Path, n_vocab: int, form: Callable[[list[int]], bytes], ids: list[int]
) -> None:
    content = form(ids)
    (path,) = write_shards(tmp_path, ids, form=format_for(n_vocab))
    assert path.name == "train_000000.bin"
    assert path.read_bytes() == content
    shard = open_shard(write(tmp_path / "fineweb_train_000001.bin", content))
    assert tokens_of(shard) == ids
    assert checked_sha256(shard, n_vocab=200_000) == hashlib.sha256(content).hexdigest()


@settings(deadline=None, max_examples=40)
@given(
    chunks=st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=20), max_size=8),
    shard_tokens=st.integers(1, 30),
)
def test_what_is_written_is_read_whatever_the_chunks_and_the_file_size(
    chunks: list[list[int]], shard_tokens: int
) -> None:
    with TemporaryDirectory() as directory:
        writer = ShardWriter(Path(directory), "val", UINT32, shard_tokens)
        for chunk in chunks:
            writer.write(np.array(chunk, dtype=np.int64))
        writer.finish()
        shards = [open_shard(path) for path in writer.paths]
        assert [path.name for path in writer.paths] == [f"val_{i:06d}.bin" for i in range(len(shards))]
        assert all(shard.tokens == shard_tokens for shard in shards[:-1])
        assert [token for shard in shards for token in tokens_of(shard)] == [t for chunk in chunks for t in chunk]


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", UINT16, 10)
    writer.write(np.arange(15))
    assert [path.name for path in sorted(tmp_path.glob("*.bin"))] == ["train_000000.bin"]
    writer.finish()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["train_000000.bin", "train_000001.bin"]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda b: b[:-20], r"truncated: 1204 bytes, but its header says 100 tokens = 1224"),
    "an odd byte": (lambda b: b[:-1], r"truncated: 1223 bytes"),
    "too long": (lambda b: b + b"xx", r"too long: 1226 bytes"),
    "no header": (lambda b: b[:1000], r"1000 bytes, less than the 1024"),
    "empty": (lambda _: b"", r"0 bytes, less than the 1024"),
    "wrong magic": (lambda b: b"text" + b[4:], r"starts with 1954047348, but token files start with 20240520 or"),
    "other version": (lambda b: llmc([1], version=2), r"version 2 .*; only version 1 is known"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_refused(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    path = tmp_path / "train_000000.bin"
    path.write_bytes(damage(llmc(list(range(100)))))
    with pytest.raises(InputError, match=message) as caught:
        open_shard(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("form", [UINT16, UINT32])
@pytest.mark.parametrize("position", [0, 7, 2_500_000])
def test_an_id_beyond_the_vocabulary_is_told_with_its_place(tmp_path: Path, form: ShardFormat, position: int) -> None:
    ids = np.zeros(3_000_000, dtype=form.dtype)
    ids[position] = 300
    shard = open_shard(write_shards(tmp_path, ids, len(ids), form)[0])
    offset = 1024 + position * form.dtype.itemsize
    with pytest.raises(InputError, match=re.escape(f"token id 300 at byte {offset}; the vocabulary has 300 ids")):
        checked_sha256(shard, n_vocab=300)


@pytest.mark.parametrize("shard_tokens", [0, -1, 2**31])
def test_a_file_size_that_the_header_cannot_say_is_refused(tmp_path: Path, shard_tokens: int) -> None:
    with pytest.raises(InputError, match="a file holds 1 to 2147483647 tokens"):
        ShardWriter(tmp_path, "train", UINT16, shard_tokens)


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.train(["low lower the sea a cat"] * 9, 280)


def encoded(tokenizer: Tokenizer, end: bool = False) -> list[int]:
    """The documents' tokens, each document with the end of text before it, or after."""
    assert tokenizer.eot is not None
    eot, ids = [tokenizer.eot], [tokenizer.encode(text) for text in DOCUMENTS]
    return [token for document in ids for token in (document + eot if end else eot + document)]


FORMS: dict[str, tuple[Callable[[list[int]], bytes], tuple[str, str, str], bool]] = {
    "llm.c": (llmc, ("fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_val_000000.bin"), False),
    "llm.c, uint32": (llama3, ("tiny_train_0.bin", "tiny_train_1.bin", "tiny_val.bin"), False),
    "build-nanogpt": (
        lambda ids: npy(np.array(ids, dtype=np.uint16)),
        ("edu_train_000001.npy", "edu_train_000002.npy", "edu_val_000000.npy"),
        False,
    ),
    "nanoGPT": (nanogpt, ("train.1.bin", "train.2.bin", "validation.bin"), True),
}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_other_projects_become_prepared_data(form: str, ours: Tokenizer, tmp_path: Path) -> None:
    content, names, raw = FORMS[form]
    tokens = encoded(ours, end=raw)  # nanoGPT puts the end after each document
    for name, part in zip(names, (tokens[:50], tokens[50:], tokens), strict=True):
        write(tmp_path / name, content(part))
    before = files_below(tmp_path)
    dataset = import_shards(tmp_path, ours, raw=raw)
    assert list(dataset.manifest.splits) == ["train", "val"]
    for split, info in dataset.manifest.splits.items():
        assert ids_of(TokenDataset(tmp_path), split) == tokens
        assert list(dataset.documents(split)) == DOCUMENTS
        assert info.documents == len(DOCUMENTS)
        assert info.bytes == len("".join(DOCUMENTS).encode())
    assert dataset.tokenizer().fingerprint == ours.fingerprint
    assert files_below(tmp_path).items() >= before.items()
    content = bytearray((tmp_path / names[0]).read_bytes())
    content[-4] ^= 1
    write(tmp_path / names[0], bytes(content))
    with pytest.raises(InputError, match=re.escape(f"{names[0]}: changed since it was written")):
        TokenDataset(tmp_path).stream("train")


def test_prepared_files_are_llmcs_and_the_same_data_if_imported(ours: Tokenizer, tmp_path: Path) -> None:
    source = str(write(tmp_path / "a.txt", "<|endoftext|>".join(DOCUMENTS)))
    prepared = prepare([source], ours, tmp_path / "out", val_fraction=0, test_fraction=0)
    content = (tmp_path / "out" / "train_000000.bin").read_bytes()
    assert content == llmc(encoded(ours))
    write(tmp_path / "copy" / "train_000000.bin", content)
    imported = import_shards(tmp_path / "copy", ours)
    assert imported.manifest.splits == {
        split: type(info)(info.documents, info.tokens, info.bytes, None)
        for split, info in prepared.manifest.splits.items()
    }
    assert imported.fingerprint == prepared.fingerprint


BAD: dict[str, tuple[str, bytes, bool, str]] = {
    "no header": ("train.bin", bytes(4000), False, r"starts with 0, but token files start with 20240520 or"),
    "header where none is expected": ("train.bin", llmc([]), True, "starts with llm.c's header; leave out --raw"),
    "odd bytes": ("train.bin", b"abc", True, "3 bytes; uint16 tokens need an even, positive number of bytes"),
    "nothing": ("train.bin", b"", True, "0 bytes; uint16 tokens need an even, positive number"),
    "no split": ("tokens.bin", nanogpt([1, 2]), True, "its name must contain exactly one of train, val and test"),
    "two splits": ("train_val.bin", nanogpt([1, 2]), True, "its name must contain exactly one of"),
    "a strange id": ("train.bin", bytes([0, 0, 0, 9]), True, "token id 2304 at byte 2; the vocabulary has"),
    "no tokens": ("train.bin", llmc([]), False, "train holds 0 tokens and no text; copy it again"),
    "no text": ("train.bin", llmc([271]), False, "train holds 1 tokens and no text"),
    "no numpy file": ("train.npy", bytes(4000), False, "not a NumPy array file"),
    "two rows": (
        "train.npy",
        npy(np.zeros((2, 3), np.uint16)),
        False,
        r"uint16 of shape \(2, 3\); .* hold one row",
    ),
    "int64": ("train.npy", npy(np.zeros(3, np.int64)), False, "holds int64 of shape"),
    "objects": ("train.npy", npy(np.array([{}, 1], dtype=object)), False, "holds object of shape"),
    "cut numpy file": (
        "train.npy",
        npy(np.zeros(100, np.uint16))[:-6],
        False,
        r"truncated: \d+ bytes, .* 100 tokens",
    ),
    "no token files": ("train.txt", b"text", False, r"holds no \.bin and no \.npy files"),
    "prepared already": ("manifest.json", b"{}", False, r"already has a manifest\.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_imported_is_refused_and_nothing_is_written(case: str, ours: Tokenizer, tmp_path: Path) -> None:
    name, content, raw, message = BAD[case]
    write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        import_shards(tmp_path, ours, raw=raw)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_tokenizer_of_token_files_must_be_given(ours: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "train.bin", nanogpt(encoded(ours)))
    with pytest.raises(InputError, match=r"no manifest.json that names their tokenizer; .* data import .* --tok"):
        TokenDataset(tmp_path)
    with pytest.raises(InputError, match=r"the tokenizer has no <\|endoftext\|>"):
        import_shards(tmp_path, Tokenizer.train([], 256, ()))
    import_shards(tmp_path, ours, raw=True)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["shards"][0]["form"] == "raw"
