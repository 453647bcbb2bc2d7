from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab import Tokenizer

CORPUS = ["low lower lowest the newest 1999 don't\n\n  naïve 你好 😀 <|endoftext|> "] * 3
TEXTS = st.text(st.sampled_from("low er\n\t 19'd😀é<|>"), max_size=80)


@pytest.fixture(scope="module", params=["gpt2", "cl100k", r"\w+|\s"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(CORPUS, 300, ["<|endoftext|>", "<| start |>"], pattern=request.param)


@given(parts=st.lists(st.one_of(TEXTS, st.sampled_from(["<|endoftext|>", "<| start |>"])), max_size=6))
@settings(max_examples=200, deadline=None)
def test_a_stream_gives_the_ids_of_the_whole_text(parts: list[str], tokenizer: Tokenizer) -> None:
    whole = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt2lab.tokenizer.pretokenize._BUFFER", 4)
        for allowed in ((), "all"):
            expected = tokenizer.encode(whole, allowed)
            assert list(tokenizer.encode_iter(parts, allowed)) == expected
            assert list(tokenizer.encode_iter(list(whole), allowed)) == expected
            assert list(tokenizer.encode_iter(io.StringIO(whole, newline=""), allowed)) == expected


def test_a_special_token_cut_between_parts_is_still_made(tokenizer: Tokenizer) -> None:
    parts = ["low <| st", "art |> low <|endof", "text|>"]
    assert list(tokenizer.encode_iter(parts, "all")) == tokenizer.encode("".join(parts), "all")


def test_a_file_of_one_endless_line_is_encoded_in_constant_memory(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(CORPUS, 290)
    file = tmp_path / "long.txt"
    file.write_text("low lower " * 800_000, encoding="utf-8")
    with file.open(encoding="utf-8") as handle:
        first = next(ids := tokenizer.encode_iter(handle))  # the core is loaded
        tracemalloc.start()
        number = 1 + sum(1 for _ in ids)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert first == tokenizer.encode("low")[0]
    assert number == len(tokenizer.encode("low lower " * 800_000))
    assert peak < 4_000_000


@given(ids=st.lists(st.integers(0, 257), max_size=30))
def test_ids_decode_as_they_come_to_what_they_decode_to_at_once(ids: list[int]) -> None:
    tokenizer = Tokenizer.train(["é é 😀 😀"], 258)
    assert "".join(tokenizer.decode_iter(ids)) == tokenizer.decode(ids)


def test_decoding_a_stream_never_gives_part_of_a_character() -> None:
    tokenizer = Tokenizer.train([], 256, ())
    assert list(tokenizer.decode_iter(tokenizer.encode("aé😀"))) == ["a", "é", "😀"]
