"""The corpora known by name, a few lines each: where, which column, which split, how documents are cut.

Sizes are those of the download, documents and GPT-2's tokens those of all splits, as published or counted by others;
what is prepared is counted anew. Names end in the number of tokens where a corpus comes in several sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Cut = Literal["file", "articles", "tokens", "stories", "pystdlib"]
"""How documents are cut: by the file's format, at headings, or already as tokens; or written and collected here."""

_FINEWEB, _EDU = "HuggingFaceFW/fineweb", "HuggingFaceFW/fineweb-edu"
_WIKITEXT = {"test": "test-*.parquet", "val": "validation-*.parquet", "train": "train-*.parquet"}


@dataclass(frozen=True)
class Corpus:
    """One corpus.

    ``files`` gives the pattern of paths in ``repository`` for each split it comes in; under an empty name where it
    comes in one piece, of which ``held_out`` goes to validation and as much to the test. ``url`` is that of a file.
    """

    about: str
    license: str
    size: int = 0
    documents: int = 0
    tokens: int = 0
    repository: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    sha256: str = ""
    column: str = "text"
    cut: Cut = "file"
    held_out: float = 0.05
    fall_back: str = ""


def _wikitext(version: str, size: int, documents: int) -> Corpus:
    return Corpus(
        about="articles of Wikipedia that editors called good; the classic test of perplexity",
        license="CC BY-SA 3.0",
        repository="Salesforce/wikitext",
        files={split: f"{version}/{name}" for split, name in _WIKITEXT.items()},
        cut="articles",
        size=size,
        documents=documents,
    )


def _web(repository: str, sample: str, about: str, tokens: int, size: int = 0, documents: int = 0) -> Corpus:
    return Corpus(
        about=about,
        license="ODC-By 1.0",
        repository=repository,
        files={"": f"sample/{sample}/*.parquet"},
        held_out=0.001,
        tokens=tokens,
        size=size,
        documents=documents,
    )


CORPORA: dict[str, Corpus] = {
    "stories": Corpus(
        about="children's stories from a grammar of known entropy, any number; written here, no download",
        license="MIT",
        documents=10_000,
        cut="stories",
    ),
    "pystdlib": Corpus(
        about="this machine's Python standard library, a file a document; no download",
        license="PSF",
        cut="pystdlib",
    ),
    "shakespeare": Corpus(
        about="Tiny Shakespeare, one text; a first model in a minute",
        license="public domain",
        size=1_115_394,
        documents=1,
        tokens=338_025,
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "wikitext2": _wikitext("wikitext-2-raw-v1", size=7_747_362, documents=720),
    "wikitext103": _wikitext("wikitext-103-raw-v1", size=315_466_397, documents=28_592),
    "tinystories": Corpus(
        about="short stories in a small child's words; fluent from a few million parameters",
        license="CDLA-Sharing 1.0",
        size=1_000_775_442,
        documents=2_141_709,
        tokens=478_758_154,
        repository="roneneldan/TinyStories",
        files={"val": "data/validation-*.parquet", "train": "data/train-*.parquet"},
    ),
    "wikipedia": Corpus(
        about="the English Wikipedia of November 2023",
        license="CC BY-SA 3.0, GFDL",
        size=11_630_929_031,
        documents=6_407_814,
        tokens=4_620_000_000,
        repository="wikimedia/wikipedia",
        files={"": "20231101.en/*.parquet"},
        held_out=0.001,
        fall_back="wikitext2",
    ),
    "openwebtext": Corpus(
        about="pages that Reddit linked to, as GPT-2's own corpus; the reproduction of GPT-2",
        license="CC0 (the collection)",
        size=24_193_092_408,
        documents=8_013_769,
        tokens=9_040_000_000,
        repository="Skylion007/openwebtext",
        files={"": "plain_text/train-*.parquet"},
        held_out=0.0005,
    ),
    "fineweb": _web(
        _FINEWEB,
        "10BT",
        "the web, filtered; 10 billion tokens",
        size=30_639_384_917,
        documents=14_868_862,
        tokens=10_371_489_838,
    ),
    "fineweb-100bt": _web(_FINEWEB, "100BT", "the same, 100 billion tokens", tokens=100_000_000_000),
    "fineweb-350bt": _web(_FINEWEB, "350BT", "the same, 350 billion tokens", tokens=350_000_000_000),
    "fineweb-edu": _web(
        _EDU,
        "10BT",
        "the web's educational pages; 10 billion tokens, GPT-2 quality in less",
        size=28_518_193_415,
        documents=9_672_101,
        tokens=9_972_918_177,
    ),
    "fineweb-edu-100bt": _web(
        _EDU,
        "100BT",
        "the same, 100 billion tokens",
        size=286_000_000_000,
        documents=97_300_000,
        tokens=100_000_000_000,
    ),
    "fineweb-edu-350bt": _web(_EDU, "350BT", "the same, 350 billion tokens", tokens=350_000_000_000),
    "fineweb-gpt2": Corpus(
        about="FineWeb in GPT-2's tokens as modded-nanogpt shares it: 103 files of 100 million, one to validate",
        license="MIT",
        size=20_700_000_000,
        tokens=10_350_000_000,
        repository="kjj0/fineweb10B-gpt2",
        files={"val": "fineweb_val_*.bin", "train": "fineweb_train_*.bin"},
        cut="tokens",
    ),
    "fineweb-edu-gpt2": Corpus(
        about="FineWeb-Edu in GPT-2's tokens as llm.c's author shares it: about 1,000 files of 100 million",
        license="ODC-By 1.0",
        size=200_000_000_000,
        tokens=100_000_000_000,
        repository="karpathy/fineweb-edu-100B-gpt2-token-shards",
        files={"val": "edu_fineweb_val_*.bin", "train": "edu_fineweb_train_*.bin"},
        cut="tokens",
    ),
}
