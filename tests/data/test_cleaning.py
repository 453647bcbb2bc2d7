"""Leaving out on request, splits made by others, and tokens taken as they are."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2lab.cli.main import main
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.shards import UINT16, ShardWriter
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.tokenizer import Tokenizer
from loopback_datasets import Hub, loopback_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with loopback_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def parquet(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), sink)
    return sink.getvalue()


def texts_of(dataset: TokenDataset) -> dict[str, list[str]]:
    return {split: list(dataset.documents(split)) for split in dataset.manifest.splits}


def test_duplicates_are_left_out_wherever_they_stand(hub: Hub, tmp_path: Path, tokenizer: Tokenizer) -> None:
    for number in range(3):
        hub.add("o/n", f"{number}.parquet", parquet([f"text {n % 120}" for n in range(number * 50, number * 50 + 150)]))
    plain = prepare(["hub:o/n"], tokenizer, tmp_path / "plain")
    clean = prepare(["hub:o/n"], tokenizer, tmp_path / "clean", deduplicate=True)
    kept = [text for texts in texts_of(clean).values() for text in texts]
    assert sorted(kept) == sorted({text for texts in texts_of(plain).values() for text in texts})
    assert clean.manifest.left_out.duplicates == 450 - 120 and plain.manifest.left_out.duplicates == 0


def test_short_documents_are_left_out_and_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [f"{n:x} {'x' * (n % 20)}" for n in range(300)]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(texts), encoding="utf-8")
    dataset = prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "out", min_length=10, test_fraction=0.0)
    kept = [text for texts in texts_of(dataset).values() for text in texts]
    assert sorted(kept) == sorted(text for text in texts if len(text) >= 10)
    assert dataset.manifest.left_out.short == 300 - len(kept)


@pytest.fixture
def in_splits(hub: Hub) -> Hub:
    hub.add("o/n", "train-0.parquet", parquet([f"text {n}" for n in range(100)]))
    hub.add("o/n", "validation-0.parquet", parquet([f"text {n}" for n in range(90, 120)]))
    hub.add("o/n", "test-0.parquet", parquet([f"text {n}" for n in range(115, 130)]))
    return hub


def test_splits_made_by_others_are_kept_and_their_overlap_is_told(
    in_splits: Hub, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save(tmp_path / "tok")
    command = ["data", "prepare", "hub:o/n", "--tokenizer", str(tmp_path / "tok"), "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    assert "10 documents of validation and test are also in train; --deduplicate" in capsys.readouterr().out
    dataset = TokenDataset(tmp_path / "out")
    assert {split: len(texts) for split, texts in texts_of(dataset).items()} == {"train": 100, "val": 30, "test": 15}
    assert dataset.manifest.left_out.held_out_in_train == 10
    assert main([*command, str(tmp_path / "clean"), "--deduplicate"]) == 0
    assert "15 documents left out: duplicates" in capsys.readouterr().out
    clean = texts_of(TokenDataset(tmp_path / "clean"))
    assert {split: len(texts) for split, texts in clean.items()} == {"train": 90, "val": 25, "test": 15}
    assert not set(clean["train"]) & {*clean["val"], *clean["test"]}


def test_fractions_of_a_corpus_in_splits_are_refused(in_splits: Hub, tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="comes in splits of its own"):
        prepare(["hub:o/n"], tokenizer, tmp_path / "out", val_fraction=0.1)


@pytest.fixture
def without_test(hub: Hub) -> Hub:
    hub.add("roneneldan/TinyStories", "data/train-0.parquet", parquet([f"text {n}" for n in range(300)]))
    hub.add("roneneldan/TinyStories", "data/validation-0.parquet", parquet([f"held out {n}" for n in range(150)]))
    return hub


@pytest.mark.usefixtures("without_test")
def test_a_split_that_a_corpus_lacks_is_held_out_of_its_train(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plain = prepare(["tinystories"], tokenizer, tmp_path / "plain")
    with pytest.raises(InputError, match="has no test split, only train, val; choose one of these, or prepare it with"):
        plain.stream("test")
    given, found = texts_of(plain), texts_of(prepare(["tinystories"], tokenizer, tmp_path / "out", test_fraction=0.2))
    assert found["val"] == given["val"] and 30 < len(found["test"]) < 90
    assert sorted(found["train"] + found["test"]) == sorted(given["train"])


@pytest.mark.usefixtures("without_test")
def test_the_first_documents_are_those_of_each_split(tmp_path: Path, tokenizer: Tokenizer) -> None:
    found = texts_of(prepare(["tinystories"], tokenizer, tmp_path / "out", max_documents=120))
    assert found == {"train": [f"text {n}" for n in range(120)], "val": [f"held out {n}" for n in range(120)]}


def test_files_of_tokens_are_taken_as_they_are(hub: Hub, tmp_path: Path, gpt2_vocabulary: Path) -> None:
    gpt2 = Tokenizer.gpt2(gpt2_vocabulary)
    for name, texts in (("val_000000", ["Hello world", "naïve"]), ("train_000001", ["one two three"] * 5)):
        writer = ShardWriter(tmp_path, "x", UINT16, 10_000)
        for text in texts:
            writer.write(np.array([gpt2.eot, *gpt2.encode(text)]))
        writer.finish()
        hub.add("kjj0/fineweb10B-gpt2", f"fineweb_{name}.bin", writer.paths[0].read_bytes())
    dataset = prepare(["fineweb-gpt2"], gpt2, tmp_path / "out")
    assert texts_of(dataset) == {"train": ["one two three"] * 5, "val": ["Hello world", "naïve"]}
    train, val = dataset.manifest.splits["train"], dataset.manifest.splits["val"]
    assert (train.documents, train.bytes, val.documents, val.bytes) == (5, 65, 2, 17)
    with pytest.raises(InputError, match="ids of GPT-2's own tokenizer"):
        prepare(["fineweb-gpt2"], Tokenizer.train([], 257), tmp_path / "other")
    with pytest.raises(InputError, match=r"comes as tokens, .*; leave out --min-length"):
        prepare(["fineweb-gpt2"], gpt2, tmp_path / "other", min_length=3)
    with pytest.raises(InputError, match=r"comes as tokens, .*; leave out --test-fraction"):
        prepare(["fineweb-gpt2"], gpt2, tmp_path / "other", test_fraction=0.1)


def test_wikipedia_out_of_reach_offers_wikitext(
    hub: Hub, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save(tmp_path / "tok")
    for split, count in (("train", 9), ("validation", 3), ("test", 3)):
        rows = [row for n in range(count) for row in ("", f" = {split} {n} = \n", "", " Text .\n")]
        hub.add("Salesforce/wikitext", f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet", parquet(rows))
    hub.add("wikimedia/wikipedia", "20231101.en/train-00000-of-00041.parquet", parquet(["x"]))
    command = ["data", "prepare", "wikipedia", "--tokenizer", str(tmp_path / "tok"), "--out", str(tmp_path / "out")]
    hub.faults["main"] = [(503, 9999)]
    assert main(command) == 2
    assert "--fall-back uses wikitext2 instead" in capsys.readouterr().err
    assert main(["data", "prepare", "stories", *command[3:], "--fall-back"]) == 2
    assert "stories has no fallback; leave out --fall-back" in capsys.readouterr().err
    hub.faults["main"] = [(503, 9999)]
    assert main([*command, "--fall-back"]) == 0
    assert "wikipedia cannot be reached" in capsys.readouterr().out
    assert TokenDataset(tmp_path / "out").manifest.source.names == ("wikitext2",)
    assert TokenDataset(tmp_path / "out").manifest.splits["train"].documents == 9
