"""Small data for tests: token files, Parquet, and what directories and datasets hold."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.shards import UINT16, ShardFormat, ShardWriter, TokenStream, open_shard
from gpt2lab.data.sources import documents


def write_shards(
    directory: Path | str, ids: np.ndarray | list[int], shard_tokens: int = 1000, form: ShardFormat = UINT16
) -> list[Path]:
    """Write ids to token files of the train split and return their paths."""
    writer = ShardWriter(Path(directory), "train", form, shard_tokens)
    writer.write(np.asarray(ids))
    writer.finish()
    return writer.paths


def make_stream(directory: Path | str, ids: np.ndarray | list[int], shard_tokens: int = 1000) -> TokenStream:
    """Write ids to token files and open them as one stream."""
    return TokenStream("train", [open_shard(path) for path in write_shards(directory, ids, shard_tokens)])


def parquet(rows: list[str], column: str = "text", **options: Any) -> bytes:
    """Return a Parquet file with a column of numbers and one of text."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(len(rows))), column: rows}), sink, **options)
    return sink.getvalue()


def write(path: Path, content: str | bytes) -> Path:
    """Write a file as it is given, text as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def read(*sources: Path | str, **options: Any) -> list[str]:
    """Return the text of the documents of some sources."""
    return ["".join(document.pieces()) for document in documents([str(source) for source in sources], **options)]


def ids_of(dataset: TokenDataset, split: str) -> list[int]:
    """Return the tokens of a split."""
    stream = dataset.stream(split)
    return stream.read(np.array([0]), len(stream))[0].tolist()


def texts_of(dataset: TokenDataset) -> dict[str, list[str]]:
    """Return the documents of each split."""
    return {split: list(dataset.documents(split)) for split in dataset.manifest.splits}


def files_below(folder: Path) -> dict[str, bytes]:
    """Return the content of each file below a directory."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
