"""From sources to a folder of token files: what stands in it, that it is repeatable, and how it fails."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import documents
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.tokenizer import Tokenizer


def ids_of(dataset: TokenDataset, split: str) -> list[int]:
    stream = dataset.stream(split)
    return stream.read(np.array([0]), len(stream))[0].tolist()


def texts_of(dataset: TokenDataset, split: str, tokenizer: Tokenizer) -> list[str]:
    """The documents of a split, read back from its tokens; a document is what follows an end of text."""
    found: list[list[int]] = []
    for token in ids_of(dataset, split):
        if token == tokenizer.eot:
            found.append([])
        else:
            found[-1].append(token)
    return [tokenizer.decode(ids) for ids in found]


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_documents(path: Path, count: int) -> str:
    path.write_text("<|endoftext|>".join(f"Document {i}: \u00e9t\u00e9\n" for i in range(count)), encoding="utf-8")
    return str(path)


def test_every_document_comes_back_in_its_split_after_an_end_of_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_documents(tmp_path / "a.txt", 300)
    dataset = prepare([source], tokenizer, tmp_path / "out", val_fraction=0.2, test_fraction=0.1)
    found = {split: texts_of(dataset, split, tokenizer) for split in ("train", "val", "test")}
    original = ["".join(document.pieces()) for document in documents([source])]
    assert sorted(text for texts in found.values() for text in texts) == sorted(original)
    assert all(texts == [text for text in original if text in texts] for texts in found.values())


def test_the_manifest_counts_what_was_written(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_documents(tmp_path / "a.txt", 300)
    dataset = prepare([source], tokenizer, tmp_path / "out", shard_tokens=100)
    for split, info in dataset.manifest.splits.items():
        texts = texts_of(dataset, split, tokenizer)
        assert info.documents == len(texts)
        assert info.bytes == sum(len(text.encode()) for text in texts)
        assert info.tokens == len(ids_of(dataset, split))
        assert info.entropy_bits is None
    assert dataset.manifest.tokenizer.fingerprint == tokenizer.fingerprint
    assert dataset.manifest.split_rule.by == "hash"


def test_stories_keep_the_sum_of_their_bits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    dataset = prepare(["stories"], tokenizer, tmp_path / "out", seed=3, max_documents=150, val_fraction=0.2)
    for split in ("train", "val", "test"):
        texts = set(texts_of(dataset, split, tokenizer))
        stories = [d for d in documents(["stories"], seed=3, max_documents=150) if "".join(d.pieces()) in texts]
        assert dataset.manifest.splits[split].entropy_bits == pytest.approx(sum(d.bits or 0.0 for d in stories))
        assert dataset.manifest.splits[split].documents == len(stories)


def test_one_document_without_known_bits_leaves_none_for_its_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("One more document.", encoding="utf-8")
    dataset = prepare([str(tmp_path / "a.txt"), "stories"], tokenizer, tmp_path / "out", max_documents=150)
    known = [info.entropy_bits is not None for info in dataset.manifest.splits.values()]
    assert sorted(known) == [False, True, True]


def test_tiny_shakespeare_is_split_as_nanogpt_does(tmp_path: Path, tokenizer: Tokenizer, tinyshakespeare: Path) -> None:
    dataset = prepare([str(tinyshakespeare)], tokenizer, tmp_path / "out", val_fraction=0.1, test_fraction=0.0)
    text = tinyshakespeare.read_text(encoding="utf-8")
    assert texts_of(dataset, "train", tokenizer) == [text[: int(len(text) * 0.9)]]
    assert texts_of(dataset, "val", tokenizer) == [text[int(len(text) * 0.9) :]]
    assert list(dataset.manifest.splits) == ["train", "val"]


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", r"[^.]+\.?|\."])
def test_a_long_text_has_the_tokens_of_one_encoding(tmp_path: Path, wikitext2: Path, pattern: str) -> None:
    text = wikitext2.read_text(encoding="utf-8")
    tokenizer = Tokenizer.train([text[:100_000]], 400, pattern=pattern)
    dataset = prepare([str(wikitext2)], tokenizer, tmp_path / "out", val_fraction=0.0, test_fraction=0.0)
    assert ids_of(dataset, "train") == [tokenizer.eot, *tokenizer.encode(text)]


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name in ("one", "two"):
        prepare(["stories"], tokenizer, tmp_path / name, seed=1, max_documents=150, shard_tokens=20_000)
    assert folder_bytes(tmp_path / "one") == folder_bytes(tmp_path / "two")
    other = prepare(["stories"], tokenizer, tmp_path / "three", seed=2, max_documents=150)
    assert other.fingerprint != TokenDataset(tmp_path / "one").fingerprint


def test_the_size_of_the_files_does_not_change_the_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = write_documents(tmp_path / "a.txt", 120)
    small = prepare([source], tokenizer, tmp_path / "small", shard_tokens=64)
    large = prepare([source], tokenizer, tmp_path / "large")
    assert len(list((tmp_path / "small").glob("train_*.bin"))) > 10
    assert ids_of(small, "train") == ids_of(large, "train")


def test_progress_ends_at_the_totals(tmp_path: Path, tokenizer: Tokenizer) -> None:
    calls: list[tuple[int, int, int, int]] = []
    text = "A sentence of some length. " * 300_000
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    dataset = prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "out", progress=lambda *n: calls.append(n))
    splits = dataset.manifest.splits.values()
    assert len(calls) > 2
    assert calls == sorted(calls)
    assert calls[-1] == (3, len(text), sum(info.tokens for info in splits), len(text))


def test_a_long_document_is_never_in_memory_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    line = "A line of a text that goes on and on.\n"
    (tmp_path / "long.txt").write_text(line * (40_000_000 // len(line)), encoding="utf-8")
    tracemalloc.start()
    prepare([str(tmp_path / "long.txt")], tokenizer, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000  # what the threads read ahead, whatever the length


def test_a_folder_that_exists_is_left_as_it_is(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="already exists"):
        prepare(["stories"], tokenizer, tmp_path / "out", max_documents=2)
    assert folder_bytes(tmp_path / "out") == {"mine.txt": b"mine"}


def test_a_run_that_fails_leaves_no_folder(tmp_path: Path, tokenizer: Tokenizer) -> None:
    good = write_documents(tmp_path / "a.txt", 200)
    (tmp_path / "b.txt").write_bytes(b"broken \xff")
    with pytest.raises(InputError, match="0xff at offset 7"):
        prepare([good, str(tmp_path / "b.txt")], tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_an_end_of_text_is_refused(tmp_path: Path) -> None:
    plain = Tokenizer.train(["text"], 256, special_tokens=())
    with pytest.raises(InputError, match=r"the tokenizer has no <\|endoftext\|>"):
        prepare(["stories"], plain, tmp_path / "out", max_documents=2)


def test_a_split_without_text_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("tiny", encoding="utf-8")
    with pytest.raises(InputError, match=r"too short to hold out .* nothing is left for val;"):
        prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "out", val_fraction=0.1, test_fraction=0.1)
    with pytest.raises(InputError, match=r"too short to hold out .* nothing is left for test;"):
        source = write_documents(tmp_path / "b.txt", 110)
        prepare([source], tokenizer, tmp_path / "out", val_fraction=0.5, test_fraction=1e-6)
    assert not (tmp_path / "out").exists()
