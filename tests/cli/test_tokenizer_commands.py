"""``gpt2lab tokenizer show`` and ``export``: what a person sees, and what other programs read."""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from rich.console import Console
from tiktoken.load import load_tiktoken_bpe

from gpt2lab import Tokenizer, console

Output = Callable[..., str]


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tok") / "tok"
    Tokenizer.train(["low low lower lower"], 262).save(folder)
    return folder


def test_show_splits_a_text_by_bars_and_lists_the_longest_tokens(tok: Path, output: Output) -> None:
    said = output("tokenizer", "show", tok, "--text", "lower low\nél", "--longest", 2)
    assert "262 entries, 256 bytes and 5 merges" in said and "<|endoftext|> = 261" in said
    assert f"{tok}:\nlow|er| low|\\n\n\\xc3|\\xa9|l\n" in said
    assert said.splitlines()[-2:] == ['      260    6 bytes  " lower"', '      258    4 bytes  " low"']


def test_show_colors_the_tokens_in_a_terminal(tok: Path, monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, color_system="standard", highlight=False, soft_wrap=True)
    monkeypatch.setattr(console, "console", terminal)
    output("tokenizer", "show", tok, "--text", "lower low")
    tokens = re.findall(r"\x1b\[([\d;]+)m([^\x1b]*)\x1b\[0m", screen.getvalue())
    assert [token for _, token in tokens][:3] == ["low", "er", " low"]
    first, second, third = (color for color, _ in tokens[:3])
    assert first == third != second


def test_show_measures_the_fit_beside_gpt2s_own(
    tok: Path, gpt2_vocabulary: Path, tmp_path: Path, output: Output
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("lower low <|endoftext|>lower", encoding="utf-8")
    said = output("tokenizer", "show", tok, "--input", file, "--gpt2", gpt2_vocabulary, "--longest", "0")
    rows = [line.split() for line in said.splitlines() if re.search(r"\d%$", line)]
    assert rows[0][1:] == ["15", "6", "2.50", "1.5%"]  # low er _low _ / low er: 4 of 262
    assert rows[1][:3] == ["GPT-2", "15", "4"]  # lower _low _ lower
    assert "longest" not in said


def test_exports_are_read_by_the_programs_they_are_for(
    tok: Path, tmp_path: Path, output: Output, refused: Output
) -> None:
    text = "lower low, slower"
    expected = Tokenizer.load(tok).encode(text)
    for form in ("huggingface", "gpt2", "tiktoken"):
        said = output("tokenizer", "export", tok, "--out", tmp_path, "--format", form)
        assert str(tmp_path) in said
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == expected
    pair = tokenizers.models.BPE.from_file(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    theirs = tokenizers.Tokenizer(pair)
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert theirs.encode(text).ids == expected
    given = dict(re.findall(r"^  (special_tokens|pat_str)=(.*)$", said, re.MULTILINE))
    encoding = tiktoken.Encoding(
        "exported",
        pat_str=ast.literal_eval(given["pat_str"]),
        special_tokens=ast.literal_eval(given["special_tokens"]),
        mergeable_ranks=load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken")),
    )
    assert encoding.encode(text + "<|endoftext|>", allowed_special="all") == [*expected, 261]
    assert "exists" in refused("tokenizer", "export", tok, "--out", tmp_path, "--format", "gpt2")


def test_training_shows_merges_a_second_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=screen, force_terminal=True, width=120))
    options = ("--input", "stories", "--max-documents", "40", "--vocab-size", "560", "--out", tmp_path / "tok")
    output("tokenizer", "train", *options)
    drawn = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen.getvalue())
    assert re.search(r"merging .*303/303 .*merges/s \d:\d\d:\d\d", drawn)


def test_add_special_and_import_save_a_tokenizer(tok: Path, tmp_path: Path, output: Output, refused: Output) -> None:
    said = output("tokenizer", "add-special", tok, "--token", "<|user|>", "<|end|>", "--out", tmp_path / "more")
    more = Tokenizer.load(tmp_path / "more")
    assert said == f"{tmp_path / 'more'}: 264 entries, fingerprint {more.fingerprint[:16]}\n"
    assert more.special_tokens == {"<|endoftext|>": 261, "<|user|>": 262, "<|end|>": 263}
    output("tokenizer", "add-special", tok, "--token", "<|user|>", "--token", "<|end|>", "--out", tmp_path / "same")
    assert Tokenizer.load(tmp_path / "same").fingerprint == more.fingerprint
    assert "exists; give another" in refused("tokenizer", "add-special", tok, "--token", "<|x|>", "--out", tok)
    output("tokenizer", "export", tok, "--out", tmp_path, "--format", "tiktoken")
    command = ("tokenizer", "import", tmp_path / "ranks.tiktoken", "--pattern", "gpt2")
    output(*command, "--special-tokens", "<|endoftext|>", "--out", tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").fingerprint == Tokenizer.load(tok).fingerprint
    said = output(*command, "--special-tokens", "<|endoftext|>=263", "<|a=b|>=262", "--out", tmp_path / "far")
    assert "1 id without a token is reserved: <|reserved_261|>" in said
    assert Tokenizer.load(tmp_path / "far").special_tokens["<|a=b|>"] == 262
    mixed = ("--special-tokens", "<|endoftext|>=261", "<|user|>", "--out", tmp_path / "mixed")
    assert "give all as TEXT=ID, each once, or all as TEXT" in refused(*command, *mixed)
