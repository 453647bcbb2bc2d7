"""Files are written completely or not at all, and errors say where a damaged file is damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.errors import InputError
from gpt2lab.files import (
    CHECKSUM,
    free_path,
    locked,
    new_directory,
    read_checked_json,
    read_json,
    remove_temporary,
    sha256_of,
    sync,
    temporary_name,
    write_atomically,
    write_checked_json,
    write_json,
)

text = st.text(st.characters(codec="utf-8"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", ["a\nb\r\n", "ŝ☃😀", b"\x00\xff\r\n", "", b""])
def test_a_file_is_synced_before_it_is_renamed_and_holds_exactly_what_was_written(
    tmp_path: Path, data: str | bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, held, order = tmp_path / "file.txt", data.encode() if isinstance(data, str) else data, []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: order.append(("synced", path.exists())) or fsync(handle))
    for _ in range(2):  # new, then over the old one
        write_atomically(path, data)
        assert path.read_bytes() == held
        assert list(tmp_path.iterdir()) == [path]
    assert order == [("synced", False), ("synced", True)]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
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


def test_only_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    folder = temporary_name(tmp_path / "folder")
    folder.mkdir()
    for path in (tmp_path / "kept.tmp", tmp_path / ".hidden", temporary_name(tmp_path / "file.txt"), folder / "inside"):
        path.touch()
    remove_temporary(tmp_path)
    assert names(tmp_path) == [".hidden", "kept.tmp"]


def test_a_free_path_has_the_first_free_number(tmp_path: Path) -> None:
    for expected in ("run", "run-2", "run-3"):
        found = free_path(tmp_path / "run")
        assert found.name == expected
        found.mkdir()
    (tmp_path / "run-2").rmdir()
    assert free_path(tmp_path / "run").name == "run-2"


@settings(max_examples=40)
@given(values)
def test_json_round_trips(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert json.loads(path.read_bytes()) == value


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (b'{\n "a": 1,\n b}', "not JSON at line 3 .*it is damaged"),
        (b"", "not JSON at line 1"),
        (b'{"a": "\xff"}', "not UTF-8 text at byte 7; it is damaged or has another encoding"),
        (None, r"cannot be read \(No such file or directory\)"),
    ],
)
def test_unreadable_json_is_refused(tmp_path: Path, held: bytes | None, message: str) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path.name}: cannot be read"):
        read_json(tmp_path)  # a directory
    path = tmp_path / "value.json"
    if held is not None:
        path.write_bytes(held)
    with pytest.raises(InputError, match=rf"value\.json: {message}"):
        read_json(path)


@pytest.mark.parametrize("data", [b"", b"\x00", bytes(range(251)) * 12_000], ids=len)
def test_the_digest_is_that_of_the_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot open directories")
def test_a_directory_is_synced_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    sync(tmp_path)
    (handle,) = synced
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


@given(value=st.dictionaries(text, values | st.floats()))
@settings(max_examples=50)
def test_checked_json_comes_back_and_any_change_is_noticed(value: dict[str, Any], tmp_path_factory: Any) -> None:
    value.pop(CHECKSUM, None)
    path = tmp_path_factory.getbasetemp() / "checked.json"
    write_checked_json(path, value)
    assert json.dumps(read_checked_json(path)) == json.dumps(json.loads(json.dumps(value)))
    tree = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**tree, "another": 1}), encoding="utf-8")
    with pytest.raises(InputError, match=r"checked\.json: does not match its checksum: .*; restore it from a copy"):
        read_checked_json(path)
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(InputError, match=r'checked\.json: no object with its checksum, "sha256": damaged'):
        read_checked_json(path)


def test_a_new_directory_appears_complete_or_not_at_all_and_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "new"
    with new_directory(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_bytes(b"content")
        assert not path.exists()
    assert (path / "inner" / "file").read_bytes() == b"content"
    assert names(tmp_path / "deep") == ["new"]
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "other") as folder:
        (folder / "file").write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["deep"]
    (tmp_path / "file").touch()
    for path, message in ((tmp_path, "exists"), (tmp_path / "file" / "new", "cannot be created")):
        with pytest.raises(InputError, match=message), new_directory(path):
            pytest.fail("it was entered")


@pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
@pytest.mark.parametrize("offsets", [(), (0, 3)])
def test_a_file_system_without_locks_gives_a_warning(
    offsets: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    for name in ("flock", "lockf"):
        monkeypatch.setattr(f"fcntl.{name}", refuse)
    with locked(tmp_path / "file", InputError("taken"), offsets):
        assert "cannot be locked (No locks available)" in caplog.text
