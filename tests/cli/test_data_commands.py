"""``gpt2lab data show`` and ``import``: what a person sees."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpt2lab import Tokenizer
from gpt2lab.data.prepare import prepare

Output = Callable[..., str]
WORDS = ["low lower", "the sea " * 9, "a cat\n", "low lower"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data: 60 documents of three texts, and 180 that are there once."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.txt").write_text("<|endoftext|>".join(WORDS * 15 + [f"cat {n}" for n in range(180)]), encoding="utf-8")
    tokenizer = Tokenizer.train(WORDS * 3, 270)
    prepare([str(folder / "a.txt")], tokenizer, folder / "out", val_fraction=0.4, test_fraction=0.2)
    return folder / "out"


def test_show_counts_documents_tokens_and_duplicates(folder: Path, output: Output) -> None:
    said = output("data", "show", folder, "--tokens", "3")
    documents = dict(re.findall(r"^(\w+) +(\d+) documents", said, re.MULTILINE))
    assert sum(map(int, documents.values())) == 240
    line = re.search(r"^duplicate documents: (.*)$", said, re.MULTILINE)
    assert line is not None
    again = [int(number) for number in re.findall(r"(\d+) in (?:train|val|test)", line[1])]
    assert len(again) == 3 and sum(again) == 60 - 3  # each text is in one split, by its hash
    assert re.findall(r"that are also in \w+: (\d+)", said) == ["0"] * 3
    assert len(re.findall(r"^ +[\d,]+ +\d+\.\d\d% +#+ +\"", said, re.MULTILINE)) == 3


def test_show_cuts_documents_in_their_tokens(folder: Path, output: Output) -> None:
    said = output("data", "show", folder, "--documents", "240")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    for text in ("low lower", "a cat\n"):
        shown = "|".join(tokenizer.decode([token]) for token in tokenizer.encode(text)).replace("\n", r"\n")
        assert f"tokens:\n{shown}\n" in said


def test_show_draws_the_lengths_of_documents(folder: Path, output: Output) -> None:
    said = output("data", "show", folder)
    bars = re.findall(r"^ +([\d,]+) to +([\d,]+) +([\d,]+) ?(?: (#*))?$", said, re.MULTILINE)
    assert sum(int(number) for _, _, number, _ in bars) == 240
    longest = max(bars, key=lambda bar: int(bar[2]))
    assert len(longest[3]) == 40
    assert all(bool(bar) == (number != "0") for _, _, number, bar in bars)


def test_show_draws_a_picture(folder: Path, tmp_path: Path, output: Output) -> None:
    picture = tmp_path / "p.png"
    assert str(picture) in output("data", "show", folder, "--picture", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_imported_files_are_shown_and_trained_on(
    folder: Path, small: list[str], tmp_path: Path, output: Output, refused: Output
) -> None:
    tokens = np.random.default_rng(0).integers(0, 257, 3000).astype("<u2")
    for name in ("train.bin", "val.bin"):
        tokens.tofile(tmp_path / name)
    assert "gpt2lab data import" in refused("data", "show", tmp_path)
    import_shards = ("data", "import", tmp_path, "--tokenizer", folder / "tokenizer")
    assert "--raw" in refused(*import_shards)
    said = output(*import_shards, "--raw")
    assert len(re.findall(r"3,000 tokens", said)) == 2
    assert "2 files, vocabulary size" in output("data", "show", tmp_path)
    output("train", "--data", tmp_path, "--out", tmp_path / "run", "--steps", 2, *small)
