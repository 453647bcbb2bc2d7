"""Making a folder of token files from elsewhere prepared data: nothing is copied, a manifest is written beside them.

The files do not say whose tokens they hold; whoever adopts them must. Every id is checked against that tokenizer's
vocabulary, and what the manifest says of documents and bytes is counted from the tokens.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from gpt2lab.data.dataset import TOKENIZER, TokenDataset
from gpt2lab.data.foreign import OPENERS
from gpt2lab.data.manifest import MANIFEST, DataManifest, ShardInfo, SourceInfo, SplitInfo, TokenizerInfo
from gpt2lab.data.shards import Shard, checked_sha256
from gpt2lab.data.split import SPLITS, SplitRule
from gpt2lab.data.stream import TokenStream
from gpt2lab.data.survey import survey
from gpt2lab.errors import InputError
from gpt2lab.tokenizer import END_OF_TEXT, Tokenizer

_SPLIT = re.compile(r"(?:^|[._-])(train|val|validation|test)(?=[._-])")


def adopt(directory: Path, tokenizer: Tokenizer, *, raw: bool = False) -> TokenDataset:
    """Write ``manifest.json`` and ``tokenizer/`` into a folder of token files, and open it as prepared data.

    Args:
        directory: Holds ``.bin`` files of llm.c's format or ``.npy`` files, each with train, val or test in its name.
        tokenizer: The one that the tokens are of.
        raw: The ``.bin`` files have no header: uint16 and nothing else, as nanoGPT writes them.

    Raises:
        InputError: No such files, a manifest that is there already, a damaged file, a name that tells no split, a split
            without text, an id beyond the vocabulary, or a tokenizer without ``<|endoftext|>``.
    """
    if tokenizer.eot is None:
        raise InputError(f"the tokenizer has no {END_OF_TEXT}, which stands between documents; give the files' own")
    if (directory / MANIFEST).exists():
        raise InputError(f"{directory}: has a {MANIFEST} already; it is prepared data as it is")
    forms = {path: _form_of(path, raw) for path in _files(directory)}
    shards = {path: OPENERS[form](path) for path, form in forms.items()}
    infos = tuple(
        ShardInfo(path.name, _split_of(path), shard.tokens, checked_sha256(shard, tokenizer.n_vocab), forms[path])
        for path, shard in shards.items()
    )
    splits = {split: [shards[directory / info.name] for info in infos if info.split == split] for split in SPLITS}
    manifest = DataManifest(
        source=SourceInfo((str(directory),), 0, None),
        tokenizer=TokenizerInfo(tokenizer.fingerprint, tokenizer.n_vocab, tokenizer.eot),
        split_rule=SplitRule("given", 0.0, 0.0),
        splits={split: _describe(split, found, tokenizer) for split, found in splits.items() if found},
        shards=infos,
    )
    tokenizer.save(directory / TOKENIZER)
    manifest.save(directory)
    return TokenDataset(directory)


def _files(directory: Path) -> list[Path]:
    files = sorted([*directory.glob("*.bin"), *directory.glob("*.npy")])
    if not files:
        raise InputError(f"{directory}: holds no .bin and no .npy files; give the folder that the token files lie in")
    return files


def _form_of(path: Path, raw: bool) -> str:
    if path.suffix == ".npy":
        return "npy"
    return "raw" if raw else "llm.c"


def _split_of(path: Path) -> str:
    named = set(_SPLIT.findall(path.name))
    if len(named) != 1:
        raise InputError(f"{path}: its name must tell its split by one of train, val and test, as train_0.bin does")
    return named.pop().removesuffix("idation")


def _describe(split: str, shards: list[Shard], tokenizer: Tokenizer) -> SplitInfo:
    assert tokenizer.eot is not None
    stream = TokenStream(split, shards)
    found = survey(stream, tokenizer.n_vocab, tokenizer.eot)
    if not len(found.lengths):
        raise InputError(
            f"{shards[0].path}: {split} holds {len(stream)} tokens and no text; copy it again, or remove it"
        )
    sizes = np.array([len(token) for token in tokenizer.vocab.values()])
    sizes[tokenizer.eot] = 0  # no text
    return SplitInfo(len(found.lengths), len(stream), int(found.counts @ sizes), None)
