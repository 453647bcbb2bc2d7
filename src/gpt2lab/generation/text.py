"""Between text and the columns of tokens that `stream` hands out.

A character may be spread over several tokens: bytes that do not yet make one are held back until they do.

    ids      e2 | 82 ac 20 | 41           text   "" | "€ " | "A"
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

import torch

from gpt2lab.errors import InputError

if TYPE_CHECKING:
    from gpt2lab.tokenizer import Tokenizer


def encode_prompt(tokenizer: Tokenizer, text: str, samples: int, device: torch.device) -> torch.Tensor:
    """Return ids (samples, T) that begin a document with ``text``: end-of-text, where there is one, then the text.

    Raises:
        InputError: No text, and no end-of-text token to begin from.
    """
    ids = [] if tokenizer.eot is None else [tokenizer.eot]
    ids += tokenizer.encode(text)
    if not ids:
        raise InputError("the prompt is empty and the tokenizer has no <|endoftext|> to begin from; give a prompt")
    return torch.tensor([ids] * samples, device=device)


class TextStreamer:
    """Turns columns of ids into pieces of text, a row for each sample, up to each row's end-of-text.

    A row's pieces, joined, are what the tokenizer decodes from the row's ids, U+FFFD where the bytes are no UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer, samples: int) -> None:
        self._tokenizer = tokenizer
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(samples)]
        self._ended = [False] * samples

    def feed(self, column: torch.Tensor) -> list[str]:
        """Take the next id of each row, (B,); return the text that can now be printed, "" where there is none yet."""
        return [self._piece(row, token) for row, token in enumerate(column.tolist())]

    def finish(self) -> list[str]:
        """Return what each row still held back: U+FFFD for a character that was cut off, else ""."""
        return [decoder.decode(b"", final=True) for decoder in self._decoders]

    def _piece(self, row: int, token: int) -> str:
        self._ended[row] = self._ended[row] or token == self._tokenizer.eot
        return "" if self._ended[row] else self._decoders[row].decode(self._tokenizer.decode_bytes([token]))
