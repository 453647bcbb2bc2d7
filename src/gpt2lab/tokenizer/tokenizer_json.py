"""``tokenizer.json``: the format of Hugging Face's ``tokenizers``, in which a tokenizer is saved here too.

One JSON object names every step from text to ids; of what it can say, byte-level BPE uses this::

    added_tokens    the special tokens, with their ids
    pre_tokenizer   ByteLevel (GPT-2's pattern), or Split by an expression followed by ByteLevel
    model           BPE: the vocabulary (spelled in GPT-2's visible characters) and the merges

A file from elsewhere is read when it means just that. One that does more to a text (a normalizer, a space put before
it, dropout, a fallback for unknown bytes) is refused, because here it would give other ids without a word. What is
added around a text by its ``post_processor``, and how batches are cut or filled up (``truncation``, ``padding``), are
not a matter of the text's ids: they are those that ``tokenizers`` gives with ``add_special_tokens=False``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2lab.errors import InputError
from gpt2lab.files import read_json, write_json
from gpt2lab.tokenizer.alphabet import spell
from gpt2lab.tokenizer.formats import from_spellings, make_directory
from gpt2lab.tokenizer.pretokenize import GPT2, Pattern, find_pattern
from gpt2lab.tokenizer.vocabulary import Vocabulary, ranks_of_tokens

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
