"""llm.c's token files: written as theirs are, read whoever wrote them, and every damage told."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_files import write_shards

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


def llmc_file(ids: list[int], magic: int = 20240520, version: int = 1, code: str = "H") -> bytes:
    """A token file as llm.c's documentation of the format has it, packed by hand."""
    header = struct.pack("<256i", magic, version, len(ids), *[0] * 253)
    return header + struct.pack(f"<{len(ids)}{code}", *ids)


def tokens_of(shard: Shard) -> list[int]:
    return TokenStream("shard", [shard]).read(np.array([0]), shard.tokens)[0].tolist()


def test_small_vocabularies_are_written_as_gpt2s_form(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [0, 50256, 65535], form=format_for(65536))
    assert path.name == "train_000000.bin"
    assert path.read_bytes() == llmc_file([0, 50256, 65535])


def test_large_vocabularies_are_written_as_llama3s_form(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [0, 65536, 128_255], form=format_for(65537))
    assert path.read_bytes() == llmc_file([0, 65536, 128_255], magic=20240801, version=7, code="I")


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (llmc_file([50256, 1, 2]), [50256, 1, 2]),
        (llmc_file([128_000, 5], 20240801, 7, "I"), [128_000, 5]),
    ],
)
def test_files_of_others_are_read(tmp_path: Path, content: bytes, ids: list[int]) -> None:
    path = tmp_path / "fineweb_train_000001.bin"
    path.write_bytes(content)
    shard = open_shard(path)
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


GOOD = llmc_file(list(range(100)))
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda b: b[:-20], r"truncated: 1204 bytes, but its header says 100 tokens = 1224"),
    "an odd byte": (lambda b: b[:-1], r"truncated: 1223 bytes"),
    "too long": (lambda b: b + b"xx", r"too long: 1226 bytes"),
    "no header": (lambda b: b[:1000], r"1000 bytes, less than the 1024"),
    "empty": (lambda _: b"", r"0 bytes, less than the 1024"),
    "wrong magic": (
        lambda b: b"text" + b[4:],
        r"starts with 1954047348, but token files start with 20240520 or 20240801",
    ),
    "other version": (lambda b: llmc_file([1], version=2), r"version 2 .*; only version 1 is known"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_refused(tmp_path: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    path = tmp_path / "train_000000.bin"
    path.write_bytes(damage(GOOD))
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
