"""What a tokenizer is: its merges, its ids, its special tokens and its splitting pattern; checked once, here."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpt2lab.errors import InputError
from gpt2lab.tokenizer.alphabet import BYTE_ORDER, spell, unspell
from gpt2lab.tokenizer.bpe import Merge, in_order_of_training
from gpt2lab.tokenizer.pretokenize import Pattern


@dataclass(frozen=True)
class Vocabulary:
    """The whole of a tokenizer, in memory.

    Attributes:
        ids: the id of each ordinary token: the 256 bytes and what the merges make.
        merges: the two parts of each merge, by rank.
        special_tokens: the id of each special token, by its text.
        pattern: how text splits into words.

    Raises:
        InputError: merges of unknown parts, a byte without id, an id given twice or left out, an unusable special
            token.
    """

    ids: Mapping[bytes, int]
    merges: Sequence[Merge]
    special_tokens: Mapping[str, int]
    pattern: Pattern

    def __post_init__(self) -> None:
        _check_merges(self.ids, self.merges)
        for text in self.special_tokens:
            _check_special_token(text, self.ids)
        _check_ids([*self.ids.values(), *self.special_tokens.values()])

    @property
    def by_id(self) -> dict[int, bytes]:
        """The bytes of every id, in the order of ids; a special token's are its text as UTF-8."""
        tokens = {number: token for token, number in self.ids.items()}
        tokens.update({number: text.encode("utf-8") for text, number in self.special_tokens.items()})
        return {number: tokens[number] for number in range(len(tokens))}

    def fingerprint(self) -> str:
        """Return the SHA-256 (hexadecimal) of all that decides which ids a text gets."""
        content = {
            "ids": [spell(token) for token in sorted(self.ids, key=self.ids.__getitem__)],
            "merges": [[spell(left), spell(right)] for left, right in self.merges],
            "special_tokens": sorted(self.special_tokens.items()),
            "pattern": self.pattern.published,
        }
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode("ascii")).hexdigest()


def in_gpt2_order(merges: Sequence[Merge], special_tokens: Iterable[str], pattern: Pattern) -> Vocabulary:
    """Number the tokens as GPT-2 does: the bytes in GPT-2's order, what the merges make, the special tokens."""
    names = unique_special_tokens(special_tokens)
    ordinary = [*(bytes([byte]) for byte in BYTE_ORDER), *(left + right for left, right in merges)]
    ids = {token: number for number, token in enumerate(ordinary)}
    return Vocabulary(ids, merges, {name: len(ordinary) + i for i, name in enumerate(names)}, pattern)


def unique_special_tokens(names: Iterable[str]) -> list[str]:
    """Return the names of special tokens as a list. Raises InputError where one is given twice."""
    unique = [names] if isinstance(names, str) else list(names)
    for name, times in Counter(unique).items():
        if times > 1:
            raise InputError(f"the special token {name!r} is given {times} times; give each once")
    return unique


def ranks_of_tokens(vocabulary: Vocabulary) -> dict[bytes, int] | None:
    """Return the id of each token that encoding can give, if these as ranks of tokens decide every merge.

    ``None`` where they do not: merges that training cannot have made, or ids in another order than the merges.
    """
    made = [left + right for left, right in vocabulary.merges]
    numbers = [vocabulary.ids[token] for token in made]
    if numbers != sorted(numbers) or not in_order_of_training(vocabulary.merges):
        return None
    return {token: vocabulary.ids[token] for token in [*(bytes([byte]) for byte in BYTE_ORDER), *made]}


def _check_merges(ids: Mapping[bytes, int], merges: Sequence[Merge]) -> None:
    for byte in BYTE_ORDER:
        if bytes([byte]) not in ids:
            raise InputError(
                f"the vocabulary has no token for the byte 0x{byte:02x}; a byte-level vocabulary has all 256"
            )
    for rank, merge in enumerate(merges):
        for token in (*merge, merge[0] + merge[1]):
            if token not in ids:
                raise InputError(
                    f"merge {rank} ({spell(merge[0])} {spell(merge[1])}) names {spell(token)!r}, "
                    "which is not in the vocabulary; merges and vocabulary must be of the same tokenizer"
                )


def _check_special_token(text: str, ids: Mapping[bytes, int]) -> None:
    if not text:
        raise InputError("a special token is empty; give it a text, such as <|endoftext|>")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"the special token {text!r} holds half a surrogate pair; use whole characters") from None
    if _is_spelling(text, ids):
        raise InputError(
            f"the special token {text!r} is also an ordinary token of the vocabulary; "
            "choose a text that does not occur, such as <|endoftext|>"
        )


def _is_spelling(text: str, ids: Mapping[bytes, int]) -> bool:
    """Say whether files, which name ordinary tokens by their spelling, could not tell ``text`` from one."""
    try:
        return unspell(text) in ids
    except InputError:
        return False


def _check_ids(numbers: Sequence[int]) -> None:
    missing = set(range(len(numbers))).difference(numbers)
    if missing:
        raise InputError(
            f"the vocabulary of {len(numbers)} tokens has no id {min(missing)}; "
            f"ids must be 0 to {len(numbers) - 1}, each once"
        )
