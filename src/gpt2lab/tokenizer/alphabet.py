"""GPT-2's order of the 256 bytes, and its printable spelling of them.

Byte-level BPE starts from the 256 bytes, so that every text can be written. GPT-2 (Radford et al. 2019, section 2.2)
stores its vocabulary as text, therefore spells each byte as one visible character: the 188 bytes that are visible in
Latin-1 as themselves, the other 68 as the characters from U+0100 on. ::

    byte       0x20 (space)  0x21 '!'  0x41 'A'  0x0A (newline)
    spelling   'Ġ' U+0120    '!'       'A'       'Ċ' U+010A

Sorted by spelling this is also the order of ids: '!' is 0, and NUL, the first of the 68, is 188.
"""

from __future__ import annotations

from gpt2lab.errors import InputError

_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]

BYTE_ORDER: tuple[int, ...] = (*_VISIBLE, *_HIDDEN)
"""The byte of each of the first 256 ids."""

ID_OF_BYTE: tuple[int, ...] = tuple(sorted(range(256), key=BYTE_ORDER.__getitem__))
"""The id of each byte: the inverse of :data:`BYTE_ORDER`."""

_SPELLING = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(0x100 + i) for i, byte in enumerate(_HIDDEN)}
_BYTE_OF = {character: byte for byte, character in _SPELLING.items()}


def spell(token: bytes) -> str:
    """Write the bytes of a token as GPT-2's visible characters, one for each byte."""
    return "".join([_SPELLING[byte] for byte in token])


def unspell(spelling: str) -> bytes:
    """Return the bytes that ``spelling`` stands for.

    Raises:
        InputError: a character stands for no byte, so the vocabulary is not a byte-level one.
    """
    try:
        return bytes([_BYTE_OF[character] for character in spelling])
    except KeyError as unknown:
        raise InputError(
            f"the token {spelling!r} is not of a byte-level vocabulary: {unknown.args[0]!r} stands for no byte; "
            "only byte-level BPE as GPT-2's can be read"
        ) from None
