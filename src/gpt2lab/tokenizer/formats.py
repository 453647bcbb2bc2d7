"""Files of other programs: Hugging Face's ``tokenizer.json``, GPT-2's pair of files, tiktoken's ranks.

``tokenizer.json`` is the format of Hugging Face's ``tokenizers``, and the one in which tokenizers are saved here. One
JSON object names every step from text to ids, of which byte-level BPE uses::

    added_tokens    the special tokens, with their ids
    pre_tokenizer   ByteLevel (GPT-2's pattern), or Split by an expression followed by ByteLevel
    model           BPE: the vocabulary (in GPT-2's visible characters) and the merges

A foreign file is read if it means exactly that. One that does more to a text (a normalizer, a space put before it,
dropout, a fallback for unknown bytes) is refused, since it would silently get other ids here. A setting that only adds
ids around a text or cuts some off (``post_processor``, ``truncation``, ``padding``, ``add_bos_token``) is ignored, with
a warning: ids here are those of the text itself. Special tokens that ``added_tokens.json`` or ``tokenizer_config.json``
add are read too.

``encoder.json`` with ``vocab.bpe`` is what OpenAI published with GPT-2; Hugging Face's ``vocab.json`` with
``merges.txt`` is the same under other names. The first file maps each token, in visible characters, to its id; the
second has a heading and then one merge per line, its two parts separated by a space. Neither says which tokens are
special or how to split: a token that is neither a byte nor made by a merge is special, the pattern is GPT-2's.

A tiktoken file has a line for each ordinary token: its bytes in base64, a space, its rank, which is its id. It says
neither how to split nor which tokens are special. Its merges follow from the ranks: two adjacent tokens whose bytes
together are a token merge, the one of lowest rank first.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt2lab.errors import InputError
from gpt2lab.files import read_json, read_text, write_atomically, write_json
from gpt2lab.hub import find_model
from gpt2lab.tokenizer.bpe import BYTES, Merge, Vocabulary, bytes_to_unicode, merge_word, unicode_to_bytes
from gpt2lab.tokenizer.pretokenize import GPT2, Pattern, find_pattern

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (TOKENIZER_FILE, "added_tokens.json", "tokenizer_config.json", "vocab.json", "merges.txt")
MAX_RESERVED = 1_000
"""Most ids without a token between those that a vocabulary in tiktoken's form has; OpenAI's leave fewer than 20."""
log = logging.getLogger(__name__)


def read_tokenizer(source: Path | str) -> Vocabulary:
    """Read a ``tokenizer.json``, or else GPT-2's two files.

    Args:
        source: That file, the directory of either, of a run or of prepared data, or a name on the Hub.

    Raises:
        InputError: Both are missing, or the file is damaged or not a byte-level BPE, or it cannot be fetched.
    """
    path = Path(source) if Path(source).exists() else find_model(source, TOKENIZER_FILES)
    path = path / "tokenizer" if (path / "tokenizer").is_dir() else path
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.exists() and _gpt2_files(path):
        return read_gpt2(path)
    if not file.exists():
        raise InputError(f"{path} holds no tokenizer; it needs tokenizer.json, or vocab.json and merges.txt")
    tree, more = read_json(file), _added_beside(file.parent)
    with _naming(file):
        if ignored := [name for name in ("truncation", "padding", "post_processor") if _changes_ids(tree.get(name))]:
            log.warning("%s: %s ignored; ids are those of the text itself", file, ", ".join(ignored))
        return _from_json(tree, more)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Begin the errors of the block with the path that they are about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not in the expected format ({error!r}); save it again") from None


def _from_strings(
    ids: Mapping[str, int], merges: Sequence[tuple[str, str]], special_tokens: Mapping[str, int], pattern: Pattern
) -> Vocabulary:
    """Make a vocabulary of what files hold: ordinary tokens and merges in visible characters.

    Special tokens may be among ``ids``, with the same ids.
    """
    for token, number in ids.items():
        if not isinstance(number, int):
            raise InputError(f"the token {token!r} has the id {number!r}; ids are integers")
    for token, number in special_tokens.items():
        if ids.get(token, number) != number:
            raise InputError(f"the special token {token!r} has two ids, {number} and {ids[token]}; save it again")
    ordinary = {unicode_to_bytes(token): number for token, number in ids.items() if token not in special_tokens}
    pairs = [(unicode_to_bytes(left), unicode_to_bytes(right)) for left, right in merges]
    return Vocabulary(ordinary, pairs, dict(special_tokens), pattern)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{directory} is a file, or lies below one; give a directory to write into") from None


# --------------------------------------------------------------------------------------------------- tokenizer.json


def write_tokenizer_json(vocabulary: Vocabulary, directory: Path) -> list[Path]:
    """Write ``tokenizer.json`` into ``directory``, which is created if missing; return the path.

    Raises:
        InputError: The directory holds another tokenizer.
    """
    path = directory / TOKENIZER_FILE
    if path.exists():
        if read_tokenizer(path).fingerprint != vocabulary.fingerprint:
            raise InputError(f"{path} is another tokenizer; choose another directory, or delete it first")
        return [path]
    _make_directory(directory)
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
            **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
            **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
            "vocab": _all_ids(vocabulary),
            "merges": _merges_as_lines(vocabulary),
        },
    }


def _all_ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Return every token, in visible characters, with its id, in the order of ids.

    Special tokens are among them: ``tokenizers`` gives an added token that the vocabulary lacks the next free id,
    whatever id the file names.
    """
    ordinary = {bytes_to_unicode(token): number for token, number in vocabulary.ids.items()}
    return dict(sorted((ordinary | dict(vocabulary.special_tokens)).items(), key=lambda item: item[1]))


