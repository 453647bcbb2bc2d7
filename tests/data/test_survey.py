"""What is counted of a split, against counting by hand, wherever blocks and files are cut."""

from __future__ import annotations

import importlib
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.data.dataset import split_documents, survey
from gpt2lab.data.shards import UINT16, ShardWriter, TokenStream, open_shard

EOT = 4


@given(tokens=st.lists(st.integers(0, EOT), min_size=1, max_size=60), block=st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_figures_are_those_counted_by_hand(tokens: list[int], block: int) -> None:
    documents: list[list[int]] = [[]]
    for token in tokens:
        if token == EOT:
            documents.append([])
        else:
            documents[-1].append(token)
    documents = [document for document in documents if document]
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("gpt2lab.data.shards"), "BLOCK", block)
        writer = ShardWriter(Path(folder), "train", UINT16, 7)
        writer.write(np.array(tokens))
        writer.finish()
        stream = TokenStream("train", [open_shard(path) for path in writer.paths])
        assert [ids.tolist() for ids in split_documents(stream, EOT)] == documents
        found = survey(stream, EOT + 1, EOT)
    assert found.counts.tolist() == [tokens.count(token) for token in range(EOT + 1)]
    assert found.lengths.tolist() == [len(document) for document in documents]
    assert len(set(found.hashes.tolist())) == len(set(map(tuple, documents)))
