"""Opening prepared data: everything is checked before a token of it is used."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import make_stream, write

from gpt2lab.data import shards
from gpt2lab.data.dataset import TokenDataset, split_documents, survey
from gpt2lab.data.prepare import prepare
from gpt2lab.errors import InputError
from gpt2lab.files import read_checked_json, write_checked_json
from gpt2lab.tokenizer.tokenizer import Tokenizer

END = 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("data")
    source = write(folder / "a.txt", "A text of some words. " * 400)
    prepare([str(source)], tokenizer, folder / "out", shard_tokens=3000)
    return folder / "out"


@pytest.fixture
def copy(prepared: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def refused(directory: Path, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        TokenDataset(directory).stream(split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_manifest(directory: Path, edit: dict[str, Any]) -> None:
    path = directory / "manifest.json"
    write_checked_json(path, {**read_checked_json(path), **edit})


def test_a_copy_is_the_same_data_and_only_the_split_asked_for_is_read(prepared: Path, copy: Path) -> None:
    assert TokenDataset(copy).fingerprint == TokenDataset(prepared).fingerprint
    assert len(TokenDataset(copy).stream("train")) == TokenDataset(copy).manifest.splits["train"].tokens
    (copy / "train_000001.bin").write_bytes(b"damaged")
    assert len(TokenDataset(copy).stream("val")) > 0


@pytest.mark.parametrize("name", ["train_000000.bin", "train_000001.bin", "train_000002.bin"])
def test_a_flipped_byte_is_found_in_any_file(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[1024 + len(content) // 3 * 2 // 2 * 2 - 1024] ^= 1
    (copy / name).write_bytes(content)
    assert re.search(rf"{name}: changed since it was written \(SHA-256", refused(copy))


def test_documents_are_the_text_that_was_prepared(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [f"Document {n}, naïve 🐈.\n" * (n % 7 + 1) for n in range(40)]
    source = write(tmp_path / "a.txt", "<|endoftext|>".join(texts))
    dataset = prepare([str(source)], tokenizer, tmp_path / "out", shard_tokens=50, val_fraction=0, test_fraction=0)
    assert list(dataset.documents("train")) == texts


def cut(copy: Path) -> None:
    path = copy / "train_000001.bin"
    path.write_bytes(path.read_bytes()[:-11])


def replace_by(name: str) -> Callable[[Path], object]:
    return lambda copy: shutil.copy(copy / name, copy / "train_000001.bin")


def write_id(copy: Path) -> None:
    content = bytearray((copy / "train_000000.bin").read_bytes())
    content[1024 + 200 : 1024 + 202] = b"\xff\xff"
    (copy / "train_000000.bin").write_bytes(content)


def rename_forms(copy: Path) -> None:
    shards = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))["shards"]
    edit_manifest(copy, {"shards": [{**shard, "form": "npz"} for shard in shards]})


def stop_preparing(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    (copy / "preparing").mkdir()


def empty(copy: Path) -> None:
    shutil.rmtree(copy)
    copy.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (cut, rf"train_000001\.bin: truncated: {1024 + 2 * 3000 - 11} bytes"),
    "missing": (lambda copy: (copy / "train_000001.bin").unlink(), r"train_000001\.bin: cannot be read"),
    "exchanged": (replace_by("train_000000.bin"), r"train_000001\.bin: changed since it was written"),
    "of another size": (replace_by("val_000000.bin"), "the manifest says 3000"),
    "an unknown id": (write_id, r"train_000000\.bin: token id 65535 at byte 1224"),
    "an unlisted file": (
        lambda copy: shutil.copy(copy / "train_000000.bin", copy / "train_000009.bin"),
        r"train_000009\.bin: not listed in the manifest",
    ),
    "unknown format": (rename_forms, r'manifest\.json: "npz" \(did you mean "npy"\?\); choose from llm\.c, npy, raw'),
    "no JSON": (lambda copy: (copy / "manifest.json").write_text('{"format": 1,'), "not JSON at line 1"),
    "no directory": (shutil.rmtree, "no such directory of prepared data"),
    "empty": (empty, "holds no prepared data"),
    "incomplete": (stop_preparing, "incomplete"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_data_is_refused(copy: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    damage(copy)
    assert re.search(message, refused(copy))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"format": 2}, "manifest.json: format 2; this version reads format 1"),
        ({"shards": []}, "manifest.json: train has 7921 tokens, but its files hold 0"),
        ({"splits": {"train": {"tokens": 3}}}, "manifest.json: splits.train.bytes is missing; the file was written by"),
        ({"splits": {"train": 7921}}, "manifest.json: splits.train is 7921; it must be an object"),
        ({"tokenizer": None}, "manifest.json: tokenizer is null; it must be an object"),
        ({"source": {}}, "manifest.json: source.max_documents is missing"),
        ({"source": {"names": ["a", 1]}}, "manifest.json: source.names[1] is 1; it must be text"),
        ({"left_out": {"shirt": 1}}, 'manifest.json: unknown field "left_out.shirt" (did you mean "short"?)'),
    ],
)
def test_a_damaged_manifest_is_refused(copy: Path, edit: dict[str, Any], message: str) -> None:
    edit_manifest(copy, edit)
    assert message in refused(copy)


def test_only_the_tokenizer_of_the_data_is_accepted(copy: Path, tokenizer: Tokenizer) -> None:
    dataset = TokenDataset(copy)
    dataset.require_tokenizer(tokenizer)
    assert dataset.tokenizer().fingerprint == tokenizer.fingerprint
    other = Tokenizer.train(["another text, another text"], 260)
    made_with, given = tokenizer.fingerprint[:16], other.fingerprint[:16]
    with pytest.raises(InputError, match=rf"made with tokenizer {made_with}\.\.\., given {given}\.\.\.; use"):
        dataset.require_tokenizer(other)
    shutil.rmtree(copy / "tokenizer")
    other.save(copy / "tokenizer")
    with pytest.raises(InputError, match=r"tokenizer: not the tokenizer that the data was made with \("):
        dataset.tokenizer()


@given(tokens=st.lists(st.integers(0, END), min_size=1, max_size=60), block=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_survey_counts_tokens_and_documents_across_blocks_and_files(tokens: list[int], block: int) -> None:
    documents: list[list[int]] = [[]]
    for token in tokens:
        if token == END:
            documents.append([])
        else:
            documents[-1].append(token)
    documents = [document for document in documents if document]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BLOCK", block)
        stream = make_stream(folder, tokens, 7)
        assert [ids.tolist() for ids in split_documents(stream.blocks(), END)] == documents
        found = survey(stream, END + 1, END)
    assert found.counts.tolist() == [tokens.count(token) for token in range(END + 1)]
    assert found.lengths.tolist() == [len(document) for document in documents]
    assert len(set(found.hashes.tolist())) == len(set(map(tuple, documents)))
