"""JSON lines, Parquet, compressed files and patterns of names: what is read, and one line for what is wrong."""

from __future__ import annotations

import gzip
import json
import re
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.cli.main import main
from gpt2lab.data.documents import FileDocument
from gpt2lab.data.sources import documents
from gpt2lab.errors import InputError

MIB = 1 << 20


def pack_zstandard(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


PACK = {"": bytes, ".gz": gzip.compress, ".zst": pack_zstandard}


def read(*sources: Path | str, **options: Any) -> list[str]:
    return ["".join(document.pieces()) for document in documents([str(source) for source in sources], **options)]


def lines(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def write_parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


@pytest.mark.parametrize("suffix", PACK)
def test_every_format_reads_the_same_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    texts = ["one\n", "  zwei \U0001f600 ", "3"]
    (tmp_path / f"a.txt{suffix}").write_bytes(PACK[suffix]("<|endoftext|>".join(texts).encode()))
    (tmp_path / f"a.jsonl{suffix}").write_bytes(PACK[suffix](b"\xef\xbb\xbf" + lines(*({"text": t} for t in texts))))
    assert read(tmp_path / f"a.txt{suffix}") == texts
    assert read(tmp_path / f"a.jsonl{suffix}") == texts


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(max_size=20), max_size=12), suffix=st.sampled_from(list(PACK)))
def test_json_lines_and_parquet_give_back_any_text(
    texts: list[str], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    texts = ["first", *texts]
    (folder / f"a.jsonl{suffix}").write_bytes(PACK[suffix](lines(*({"n": 1, "body": text} for text in texts))))
    write_parquet(folder / "b.parquet", n=list(range(len(texts))), body=texts)
    kept = [text for text in texts if text.strip()]
    assert read(folder / f"a.jsonl{suffix}", folder / "b.parquet", column="body") == [*kept, *kept]


def test_a_folder_gives_all_formats_in_the_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"b"))
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "a"}))
    write_parquet(tmp_path / "sub" / "c.parquet", text=["c"])
    (tmp_path / "dataset_info.json").write_text("{}", encoding="utf-8")
    assert read(tmp_path) == ["a", "b", "c"]


