"""Reading submissions: directories and archives, and that nothing in them stops the reading or leads outside."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest

from gpt2lab.errors import InputError
from gpt2lab.learn import submissions
from gpt2lab.learn.submissions import find, read, read_all

CHAPTER = "ch03_attention.py"


def _zip(path: Path, files: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_directories_and_archives_are_found_and_what_else_lies_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "ann").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "roster.txt").write_text("ann, bob")
    _zip(tmp_path / "bob.ZIP", {f"bob's work/{CHAPTER}": "x = 1", "bob's work/utils/more.py": "y = 2", "notes.py": ""})
    (tmp_path / "cyd.tar.gz").write_bytes(b"")
    ann, bob, cyd = read_all(find(tmp_path))
    assert (ann.student, ann.files, ann.notes) == ("ann", {}, ("no chapters found, such as ch01_bytes.py",))
    assert (bob.student, bob.notes) == ("bob", ())
    assert bob.files == {CHAPTER: b"x = 1", "utils/more.py": b"y = 2"}
    assert (cyd.student, cyd.notes[0]) == ("cyd.tar.gz", ".gz archives are not read; unpack it, or make it a .zip")


def test_students_of_the_same_name_get_a_number(tmp_path: Path) -> None:
    (tmp_path / "ann").mkdir()
    _zip(tmp_path / "ann.zip", {CHAPTER: ""})
    assert [each.student for each in read_all(find(tmp_path))] == ["ann", "ann (2)"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.py"
    secret.write_text("password")
    ann = tmp_path / "class" / "ann"
    ann.mkdir(parents=True)
    try:
        (ann / CHAPTER).symlink_to(secret)
    except OSError:
        pytest.skip("this system makes no links")
    (ann / "ch01_bytes.py").write_text("x = 1")
    (ann / "outside").symlink_to(tmp_path)
    (tmp_path / "class" / "bob").symlink_to(tmp_path)
    link = zipfile.ZipInfo(CHAPTER)
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "class" / "cyd.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    read = {each.student: each for each in read_all(find(tmp_path / "class"))}
    assert read["ann"].files == {"ch01_bytes.py": b"x = 1"}
    assert read["ann"].notes == (
        "outside is a link, which is not followed",
        f"{CHAPTER} is a link, which is not followed",
    )
    assert read["bob"].notes[0] == "is a link, which is not followed"
    assert read["cyd"].notes[0] == f"{CHAPTER} is a link, which is not followed"


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", "C:/evil.py", "a/../../evil.py", "..\\evil.py"])
def test_an_archive_names_no_file_outside(name: str, tmp_path: Path) -> None:
    given = read(_zip(tmp_path / "ann.zip", {CHAPTER: "x = 1", name: "evil"}), "ann")
    assert given.files == {CHAPTER: b"x = 1"}
    assert given.notes == (f"{name} is outside of the archive and was not read".replace("\\", "/"),)


def test_sizes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = {CHAPTER: "x = 1", "bomb.py": b"\0" * 2**21}
    given = read(_zip(tmp_path / "ann.zip", bomb), "ann")
    assert (list(given.files), given.notes) == ([CHAPTER], ("bomb.py is larger than 1.05 MB",))
    for name, data in bomb.items():
        (tmp_path / "bob").mkdir(exist_ok=True)
        (tmp_path / "bob" / name).write_bytes(data.encode() if isinstance(data, str) else data)
    assert read(tmp_path / "bob", "bob").notes == given.notes
    monkeypatch.setattr(submissions, "MOST", 2)
    many = read(_zip(tmp_path / "cyd.zip", {CHAPTER: "", **{f"{i}.py": "" for i in range(5)}}), "cyd")
    assert len(many.files) == 2
    assert many.notes == ("more than 2 Python files or 16.8 MB: the rest was not read",)
    links = read(_zip(tmp_path / "dan.zip", {CHAPTER: "", **{f"../{i}.py": "" for i in range(50)}}), "dan")
    assert len(links.notes) == submissions.SHOWN + 1


def test_damaged_archives_and_files_that_cannot_be_read_are_notes(tmp_path: Path) -> None:
    (tmp_path / "ann.zip").write_bytes(b"PK\3\4 not an archive")
    assert read(tmp_path / "ann.zip", "ann").notes[0] == "cannot be read (File is not a zip file)"
    whole = _zip(tmp_path / "bob.zip", {CHAPTER: "x = 1" * 100}).read_bytes()
    for place in range(0, len(whole), 3):
        (tmp_path / "bob.zip").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        read(tmp_path / "bob.zip", "bob")  # whatever is damaged, nothing is raised
    if hasattr(os, "mkfifo"):
        (tmp_path / "cyd").mkdir()
        os.mkfifo(tmp_path / "cyd" / CHAPTER)
        assert read(tmp_path / "cyd", "cyd").notes[0] == f"{CHAPTER} is not a regular file"


def test_of_several_directories_with_chapters_the_first_is_taken(tmp_path: Path) -> None:
    given = read(_zip(tmp_path / "ann.zip", {f"new/{CHAPTER}": "new", f"old/{CHAPTER}": "old"}), "ann")
    assert given.files == {CHAPTER: b"new"}
    assert given.notes == ("chapters in 2 directories; those in new are graded",)


def test_a_folder_without_submissions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        find(tmp_path / "missing")
    with pytest.raises(InputError, match=r"holds no submissions; each is a directory, or a \.zip, with the student"):
        find(tmp_path)
    (tmp_path / CHAPTER).write_text("")
    with pytest.raises(InputError, match="is itself a submission; give the folder that holds all of them"):
        find(tmp_path)