def _merges_as_lines(vocabulary: Vocabulary) -> list[str]:
    return [f"{bytes_to_unicode(left)} {bytes_to_unicode(right)}" for left, right in vocabulary.merges]


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _pre_tokenizer(pattern: Pattern) -> dict[str, Any]:
    if pattern == GPT2:
        return _byte_level(use_regex=True)
    split = {"type": "Split", "pattern": {"Regex": pattern.published}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


def _changes_ids(setting: Any) -> bool:
    """Return whether a step of ``tokenizers`` adds or removes ids: not ByteLevel, nor a template without tokens."""
    if not setting or setting.get("type") == "ByteLevel":
        return False
    return setting.get("type") != "TemplateProcessing" or bool(setting["special_tokens"])


def _added_beside(directory: Path) -> dict[str, int]:
    """Return the special tokens that the files beside a ``tokenizer.json`` add, with their ids."""
    added, config = directory / "added_tokens.json", directory / "tokenizer_config.json"
    tokens, settings = (read_json(file) if file.exists() else {} for file in (added, config))
    with _naming(added):
        specials = dict(tokens.items())
    with _naming(config):
        more = dict(settings.get("added_tokens_decoder") or {})
        _refuse_stripping(more.values())
        _refuse_prefix_space(settings)
        specials |= {token["content"]: int(number) for number, token in more.items()}
        for name in ("add_bos_token", "add_eos_token"):
            if settings.get(name):
                log.warning("%s: %s ignored; ids are those of the text itself", config, name)
    return specials


def _from_json(tree: Any, more_specials: Mapping[str, int]) -> Vocabulary:
    model = tree["model"]
    _refuse_unless_plain(tree)
    specials: dict[str, int] = {}
    for token in tree.get("added_tokens") or []:
        if token["content"] in specials:
            raise InputError(f"the special token {token['content']!r} is given twice; save the tokenizer again")
        specials[token["content"]] = token["id"]
    for text, number in more_specials.items():
        if specials.setdefault(text, number) != number:
            raise InputError(f"the special token {text!r} has two ids, {specials[text]} and {number}; save it again")
    merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    vocabulary = _from_strings(
        model["vocab"], [(left, right) for left, right in merges], specials, _read_pattern(tree.get("pre_tokenizer"))
    )
    if model.get("ignore_merges"):  # harmless if merging makes every word of the vocabulary anyway
        made = vocabulary.token_ranks() or ()
        _refuse(len(made) < len(vocabulary.ids), "it has ignore_merges, and its merges would not make every word")
    return vocabulary


def _refuse(asked: Any, reason: str) -> None:
    if asked:
        raise InputError(f"{reason}; only plain byte-level BPE is supported")


def _refuse_unless_plain(tree: Mapping[str, Any]) -> None:
    """Raise InputError if the file asks for something that would change ids and is not supported here."""
    model, kind, decoder = tree["model"], tree["model"].get("type", "BPE"), tree.get("decoder") or {"type": "ByteLevel"}
    _refuse(kind != "BPE", f"its model is {kind}, not BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        _refuse(model.get(option), f"its model has {option}={model.get(option)!r}")
    normalizer = tree.get("normalizer") or {}
    _refuse(normalizer, f"it changes the text first (normalizer {normalizer.get('type')})")
    _refuse(decoder["type"] != "ByteLevel", f"its decoder is {decoder['type']}, not ByteLevel")
    _refuse_stripping(tree.get("added_tokens") or [])


def _refuse_stripping(added_tokens: Iterable[Mapping[str, Any]]) -> None:
    for token in added_tokens:
        for option in ("single_word", "lstrip", "rstrip"):
            _refuse(token.get(option), f"its added token {token['content']!r} has {option}")


def _refuse_prefix_space(settings: Mapping[str, Any]) -> None:
    _refuse(settings.get("add_prefix_space"), "it puts a space before each text (add_prefix_space)")


def _read_pattern(pre_tokenizer: Any) -> Pattern:
    steps: list[Mapping[str, Any]] = []
    if pre_tokenizer is not None:
        steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    _refuse_prefix_space(steps[-1] if steps else {})
    match [step["type"] for step in steps]:
        case ["ByteLevel"] if steps[0].get("use_regex", True):
            return GPT2
        case ["Split", "ByteLevel"] if not steps[1].get("use_regex", True) and _isolates(steps[0]):
            return find_pattern(steps[0]["pattern"]["Regex"])
        case kinds:
            found = ", then ".join(kinds) or "none"
            raise InputError(f"its pre_tokenizer ({found}) is neither ByteLevel nor a Split by a Regex and ByteLevel")


def _isolates(split: Mapping[str, Any]) -> bool:
    return split["behavior"] == "Isolated" and not split.get("invert") and "Regex" in split["pattern"]


# ------------------------------------------------------------------------------------------- GPT-2's pair of files


_GPT2_FILES = (
    ("encoder.json", "vocab.bpe"),
    ("vocab.json", "merges.txt"),
    ("6c7ea1a7e38e3a7f062df639a5b80947f075ffe6", "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"),  # in tiktoken's cache
)


def _gpt2_files(directory: Path) -> tuple[Path, Path] | None:
    pairs = [(directory / vocabulary, directory / merges) for vocabulary, merges in _GPT2_FILES]
    return next((pair for pair in pairs if all(file.exists() for file in pair)), None)


def read_gpt2(source: Path | str) -> Vocabulary:
    """Read GPT-2's vocabulary from its two files, under OpenAI's, Hugging Face's or tiktoken's names.

    Args:
        source: Their directory, ``"tiktoken"`` for tiktoken's cache, or a name on the Hub.

    Raises:
        InputError: ``source`` is not a directory and the Hub does not have it either, or a file is missing or damaged.
    """
    if source == "tiktoken" and not Path(source).is_dir():
        cache = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
        directory = Path(cache) if cache else Path(tempfile.gettempdir()) / "data-gym-cache"
    else:
        directory = find_model(source, ("vocab.json", "merges.txt"))
    pair = _gpt2_files(directory)
    if pair is None:
        names = "encoder.json and vocab.bpe, or vocab.json and merges.txt"
        raise InputError(f"{directory} holds no GPT-2 vocabulary; it needs {names}")
    ids, merges = read_json(pair[0]), _read_merges(pair[1])
    if not isinstance(ids, dict):
        raise InputError(f"{pair[0]}: not a JSON object of tokens and ids; download it again")
    ordinary = set(map(bytes_to_unicode, BYTES)) | {left + right for left, right in merges}
    with _naming(directory):
        return _from_strings(ids, merges, {token: ids[token] for token in ids if token not in ordinary}, GPT2)


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise InputError(f"{path}, line {number}: {line!r} is not a merge; a merge is two tokens and a space")
        merges.append((left, right))
    return merges


def write_gpt2(vocabulary: Vocabulary, directory: Path) -> list[Path]:
    """Write ``vocab.json`` and ``merges.txt`` into ``directory`` (created if missing); return their paths.

    Raises:
        InputError: The pattern is not GPT-2's, which the files cannot say, or one of them exists.
    """
    if vocabulary.pattern != GPT2:
        raise InputError(
            "vocab.json and merges.txt imply GPT-2's splitting pattern, but this tokenizer has "
            f"{vocabulary.pattern.name}; use tokenizer.json, which holds the pattern"
        )
    return [
        _write_new(directory / "vocab.json", json.dumps(_all_ids(vocabulary), ensure_ascii=False) + "\n"),
        _write_new(directory / "merges.txt", "\n".join(["#version: 0.2", *_merges_as_lines(vocabulary), ""])),
    ]


def _write_new(path: Path, text: str) -> Path:
    if path.exists():
        raise InputError(f"{path} exists; choose another directory, or delete it first")
    _make_directory(path.parent)
    write_atomically(path, text)
    return path


# -------------------------------------------------------------------------------------------------- tiktoken's ranks


def write_tiktoken(vocabulary: Vocabulary, directory: Path) -> list[Path]:
    """Write the ranks of the ordinary tokens as ``tiktoken.load.load_tiktoken_bpe`` reads them; return the path.

    Raises:
        InputError: The file exists, or the merges are such that ranks of tokens would give other ids.
    """
    ranks = vocabulary.token_ranks()
    if ranks is None:
        raise InputError("these merges cannot be written as ranks of tokens: tiktoken would give other ids")
    in_order = sorted(ranks.items(), key=lambda item: item[1])
    lines = [f"{base64.b64encode(token).decode('ascii')} {rank}\n" for token, rank in in_order]
    return [_write_new(directory / "ranks.tiktoken", "".join(lines))]


def read_tiktoken(path: Path, pattern: Pattern, special_tokens: Mapping[str, int] | Iterable[str]) -> Vocabulary:
    """Read a file of ranks; the arguments and errors are those of `Tokenizer.from_tiktoken`."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            said = f"{path}, line {number}: {line[:60]!r} is not a token in base64 and its rank"
            raise InputError(f"{said}; give a file of tiktoken's ranks") from None
    if isinstance(special_tokens, Mapping):
        specials = dict(special_tokens)
    else:
        names = [special_tokens] if isinstance(special_tokens, str) else list(special_tokens)
        specials = {name: len(ranks) + i for i, name in enumerate(names)}
        if len(specials) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise InputError(f"{path}: the special token {twice!r} is given more than once; give each once")
    for name, number in specials.items():
        if number < len(ranks):
            raise InputError(f"{path}: the special token {name!r} has the id {number}; give it {len(ranks)} or above")
    if missing := set(range(len(ranks))) - set(ranks.values()):
        raise InputError(f"{path}: no token has the rank {min(missing)}; download it again")
    reserved = _reserved(path, len(ranks), specials)
    with _naming(path):
        vocabulary = Vocabulary(ranks, _merges_of(ranks), specials | reserved, pattern)
        _refuse(vocabulary.token_ranks() is None, "no merges in the order of its ranks encode as they do")
        return vocabulary


def _reserved(path: Path, n_ranks: int, specials: Mapping[str, int]) -> dict[str, int]:
    """Return a special token for each id after the ranks and below the largest that has none."""
    last = max(specials, key=specials.__getitem__, default="")
    free = specials.get(last, n_ranks) - n_ranks - len(specials) + 1
    if free > MAX_RESERVED:
        raise InputError(
            f"{path}: the special token {last!r} has the id {specials[last]}, which leaves {free:,} ids without a "
            f"token; at most {MAX_RESERVED:,} can be reserved: give it an id nearer to {n_ranks}"
        )
    ids = set(range(n_ranks, specials.get(last, n_ranks))) - set(specials.values())
    reserved = {f"<|reserved_{number}|>": number for number in sorted(ids)}
    if clash := sorted(reserved.keys() & specials.keys()):
        name = clash[0]
        raise InputError(
            f"{path}: the special token {name!r} has the id {specials[name]}, and its name is that of the free id "
            f"{reserved[name]}; give it that id, or another name"
        )
    return reserved


def _merges_of(ranks: Mapping[bytes, int]) -> list[Merge]:
    """Return the merge that makes each token: its two parts are what the merges of lower rank leave of its bytes."""
    merges: list[Merge] = []
    pairs: dict[Merge, int] = {}
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) > 1:
            parts = merge_word(token, pairs)
            if len(parts) != 2:
                what = " ".join(map(bytes_to_unicode, parts))
                raise InputError(
                    f"the token {bytes_to_unicode(token)!r} of rank {ranks[token]} is not made of two tokens of lower "
                    f"rank ({what}), so that no merges encode as these ranks do"
                )
            pairs[parts[0], parts[1]] = ranks[token]
            merges.append((parts[0], parts[1]))
    return merges


WRITERS: dict[str, Callable[[Vocabulary, Path], list[Path]]] = {
    "huggingface": write_tokenizer_json,
    "gpt2": write_gpt2,
    "tiktoken": write_tiktoken,
}
"""What writes each format that :meth:`Tokenizer.export` knows."""
