"""Corpora known by name, and those of the hub: listed, read as documents, from a hub on loopback."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2lab.cli.main import main
from gpt2lab.data.corpora import CORPORA
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import documents, texts
from gpt2lab.errors import InputError
from gpt2lab.tokenizer.tokenizer import Tokenizer
from loopback_datasets import Hub, loopback_hub

WANTED = """
stories pystdlib shakespeare wikitext2 wikitext103 tinystories wikipedia openwebtext fineweb fineweb-edu fineweb-gpt2
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with loopback_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def parquet(rows: list[str], column: str = "text") -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(len(rows))), column: rows}), sink)
    return sink.getvalue()


def read(*sources: str, column: str | None = None, max_documents: int | None = None) -> list[str]:
    found = documents(sources, column=column, max_documents=max_documents)
    return ["".join(document.pieces()) for document in found]


def test_the_list_names_every_corpus_with_size_documents_licence_and_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert set(WANTED.split()) <= CORPORA.keys()
    for name, corpus in CORPORA.items():
        (row,) = (line for line in said.splitlines() if line.split()[:1] == [name])
        assert corpus.license in row and corpus.about[:30] in row
    assert "30.6 GB" in said and "14,868,862" in said and "10.4 billion" in said
    assert "hub:OWNER/NAME" in said


def test_each_corpus_says_where_it_comes_from_in_one_way() -> None:
    for corpus in CORPORA.values():
        assert sum([bool(corpus.repository), bool(corpus.url), corpus.cut in ("stories", "pystdlib")]) == 1
        assert bool(corpus.files) == bool(corpus.repository)
        assert not corpus.fall_back or corpus.fall_back in CORPORA


def test_rows_of_wikitext_become_the_articles_of_the_original_file(hub: Hub, wikitext2: Path) -> None:
    original = wikitext2.read_text(encoding="utf-8")
    rows = ["" if not line.strip() else line for line in original.splitlines(keepends=True)]
    for split, name in CORPORA["wikitext2"].files.items():
        hub.add("Salesforce/wikitext", name.replace("*", "0"), parquet(rows if split == "val" else rows[:40]))
    articles = read("wikitext2")
    whole = [text for text in articles if text in original]
    assert len(articles) > 60 and len(whole) == len(articles)
    assert "".join(articles[-60 - 1 : -1]) in original and all(text.lstrip(" \n").startswith("= ") for text in articles)


def test_a_data_set_of_the_hub_is_read_by_its_column_from_every_file(hub: Hub, tmp_path: Path) -> None:
    for number in range(5):
        hub.add("o/n", f"data/train-{number}.parquet", parquet([f"text {number}", "  "], column="body"))
    assert read("hub:o/n", column="body") == [f"text {number}" for number in range(5)]
    assert read("hub:o/n", column="body", max_documents=2) == ["text 0", "text 1"]
    with pytest.raises(InputError, match='has no column "text"; there are: id, body'):
        read("hub:o/n")


def test_files_are_fetched_one_at_a_time_and_only_as_far_as_read(hub: Hub) -> None:
    for number in range(5):
        hub.add("o/n", f"data/train-{number}.parquet", parquet([f"text {number}"]))
    found = documents(["hub:o/n"])
    next(found)
    assert hub.asked["train-0.parquet"] == 1 and hub.asked["train-1.parquet"] == 0


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


def test_tokens_are_no_text_to_learn_a_tokenizer_from(hub: Hub) -> None:
    hub.add("kjj0/fineweb10B-gpt2", "fineweb_val_000000.bin", b"x")
    hub.add("kjj0/fineweb10B-gpt2", "fineweb_train_000001.bin", b"x")
    with pytest.raises(InputError, match="holds tokens, not text"):
        read("fineweb-gpt2")


def test_an_unknown_corpus_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r'did you mean "fineweb-edu"\?'):
        documents(["fineweb-edo"])
