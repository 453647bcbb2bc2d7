"""Token files of other projects as prepared data, as those projects write them, and ours read as they read."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpt2lab.data.dataset import TokenDataset, import_shards
from gpt2lab.data.prepare import prepare
from gpt2lab.data.shards import ShardWriter, format_for
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.tokenizer import Tokenizer

DOCUMENTS = ["low lower", "the sea", "a cat 🐈", "one"] * 6


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer.train(["low lower the sea a cat"] * 9, 280)


def tokens_of(tokenizer: Tokenizer, end: bool) -> np.ndarray:
    """The documents' tokens, each document with the end of text before it, or after."""
    eot = [tokenizer.eot]
    return np.array([t for d in DOCUMENTS for ids in [tokenizer.encode(d)] for t in (ids + eot if end else eot + ids)])


def llmc(path: Path, tokens: np.ndarray, code: str = "H", magic: int = 20240520, version: int = 1) -> None:
    header = struct.pack("<256i", magic, version, len(tokens), *[0] * 253)
    path.write_bytes(header + struct.pack(f"<{len(tokens)}{code}", *tokens.tolist()))


def llama3s(path: Path, tokens: np.ndarray) -> None:
    llmc(path, tokens, "I", 20240801, 7)


def nanogpts(path: Path, tokens: np.ndarray) -> None:
    tokens.astype(np.uint16).tofile(path)


def build_nanogpts(path: Path, tokens: np.ndarray) -> None:
    np.save(path, tokens.astype(np.uint16))


FORMS: dict[str, tuple[Callable[[Path, np.ndarray], None], tuple[str, str, str], bool]] = {
    "llm.c": (llmc, ("fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_val_000000.bin"), False),
    "llm.c, uint32": (llama3s, ("tiny_train_0.bin", "tiny_train_1.bin", "tiny_val.bin"), False),
    "build-nanogpt": (build_nanogpts, ("edu_train_000001.npy", "edu_train_000002.npy", "edu_val_000000.npy"), False),
    "nanoGPT": (nanogpts, ("train.1.bin", "train.2.bin", "validation.bin"), True),
}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_other_projects_become_prepared_data(form: str, ours: Tokenizer, tmp_path: Path) -> None:
    write, names, raw = FORMS[form]
    tokens = tokens_of(ours, end=raw)  # nanoGPT puts the end after each document
    for name, part in zip(names, (tokens[:50], tokens[50:], tokens), strict=True):
        write(tmp_path / name, part)
    before = {name: (tmp_path / name).read_bytes() for name in names}
    dataset = import_shards(tmp_path, ours, raw=raw)
    assert list(dataset.manifest.splits) == ["train", "val"]
    for split, info in dataset.manifest.splits.items():
        stream = TokenDataset(tmp_path).stream(split)
        assert stream.read(np.array([0]), len(stream))[0].tolist() == tokens.tolist()
        assert list(dataset.documents(split)) == DOCUMENTS
        assert info.documents == len(DOCUMENTS)
        assert info.bytes == len("".join(DOCUMENTS).encode())
    assert dataset.tokenizer().fingerprint == ours.fingerprint
    assert {name: (tmp_path / name).read_bytes() for name in names} == before


def theirs(path: Path) -> list[int]:
    """Read a token file as llm.c's loaders do: the header's three numbers, then as many tokens as it says."""
    content = path.read_bytes()
    magic, version, number = struct.unpack_from("<3i", content)
    code = {(20240520, 1): "H", (20240801, 7): "I"}[magic, version]
    return list(struct.unpack(f"<{number}{code}", content[1024:]))


def test_the_llmc_loader_reads_prepared_files(ours: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(DOCUMENTS), encoding="utf-8")
    prepare([str(tmp_path / "a.txt")], ours, tmp_path / "out", val_fraction=0, test_fraction=0)
    assert theirs(tmp_path / "out" / "train_000000.bin") == tokens_of(ours, end=False).tolist()


