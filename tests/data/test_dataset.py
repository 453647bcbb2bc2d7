"""Opening prepared data: everything is checked before a token of it is used."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("data")
    source = folder / "a.txt"
    source.write_text("A text of some words. " * 400, encoding="utf-8")
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
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **edit}), encoding="utf-8")


def test_a_copy_is_the_same_data(prepared: Path, copy: Path) -> None:
    assert TokenDataset(copy).fingerprint == TokenDataset(prepared).fingerprint
    assert len(TokenDataset(copy).stream("train")) == TokenDataset(copy).manifest.splits["train"].tokens


@pytest.mark.parametrize("name", ["train_000000.bin", "train_000001.bin", "train_000002.bin"])
def test_a_flipped_byte_is_found_in_any_file(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[1024 + len(content) // 3 * 2 // 2 * 2 - 1024] ^= 1
    (copy / name).write_bytes(content)
    assert re.search(rf"{name}: changed since it was written \(SHA-256", refused(copy))


def test_documents_are_the_text_that_was_prepared(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [f"Document {n}, naïve 🐈.\n" * (n % 7 + 1) for n in range(40)]
    source = tmp_path / "a.txt"
    source.write_text("<|endoftext|>".join(texts), encoding="utf-8", newline="\n")
    dataset = prepare([str(source)], tokenizer, tmp_path / "out", shard_tokens=50, val_fraction=0, test_fraction=0)
    assert list(dataset.documents("train")) == texts


def test_other_splits_are_not_read(copy: Path) -> None:
    (copy / "train_000001.bin").write_bytes(b"damaged")
    assert len(TokenDataset(copy).stream("val")) > 0


def test_a_truncated_file_is_told_with_its_sizes(copy: Path) -> None:
    content = (copy / "train_000001.bin").read_bytes()
    (copy / "train_000001.bin").write_bytes(content[:-11])
    message = refused(copy)
    assert f"train_000001.bin: truncated: {len(content) - 11} bytes" in message


def test_a_missing_file_is_told(copy: Path) -> None:
    (copy / "train_000001.bin").unlink()
    assert "train_000001.bin: cannot be read" in refused(copy)


def test_exchanged_files_are_told(copy: Path) -> None:
    (copy / "train_000001.bin").write_bytes((copy / "train_000000.bin").read_bytes())
    assert "train_000001.bin: changed since it was written" in refused(copy)
    (copy / "train_000001.bin").write_bytes((copy / "val_000000.bin").read_bytes())
    assert "the manifest says 3000" in refused(copy)


def test_an_id_beyond_the_vocabulary_is_told_with_its_place(copy: Path) -> None:
    content = bytearray((copy / "train_000000.bin").read_bytes())
    content[1024 + 200 : 1024 + 202] = b"\xff\xff"
    (copy / "train_000000.bin").write_bytes(content)
    assert "train_000000.bin: token id 65535 at byte 1224" in refused(copy)


def test_a_file_that_the_manifest_does_not_name_is_told(copy: Path) -> None:
    shutil.copy(copy / "train_000000.bin", copy / "train_000009.bin")
    assert "train_000009.bin: not listed in the manifest" in refused(copy)


def test_a_split_that_was_not_prepared_is_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("A text of some words. " * 40, encoding="utf-8")
    prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "out", test_fraction=0.0)
    assert "has no test split, only train, val" in refused(tmp_path / "out", "test")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"format": 2}, "format 2; this version reads format 1"),
        ({"shards": []}, "train has 7921 tokens, but its files hold 0"),
        ({"splits": {"train": {"tokens": 3}}}, "damaged"),
        ({"tokenizer": None}, "damaged"),
        ({"source": {}}, "damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(copy: Path, edit: dict[str, Any], message: str) -> None:
    edit_manifest(copy, edit)
    told = refused(copy)
    assert "manifest.json" in told
    assert message in told


def test_a_form_of_file_that_nobody_knows_is_refused(copy: Path) -> None:
    shards = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))["shards"]
    edit_manifest(copy, {"shards": [{**shard, "form": "npz"} for shard in shards]})
    assert re.search(r'manifest\.json: "npz" \(did you mean "npy"\?\); choose from llm\.c, npy, raw', refused(copy))


def test_a_manifest_that_is_no_json_is_refused(copy: Path) -> None:
    (copy / "manifest.json").write_text('{"format": 1,', encoding="utf-8")
    assert "not JSON at line 1" in refused(copy)


def test_folders_without_prepared_data_are_told_apart(tmp_path: Path, copy: Path) -> None:
    assert "no such directory of prepared data" in refused(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    assert "holds no prepared data" in refused(tmp_path / "empty")
    (copy / "manifest.json").unlink()
    (copy / "preparing").mkdir()
    assert "incomplete" in refused(copy)


def test_only_the_tokenizer_of_the_data_is_accepted(prepared: Path, tokenizer: Tokenizer) -> None:
    dataset = TokenDataset(prepared)
    dataset.require_tokenizer(tokenizer)
    assert dataset.tokenizer().fingerprint == tokenizer.fingerprint
    other = Tokenizer.train(["another text, another text"], 260)
    made_with, given = tokenizer.fingerprint[:16], other.fingerprint[:16]
    with pytest.raises(InputError, match=rf"made with tokenizer {made_with}\.\.\., given {given}\.\.\.; use"):
        dataset.require_tokenizer(other)


def test_a_tokenizer_that_was_exchanged_in_the_folder_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    Tokenizer.train(["another text, another text"], 260).save(copy / "tokenizer")
    with pytest.raises(InputError, match=r"tokenizer: not the tokenizer that the data was made with \("):
        TokenDataset(copy).tokenizer()
