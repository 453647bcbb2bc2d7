"""Reading ahead: the same batches for any number of threads, whoever asks for which."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.data.loader import Batch, Loader, Prefetcher, within_documents
from gpt2lab.data.shards import UINT16, ShardWriter, TokenStream, open_shard
from gpt2lab.errors import InputError

EOT = 9


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """Three micro-steps a step over 2,000 tokens in files of 300."""
    writer = ShardWriter(tmp_path_factory.mktemp("shards"), "train", UINT16, 300)
    writer.write(np.random.default_rng(0).integers(0, 10, 2_000))
    writer.finish()
    stream = TokenStream("train", [open_shard(path) for path in writer.paths])
    return Loader(stream, 16, 12, 4, seed=5, eot=EOT)


def parts_of(batch: Batch) -> list[torch.Tensor]:
    assert batch.documents is not None and batch.positions is not None
    return [batch.tokens, batch.targets, batch.documents, batch.positions]


@pytest.mark.parametrize("workers", [0, 1, 2, 8])
@pytest.mark.parametrize("order", ["as training asks", "with a jump, and back"])
def test_the_stream_of_batches_is_the_same_for_any_number_of_threads(loader: Loader, workers: int, order: str) -> None:
    asked = [(step, micro_step) for step in range(40) for micro_step in range(3)]
    if order != "as training asks":
        asked = asked[30:60] + asked[:31] + asked[90:]
    with Prefetcher(loader, workers) as batches:
        for step, micro_step in asked:
            given, expected = batches.batch(step, micro_step), loader.batch(step, micro_step)
            assert all(torch.equal(*pair) for pair in zip(parts_of(given), parts_of(expected), strict=True))


def test_batches_that_follow_are_read_before_they_are_asked_for(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[tuple[int, int], str] = {}
    done = threading.Semaphore(0)
    plain = loader.batch

    def noted(step: int, micro_step: int) -> Batch:
        read[step, micro_step] = threading.current_thread().name
        batch = plain(step, micro_step)
        done.release()
        return batch

    monkeypatch.setattr(loader, "batch", noted)
    with Prefetcher(loader, 2) as batches:
        batches.batch(7, 1)
        for _ in range(5):  # the one asked for, and two for each thread
            assert done.acquire(timeout=30)
        assert set(read) == {(7, 1), (7, 2), (8, 0), (8, 1), (8, 2)}
        batches.batch(7, 2)
    assert read[7, 2].startswith("gpt2lab-batches")
    assert not any(thread.name.startswith("gpt2lab-batches") for thread in threading.enumerate())


def test_what_a_thread_could_not_read_is_an_error_of_the_batch_asked_for(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", UINT16, 300)
    writer.write(np.zeros(300))
    writer.finish()
    loader = Loader(TokenStream("train", [open_shard(writer.paths[0])]), 16, 4, 4, seed=5)
    with Prefetcher(loader, 2) as batches:
        first = batches.batch(0, 0)
        assert first.documents is None and first.positions is None
        writer.paths[0].unlink()
        with pytest.raises(InputError, match=r"train_000000\.bin: cannot be read"):
            for step in range(1, 20):
                batches.batch(step, 0)


def resident_bytes() -> int:
    return int(Path("/proc/self/status").read_text(encoding="ascii").split("VmRSS:")[1].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_resident_memory_stays_flat_over_a_pass(workers: int, tmp_path: Path) -> None:
    """64 MB of token files: if pages that were read counted, they would be there at the end."""
    tokens = 32_000_000
    writer = ShardWriter(tmp_path, "train", UINT16, tokens // 4)
    for _ in range(8):
        writer.write(np.zeros(tokens // 8, dtype=np.uint16))
    writer.finish()
    loader = Loader(TokenStream("train", [open_shard(path) for path in writer.paths]), 1024, 64, 64, seed=5)
    steps = loader.windows_per_epoch // 64
    resident = []
    with Prefetcher(loader, workers) as batches:
        for step in range(steps):
            batches.batch(step, 0)
            if step >= steps // 4:
                resident.append(resident_bytes())
    assert max(resident) - resident[0] < 12_000_000  # of the 48 MB that were read since


def test_fewer_threads_than_none_are_refused(loader: Loader) -> None:
    with pytest.raises(InputError, match="workers is -1; it must be 0 or more"):
        Prefetcher(loader, -1)


@given(
    rows=st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(st.integers(7, 9), min_size=n, max_size=n), min_size=1))
)
@settings(max_examples=200, deadline=None)
def test_documents_and_positions_begin_anew_at_each_end_of_text(rows: list[list[int]]) -> None:
    documents, positions = within_documents(torch.tensor(rows), EOT)
    for row, of_document, places in zip(rows, documents.tolist(), positions.tolist(), strict=True):
        number, place = 0, -1
        for token, document, position in zip(row, of_document, places, strict=True):
            number, place = (number + 1, 0) if token == EOT else (number, place + 1)
            assert (document, position) == (number, place)


def test_batches_carry_documents_only_where_they_are_asked_for(loader: Loader) -> None:
    batch = loader.batch(0, 0)
    documents, positions = within_documents(batch.tokens, EOT)
    assert batch.documents is not None and torch.equal(batch.documents, documents)
    assert batch.positions is not None and torch.equal(batch.positions, positions)
    assert documents.dtype == positions.dtype == torch.int64 and documents.shape == batch.tokens.shape
