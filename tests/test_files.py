"""Files are written whole or not at all, and read with messages that say where they are damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.errors import InputError
from gpt2lab.files import (
    locked,
    new_directory,
    read_json,
    remove_temporary,
    sha256_of,
    sync_directory,
    temporary_name,
    write_atomically,
    write_json,
)

text = st.text(st.characters(codec="utf-8"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("data", "held"),
    [("a\nb\r\n", b"a\nb\r\n"), ("ŝ☃😀", "ŝ☃😀".encode()), (b"\x00\xff\r\n", b"\x00\xff\r\n"), ("", b""), (b"", b"")],
)
def test_what_is_written_is_what_is_there(tmp_path: Path, data: str | bytes, held: bytes) -> None:
    path = tmp_path / "file.txt"
    for _ in range(2):  # new, then over the old one
        write_atomically(path, data)
        assert path.read_bytes() == held
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failing: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os if failing == "fsync" else Path, failing, fail)
    with pytest.raises(type(error)):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert {p.name: p.read_text(encoding="utf-8") for p in tmp_path.iterdir()} == {"file.txt": "old"}


def test_the_file_is_synced_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, order = tmp_path / "file.txt", []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: order.append(("synced", path.exists())) or fsync(handle))
    write_atomically(path, "text")
    assert order == [("synced", False)]


def test_strays_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "kept.tmp").touch()
    (tmp_path / ".hidden").touch()
    temporary_name(tmp_path / "file.txt").touch()
    folder = temporary_name(tmp_path / "folder")
    folder.mkdir()
    (folder / "inside").touch()
    remove_temporary(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "kept.tmp"]


@given(values)
def test_json_round_trips(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert json.loads(path.read_bytes()) == value


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (b'{\n "a": 1,\n b}', "not JSON at line 3 .*it is damaged"),
        (b"", "not JSON at line 1"),
        (b'{"a": "\xff"}', "not UTF-8 text at byte 7; it is damaged"),
    ],
)
def test_damaged_json_is_told_where(tmp_path: Path, held: bytes, said: str) -> None:
    path = tmp_path / "value.json"
    path.write_bytes(held)
    with pytest.raises(InputError, match=rf"value\.json: {said}"):
        read_json(path)


def test_missing_json_is_told_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read \(No such file or directory\)"):
        read_json(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_the_digest_is_that_of_the_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    (tmp_path / "file").write_bytes(data[:size])
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data[:size]).hexdigest()


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot open directories")
def test_a_directory_is_synced_and_closed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    sync_directory(tmp_path)
    (handle,) = synced
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def test_a_new_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with new_directory(tmp_path / "deep" / "new") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_bytes(b"content")
        assert not (tmp_path / "deep" / "new").exists()
    assert (tmp_path / "deep" / "new" / "inner" / "file").read_bytes() == b"content"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["new"]
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "other") as folder:
        (folder / "file").write_bytes(b"half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_new_directory_takes_nobodys_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"), new_directory(tmp_path):
        pytest.fail("it was entered")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be made"), new_directory(tmp_path / "file" / "new"):
        pytest.fail("it was entered")


@pytest.mark.skipif(os.name == "nt", reason="the lock of POSIX")
@pytest.mark.parametrize("places", [(), (0, 3)])
def test_where_files_cannot_be_locked_a_warning_says_so_and_work_goes_on(
    places: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    for name in ("flock", "lockf"):
        monkeypatch.setattr(f"fcntl.{name}", refuse)
    with locked(tmp_path / "file", InputError("taken"), places):
        assert "cannot be locked (No locks available)" in caplog.text
