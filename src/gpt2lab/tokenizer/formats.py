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
from typing import Any

from gpt2lab.errors import InputError
from gpt2lab.files import read_json, write_atomically, write_json
from gpt2lab.hub import find_model
from gpt2lab.tokenizer.bpe import BYTE_ORDER, Vocabulary, ranks_of_tokens, spell, unspell
from gpt2lab.tokenizer.pretokenize import GPT2, Pattern, find_pattern

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


TOKENIZER_FILE = "tokenizer.json"


def write_tokenizer_json(vocabulary: Vocabulary, directory: Path) -> list[Path]:
    """Write ``tokenizer.json`` into ``directory``, which is made where missing; return the path.

    Raises:
        InputError: another tokenizer lies there already.
    """
    path = directory / TOKENIZER_FILE
    if path.exists():
        if read_tokenizer_json(path).fingerprint() != vocabulary.fingerprint():
            raise InputError(f"{path} is another tokenizer; choose another directory, or delete it first")
        return [path]
    make_directory(directory)
    write_json(path, _as_json(vocabulary))
    return [path]


def _as_json(vocabulary: Vocabulary) -> dict[str, Any]:
    specials = sorted(vocabulary.special_tokens.items(), key=lambda item: item[1])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **plain} for text, number in specials],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(vocabulary.pattern),
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {spell(token): number for token, number in vocabulary.ids.items()},
            "merges": [f"{spell(left)} {spell(right)}" for left, right in vocabulary.merges],
        },
    }


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _pre_tokenizer(pattern: Pattern) -> dict[str, Any]:
    if pattern == GPT2:
        return _byte_level(use_regex=True)
    split = {"type": "Split", "pattern": {"Regex": pattern.published}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


def read_tokenizer_json(path: Path) -> Vocabulary:
    """Read a ``tokenizer.json``, given itself or its directory.

    Raises:
        InputError: it is missing, not JSON, damaged, or no byte-level BPE.
    """
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.exists():
        raise InputError(
            f"{file} does not exist; give a directory of a saved tokenizer, or of GPT-2's vocab.json and merges.txt"
        )
    tree = read_json(file)
    try:
        return _from_json(tree)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: not a tokenizer.json as Hugging Face writes it ({error!r}); save it again") from None


def _from_json(tree: Any) -> Vocabulary:
    model = tree["model"]
    _refuse_unless_plain(tree, model)
    specials: dict[str, int] = {}
    for token in tree.get("added_tokens") or []:
        if token["content"] in specials:
            raise InputError(f"the special token {token['content']!r} is given twice; save the tokenizer again")
        specials[token["content"]] = token["id"]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    pairs = [(left, right) for left, right in merges]
    vocabulary = from_spellings(model["vocab"], pairs, specials, _read_pattern(tree.get("pre_tokenizer")))
    if model.get("ignore_merges"):
        _refuse_unless_merges_make_all(vocabulary)
    return vocabulary


def _refuse_unless_merges_make_all(vocabulary: Vocabulary) -> None:
    """Raise InputError unless a word that stands in the vocabulary is what merging makes of it anyway."""
    made = ranks_of_tokens(vocabulary)
    if made is None or len(made) < len(vocabulary.ids):
        raise InputError(
            "it takes a word that stands in the vocabulary without merging (ignore_merges), and its merges would not "
            "make them all; that is not done here"
        )


def _refuse_unless_plain(tree: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Raise InputError where the file asks for something that would change ids and is not done here."""
    if model.get("type", "BPE") != "BPE":
        raise InputError(f"its model is {model['type']}, not BPE; only byte-level BPE can be read")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise InputError(f"its model has {option}={model[option]!r}; only plain byte-level BPE can be read")
    if tree.get("normalizer"):
        raise InputError(f"it changes the text first (normalizer {tree['normalizer']['type']}); that is not done here")
    decoder = (tree.get("decoder") or {"type": "ByteLevel"})["type"]
    if decoder != "ByteLevel":
        raise InputError(f"its decoder is {decoder}, not ByteLevel; only byte-level BPE can be read")
    for token in tree.get("added_tokens") or []:
        for option in ("single_word", "lstrip", "rstrip"):
            if token.get(option):
                raise InputError(f"its added token {token['content']!r} has {option}, which is not done here")


def _read_pattern(pre_tokenizer: Any) -> Pattern:
    steps = _steps(pre_tokenizer)
    if steps and steps[-1].get("add_prefix_space"):
        raise InputError("it puts a space before each text (add_prefix_space), which is not done here")
    match [step["type"] for step in steps]:
        case ["ByteLevel"] if steps[0].get("use_regex", True):
            return GPT2
        case ["Split", "ByteLevel"] if not steps[1].get("use_regex", True) and _isolates(steps[0]):
            return find_pattern(steps[0]["pattern"]["Regex"])
        case kinds:
            raise InputError(
                f"its pre_tokenizer ({', then '.join(kinds) or 'none'}) does not split as byte-level BPE does; "
                "only ByteLevel, alone with its pattern or after a Split by a Regex, can be read"
            )


def _steps(pre_tokenizer: Any) -> list[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]


def _isolates(split: Mapping[str, Any]) -> bool:
    return split["behavior"] == "Isolated" and not split.get("invert") and "Regex" in split["pattern"]
