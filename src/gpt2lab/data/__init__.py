"""Text to tokens to batches: documents, splits, token files with a manifest, and a loader that is a pure function.

    documents(["stories"])  ->  prepare(...)  ->  TokenDataset(out).stream("train")  ->  Loader(...).batch(step, m)

``prepare`` writes a folder once; training and evaluation read it. Nothing here knows of models or devices.
"""

from __future__ import annotations

from gpt2lab.data.adopt import adopt
from gpt2lab.data.catalogue import CORPORA, Corpus
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.document import Document, FileDocument, TextDocument
from gpt2lab.data.download import Unreachable
from gpt2lab.data.loader import Batch, Loader, count_windows, micro_steps, within_documents
from gpt2lab.data.manifest import DataManifest, ShardInfo, SourceInfo, SplitInfo, TokenizerInfo
from gpt2lab.data.permutation import permute
from gpt2lab.data.planning import Recipe
from gpt2lab.data.prefetch import Prefetcher
from gpt2lab.data.prepare import Progress, prepare, prepare_share
from gpt2lab.data.rolling import RollingDataset
from gpt2lab.data.round_loader import RoundLoader
from gpt2lab.data.rounds import HELD_OUT, Rounds
from gpt2lab.data.shards import Shard, ShardFormat, open_shard
from gpt2lab.data.sources import documents, texts
from gpt2lab.data.split import SPLITS, SplitRule
from gpt2lab.data.stream import TokenStream
from gpt2lab.data.survey import Survey, survey

__all__ = [
    "CORPORA",
    "HELD_OUT",
    "SPLITS",
    "Batch",
    "Corpus",
    "DataManifest",
    "Document",
    "FileDocument",
    "Loader",
    "Prefetcher",
    "Progress",
    "Recipe",
    "RollingDataset",
    "RoundLoader",
    "Rounds",
    "Shard",
    "ShardFormat",
    "ShardInfo",
    "SourceInfo",
    "SplitInfo",
    "SplitRule",
    "Survey",
    "TextDocument",
    "TokenDataset",
    "TokenStream",
    "TokenizerInfo",
    "Unreachable",
    "adopt",
    "count_windows",
    "documents",
    "micro_steps",
    "open_shard",
    "permute",
    "prepare",
    "prepare_share",
    "survey",
    "texts",
    "within_documents",
]
