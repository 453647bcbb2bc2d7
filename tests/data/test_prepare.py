"""From sources to prepared data: which split a document goes to, what is written and counted, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import tracemalloc
import zipfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import files_below, ids_of, parquet, read, texts_of, write

from gpt2lab.cli.main import main
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.documents import SPLITS, SplitRule, TextDocument
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import documents, texts
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.tokenizer import Tokenizer
from loopback_hub import Hub


def parts(rule: SplitRule, text: str, bits: float | None = None) -> list[tuple[str, str, float | None]]:
    return [(part.split, "".join(part.pieces), part.bits) for part in rule.parts(TextDocument(text, bits))]


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A file of 300 documents."""
    text = "<|endoftext|>".join(f"Document {i}: \u00e9t\u00e9\n" for i in range(300))
    return str(write(tmp_path / "many.txt", text))


@settings(deadline=None)
@given(st.text(min_size=1) | st.just("words and \u00fcmlauts " * 40_000))  # several pieces
def test_the_hash_of_the_text_decides(text: str) -> None:
    u = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
    expected = "val" if u < 0.3 else "test" if u < 0.5 else "train"
    assert parts(SplitRule("hash", 0.3, 0.2), text, bits=2.5) == [(expected, text, 2.5)]


def test_documents_fall_in_the_splits_by_their_fractions() -> None:
    rule = SplitRule("hash", 0.05, 0.1)
    counts = Counter(parts(rule, f"document {i}")[0][0] for i in range(10_000))
    assert counts["val"] == pytest.approx(500, abs=100)
    assert counts["test"] == pytest.approx(1000, abs=150)


@settings(deadline=None)
@given(st.text(min_size=1), st.sampled_from([(0.05, 0.05), (0.1, 0.0), (0.0, 0.25), (0.3, 0.3), (0.0, 0.0)]))
def test_cutting_keeps_the_order_and_loses_nothing(text: str, fractions: tuple[float, float]) -> None:
    found = parts(SplitRule("position", *fractions), text, bits=1.0)
    assert "".join(section for _, section, _ in found) == text
    names = [split for split, _, _ in found]
    assert names == [split for split in SPLITS if split in names]
    assert all(section and bits is None for _, section, bits in found)


def test_cutting_stands_at_the_fractions_of_the_characters() -> None:
    text = "\u00e9" * 1000 + "words and spaces " * 40_000
    found = {split: section for split, section, _ in parts(SplitRule("position", 0.1, 0.0), text)}
    assert found == {"train": text[: int(len(text) * 0.9)], "val": text[int(len(text) * 0.9) :]}
    cut = SplitRule("position", 0.05, 0.05).parts(TextDocument(text))
    begun = [(part.split, len(list(islice(part.pieces, 1)))) for part in cut]  # and not read to the end
    assert begun == [("train", 1), ("val", 1), ("test", 1)]
    sizes = [len(section) for _, section, _ in parts(SplitRule("position", 0.05, 0.05), "x" * 1000)]
    assert sizes == [900, 50, 50]


@pytest.mark.parametrize("fractions", [(-0.1, 0.0), (1.0, 0.0), (0.0, 1.5), (float("nan"), 0.0), (0.5, 0.5)])
def test_fractions_out_of_range_are_refused(fractions: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="fraction"):
        SplitRule("hash", *fractions)


