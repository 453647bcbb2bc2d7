from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.generation import TextStreamer, encode_prompt

EOT = 256


class Bytes:
    """A token for each byte, and end-of-text."""

    eot = EOT

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(b"<|endoftext|>" if token == EOT else bytes([token]) for token in ids)


TOKENIZER: Any = Bytes()


def streamed(rows: list[list[int]]) -> list[str]:
    """What a reader of the terminal has seen of each row in the end."""
    streamer = TextStreamer(TOKENIZER, len(rows))
    columns = [streamer.feed(torch.tensor(column)) for column in zip(*rows, strict=True)]
    return ["".join(pieces) for pieces in zip(*columns, streamer.finish(), strict=True)]


def test_bytes_of_an_unfinished_character_are_held_back() -> None:
    streamer = TextStreamer(TOKENIZER, 2)
    rows = zip("a€".encode(), "éa".encode() + b"b", strict=True)
    assert [streamer.feed(torch.tensor(column)) for column in rows] == [["a", ""], ["", "é"], ["", "a"], ["€", "b"]]
    assert streamer.finish() == ["", ""]


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=30))
def test_pieces_join_to_what_decoding_at_once_gives(ids: list[int]) -> None:
    assert streamed([ids]) == [bytes(ids).decode("utf-8", errors="replace")]


def test_a_row_ends_at_its_end_of_text_and_the_others_go_on() -> None:
    assert streamed([[97, EOT, EOT, 98], [99, 100, 101, 102], [0xE2, EOT, 97, 97]]) == ["a", "cdef", "\ufffd"]


def test_prompts_begin_a_document_and_are_never_empty() -> None:
    found = encode_prompt(TOKENIZER, "hi", 3, torch.device("cpu"))
    assert found.tolist() == [[EOT, 104, 105]] * 3
    assert encode_prompt(TOKENIZER, "", 1, torch.device("cpu")).tolist() == [[EOT]]
    assert found.dtype == torch.long