def test_a_pattern_of_names_gives_its_files_in_order(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(lines({"text": name}))
    (tmp_path / "d.txt").write_text("d", encoding="utf-8")
    assert read(tmp_path / "*.jsonl") == ["a", "b", "c"]
    with pytest.raises(InputError, match="no file has such a name"):
        documents([str(tmp_path / "*.parquet")])


def test_nulls_and_blank_rows_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": None}, {"text": "  "}, {"text": "x"}) + b"\n  \n")
    assert read(write_parquet(tmp_path / "a.parquet", text=[None, " ", "x"]), tmp_path / "a.jsonl") == ["x", "x"]


def test_frames_of_zstandard_follow_one_another(tmp_path: Path) -> None:
    (tmp_path / "a.txt.zst").write_bytes(b"".join(pack_zstandard(part) for part in (b"one ", b"two ", b"three")))
    assert read(tmp_path / "a.txt.zst") == ["one two three"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_long_document_of_a_compressed_file_stays_there(tmp_path: Path, suffix: str) -> None:
    line = b"The quick brown fox jumps over the lazy dog.\n"
    count = 66 * MIB // len(line)
    (tmp_path / f"a.txt{suffix}").write_bytes(PACK[suffix](b"short<|endoftext|>" + line * count))
    short, long = documents([str(tmp_path / f"a.txt{suffix}")])
    assert isinstance(long, FileDocument) and "".join(short.pieces()) == "short"
    tracemalloc.start()
    characters = sum(len(piece) for piece in long.pieces())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters == len(line) * count
    assert peak < 8 * MIB


BAD = {
    "not JSON": (lines({"text": "a"}) + b"{text: 1}\n", "line 2: not JSON"),
    "not an object": (lines({"text": "a"}, {"text": "b"}, ["c"]), "line 3: a list, not a JSON object"),
    "no such key": (lines({"content": "a", "id": 1}), 'line 1: has no column "text"'),
    "keys named": (lines({"content": "a", "id": 1}), "there are: content, id"),
    "not a text": (lines({"text": 5}), 'line 1: "text" is a number, not text'),
    "not UTF-8": (lines({"text": "a"}) + b'{"text": "\xff"}\n', "line 2: not UTF-8 at byte 10"),
    "half a pair": (b'{"text": "ab\\ud800"}\n', "line 1: half a surrogate pair at character 2"),
    "too deep": (b'{"text": ' + b"[" * 200_000 + b"\n", "line 1: "),
    "endless number": (b'{"text": "a", "id": ' + b"1" * 5000 + b"}\n", "line 1: holds a number with too many"),
    "only blanks": (lines({"text": " "}), "nothing but white space"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read(tmp_path / "a.jsonl.gz")
    assert str(tmp_path / "a.jsonl.gz") in str(caught.value) and "\n" not in str(caught.value)


def test_errors_replace_puts_the_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\xff"}\n{"text": "b\\ud800c"}\n')
    column = pa.array([b"a\xff", None, b"b"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "b.parquet")
    assert read(tmp_path / "a.jsonl", tmp_path / "b.parquet", errors="replace") == [
        "a\ufffd",
        "b\ufffdc",
        "a\ufffd",
        "b",
    ]
    with pytest.raises(InputError, match=r"b\.parquet: row 0 is not UTF-8 at byte 1"):
        read(tmp_path / "b.parquet")


def test_a_missing_column_of_parquet_lists_those_there(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", texts=["a"], score=[1.0])
    with pytest.raises(InputError, match=r'no column "text" \(did you mean "texts"\?\); there are: texts, score'):
        read(file)
    with pytest.raises(InputError, match='column "score" holds double, not text'):
        read(file, column="score")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.txt.zst", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_was_cut_off_or_is_something_else_is_refused(tmp_path: Path, name: str) -> None:
    whole = tmp_path / name
    text = "\n".join(json.dumps({"text": str(n) * 9}) for n in range(9000)).encode()
    if name == "a.parquet":
        write_parquet(whole, text=["a"] * 9)
    else:
        whole.write_bytes(PACK[whole.suffix](text))
    content = whole.read_bytes()
    for damaged in (content[:-9], b"\x00something else"):
        whole.write_bytes(damaged)
        with pytest.raises(InputError, match=re.escape(str(whole))) as caught:
            read(whole)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_parquet_that_was_compressed_again_is_unpacked(tmp_path: Path, packed: str) -> None:
    write_parquet(tmp_path / "a.parquet", text=["a", "é"] * 9)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / f"b.parquet{packed}").write_bytes(PACK[packed](data))
    assert read(tmp_path) == ["a", "é"] * 18
    (tmp_path / f"c.parquet{packed}").write_bytes(PACK[packed](data)[:-9])
    with pytest.raises(InputError, match=rf"c\.parquet\{packed}: damaged or truncated"):
        read(tmp_path / f"c.parquet{packed}")
    (tmp_path / f"d.parquet{packed}").write_bytes(PACK[packed](data[:-9]))
    with pytest.raises(InputError, match=rf"d\.parquet\{packed}: not a complete Parquet file"):
        read(tmp_path / f"d.parquet{packed}")


def test_a_column_where_nothing_has_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    for source in ("stories", str(tmp_path / "a.txt")):
        with pytest.raises(InputError, match="no source has columns"):
            documents([source], column="body")


@pytest.mark.parametrize(("name", "module"), [("a.parquet", "pyarrow"), ("a.txt.zst", "pyarrow")])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"content")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"needs {module}, which is not installed: pip install 'gpt2lab\[hub\]'"):
        read(tmp_path / name)


def test_tokenizer_and_data_are_made_from_every_format_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(
        gzip.compress(lines(*({"body": f"document {n} of some"} for n in range(150))))
    )
    write_parquet(tmp_path / "b.parquet", body=[f"row {n} of many" for n in range(150)])
    sources = [str(tmp_path / "*.jsonl.gz"), str(tmp_path / "b.parquet")]
    tok, out = str(tmp_path / "tok"), tmp_path / "out"
    columns = ["--column", "body"]
    assert main(["tokenizer", "train", "--input", *sources, "--vocab-size", "300", "--out", tok, *columns]) == 0
    assert main(["data", "prepare", *sources, "--tokenizer", tok, "--out", str(out), *columns]) == 0
    splits = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["splits"]
    assert sum(split["documents"] for split in splits.values()) == 300