def test_every_document_comes_back_and_the_manifest_counts_it(
    source: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    dataset = prepare([source], tokenizer, tmp_path / "out", val_fraction=0.2, test_fraction=0.1, shard_tokens=100)
    found, original = texts_of(dataset), read(source)
    assert sorted(text for held in found.values() for text in held) == sorted(original)
    assert all(held == [text for text in original if text in held] for held in found.values())
    assert list(found) == ["train", "val", "test"]
    for split, info in dataset.manifest.splits.items():
        ids = ids_of(dataset, split)
        assert (info.documents, info.tokens, info.entropy_bits) == (len(found[split]), len(ids), None)
        assert info.bytes == sum(len(text.encode()) for text in found[split])
        assert [i for i in ids if i == tokenizer.eot] == ids[:1] * info.documents
    assert dataset.manifest.tokenizer.fingerprint == tokenizer.fingerprint
    assert dataset.manifest.split_rule.by == "hash"


def test_stories_keep_the_sum_of_their_bits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    dataset = prepare(["stories"], tokenizer, tmp_path / "out", seed=3, max_documents=150, val_fraction=0.2)
    for split, found in texts_of(dataset).items():
        stories = [d for d in documents(["stories"], seed=3, max_documents=150) if "".join(d.pieces()) in found]
        assert dataset.manifest.splits[split].entropy_bits == pytest.approx(sum(d.bits or 0.0 for d in stories))
        assert dataset.manifest.splits[split].documents == len(stories)


def test_one_document_without_known_bits_leaves_none_for_its_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    sources = [str(write(tmp_path / "a.txt", "One more document.")), "stories"]
    dataset = prepare(sources, tokenizer, tmp_path / "out", max_documents=150)
    known = [info.entropy_bits is not None for info in dataset.manifest.splits.values()]
    assert sorted(known) == [False, True, True]


def test_tiny_shakespeare_is_split_as_nanogpt_does(tmp_path: Path, tokenizer: Tokenizer, tinyshakespeare: Path) -> None:
    dataset = prepare([str(tinyshakespeare)], tokenizer, tmp_path / "out", val_fraction=0.1, test_fraction=0.0)
    text = tinyshakespeare.read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    assert texts_of(dataset) == {"train": [text[:cut]], "val": [text[cut:]]}


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", r"[^.]+\.?|\."])
def test_a_long_text_has_the_tokens_of_one_encoding(tmp_path: Path, wikitext2: Path, pattern: str) -> None:
    text = wikitext2.read_text(encoding="utf-8")
    tokenizer = Tokenizer.train([text[:100_000]], 400, pattern=pattern)
    dataset = prepare([str(wikitext2)], tokenizer, tmp_path / "out", val_fraction=0.0, test_fraction=0.0)
    assert ids_of(dataset, "train") == [tokenizer.eot, *tokenizer.encode(text)]


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    one, two, other, small = (
        prepare(["stories"], tokenizer, tmp_path / name, seed=seed, max_documents=150, shard_tokens=size)
        for name, seed, size in (("one", 1, 20_000), ("two", 1, 20_000), ("other", 2, 20_000), ("small", 1, 640))
    )
    assert files_below(one.directory) == files_below(two.directory)
    assert other.fingerprint != one.fingerprint
    assert len(list(small.directory.glob("train_*.bin"))) > 10
    assert ids_of(small, "train") == ids_of(one, "train")  # the size of the files does not change the tokens


def test_a_long_document_is_never_in_memory_whole_and_progress_ends_at_the_totals(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    calls: list[tuple[int, int, int, int]] = []
    text = "A line of a text that goes on and on.\n" * 1_050_000
    source = str(write(tmp_path / "long.txt", text))
    tracemalloc.start()
    dataset = prepare([source], tokenizer, tmp_path / "out", progress=lambda *n: calls.append(n))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000  # what the threads read ahead, whatever the length
    assert len(calls) > 2 and calls == sorted(calls)
    tokens = sum(info.tokens for info in dataset.manifest.splits.values())
    assert calls[-1] == (3, len(text), tokens, len(text))


def test_duplicates_are_left_out_wherever_they_stand(hub: Hub, tmp_path: Path, tokenizer: Tokenizer) -> None:
    for number in range(3):
        hub.add("o/n", f"{number}.parquet", parquet([f"text {n % 120}" for n in range(number * 50, number * 50 + 150)]))
    plain = prepare(["hub:o/n"], tokenizer, tmp_path / "plain")
    clean = prepare(["hub:o/n"], tokenizer, tmp_path / "clean", deduplicate=True)
    kept = [text for held in texts_of(clean).values() for text in held]
    assert sorted(kept) == sorted({text for held in texts_of(plain).values() for text in held})
    assert clean.manifest.left_out.duplicates == 450 - 120 and plain.manifest.left_out.duplicates == 0


def test_short_documents_are_left_out_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = [f"{n:x} {'x' * (n % 20)}" for n in range(300)]
    source = str(write(tmp_path / "a.txt", "<|endoftext|>".join(lines)))
    dataset = prepare([source], tokenizer, tmp_path / "out", min_length=10, test_fraction=0.0)
    kept = [text for held in texts_of(dataset).values() for text in held]
    assert sorted(kept) == sorted(text for text in lines if len(text) >= 10)
    assert dataset.manifest.left_out.short == 300 - len(kept)


def test_a_folder_that_exists_is_left_as_it_is(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "out" / "mine.txt", "mine")
    with pytest.raises(InputError, match="already exists"):
        prepare(["stories"], tokenizer, tmp_path / "out", max_documents=2)
    assert files_below(tmp_path / "out") == {"mine.txt": b"mine"}


def test_files_that_cannot_be_read_are_skipped_whole_on_request_and_listed(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, sink = tmp_path / "in", io.BytesIO()
    good = [write(folder / f"{n:03}.txt", f"text {n}\n") for n in range(150)]
    good.append(write(folder / "a.jsonl", b'{"text": "json"}\n'))
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("good.txt", "zipped")
        archive.writestr("bad.txt", b"\xff")
    bad = {
        write(folder / "empty.txt", b""): "the file holds nothing but white space; ",
        write(folder / "late.jsonl", b'{"text": "good"}\n{"text": 5}\n'): 'line 2: "text" is a number, not text; ',
        write(folder / "long.txt", b"good<|endoftext|>" + b"good " * 300_000 + b"\xff"): "not UTF-8: byte 0xff at ",
        write(folder / "damaged.txt.gz", gzip.compress(b"good " * 99)[:-9]): "damaged or truncated (",
        write(folder / "other.parquet", parquet(["good"], "body")): 'has no column "text"; there are: id, body',
    }
    zipped = write(tmp_path / "a.zip", sink.getvalue())
    sources = [str(folder), str(zipped)]
    with pytest.raises(InputError, match=r"empty\.txt: the file is empty"):
        prepare(sources, tokenizer, tmp_path / "out")
    tokenizer.save(tmp_path / "tok")
    command = ["data", "prepare", *sources, "--tokenizer", str(tmp_path / "tok"), "--out", str(tmp_path / "out")]
    assert main([*command, "--on-error", "skip"]) == 0
    dataset, said = TokenDataset(tmp_path / "out"), capsys.readouterr().out
    train = ["tokenizer", "train", "--vocab-size", "270", "--on-error", "skip", "--input"]
    assert main([*train, *sources, "--out", str(tmp_path / "all")]) == 0
    skipped_alike = [line for line in said.splitlines() if line.startswith("skipped ")]
    assert skipped_alike == [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped ")]
    skipped = dataset.manifest.left_out.skipped
    assert list(skipped) == [*map(str, sorted(bad)), f"{zipped}/bad.txt"]
    assert all(skipped[str(file)].startswith(why) for file, why in bad.items())
    assert all(f"skipped {file}: {why}\n" in said for file, why in skipped.items())
    expected = [*sorted(good), write(tmp_path / "good.txt", "zipped")]
    files = [str(file) for file in expected]
    assert Tokenizer.load(tmp_path / "all").merges == Tokenizer.train(texts(files), 270).merges
    clean = prepare(files, tokenizer, tmp_path / "clean", on_error="skip")
    assert dataset.fingerprint == clean.fingerprint and not clean.manifest.left_out.skipped


def test_nothing_but_files_that_cannot_be_read_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(write(tmp_path / f"{n}.txt", b"\xff")) for n in range(2)]
    with pytest.raises(InputError, match=r"none of the files can be read \(2 skipped\): .*0\.txt: not UTF-8"):
        prepare(files, tokenizer, tmp_path / "out", on_error="skip")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"none of the files can be read \(2 skipped\): .*0\.txt: not UTF-8"):
        Tokenizer.train(texts(files, on_error="skip"), 270)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="needs pyarrow"):  # which is not the file's fault
        prepare([str(write(tmp_path / "a.parquet", b""))], tokenizer, tmp_path / "out", on_error="skip")


REFUSED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "broken text": (["many.txt", "broken.txt"], {}, "0xff at offset 7"),
    "no val": (["tiny.txt"], {"val_fraction": 0.1, "test_fraction": 0.1}, r"too short .* nothing is left for val;"),
    "no test": (["many.txt"], {"val_fraction": 0.5, "test_fraction": 1e-6}, r"too short .* nothing is left for test;"),
    "min_length": (["many.txt"], {"min_length": -1}, "min_length is -1; it must be 0 or more characters"),
    "on_error": (["many.txt"], {"on_error": "ask"}, 'unknown on_error "ask"; choose from stop, skip'),
    "max_disk": (["many.txt"], {"max_disk": 0}, "max_disk is 0; it must be at least 1 byte"),
}


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize(("sources", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_leaves_no_directory(
    tmp_path: Path, tokenizer: Tokenizer, sources: list[str], options: dict[str, Any], message: str
) -> None:
    write(tmp_path / "broken.txt", b"broken \xff")
    write(tmp_path / "tiny.txt", "tiny")
    with pytest.raises(InputError, match=message):
        prepare([str(tmp_path / name) for name in sources], tokenizer, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path: Path) -> None:
    plain = Tokenizer.train(["text"], 256, special_tokens=())
    with pytest.raises(InputError, match=r"the tokenizer has no <\|endoftext\|>"):
        prepare(["stories"], plain, tmp_path / "out", max_documents=2)
