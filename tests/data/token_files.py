"""Token files for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpt2lab.data.shards import UINT16, ShardFormat, ShardWriter, TokenStream, open_shard


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