def test_the_llmc_loader_reads_large_vocabularies(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", format_for(128_256), 1000)
    writer.write(np.array([0, 70_000, 128_255]))
    writer.finish()
    assert theirs(writer.paths[0]) == [0, 70_000, 128_255]


def test_imported_data_equals_prepared_data(ours: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(DOCUMENTS), encoding="utf-8")
    prepared = prepare([str(tmp_path / "a.txt")], ours, tmp_path / "out", val_fraction=0, test_fraction=0)
    (tmp_path / "copy").mkdir()
    (tmp_path / "out" / "train_000000.bin").rename(tmp_path / "copy" / "train_000000.bin")
    imported = import_shards(tmp_path / "copy", ours)
    assert imported.manifest.splits == {
        split: type(info)(info.documents, info.tokens, info.bytes, None)
        for split, info in prepared.manifest.splits.items()
    }
    assert imported.fingerprint == prepared.fingerprint


def header(tokens: np.ndarray) -> bytes:
    return struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


BAD: dict[str, tuple[str, Callable[[np.ndarray], bytes], bool, str]] = {
    "no header": ("train.bin", lambda t: bytes(4000), False, r"starts with 0, but token files start with 20240520 or"),
    "header where none is expected": ("train.bin", header, True, "starts with llm.c's header; leave out --raw"),
    "odd bytes": ("train.bin", lambda t: b"abc", True, "3 bytes; uint16 tokens need an even, positive number of bytes"),
    "nothing": ("train.bin", lambda t: b"", True, "0 bytes; uint16 tokens need an even, positive number"),
    "no split": (
        "tokens.bin",
        lambda t: t.astype("<u2").tobytes(),
        True,
        "its name must contain exactly one of train, val and test",
    ),
    "two splits": ("train_val.bin", lambda t: t.astype("<u2").tobytes(), True, "its name must contain exactly one of"),
    "a strange id": ("train.bin", lambda t: bytes([0, 0, 0, 9]), True, "token id 2304 at byte 2; the vocabulary has"),
    "no tokens": ("train.bin", lambda t: header(t[:0]), False, "train holds 0 tokens and no text; copy it again"),
    "no text": (
        "train.bin",
        lambda t: header(t[:1]) + t[:1].astype("<u2").tobytes(),
        False,
        "train holds 1 tokens and no text",
    ),
    "no numpy file": ("train.npy", lambda t: bytes(4000), False, "not a NumPy array file"),
    "two rows": (
        "train.npy",
        lambda t: npy(np.zeros((2, 3), np.uint16)),
        False,
        r"holds uint16 of shape \(2, 3\); token files hold one row of uint16 or uint32",
    ),
    "int64": ("train.npy", lambda t: npy(np.zeros(3, np.int64)), False, "holds int64 of shape"),
    "objects": ("train.npy", lambda t: npy(np.array([{}, 1], dtype=object)), False, "holds object of shape"),
    "cut numpy file": (
        "train.npy",
        lambda t: npy(np.zeros(100, np.uint16))[:-6],
        False,
        r"train\.npy: truncated: \d+ bytes, but its header says 100 tokens",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_and_nothing_is_written(case: str, ours: Tokenizer, tmp_path: Path) -> None:
    name, content, raw, message = BAD[case]
    (tmp_path / name).write_bytes(content(tokens_of(ours, end=False)))
    with pytest.raises(InputError, match=message) as caught:
        import_shards(tmp_path, ours, raw=raw)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_tokenizer_of_token_files_must_be_given(ours: Tokenizer, tmp_path: Path) -> None:
    llmc(tmp_path / "train.bin", tokens_of(ours, end=False))
    with pytest.raises(InputError, match=r"no manifest.json that names their tokenizer; .* data import .* --tok"):
        TokenDataset(tmp_path)
    with pytest.raises(InputError, match=r"the tokenizer has no <\|endoftext\|>"):
        import_shards(tmp_path, Tokenizer.train([], 256, ()))
    import_shards(tmp_path, ours)
    with pytest.raises(InputError, match=r"already has a manifest.json"):
        import_shards(tmp_path, ours)
    with pytest.raises(InputError, match=r"holds no \.bin and no \.npy files"):
        import_shards(tmp_path / "tokenizer", ours)


def test_a_changed_imported_file_is_detected(ours: Tokenizer, tmp_path: Path) -> None:
    nanogpts(tmp_path / "train.bin", tokens_of(ours, end=True))
    import_shards(tmp_path, ours, raw=True)
    content = bytearray((tmp_path / "train.bin").read_bytes())
    content[6] ^= 1
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"train\.bin: changed since it was written"):
        TokenDataset(tmp_path).stream("train")
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))["shards"][0]["form"] == "raw"
