"""Corpora known by name and datasets of the Hub, from a Hub on loopback: listed, read and prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_data import parquet, read, texts_of, write_shards

from gpt2lab.cli.main import main
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import CORPORA, documents, texts
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.tokenizer import Tokenizer
from loopback_hub import Hub

WANTED = """
stories pystdlib shakespeare wikitext2 wikitext103 tinystories wikipedia openwebtext fineweb fineweb-edu fineweb-gpt2
"""


def test_the_list_names_every_corpus_with_size_documents_license_and_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert set(WANTED.split()) <= CORPORA.keys()
    for name, corpus in CORPORA.items():
        (row,) = (line for line in said.splitlines() if line.split()[:1] == [name])
        assert corpus.license in row and corpus.about[:30] in row
        assert sum([bool(corpus.repository), bool(corpus.url), corpus.cut in ("stories", "pystdlib")]) == 1
        assert bool(corpus.files) == bool(corpus.repository)
        assert not corpus.fall_back or corpus.fall_back in CORPORA
    assert "30.6 GB" in said and "14,868,862" in said and "10.4 billion" in said
    assert "hub:OWNER/NAME" in said


def test_rows_of_wikitext_become_the_articles_of_the_original_file(hub: Hub, wikitext2: Path) -> None:
    original = wikitext2.read_text(encoding="utf-8")
    rows = ["" if not line.strip() else line for line in original.splitlines(keepends=True)]
    for split, name in CORPORA["wikitext2"].files.items():
        hub.add("Salesforce/wikitext", name.replace("*", "0"), parquet(rows if split == "val" else rows[:40]))
    articles = read("wikitext2")
    assert len(articles) > 60 and all(text in original for text in articles)
    assert "".join(articles[-60 - 1 : -1]) in original and all(text.lstrip(" \n").startswith("= ") for text in articles)


def test_a_dataset_of_the_hub_is_read_by_its_column_file_by_file(hub: Hub) -> None:
    for number in range(5):
        hub.add("o/n", f"data/train-{number}.parquet", parquet([f"text {number}", "  "], column="body"))
    next(documents(["hub:o/n"], column="body"))
    assert hub.asked["train-0.parquet"] == 1 and hub.asked["train-1.parquet"] == 0
    assert read("hub:o/n", column="body") == [f"text {number}" for number in range(5)]
    assert read("hub:o/n", column="body", max_documents=2) == ["text 0", "text 1"]
    with pytest.raises(InputError, match='has no column "text"; there are: id, body'):
        read("hub:o/n")


@pytest.mark.parametrize("count", [20, 300])
def test_the_beginning_of_a_large_corpus_has_all_splits(
    hub: Hub, tmp_path: Path, tokenizer: Tokenizer, count: int
) -> None:
    """A share of 0.001, right for the whole of it, would hold nothing out."""
    hub.add("HuggingFaceFW/fineweb", "sample/10BT/000_00000.parquet", parquet([f"page {n}, text" for n in range(400)]))
    splits = prepare(["fineweb"], tokenizer, tmp_path / "out", max_documents=count).manifest.splits
    assert splits["val"].documents > 4 and splits["test"].documents > 4


def test_a_large_corpus_keeps_its_share_beside_a_file(hub: Hub, tmp_path: Path, tokenizer: Tokenizer) -> None:
    hub.add("HuggingFaceFW/fineweb", "sample/10BT/000_00000.parquet", parquet([f"page {n}, text" for n in range(4000)]))
    (tmp_path / "a.txt").write_text("mine", encoding="utf-8")
    dataset = prepare([str(tmp_path / "a.txt"), "fineweb"], tokenizer, tmp_path / "out")
    assert dataset.manifest.split_rule.val_fraction == 0.001


def test_the_standard_library_is_a_file_a_document() -> None:
    first = read("pystdlib", max_documents=50)
    assert len(first) == 50 and any("import" in text for text in first)


def test_a_tokenizer_is_not_trained_on_what_a_corpus_holds_out(hub: Hub) -> None:
    for split in ("train", "validation", "test"):
        hub.add("o/n", f"data/{split}-0.parquet", parquet([f"text to {split}"]))
    assert sorted(read("hub:o/n")) == ["text to test", "text to train", "text to validation"]
    assert list(texts(["hub:o/n"])) == ["text to train"]


def test_given_splits_are_kept_and_their_overlap_is_told(
    hub: Hub, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, numbers in {"train": range(100), "validation": range(90, 120), "test": range(115, 130)}.items():
        hub.add("o/n", f"{split}-0.parquet", parquet([f"text {n}" for n in numbers]))
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
    with pytest.raises(InputError, match="comes in splits of its own"):
        prepare(["hub:o/n"], tokenizer, tmp_path / "other", val_fraction=0.1)


def test_a_split_that_a_corpus_lacks_is_held_out_of_its_train(hub: Hub, tmp_path: Path, tokenizer: Tokenizer) -> None:
    hub.add("roneneldan/TinyStories", "data/train-0.parquet", parquet([f"text {n}" for n in range(300)]))
    hub.add("roneneldan/TinyStories", "data/validation-0.parquet", parquet([f"held out {n}" for n in range(150)]))
    plain = prepare(["tinystories"], tokenizer, tmp_path / "plain")
    with pytest.raises(InputError, match="has no test split, only train, val; choose one of these, or prepare it with"):
        plain.stream("test")
    given, found = texts_of(plain), texts_of(prepare(["tinystories"], tokenizer, tmp_path / "out", test_fraction=0.2))
    assert found["val"] == given["val"] and 30 < len(found["test"]) < 90
    assert sorted(found["train"] + found["test"]) == sorted(given["train"])
    first = texts_of(prepare(["tinystories"], tokenizer, tmp_path / "first", max_documents=120))
    assert first == {"train": [f"text {n}" for n in range(120)], "val": [f"held out {n}" for n in range(120)]}


def test_files_of_tokens_are_taken_as_they_are(hub: Hub, tmp_path: Path, gpt2_vocabulary: Path) -> None:
    gpt2 = Tokenizer.gpt2(gpt2_vocabulary)
    for name, written in (("val_000000", ["Hello world", "naïve"]), ("train_000001", ["one two three"] * 5)):
        (tmp_path / name).mkdir()
        (path,) = write_shards(tmp_path / name, np.concatenate([[gpt2.eot, *gpt2.encode(text)] for text in written]))
        hub.add("kjj0/fineweb10B-gpt2", f"fineweb_{name}.bin", path.read_bytes())
    dataset = prepare(["fineweb-gpt2"], gpt2, tmp_path / "out")
    assert texts_of(dataset) == {"train": ["one two three"] * 5, "val": ["Hello world", "naïve"]}
    train, val = dataset.manifest.splits["train"], dataset.manifest.splits["val"]
    assert (train.documents, train.bytes, val.documents, val.bytes) == (5, 65, 2, 17)
    with pytest.raises(InputError, match="ids of GPT-2's own tokenizer"):
        prepare(["fineweb-gpt2"], Tokenizer.train([], 257), tmp_path / "other")
    for option, value in {"min_length": 3, "test_fraction": 0.1}.items():
        given: dict[str, Any] = {option: value}
        with pytest.raises(InputError, match=f"comes as tokens, .*; leave out --{option.replace('_', '-')}"):
            prepare(["fineweb-gpt2"], gpt2, tmp_path / "other", **given)
    with pytest.raises(InputError, match="holds tokens, not text"):
        read("fineweb-gpt2")


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
