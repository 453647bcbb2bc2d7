"""Sources of text: what is a document, what is refused, and that memory does not grow with the file."""

from __future__ import annotations

import os
import re
import sys
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2lab.data.documents import FileDocument, TextDocument
from gpt2lab.data.sources import documents, texts
from gpt2lab.errors import InputError
from gpt2lab.stories.corpus import stories

MIB = 1 << 20
SPLITTING = {  # as published with tiktoken
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
}


def read(*sources: Path | str, max_documents: int | None = None, errors: str = "strict") -> list[str]:
    found = documents([str(source) for source in sources], max_documents=max_documents, errors=errors)
    return ["".join(document.pieces()) for document in found]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def test_a_file_is_one_document_with_its_text_unchanged(tmp_path: Path) -> None:
    text = "  Zeile\r\nzwei\u2028 \U0001f600\n\n"
    assert read(write(tmp_path / "a.txt", text)) == [text]


def test_the_separator_divides_a_file_and_leaves_no_empty_documents(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "<|endoftext|>one\n<|endoftext|>\n<|endoftext|> two<|endoftext|>\n")
    assert read(file) == ["one\n", " two"]


@pytest.mark.parametrize("cut", range(15))
def test_a_separator_is_found_wherever_the_read_blocks_end(tmp_path: Path, cut: int) -> None:
    before = "a" * (MIB - cut)
    assert read(write(tmp_path / "a.txt", f"{before}<|endoftext|>b<|endoftext|>c")) == [before, "b", "c"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfhello")) == ["hello"]


def test_a_folder_gives_its_text_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/2.txt", "a/1.txt", "notes.md"):
        write(tmp_path / name, name)
    assert read(tmp_path) == ["a/1.txt", "a/2.txt", "b.txt"]


def test_sources_follow_one_another_and_the_first_documents_are_taken(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.txt", "one<|endoftext|>two"), write(tmp_path / "2.txt", "three")
    assert read(two, one) == ["three", "one", "two"]
    assert read(one, two, max_documents=2) == ["one", "two"]


def test_stories_carry_their_bits_and_follow_the_seed() -> None:
    expected = [TextDocument(story.text, story.bits) for story in islice(stories(seed=5), 20)]
    assert list(documents(["stories"], seed=5, max_documents=20)) == expected


def test_texts_are_the_documents_in_pieces(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "one two<|endoftext|>three")
    assert list(texts([str(file)])) == ["one two", "three"]


@pytest.mark.parametrize("pattern", SPLITTING)
@settings(max_examples=10, deadline=None)
@given(snippet=st.text(alphabet="ab\u00e91\U0001f600 \n\t\x1c\u00a0.'s_", min_size=1, max_size=40))
def test_pieces_have_the_words_of_the_whole_text(pattern: str, snippet: str) -> None:
    text = snippet * (270_000 // len(snippet))
    pieces = list(TextDocument(text).pieces())
    words = regex.compile(SPLITTING[pattern]).findall
    assert "".join(pieces) == text
    assert [word for piece in pieces for word in words(piece)] == words(text)


def test_a_text_with_spaces_is_cut_in_several_pieces() -> None:
    assert len(list(TextDocument("some words \n" * 100_000).pieces())) > 4


def test_a_long_document_stays_in_its_file_and_memory_stays_small(tmp_path: Path) -> None:
    line = "The quick brown f\u00f6x jumps over the lazy dog.\n"
    file = write(tmp_path / "a.txt", line * (12 * MIB // len(line)))
    (document,) = documents([str(file)])
    assert isinstance(document, FileDocument)
    tracemalloc.start()
    characters = sum(len(piece) for piece in document.pieces())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters == len(line) * (12 * MIB // len(line))
    assert peak < 4 * MIB


def test_characters_survive_wherever_a_long_document_is_cut(tmp_path: Path) -> None:
    for text in ("\u00e9" * MIB, "x" + "\U0001f600" * MIB, "\u20ac \n" * MIB):
        assert read(write(tmp_path / "a.txt", text)) == [text]


BAD = {
    "empty": (b"", "the file is empty"),
    "byte order mark only": (b"\xef\xbb\xbf", "the file is empty"),
    "white space only": (b" \n\t", "nothing but white space"),
    "zero byte": (b"abc\0def", "a zero byte at offset 3"),
    "not UTF-8": (b"caf\xe9 au lait", "not UTF-8: byte 0xe9 at offset 3"),
    "cut character": ("na\u00efve caf\u00e9".encode()[:-1], "not UTF-8: byte 0xc3 at offset 10"),
    "cut character before a separator": (b"caf\xc3<|endoftext|>", "not UTF-8: byte 0xc3 at offset 3"),
    "UTF-16": ("\ufeffabc".encode("utf-16-le"), "zero byte at offset 3"),
    "late byte of a long document": (b"a " * MIB + b"\xff", f"not UTF-8: byte 0xff at offset {2 * MIB}"),
    "late zero of a long document": ("\u20ac".encode() * MIB + b"\0", f"zero byte at offset {3 * MIB}"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_text_is_refused_with_file_and_offset(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    file = write(tmp_path / "bad.txt", content)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=30, deadline=None)
@given(middle=st.binary(max_size=12))
@example(middle=b"\xf0\x9f\x98\0")
def test_errors_replace_reads_on_as_python_decodes(middle: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("replace")
    short = b"caf\xe9 " + middle
    long = b"a" * (MIB // 4 - 5) + middle + b" \xe2\x82" * (MIB // 8) + middle  # cut by blocks at every place
    for number, content in enumerate((short, long)):
        file = write(folder / f"{number}.txt", content)
        assert read(file, errors="replace") == [content.decode("utf-8", "replace")]
        assert "".join(texts([str(file)], errors="replace")) == content.decode("utf-8", "replace")


def test_an_unknown_way_with_errors_is_refused() -> None:
    with pytest.raises(InputError, match=r'unknown way with errors "ignore"; choose from strict, replace'):
        documents(["stories"], errors="ignore")


def test_an_unreadable_source_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    good = str(write(tmp_path / "good.txt", "text"))
    for bad in (tmp_path / "missing.txt", write(tmp_path / "empty.txt", "")):
        with pytest.raises(InputError):
            documents([good, str(bad)])


def test_an_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'"storys" is not a file, directory or corpus \(did you mean "stories"\?\)'):
        documents(["storys"])
    write(tmp_path / "shakespeare.txt", "text")
    with pytest.raises(InputError, match=r'did you mean ".*shakespeare\.txt"'):
        documents([str(tmp_path / "shakespear.txt")])


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.md", "text")
    with pytest.raises(InputError, match=r"holds no \.txt or \.jsonl or \.parquet file"):
        documents([str(tmp_path)])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        documents([str(tmp_path / "pipe")])


def test_no_source_and_no_documents_are_refused() -> None:
    with pytest.raises(InputError, match="no source given"):
        documents([])
    with pytest.raises(InputError, match="max_documents is 0"):
        documents(["stories"], max_documents=0)


def test_a_seed_is_only_for_stories(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    with pytest.raises(InputError, match="seed 5 is given, but only stories have a seed; leave --seed out"):
        documents([str(tmp_path / "a.txt")], seed=5)
    assert next(documents([str(tmp_path / "a.txt"), "stories"], seed=5)).bits is None


def test_a_tokenizer_of_an_own_pattern_is_trained_on_whole_documents(tmp_path: Path) -> None:
    text = "to be or not to be, " * 30_000  # longer than a piece, and one word of the pattern
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert len(list(texts([str(tmp_path / "a.txt")]))) > 1
    assert list(texts([str(tmp_path / "a.txt")], whole=True)) == [text]
