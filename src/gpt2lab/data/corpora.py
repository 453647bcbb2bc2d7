"""The corpora known by name: where each comes from, how it is split, and how it is divided into documents.

Sizes are those of the download; documents and GPT-2 tokens are totals over all splits, as published. Preparing counts
them anew. A corpus that comes in several sizes has the number of tokens in its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

Cut = Literal["file", "articles", "tokens", "stories", "pystdlib"]
"""How a corpus is divided into documents: by the file's format or at headings; or it is tokens, or generated here."""


@dataclass(frozen=True)
class Corpus:
    """One corpus.

    ``files`` maps each split to the pattern of its paths in ``repository``. The empty name stands for a corpus without
    splits, of which ``held_out`` goes to validation and as much to the test. ``url`` is the address of a single file.
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
    cut: Cut = "file"
    held_out: float = 0.05
    fall_back: str = ""


def _wikitext(version: str, size: int, documents: int) -> Corpus:
    names = {"test": "test", "val": "validation", "train": "train"}
    return Corpus(
        "Wikipedia articles rated good or featured; the classic benchmark of perplexity",
        "CC BY-SA 3.0",
        repository="Salesforce/wikitext",
        files={split: f"{version}/{name}-*.parquet" for split, name in names.items()},
        cut="articles",
        size=size,
        documents=documents,
    )


def _web(repository: str, sample: str, about: str, tokens: int, size: int = 0, documents: int = 0) -> Corpus:
    files = {"": f"sample/{sample}/*.parquet"}
    return Corpus(about, "ODC-By 1.0", size, documents, tokens, repository, files, held_out=0.001)


_fineweb = partial(_web, "HuggingFaceFW/fineweb")
_fineweb_edu = partial(_web, "HuggingFaceFW/fineweb-edu")
CORPORA: dict[str, Corpus] = {
    "stories": Corpus(
        "children's stories from a grammar of known entropy, any number; generated, no download",
        "MIT",
        documents=10_000,
        cut="stories",
    ),
    "pystdlib": Corpus(
        "this machine's Python standard library, one document per file; no download", "PSF", cut="pystdlib"
    ),
    "shakespeare": Corpus(
        "Tiny Shakespeare, a single text; a first model in a minute",
        "public domain",
        size=1_115_394,
        documents=1,
        tokens=338_025,
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "wikitext2": _wikitext("wikitext-2-raw-v1", size=7_747_362, documents=720),
    "wikitext103": _wikitext("wikitext-103-raw-v1", size=315_466_397, documents=28_592),
    "tinystories": Corpus(
        "short stories in the vocabulary of small children; fluent from a few million parameters",
        "CDLA-Sharing 1.0",
        size=1_000_775_442,
        documents=2_141_709,
        tokens=478_758_154,
        repository="roneneldan/TinyStories",
        files={"val": "data/validation-*.parquet", "train": "data/train-*.parquet"},
    ),
    "wikipedia": Corpus(
        "the English Wikipedia of November 2023",
        "CC BY-SA 3.0, GFDL",
        size=11_630_929_031,
        documents=6_407_814,
        tokens=4_620_000_000,
        repository="wikimedia/wikipedia",
        files={"": "20231101.en/*.parquet"},
        held_out=0.001,
        fall_back="wikitext2",
    ),
    "openwebtext": Corpus(
        "web pages linked from Reddit; an open reproduction of GPT-2's training data",
        "CC0 (the collection)",
        size=24_193_092_408,
        documents=8_013_769,
        tokens=9_040_000_000,
        repository="Skylion007/openwebtext",
        files={"": "plain_text/train-*.parquet"},
        held_out=0.0005,
    ),
    "fineweb": _fineweb("10BT", "filtered web pages; 10 billion tokens", 10_371_489_838, 30_639_384_917, 14_868_862),
    "fineweb-100bt": _fineweb("100BT", "the same, 100 billion tokens", 100_000_000_000),
    "fineweb-350bt": _fineweb("350BT", "the same, 350 billion tokens", 350_000_000_000),
    "fineweb-edu": _fineweb_edu(
        "10BT",
        "educational web pages; 10 billion tokens, GPT-2's quality with fewer of them",
        tokens=9_972_918_177,
        size=28_518_193_415,
        documents=9_672_101,
    ),
    "fineweb-edu-100bt": _fineweb_edu(
        "100BT", "the same, 100 billion tokens", 100_000_000_000, 286_000_000_000, 97_300_000
    ),
    "fineweb-edu-350bt": _fineweb_edu("350BT", "the same, 350 billion tokens", 350_000_000_000),
    "fineweb-gpt2": Corpus(
        "FineWeb as GPT-2 tokens, as used by modded-nanogpt: 103 files of 100 million tokens, one for validation",
        "MIT",
        size=20_700_000_000,
        tokens=10_350_000_000,
        repository="kjj0/fineweb10B-gpt2",
        files={"val": "fineweb_val_*.bin", "train": "fineweb_train_*.bin"},
        cut="tokens",
    ),
    "fineweb-edu-gpt2": Corpus(
        "FineWeb-Edu as GPT-2 tokens, by the author of llm.c: about 1,000 files of 100 million tokens",
        "ODC-By 1.0",
        size=200_000_000_000,
        tokens=100_000_000_000,
        repository="karpathy/fineweb-edu-100B-gpt2-token-shards",
        files={"val": "edu_fineweb_val_*.bin", "train": "edu_fineweb_train_*.bin"},
        cut="tokens",
    ),
}
