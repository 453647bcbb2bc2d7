"""Files as documents: every format, plain and compressed, what is refused, and that memory stays bounded."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
import tracemalloc
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_data import parquet, read, write

from gpt2lab.cli.main import main
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
PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def lines(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def table(rows: list[list[str]], **options: Any) -> bytes:
    """A CSV file."""
    sink = io.StringIO(newline="")
    csv.writer(sink, **options).writerows(rows)
    return sink.getvalue().encode()


def utf16(content: bytes, order: str) -> bytes:
    """UTF-8 as UTF-16 with a byte order mark."""
    return ("\ufeff" + content.decode()).encode(f"utf-16-{order}")


def arrow(columns: dict[str, Any]) -> bytes:
    """A Parquet file of some columns."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    """A tar archive with a directory."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip archive with a directory."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/", b"")
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


def refusal(*sources: Path | str, **options: Any) -> str:
    """The one line with which reading some sources is refused."""
    with pytest.raises(InputError) as caught:
        read(*sources, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


EMOJI = "x" + "\U0001f600" * MIB
TEXTS: dict[str, tuple[str | bytes, list[str]]] = {
    "one document": ("  Zeile\r\nzwei\u2028 \U0001f600\n\n", ["  Zeile\r\nzwei\u2028 \U0001f600\n\n"]),
    "separators": ("<|endoftext|>one\n<|endoftext|>\n<|endoftext|> two<|endoftext|>\n", ["one\n", " two"]),
    "byte order mark": (b"\xef\xbb\xbfhello", ["hello"]),
    "2 bytes a character": ("\u00e9" * MIB, ["\u00e9" * MIB]),
    "with spaces": ("\u20ac \n" * MIB, ["\u20ac \n" * MIB]),
    "4 bytes a character": (EMOJI, [EMOJI]),
    "UTF-16": (utf16(EMOJI.encode(), "le"), [EMOJI]),
    "two marks": (utf16("\ufeff\u20ac\r\n<|endoftext|>b".encode(), "be"), ["\ufeff\u20ac\r\n", "b"]),
}


@pytest.mark.parametrize(("content", "expected"), TEXTS.values(), ids=TEXTS)
def test_text_is_read_exactly(tmp_path: Path, content: str | bytes, expected: list[str]) -> None:
    assert read(write(tmp_path / "a.txt", content)) == expected


@pytest.mark.parametrize("cut", range(15))
def test_a_separator_is_found_wherever_the_read_blocks_end(tmp_path: Path, cut: int) -> None:
    before = "a" * (MIB - cut)
    assert read(write(tmp_path / "a.txt", f"{before}<|endoftext|>b<|endoftext|>c")) == [before, "b", "c"]


@settings(max_examples=20, deadline=None)
@given(given=st.lists(st.text(max_size=20), max_size=12), suffix=st.sampled_from(list(PACK)))
@example(given=["  zwei \U0001f600 ", "3"], suffix="")
def test_every_format_gives_back_any_text(
    given: list[str], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, given = tmp_path_factory.mktemp("any"), ["first", *given]
    objects, rows = [{"n": 1, "body": text} for text in given], [["n", "body"], *(["1", text] for text in given)]
    content = {
        "a.jsonl": b"\xef\xbb\xbf" + lines(*objects),
        "b.parquet": parquet(given, "body"),
        "categories.parquet": arrow({"body": pa.array(given).dictionary_encode()}),
        "little.jsonl": utf16(lines(*objects), "le"),
        "array.json": json.dumps(objects, ensure_ascii=False).encode(),
        "indented.json": b"\xef\xbb\xbf" + json.dumps(objects, indent=2).encode(),
        "a.csv": b"\xef\xbb\xbf" + table(rows),
        "big.csv": utf16(table(rows, lineterminator="\r", quoting=csv.QUOTE_ALL), "be"),
        "a.tsv": table(rows, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC),
    }
    if "\0" not in "".join(given):
        text = "<|endoftext|>".join(given).encode()
        content |= {"c.txt": text, "big.txt": utf16(text, "be"), "little.log": utf16(text, "le")}
    content |= {"all.tar": tar(content), "all.zip": zipped(content)}
    files = [write(folder / f"{name}{suffix}", PACK[suffix](data)) for name, data in content.items()]
    expected = [text for text in given if text.strip()]
    assert read(*files[:-2], column="body") == expected * (len(files) - 2)
    assert read(*files[-2:], column="body") == expected * (len(files) - 2) * 2


@pytest.mark.parametrize("cut", [*range(60), MIB - 1])
def test_items_of_an_array_are_found_wherever_the_read_blocks_end(tmp_path: Path, cut: int) -> None:
    items = b'[ {"text": "%s"} , {"n": [-1.5e3, true, null], "text": "\\ud83d\\ude00, \\"]"} , {"text": "b"} ] '
    before = "a" * (MIB - cut)
    assert read(write(tmp_path / "a.json", items % before.encode())) == [before, '\U0001f600, "]', "b"]


def test_an_array_is_not_held_in_memory(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", json.dumps([{"text": f"{n} " + "word " * 400} for n in range(11_000)]))
    tracemalloc.start()
    count = sum(1 for _ in documents([str(file)]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 11_000 and file.stat().st_size > 20 * MIB
    assert peak < 8 * MIB


def test_a_column_in_nested_objects_is_named_by_its_path(tmp_path: Path) -> None:
    values = [{"meta": {"text": "a", "by": {"name": "x"}}}, {"meta": None}, {"meta": {"text": None, "by": None}}]
    files = [
        write(tmp_path / "a.jsonl", lines(*values)),
        write(tmp_path / "a.parquet", arrow({"id": [1, 2, 3], "meta": [value["meta"] for value in values]})),
    ]
    for file in files:
        assert read(file, column="meta.text") == ["a"]
        assert read(file, column="meta.by.name") == ["x"]
        assert 'no column "meta.texts" (did you mean "meta.text"?)' in refusal(file, column="meta.texts")
        assert "meta.text, meta.by" in refusal(file, column="text")
        assert "not text" in refusal(file, column="meta")
    write(files[0], lines({"meta.text": "exact", "meta": {"text": "nested"}}))
    assert read(files[0], column="meta.text") == ["exact"]


def test_two_columns_of_one_name_are_refused_only_if_they_are_meant(tmp_path: Path) -> None:
    twice = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "text", "body"])
    pq.write_table(twice, tmp_path / "a.parquet")
    assert 'a.parquet: has 2 columns "text"; rename one of them' in refusal(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", column="body") == ["c"]


def test_categories_of_many_row_groups_keep_their_rows(tmp_path: Path) -> None:
    rows = [None if n % 7 == 0 else f"category {n % 40}" for n in range(3000)]
    column = pa.array(rows).dictionary_encode()
    pq.write_table(pa.table({"text": column, "id": range(3000)}), tmp_path / "a.parquet", row_group_size=500)
    assert read(tmp_path / "a.parquet") == [row for row in rows if row]


def test_hidden_files_in_an_archive_are_left_out(tmp_path: Path) -> None:
    members = {"./a.txt": b"a", "./._a.txt": b"\xff", "__MACOSX/b.txt": b"\xff", "../c.txt": b"c"}
    assert "c.txt" not in members
    assert read(write(tmp_path / "a.zip", zipped({**members, "d/a.txt": b"d"}))) == ["a", "d"]
    assert not (tmp_path.parent / "c.txt").exists()


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_an_archive_that_was_cut_off_or_damaged_is_refused_wherever(tmp_path: Path, name: str) -> None:
    content = {f"{n}.txt": os.urandom(200).hex().encode() for n in range(4)}
    whole = zipped(content) if name == "a.zip" else PACK[name.removeprefix("a.tar")](tar(content))
    ends = len(whole) if name != "a.tar" else 512 * 9  # then come zeros only
    for cut in range(1, ends, 97):
        said = refusal(write(tmp_path / name, whole[:cut]))
        assert "damaged or truncated" in said or "cannot be unpacked" in said
    if name == "a.tar":
        changed = bytearray(whole)
        changed[512 * 3] ^= 1  # in a header
        assert "cannot be unpacked (bad checksum)" in refusal(write(tmp_path / name, bytes(changed)))


def test_a_directory_without_the_usual_formats_gives_its_other_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.csv", b"text\na\n")
    write(tmp_path / "b.txt.xz", lzma.compress(b"b"))
    write(tmp_path / "b2.tgz", tar({"a.txt": b"b2"}))
    assert read(tmp_path) == ["a", "b", "b2"] and not caplog.messages
    write(tmp_path / "c.txt", b"c")
    assert read(tmp_path) == ["c"]
    assert "left out 3 files of other formats" in caplog.text and "name them by a pattern" in caplog.text


def test_directories_and_patterns_give_their_files_in_the_order_of_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/2.txt", "a/1.txt", "notes.md", "dataset_info.json"):
        write(tmp_path / name, name)
    for name in "zyx":
        write(tmp_path / "c" / f"{name}.jsonl.gz", gzip.compress(lines({"text": name})))
    assert read(tmp_path) == ["a/1.txt", "a/2.txt", "b.txt", "x", "y", "z"]
    assert read(tmp_path / "c" / "*.jsonl.gz") == ["x", "y", "z"]


def test_sources_follow_one_another_and_the_first_documents_are_taken(tmp_path: Path) -> None:
    one, two = write(tmp_path / "1.txt", "one<|endoftext|>two"), write(tmp_path / "2.txt", "three")
    assert read(two, one) == ["three", "one", "two"]
    assert read(one, two, max_documents=2) == ["one", "two"]
    assert list(texts([str(one), str(two)])) == ["one", "two", "three"]


def test_stories_carry_their_bits_and_follow_the_seed(tmp_path: Path) -> None:
    expected = [TextDocument(story.text, story.bits) for story in islice(stories(seed=5), 20)]
    assert list(documents(["stories"], seed=5, max_documents=20)) == expected
    assert next(documents([str(write(tmp_path / "a.txt", "text")), "stories"], seed=5)).bits is None


def test_nulls_and_blank_rows_are_no_documents(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", lines({"text": None}, {"text": "  "}, {"text": "x"}) + b"\n  \n")
    pq.write_table(pa.table({"text": [None, " ", "x"]}), tmp_path / "a.parquet")
    assert read(tmp_path) == ["x", "x"]


def test_frames_of_zstandard_follow_one_another(tmp_path: Path) -> None:
    content = b"".join(PACK[".zst"](part) for part in (b"one ", b"two ", b"three"))
    assert read(write(tmp_path / "a.txt.zst", content)) == ["one two three"]


@pytest.mark.parametrize("pattern", SPLITTING)
@settings(max_examples=5, deadline=None)
@given(snippet=st.text(alphabet="ab\u00e91\U0001f600 \n\t\x1c\u00a0.'s_", min_size=1, max_size=40))
@example(snippet="some words \n")
def test_pieces_have_the_words_of_the_whole_text(pattern: str, snippet: str) -> None:
    text = snippet * (270_000 // len(snippet))
    pieces = list(TextDocument(text).pieces())
    words = regex.compile(SPLITTING[pattern]).findall
    assert "".join(pieces) == text
    assert [word for piece in pieces for word in words(piece)] == words(text)
    assert len(pieces) > 1 or snippet != "some words \n"


@pytest.mark.parametrize(("suffix", "size", "limit"), [("", 12, 4), (".gz", 66, 8), (".zst", 66, 8), (".xz", 66, 12)])
def test_a_long_document_stays_in_its_file_and_memory_stays_small(
    tmp_path: Path, suffix: str, size: int, limit: int
) -> None:
    line = "The quick brown f\u00f6x jumps over the lazy dog.\n"
    count = size * MIB // len(line)
    file = write(tmp_path / f"a.txt{suffix}", PACK[suffix](("short<|endoftext|>" + line * count).encode()))
    short, long = documents([str(file)])
    assert isinstance(long, FileDocument) and "".join(short.pieces()) == "short"
    tracemalloc.start()
    characters = sum(len(piece) for piece in long.pieces())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters == len(line) * count
    assert peak < limit * MIB


ENCRYPTED = zipped({"a.txt": b"a"}).replace(b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\1")
BAD = {
    "empty": ("a.txt", b"", "the file is empty"),
    "byte order mark only": ("a.txt", b"\xef\xbb\xbf", "the file is empty"),
    "white space only": ("a.txt", b" \n\t", "nothing but white space"),
    "zero byte": ("a.txt", b"abc\0def", "a zero byte at offset 3"),
    "not UTF-8": ("a.txt", b"caf\xe9 au lait", "not UTF-8: byte 0xe9 at offset 3"),
    "cut character": ("a.txt", "na\u00efve caf\u00e9".encode()[:-1], "not UTF-8: byte 0xc3 at offset 10"),
    "cut before a separator": ("a.txt", b"caf\xc3<|endoftext|>", "not UTF-8: byte 0xc3 at offset 3"),
    "UTF-16 without its mark": ("a.txt", "abc".encode("utf-16-le"), "zero byte at offset 1"),
    "only the mark of UTF-16": ("a.txt", codecs.BOM_UTF16_LE, "the file is empty"),
    "half a character of UTF-16": (
        "a.txt",
        utf16(b"abc", "le")[:-1],
        "not UTF-16, as its byte order mark says: byte 0x63 at offset 6",
    ),
    "zero character": ("a.txt", utf16(b"abc\0", "be"), "a zero byte at offset 6"),
    "late byte": ("a.txt", b"a " * MIB + b"\xff", f"not UTF-8: byte 0xff at offset {2 * MIB}"),
    "late zero": ("a.txt", "\u20ac".encode() * MIB + b"\0", f"zero byte at offset {3 * MIB}"),
    "not JSON": ("a.jsonl.gz", lines({"text": "a"}) + b"{text: 1}\n", "line 2: not JSON"),
    "not an object": ("a.jsonl.gz", lines({"text": "a"}, {"text": "b"}, ["c"]), "line 3: a list, not a JSON object"),
    "no such key": ("a.jsonl.gz", lines({"content": "a", "id": 1}), 'line 1: has no column "text"'),
    "keys named": ("a.jsonl.gz", lines({"content": "a", "id": 1}), "there are: content, id"),
    "not text": ("a.jsonl.gz", lines({"text": 5}), 'line 1: "text" is a number, not text'),
    "JSON not UTF-8": ("a.jsonl.gz", lines({"text": "a"}) + b'{"text": "\xff"}\n', "line 2: not UTF-8 at byte 10"),
    "half a pair": ("a.jsonl.gz", b'{"text": "ab\\ud800"}\n', "line 1: half a surrogate pair at character 2"),
    "too deep": ("a.jsonl.gz", b'{"text": ' + b"[" * 200_000 + b"\n", "line 1: "),
    "endless number": ("a.jsonl.gz", b'{"text": "a", "id": ' + b"1" * 5000 + b"}\n", "line 1: holds a number with too"),
    "item not an object": ("a.json", b'[{"text": "a"}, "b"]', "item 2: a string, not a JSON object"),
    "array cut": ("a.json", b'[{"text": "a"}, {"text": "b', "item 2: not JSON (Unterminated string"),
    "array without its end": ("a.json", b'[{"text": "a"}\n', "item 2: not JSON (Expecting ',' or ']'"),
    "array without a comma": ("a.json", b'[{"text": "a"} {"text": "b"}]', "item 2: not JSON (Expecting ',' or ']'"),
    "array with more": ("a.json", b'[{"text": "a"}] {"text": "b"}', "follows the end of the array"),
    "array not UTF-8": ("a.json", b'[{"text": "caf\xe9"}]', "not UTF-8: byte 0xe9 at offset 14"),
    "empty array": ("a.json", b"[]", "nothing but white space"),
    "no such path": ("a.json", lines({"id": 1, "a": {"b": "c"}}), 'no column "text"; there are: id, a.b'),
    "no header": ("a.csv", b"One, two.\nThree.\n", 'no column "text"; there are: One, two.'),
    "long header": ("a.csv", b'"a\n' + b"b" * 999 + b'"\n', "there are: a " + "b" * 58),
    "too many fields": ("a.csv", b"id,text\n1,a\n2,b, and c\n", "line 3: 3 fields, but the header has 2"),
    "open quote": ("a.csv", b'id,text\n1,"a\n2,b\n', "line 3: not CSV (unexpected end of data)"),
    "text after a quote": ("a.csv", b'id,text\n1,"a" b\n', "line 2: not CSV"),
    "two columns of CSV": ("a.csv", b"text,text\n1,a\n", 'has 2 columns "text"; rename one'),
    "CSV not UTF-8": ("a.tsv", b"id\ttext\n1\tcaf\xe9\n", "line 2: not UTF-8 at byte 5"),
    "member not UTF-8": ("a.zip", zipped({"a.txt": b"a", "b.txt": b"\xff"}), "a.zip/b.txt: not UTF-8: byte 0xff"),
    "late byte of a member": ("a.tar", tar({"b.txt": b"a " * MIB + b"\xff"}), "a.tar/b.txt: not UTF-8: byte 0xff"),
    "empty member": ("a.tar.gz", tar({"a.txt": b"a", "b/c.txt": b""}), "a.tar.gz/b/c.txt: the file holds nothing but"),
    "archive in an archive": ("a.zip", zipped({"b.zip": zipped({})}), "a.zip/b.zip: an archive in an archive"),
    "encrypted": ("a.zip", ENCRYPTED, "a.zip: a.txt is encrypted; unpack it"),
    "empty archive": ("a.zip", zipped({}), "the archive holds no file"),
    "only blanks": ("a.jsonl.gz", lines({"text": " "}), "nothing but white space"),
}


@pytest.mark.parametrize(("name", "content", "message"), BAD.values(), ids=BAD)
def test_what_is_no_text_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = write(tmp_path / name, PACK[".gz" if name.endswith(".gz") else ""](content))
    assert str(file) in refusal(file) and message in refusal(file)


@settings(max_examples=15, deadline=None)
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


def test_errors_replace_puts_the_replacement_character(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", b'{"text": "a\xff"}\n{"text": "b\\ud800c"}\n'), tmp_path / "b.parquet"
    column = pa.array([b"a\xff", None, b"b"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), two)
    assert read(one, two, errors="replace") == ["a\ufffd", "b\ufffdc", "a\ufffd", "b"]
    assert "b.parquet: row 0 is not UTF-8 at byte 1" in refusal(two)
    content = utf16(b"ab", "le") + b"\x00\xd8" + b"c\0d"  # half a surrogate pair, and half a character at the end
    assert read(write(tmp_path / "c.txt", content), errors="replace") == ["ab\ufffdc\ufffd"]
    assert "c.txt: not UTF-16, as its byte order mark says: byte 0x00 at offset 6" in refusal(tmp_path / "c.txt")
    table = write(tmp_path / "d.csv", b"text\ncaf\xe9\n")
    assert read(table, errors="replace") == ["caf\ufffd"]


REFUSED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "no source": ([], {}, "no source given"),
    "no documents": (["stories"], {"max_documents": 0}, "max_documents is 0"),
    "errors": (["stories"], {"errors": "ignore"}, 'errors "ignore"; choose from strict, replace'),
    "seed": (["a.txt"], {"seed": 5}, "seed 5 is given, but only stories have a seed; leave --seed out"),
    "column of stories": (["stories"], {"column": "body"}, "no source has columns"),
    "column of text": (["a.txt"], {"column": "body"}, "no source has columns"),
    "missing": (["a.txt", "missing.txt"], {}, "is not a file, directory or corpus"),
    "empty": (["a.txt", "empty.txt"], {}, "empty.txt: the file is empty"),
    "corpus misspelt": (["storys"], {}, '"storys" is not a file, directory or corpus (did you mean "stories"?)'),
    "another": (["fineweb-edo"], {}, 'did you mean "fineweb-edu"?'),
    "file misspelt": (["shakespear.txt"], {}, 'did you mean "shakespeare.txt"?'),
    "no text below": (["folder"], {}, "holds no .txt, .jsonl, .csv,"),
    "no match": (["*.json"], {}, "no file has such a name"),
    "column missing": (["a.parquet"], {}, 'no column "text" (did you mean "texts"?); there are: id, texts'),
    "column of numbers": (["a.parquet"], {"column": "id"}, 'column "id" holds int64, not text'),
}


@pytest.mark.parametrize(("sources", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_sources_and_options_that_cannot_be_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: list[str], options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "shakespeare.txt", "folder/a.md"):
        write(tmp_path / name, "text")
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "a.parquet", parquet(["a"], "texts"))
    assert message in refusal(*sources, **options)
    if sources != ["a.parquet"]:
        with pytest.raises(InputError):
            documents(sources, **options)  # before anything is read


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


CUT = "a.txt.gz a.jsonl.gz a.txt.zst a.jsonl.zst a.txt.xz a.csv.bz2 a.parquet a.parquet.gz a.parquet.xz"


@pytest.mark.parametrize("name", CUT.split())
def test_a_file_that_was_cut_off_or_is_something_else_is_refused(tmp_path: Path, name: str) -> None:
    suffix = "" if name == "a.parquet" else Path(name).suffix
    text = parquet(["a"] * 9) if "parquet" in name else lines(*({"text": str(n) * 9} for n in range(9000)))
    whole = PACK[suffix](text)
    for damaged in (whole[:-9], b"\x00something else"):
        assert str(write(tmp_path / name, damaged)) in refusal(tmp_path / name)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_what_is_damaged_in_compressed_parquet_is_told(tmp_path: Path, suffix: str) -> None:
    data = parquet(["a", "é"] * 9)
    packed, inside = tmp_path / f"c.parquet{suffix}", tmp_path / f"d.parquet{suffix}"
    assert "damaged or truncated" in refusal(write(packed, PACK[suffix](data)[:-9]))
    assert "not a complete Parquet file" in refusal(write(inside, PACK[suffix](data[:-9])))


@pytest.mark.parametrize("name", ["a.parquet", "a.txt.zst"])
def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    expected = "needs pyarrow, which is not installed: pip install 'gpt2lab[hub]'"
    assert expected in refusal(write(tmp_path / name, b"content"))


def test_a_tokenizer_of_an_own_pattern_is_trained_on_whole_documents(tmp_path: Path) -> None:
    text = "to be or not to be, " * 30_000  # longer than a piece, and one word of the pattern
    source = [str(write(tmp_path / "a.txt", text))]
    assert len(list(texts(source))) > 1
    assert list(texts(source, whole=True)) == [text]


def test_tokenizer_and_data_are_made_from_every_format_on_the_command_line(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl.gz", gzip.compress(lines(*({"body": f"document {n} of some"} for n in range(150)))))
    write(tmp_path / "b.parquet", parquet([f"row {n} of many" for n in range(150)], "body"))
    sources = [str(tmp_path / "*.jsonl.gz"), str(tmp_path / "b.parquet")]
    tok, out = str(tmp_path / "tok"), tmp_path / "out"
    columns = ["--column", "body"]
    assert main(["tokenizer", "train", "--input", *sources, "--vocab-size", "300", "--out", tok, *columns]) == 0
    assert main(["data", "prepare", *sources, "--tokenizer", tok, "--out", str(out), *columns]) == 0
    splits = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["splits"]
    assert sum(split["documents"] for split in splits.values()) == 300
