"""The other files that vocabularies come in: GPT-2's own pair, and tiktoken's ranks.

``encoder.json`` with ``vocab.bpe`` is what OpenAI published with GPT-2; Hugging Face's ``vocab.json`` with
``merges.txt`` is the same under other names. The first file gives each token, spelled in visible characters, its id;
the second has a heading and then a merge in each line, its two parts with a space between. Neither says which tokens
are special or how to split: a token that is no byte and that no merge makes is special, the pattern is GPT-2's.

A tiktoken file has a line for each ordinary token: its bytes in base64, a space, its rank, which is its id.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpt2lab.errors import InputError
from gpt2lab.files import read_json, write_atomically
from gpt2lab.hub import find_model
from gpt2lab.tokenizer.alphabet import BYTE_ORDER, spell, unspell
from gpt2lab.tokenizer.pretokenize import GPT2, Pattern
from gpt2lab.tokenizer.vocabulary import Vocabulary, ranks_of_tokens

_HEADING = "#version: 0.2"
_PUBLISHED = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"


def _in_cache(name: str) -> str:
    """Return the name under which tiktoken keeps a file that it has fetched: the SHA-1 of its address."""
    return hashlib.sha1((_PUBLISHED + name).encode("ascii"), usedforsecurity=False).hexdigest()


_GPT2_FILES = (
    ("encoder.json", "vocab.bpe"),
    ("vocab.json", "merges.txt"),
    (_in_cache("encoder.json"), _in_cache("vocab.bpe")),
)


def find_gpt2(source: Path | str) -> Path:
    """Return the directory of GPT-2's files: ``source`` itself, tiktoken's cache, or what the Hub has.

    Raises:
        InputError: ``source`` is no directory, and the Hub does not have it either.
    """
    if source == "tiktoken" and not Path(source).is_dir():
        return _tiktokens_cache()
    return find_model(source, ("vocab.json", "merges.txt"))


def _tiktokens_cache() -> Path:
    """Return where tiktoken keeps what it has fetched."""
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if directory := os.environ.get(variable):
            return Path(directory)
    return Path(tempfile.gettempdir()) / "data-gym-cache"


def holds_gpt2(directory: Path) -> bool:
    """Say whether a directory holds GPT-2's vocabulary, under whichever names."""
    return _pair_of_files(directory) is not None


def _pair_of_files(directory: Path) -> tuple[Path, Path] | None:
    pairs = [(directory / vocabulary, directory / merges) for vocabulary, merges in _GPT2_FILES]
    return next((pair for pair in pairs if all(file.exists() for file in pair)), None)


def read_gpt2(directory: Path) -> Vocabulary:
    """Read GPT-2's vocabulary from a directory with its two files, under OpenAI's, Hugging Face's or tiktoken's names.

    Raises:
        InputError: the files are missing or damaged.
    """
    pair = _pair_of_files(directory)
    if pair is None:
        raise InputError(
            f"{directory} holds no GPT-2 vocabulary; it needs encoder.json and vocab.bpe, or vocab.json and merges.txt"
        )
    vocabulary_file, merges_file = pair
    ids = read_json(vocabulary_file)
    if not isinstance(ids, dict):
        raise InputError(f"{vocabulary_file}: not a JSON object of tokens and ids; fetch it again")
    try:
        return from_spellings(ids, _read_merges(merges_file), None, GPT2)
    except InputError as error:
        raise InputError(f"{directory}: {error}") from None


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name}: not UTF-8 text at byte {error.start}; fetch it again") from None
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2:
            raise InputError(f"{path.name}, line {number}: {line!r} is no merge; a merge is two tokens and a space")
        merges.append((parts[0], parts[1]))
    return merges


def from_spellings(
    ids: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    special_tokens: Mapping[str, int] | None,
    pattern: Pattern,
) -> Vocabulary:
    """Make a vocabulary of what files spell.

    Args:
        ids: The id of each token; special tokens may be among them, with the same ids.
        merges: The two parts of each merge.
        special_tokens: The id of each, or ``None`` where the file does not say: then those that nothing makes.
        pattern: How text splits.

    Raises:
        InputError: an id that is no number, a token that is not spelled in bytes, or whatever a vocabulary must not be.
    """
    for token, number in ids.items():
        if not isinstance(number, int):
            raise InputError(f"the token {token!r} has the id {number!r}; ids are whole numbers")
    if special_tokens is None:
        ordinary_spellings = {spell(bytes([byte])) for byte in BYTE_ORDER} | {left + right for left, right in merges}
        special_tokens = {token: number for token, number in ids.items() if token not in ordinary_spellings}
    for token, number in special_tokens.items():
        if ids.get(token, number) != number:
            raise InputError(f"the special token {token!r} has two ids, {number} and {ids[token]}; save it again")
    ordinary = {unspell(token): number for token, number in ids.items() if token not in special_tokens}
    return Vocabulary(
        ids=ordinary,
        merges=[(unspell(left), unspell(right)) for left, right in merges],
        special_tokens=dict(special_tokens),
        pattern=pattern,
    )


def write_gpt2(vocabulary: Vocabulary, directory: Path) -> list[Path]:
    """Write ``vocab.json`` and ``merges.txt`` into ``directory`` (made where missing); return their paths.

    Raises:
        InputError: the pattern is not GPT-2's, which the files could not say, or one of them exists.
    """
    if vocabulary.pattern != GPT2:
        raise InputError(
            f"vocab.json and merges.txt imply GPT-2's splitting pattern, this tokenizer has {vocabulary.pattern.name}; "
            "use tokenizer.json, which holds the pattern"
        )
    spelled = {spell(token): number for token, number in vocabulary.ids.items()} | dict(vocabulary.special_tokens)
    in_order = dict(sorted(spelled.items(), key=lambda item: item[1]))
    merges = [f"{spell(left)} {spell(right)}" for left, right in vocabulary.merges]
    vocabulary_file, merges_file = directory / "vocab.json", directory / "merges.txt"
    _write_new(vocabulary_file, json.dumps(in_order, ensure_ascii=False) + "\n")
    _write_new(merges_file, "\n".join([_HEADING, *merges, ""]))
    return [vocabulary_file, merges_file]


def write_tiktoken(vocabulary: Vocabulary, directory: Path) -> list[Path]:
    """Write the ranks of the ordinary tokens as ``tiktoken.load.load_tiktoken_bpe`` reads them; return the path.

    Raises:
        InputError: the file exists, or the merges are not such that ranks of tokens give the same ids.
    """
    ranks = ranks_of_tokens(vocabulary)
    if ranks is None:
        raise InputError("these merges cannot be written as ranks of tokens, tiktoken would give other ids")
    in_order = sorted(ranks.items(), key=lambda item: item[1])
    lines = [f"{base64.b64encode(token).decode('ascii')} {rank}\n" for token, rank in in_order]
    path = directory / "ranks.tiktoken"
    _write_new(path, "".join(lines))
    return [path]


def _write_new(path: Path, text: str) -> None:
    if path.exists():
        raise InputError(f"{path} exists; choose another directory, or delete it first")
    make_directory(path.parent)
    write_atomically(path, text)


def make_directory(directory: Path) -> None:
    """Make a directory to write into, unless it is there. Raises InputError where a file has its name."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{directory} is a file, or lies below one; give a directory to write into") from None
