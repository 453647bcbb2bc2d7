from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.errors import InputError
from gpt2lab.generation import encode_prompt, stream_text
from gpt2lab.tokenizer.tokenizer import Tokenizer

CPU = torch.device("cpu")
BYTES = Tokenizer.train(["a"], 257)  # a token for each byte, and end-of-text
EOT = BYTES.eot
ID_OF = {token[0]: number for number, token in BYTES.vocab.items() if number != EOT}


def ids_of(data: bytes) -> list[int]:
    return [ID_OF[byte] for byte in data]


def streamed(tokenizer: Tokenizer, rows: list[list[int]]) -> list[str]:
    """What a reader of the terminal has seen of each row in the end."""
    columns = (torch.tensor(column) for column in zip(*rows, strict=True))
    pieces = stream_text(columns, tokenizer, len(rows))
    return ["".join(filter(None, row)) for row in zip(*pieces, strict=True)]


def test_bytes_of_an_unfinished_character_are_held_back() -> None:
    columns = torch.tensor([ids_of("a€".encode()), ids_of("éab".encode())]).T
    assert list(stream_text(columns, BYTES, 2)) == [["a", ""], ["", "é"], ["", "a"], ["€", "b"], ["", ""]]


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=30))
def test_pieces_join_to_what_decoding_at_once_gives(data: bytes) -> None:
    assert streamed(BYTES, [ids_of(data)]) == [BYTES.decode(ids_of(data))] == [data.decode("utf-8", errors="replace")]


@settings(deadline=None)
@given(st.text(min_size=1))
def test_text_streamed_by_longer_tokens_is_the_text(text: str) -> None:
    tokenizer = Tokenizer.train(["the cat and the hat €€€ 日本日本 " * 9], 275)
    ids = tokenizer.encode("the cat 日本" + text)
    assert streamed(tokenizer, [ids]) == ["the cat 日本" + text]


def test_a_row_ends_at_its_end_of_text_and_the_others_go_on() -> None:
    assert EOT is not None
    ended = [*ids_of(b"a"), EOT, EOT, *ids_of(b"b")]
    cut = [*ids_of(b"\xe2"), EOT, *ids_of(b"aa")]
    assert streamed(BYTES, [ended, ids_of(b"cdef"), cut]) == ["a", "cdef", "\ufffd"]
    assert list(stream_text(torch.tensor([ended]).T, BYTES, 1)) == [["a"], [None], [None], [None], [""]]


def test_prompts_begin_a_document_and_are_never_empty() -> None:
    found = encode_prompt(BYTES, "hi", 3, CPU)
    assert found.tolist() == [[EOT, *ids_of(b"hi")]] * 3
    assert found.dtype == torch.long
    assert encode_prompt(BYTES, "", 1, CPU).tolist() == [[EOT]]


def test_the_name_of_end_of_text_in_a_prompt_is_ordinary_text() -> None:
    assert encode_prompt(BYTES, "<|endoftext|>", 1, CPU).tolist() == [[EOT, *ids_of(b"<|endoftext|>")]]


def test_without_an_end_of_text_a_prompt_is_the_text_alone_and_must_not_be_empty() -> None:
    tokenizer = Tokenizer.train(["a"], 256, special_tokens=())
    assert encode_prompt(tokenizer, "hi", 1, CPU).tolist() == [ids_of(b"hi")]
    assert streamed(tokenizer, [ids_of(b"hi")]) == ["hi"]
    with pytest.raises(InputError, match="the prompt is empty"):
        encode_prompt(tokenizer, "", 1, CPU)
