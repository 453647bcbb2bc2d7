"""``gpt2lab data show`` and ``adopt``: what a person sees."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpt2lab import Tokenizer
from gpt2lab.cli.main import main
from gpt2lab.data.prepare import prepare

WORDS = ["low lower", "the sea " * 9, "a cat\n", "low lower"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data: 60 documents of three texts, and 180 that are there once."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.txt").write_text("<|endoftext|>".join(WORDS * 15 + [f"cat {n}" for n in range(180)]), encoding="utf-8")
    tokenizer = Tokenizer.train(WORDS * 3, 270)
    prepare([str(folder / "a.txt")], tokenizer, folder / "out", val_fraction=0.4, test_fraction=0.2)
    return folder / "out"


def test_show_counts_documents_tokens_and_duplicates(folder: Path, output: Callable[..., str]) -> None:
    said = output("data", "show", folder, "--tokens", "3")
    documents = dict(re.findall(r"^(\w+) +(\d+) documents", said, re.MULTILINE))
    assert sum(map(int, documents.values())) == 240
    line = re.search(r"^duplicate documents: (.*)$", said, re.MULTILINE)
    assert line is not None
    again = [int(number) for number in re.findall(r"(\d+) in (?:train|val|test)", line[1])]
    assert len(again) == 3 and sum(again) == 60 - 3  # each text is in one split, by its hash
    assert set(re.findall(r"stand in \w+ too: (\d+)", said)) <= {"0"}
    assert len(re.findall(r"^ +[\d,]+ +\d+\.\d\d% +#+ +\"", said, re.MULTILINE)) == 3


def test_show_cuts_documents_in_their_tokens(folder: Path, output: Callable[..., str]) -> None:
    said = output("data", "show", folder, "--documents", "240")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    for text in ("low lower", "a cat\n"):
        shown = "|".join(tokenizer.decode([token]) for token in tokenizer.encode(text)).replace("\n", r"\n")
        assert f"tokens:\n{shown}\n" in said


def test_show_draws_the_lengths_of_documents(folder: Path, output: Callable[..., str]) -> None:
    said = output("data", "show", folder)
    bars = re.findall(r"^ +([\d,]+) to +([\d,]+) +([\d,]+) ?(?: (#*))?$", said, re.MULTILINE)
    assert sum(int(number) for _, _, number, _ in bars) == 240
    longest = max(bars, key=lambda bar: int(bar[2]))
    assert len(longest[3]) == 40
    assert all(bool(bar) == (number != "0") for _, _, number, bar in bars)


def test_show_draws_a_picture_and_overwrites_none(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: Callable[..., str]
) -> None:
    picture = tmp_path / "p.png"
    assert str(picture) in output("data", "show", folder, "--picture", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["data", "show", str(folder), "--picture", str(picture)]) == 2
    assert "exists; give another --picture" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--documents", "--tokens"])
def test_numbers_below_none_are_refused(flag: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", str(folder), flag, "-1"]) == 2
    assert f"{flag} is -1; it must be 0 or more" in capsys.readouterr().err


def test_adopted_files_are_shown_and_trained_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: Callable[..., str]
) -> None:
    tokens = np.random.default_rng(0).integers(0, 257, 3000).astype("<u2")
    for name in ("train.bin", "val.bin"):
        tokens.tofile(tmp_path / name)
    assert main(["data", "show", str(tmp_path)]) == 2
    assert "gpt2lab data import" in capsys.readouterr().err
    assert main(["data", "import", str(tmp_path), "--tokenizer", str(folder / "tokenizer")]) == 2
    assert "--raw" in capsys.readouterr().err
    said = output("data", "import", tmp_path, "--tokenizer", folder / "tokenizer", "--raw")
    assert len(re.findall(r"3,000 tokens", said)) == 2
    assert "2 files, vocabulary size" in output("data", "show", tmp_path)
    small = ["--model.n-layer", "1", "--model.n-head", "1", "--model.n-embd", "8", "--model.n-ctx", "16"]
    run = ["train", "--data", tmp_path, "--out", tmp_path / "run", "--steps", "2", "--batch-tokens", "64", *small]
    output(*run)
