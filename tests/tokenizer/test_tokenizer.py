"""Encoding and decoding: GPT-2's ids equal tiktoken's, the fast encoder equals the reference, streams equal wholes."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2lab import Tokenizer
from gpt2lab.tokenizer.tokenizer import longest_tokens, measure_compression, render_token

CORPUS = [
    "It was the best of times, it was the worst of times, it was the age of wisdom, it's 1999.",
    "aaaaaaaaa aaa aaaa    \n\n\n    def f(x):\n        return x+1\n  naïve café 你好 😀😀 don't we'll",
    "low low low lower lowest newest newest newer wider wide",
] * 2

# Characters of which every Unicode table in use agrees what they are: those that this Python knows.
KNOWN = st.characters(exclude_categories=["Cs", "Cn"])
MIXED = st.text(st.one_of(KNOWN, st.sampled_from(" \t\n\r'sdmtlvraeéA19=-你😀\u0301\u200d\u00a0")), max_size=60)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.train(CORPUS, 320)


def test_the_first_256_ids_are_the_bytes_in_the_order_of_gpt2(small: Tokenizer, oracle: tiktoken.Encoding) -> None:
    first = [oracle.decode_single_token_bytes(number) for number in range(256)]
    assert [small.vocab[number] for number in range(256)] == first


def test_merges_follow_the_bytes_and_special_tokens_come_last(small: Tokenizer) -> None:
    assert [small.vocab[256 + rank] for rank in range(len(small.merges))] == [a + b for a, b in small.merges]
    assert small.eot == small.n_vocab - 1 == 319
    assert small.special_tokens == {"<|endoftext|>": 319}
    assert small.vocab[319] == b"<|endoftext|>"


def test_gpt2_has_its_published_ids(gpt2: Tokenizer) -> None:
    assert (gpt2.n_vocab, gpt2.eot) == (50257, 50256)
    assert gpt2.encode("Hello,  it's 1999") == [15496, 11, 220, 340, 338, 7358]


@pytest.mark.parametrize("name", ["tinyshakespeare.txt", "wikitext2-valid.txt", "hellaswag_val_1000.jsonl"])
def test_real_text_gets_tiktokens_ids(
    name: str, gpt2_vocabulary: Path, gpt2: Tokenizer, oracle: tiktoken.Encoding
) -> None:
    text = (gpt2_vocabulary.parent / name).read_text(encoding="utf-8")
    ids = gpt2.encode(text)
    assert ids == oracle.encode_ordinary(text)
    assert gpt2.encode_reference(text[:70_000]) == gpt2.encode(text[:70_000])
    assert gpt2.decode(ids) == text


@given(text=MIXED)
@settings(max_examples=300)
def test_any_text_gets_the_ids_of_the_oracle_and_comes_back(
    text: str, gpt2: Tokenizer, small: Tokenizer, oracle: tiktoken.Encoding
) -> None:
    assert gpt2.encode(text) == gpt2.encode_reference(text) == oracle.encode_ordinary(text)
    assert small.encode(text) == small.encode_reference(text)
    assert gpt2.decode(gpt2.encode(text)) == small.decode(small.encode(text)) == text


@given(text=st.text(st.characters(), max_size=20))
def test_half_a_surrogate_pair_becomes_the_replacement_character(text: str, small: Tokenizer) -> None:
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert small.decode(small.encode(text)) == whole
    assert small.encode(text) == small.encode(whole)


@given(ids=st.lists(st.integers(0, 319)))
def test_any_ids_decode_to_their_joined_bytes(ids: list[int], small: Tokenizer) -> None:
    assert small.decode_bytes(ids) == b"".join(small.vocab[number] for number in ids)
    assert small.decode(ids) == small.decode_bytes(ids).decode("utf-8", "replace")


def test_the_text_of_a_special_token_is_ordinary_unless_allowed(small: Tokenizer) -> None:
    text = "low<|endoftext|>lower"
    assert small.eot is not None
    assert small.eot not in small.encode(text)
    assert small.decode(small.encode(text)) == text
    expected = [*small.encode("low"), small.eot, *small.encode("lower")]
    assert small.encode(text, allowed_special=["<|endoftext|>"]) == expected
    assert small.encode(text, allowed_special="all") == expected


def test_the_longer_of_two_special_tokens_wins() -> None:
    tokenizer = Tokenizer.train([], 256 + 2, ["<|a|>", "<|a|><|b|>"])
    assert tokenizer.encode("<|a|><|b|><|a|>", "all") == [257, 256]


def test_a_batch_gives_what_each_text_gives(small: Tokenizer) -> None:
    texts = ["", "low", "<|endoftext|>", *CORPUS, "a\ud800"] * 5
    assert small.encode_batch(texts) == [small.encode(text) for text in texts]
    assert small.encode_batch(texts, "all") == [small.encode(text, "all") for text in texts]
    assert small.encode_batch([]) == []
    arrays = list(small.encode_arrays([texts[:3], [], texts[3:]]))
    assert [len(batch) for batch in arrays] == [3, 0, len(texts) - 3]
    assert [ids.tolist() for batch in arrays for ids in batch] == small.encode_batch(texts)


@pytest.mark.parametrize(
    "text",
    ["a" * 100_000, " " * 100_000, "\n" * 100_000 + "x", "xyzq" * 25_000, "é" * 50_000, " " * 1_000_000],
    ids=["letter", "spaces", "newlines", "pattern", "two bytes", "more space than the core can take"],
)
def test_both_encoders_agree_on_long_runs(text: str, gpt2: Tokenizer) -> None:
    ids = gpt2.encode(text)
    assert ids == gpt2.encode_reference(text)
    assert gpt2.decode(ids) == text


def test_a_long_text_is_encoded_in_pieces_that_change_nothing(gpt2: Tokenizer, oracle: tiktoken.Encoding) -> None:
    text = "It's  the\n\n  naïve café 😀 don't\t" * 60_000
    assert gpt2.encode(text) == oracle.encode_ordinary(text)


def test_a_vocabulary_without_merges_encodes_bytes() -> None:
    tokenizer = Tokenizer.train([], 257)
    assert tokenizer.merges == []
    assert tokenizer.decode_bytes(tokenizer.encode("é\n")) == b"\xc3\xa9\n"
    assert len(tokenizer.encode("é\n")) == 3
    assert tokenizer.encode("é\n") == tokenizer.encode_reference("é\n")


def test_a_saved_tokenizer_loads_as_the_same(tmp_path: Path, small: Tokenizer) -> None:
    small.save(tmp_path / "new" / "folder")
    loaded = Tokenizer.load(tmp_path / "new" / "folder")
    assert loaded.fingerprint == small.fingerprint
    assert (loaded.vocab, loaded.merges, loaded.special_tokens) == (small.vocab, small.merges, small.special_tokens)
    assert loaded.encode(CORPUS[1]) == small.encode(CORPUS[1])
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["tokenizer.json"]


def test_any_difference_that_changes_ids_changes_the_fingerprint(small: Tokenizer) -> None:
    tokenizers = [
        small,
        Tokenizer.train(CORPUS, 319),
        Tokenizer.train(CORPUS, 320, ["<|end|>"]),
        Tokenizer.train(CORPUS, 320, pattern="cl100k"),
        Tokenizer.train(CORPUS[:3], 320),
    ]
    assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == len(tokenizers)
    assert Tokenizer.train(CORPUS, 320).fingerprint == small.fingerprint


def _odd_text(chance: random.Random) -> str:
    """Draw a text of what goes wrong: any plane, controls, long runs, right to left, marks, emoji sequences."""
    pools = [
        lambda: chr(chance.choice([chance.randrange(0xD800), chance.randrange(0xE000, 0x110000)])),
        lambda: chr(chance.randrange(0x20)),
        lambda: chance.choice(" \n\t\r\u00a0\u2003\u200b") * chance.randrange(1, 30),
        lambda: "".join(chr(chance.randrange(0x5D0, 0x5EB)) for _ in range(5)),
        lambda: "e" + "\u0301" * chance.randrange(1, 4),
        lambda: "\U0001f468\u200d\U0001f469\u200d\U0001f467" + chance.choice(["", "\ufe0f", "\U0001f3fd"]),
        lambda: chance.choice(["Hello", "it's", "we'll", "DON'T", "1999", "<|endoftext|>", "'", "..."]),
    ]
    return "".join(chance.choice(pools)() for _ in range(chance.randrange(1, 12)))


def test_ten_thousand_odd_texts_get_the_ids_of_the_oracle_and_come_back(
    gpt2: Tokenizer, oracle: tiktoken.Encoding
) -> None:
    chance = random.Random(2019)
    texts = [_odd_text(chance) * (1 + number % 5) for number in range(10_000)]  # several groups, in order
    ids = gpt2.encode_batch(texts)
    assert ids == [oracle.encode_ordinary(text) for text in texts]
    assert [gpt2.decode(row) for row in ids] == texts


def test_importing_the_tokenizer_imports_no_torch() -> None:
    program = "import sys, gpt2lab.tokenizer.tokenizer; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


LINES = ["low lower lowest the newest 1999 don't\n\n  naïve 你好 😀 <|endoftext|> "] * 3
TEXTS = st.text(st.sampled_from("low er\n\t 19'd😀é<|>"), max_size=80)


@pytest.fixture(scope="module", params=["gpt2", "cl100k", r"[\p{L}\p{N}_]+|\s"])
def patterned(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.train(LINES, 300, ["<|endoftext|>", "<| start |>"], pattern=request.param)


@given(parts=st.lists(st.one_of(TEXTS, st.sampled_from(["<|endoftext|>", "<| start |>"])), max_size=6))
@example(parts=["low <| st", "art |> low <|endof", "text|>"])  # special tokens split between parts
@settings(max_examples=200)
def test_a_stream_gives_the_ids_of_the_whole_text(parts: list[str], patterned: Tokenizer) -> None:
    whole = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt2lab.tokenizer.pretokenize._BUFFER", 4)
        for allowed in ((), "all"):
            expected = patterned.encode(whole, allowed)
            assert list(patterned.encode_iter(parts, allowed)) == expected
            assert list(patterned.encode_iter(list(whole), allowed)) == expected
            assert list(patterned.encode_iter(io.StringIO(whole, newline=""), allowed)) == expected


def test_a_file_of_one_endless_line_is_encoded_in_constant_memory(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(LINES, 290)
    file = tmp_path / "long.txt"
    file.write_text("low lower " * 200_000, encoding="utf-8")
    with file.open(encoding="utf-8") as handle:
        first = next(ids := tokenizer.encode_iter(handle))  # the core is loaded
        tracemalloc.start()
        number = 1 + sum(1 for _ in ids)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert first == tokenizer.encode("low")[0]
    assert number == len(tokenizer.encode("low lower " * 200_000))
    assert peak < 4_000_000


@given(ids=st.lists(st.integers(0, 257), max_size=30))
def test_streamed_decoding_gives_the_same_text_in_whole_characters(ids: list[int]) -> None:
    tokenizer = Tokenizer.train(["é é 😀 😀"], 258)
    assert "".join(tokenizer.decode_iter(ids)) == tokenizer.decode(ids)
    tokenizer = Tokenizer.train([], 256, ())
    assert list(tokenizer.decode_iter(tokenizer.encode("aé😀"))) == ["a", "é", "😀"]


@pytest.fixture(scope="module")
def lowest() -> Tokenizer:
    return Tokenizer.train(["lowest lowest lower"], 256 + 5 + 1)


def test_compression_counts_tokens_bytes_and_the_vocabulary_used(lowest: Tokenizer) -> None:
    found = measure_compression(lowest, ["lowest", "lowest st"])
    assert [lowest.decode_bytes([i]) for i in lowest.encode("lowest")] == [b"lowe", b"st"]
    assert (found.n_tokens, found.n_bytes, found.n_used, found.n_vocab) == (6, 15, 3, 262)
    assert found.bytes_per_token == 15 / 6
    assert found.vocab_used == 3 / 262
    assert measure_compression(lowest, []).bytes_per_token == 0.0


def test_the_longest_tokens_are_ordinary(lowest: Tokenizer) -> None:
    assert longest_tokens(lowest, 3) == [(260, b" lowe"), (258, b"lowe"), (256, b"lo")]


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (b" low", " low"),
        ("é😀".encode(), "é😀"),
        (b"\n\t", r"\n\t"),
        (b"\xf0\x9f", r"\xf0\x9f"),
        (b"\x1b[0m", r"\x1b[0m"),
    ],
)
def test_a_rendered_token_moves_no_terminal(token: bytes, shown: str) -> None:
    assert render_token(token) == shown
