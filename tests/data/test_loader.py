"""Batches as a pure function of (seed, step, micro_step, rank, world), their permutation, and prefetching."""

from __future__ import annotations

import gc
import itertools
import math
import threading
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import make_stream

from gpt2lab.data.loader import Batch, Loader, Prefetcher, count_windows, draw, micro_steps, permute, within_documents
from gpt2lab.data.shards import TokenStream
from gpt2lab.errors import InputError

EOT = 9


def counting(directory: Path | str, tokens: int, shard_tokens: int = 1000) -> TokenStream:
    """A stream whose token at position i is i."""
    return make_stream(directory, np.arange(tokens), shard_tokens)


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    """1,000 tokens in files of 37."""
    return counting(tmp_path, 1000, 37)


def starts_of(batch: Batch, seq_len: int) -> list[int]:
    """Where the rows of a batch over `counting` begin, checking that it holds them rightly."""
    starts = batch.tokens[:, :1]
    assert torch.equal(batch.tokens, starts + torch.arange(seq_len))
    assert torch.equal(batch.targets, batch.tokens + 1)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    return starts[:, 0].tolist()


def windows_of(batch: Batch, seq_len: int) -> list[int]:
    """Which windows a batch over `counting` holds."""
    starts = starts_of(batch, seq_len)
    assert not any(start % seq_len for start in starts)
    return [start // seq_len for start in starts]


def step_of(stream: TokenStream, step: int, seq_len: int, sequences: int, micro_batch: int, world: int) -> list[int]:
    """The windows of a step in the order of (micro_step, rank, row)."""
    loaders = [Loader(stream, seq_len, sequences, micro_batch, 3, world, rank) for rank in range(world)]
    batches = [loader.batch(step, m) for m in range(loaders[0].micro_steps) for loader in loaders]
    return [window for batch in batches for window in windows_of(batch, seq_len)]


@settings(deadline=None, max_examples=25)
@given(
    tokens=st.integers(9, 200),
    shard_tokens=st.integers(5, 60),
    seq_len=st.integers(1, 8),
    micro_batch=st.integers(1, 3),
    world=st.integers(1, 3),
    accumulate=st.integers(1, 3),
)
def test_each_window_comes_once_an_epoch(
    tokens: int, shard_tokens: int, seq_len: int, micro_batch: int, world: int, accumulate: int
) -> None:
    with TemporaryDirectory() as directory:
        stream = counting(directory, tokens, shard_tokens)
        n = (tokens - 1) // seq_len
        sequences = micro_batch * world * accumulate
        steps = -(-2 * n // sequences)
        order = [w for step in range(steps) for w in step_of(stream, step, seq_len, sequences, micro_batch, world)]
    assert sorted(order[:n]) == list(range(n))
    assert sorted(order[n : 2 * n]) == list(range(n))


def test_a_step_reads_the_same_sequences_whatever_the_processes(stream: TokenStream) -> None:
    for step in (0, 1, 7, 40):
        alone = step_of(stream, step, seq_len=8, sequences=12, micro_batch=12, world=1)
        for micro_batch, world in ((1, 1), (3, 1), (3, 2), (1, 4), (2, 3), (6, 2)):
            assert step_of(stream, step, 8, 12, micro_batch, world) == alone


def test_a_growing_batch_reads_every_sequence_once_and_cuts_it_into_shorter_rows(stream: TokenStream) -> None:
    def of_step(step: int, micro_batch: int, world: int) -> list[Batch]:
        loaders = [Loader(stream, 8, 12, micro_batch, 3, world, r, None, False, (3, 5), (4,)) for r in range(world)]
        return [each.batch(step, m) for m in range(loaders[0].passes(step)[0]) for each in loaders]

    sizes, lengths, read = [3, 3, 3, 6, 6, 12, 12], [4, 4, 4, 4, 8, 8, 8], []
    for step, (size, length) in enumerate(zip(sizes, lengths, strict=True)):
        rows = torch.cat([batch.tokens for batch in of_step(step, 12, 1)])
        assert rows.shape == (size * 8 // length, length)
        for micro_batch, world in ((1, 1), (4, 1), (6, 1), (2, 3), (1, 3)):
            assert torch.equal(torch.cat([batch.tokens for batch in of_step(step, micro_batch, world)]), rows)
            assert all(torch.equal(batch.targets, batch.tokens + 1) for batch in of_step(step, micro_batch, world))
        read += rows.reshape(-1, 8)[:, 0].tolist()
    full = Loader(stream, 8, sum(sizes), sum(sizes), 3)
    assert read == full.batch(0, 0).tokens[:, 0].tolist(), "the same sequences in the same order as one large step"


def test_a_batch_depends_on_its_arguments_alone(stream: TokenStream) -> None:
    loader = Loader(stream, seq_len=8, sequences_per_step=6, micro_batch=3, seed=1)
    forward = [(step, m, windows_of(loader.batch(step, m), 8)) for step in range(50) for m in range(2)]
    fresh = Loader(stream, seq_len=8, sequences_per_step=6, micro_batch=3, seed=1)
    for step, m, windows in reversed(forward):
        assert windows_of(fresh.batch(step, m), 8) == windows
    other = Loader(stream, seq_len=8, sequences_per_step=6, micro_batch=3, seed=2)
    assert [windows_of(other.batch(step, m), 8) for step, m, _ in forward] != [windows for *_, windows in forward]


def test_random_windows_begin_at_any_token_and_are_the_same_whatever_the_processes(stream: TokenStream) -> None:
    def of_step(step: int, micro_batch: int, world: int, seed: int = 3) -> list[int]:
        loaders = [Loader(stream, 8, 12, micro_batch, seed, world, rank, None, True) for rank in range(world)]
        batches = [loader.batch(step, m) for m in range(loaders[0].micro_steps) for loader in loaders]
        return [start for batch in batches for start in starts_of(batch, 8)]

    steps = [of_step(step, 12, 1) for step in range(700)]
    for step in (699, 7, 40, 0):  # in any order, by any number of processes
        for micro_batch, world in ((1, 1), (3, 2), (1, 4), (6, 2)):
            assert of_step(step, micro_batch, world) == steps[step]
    assert {start for step in steps for start in step} == set(range(1000 - 8))  # the last reads the last token
    assert of_step(0, 12, 1, seed=4) != steps[0]


def test_draws_are_uniform_and_independent() -> None:
    numbers = np.arange(200_000).reshape(2, -1)
    drawn = draw(numbers, 10, seed=-1)
    assert drawn.shape == numbers.shape and drawn.dtype == np.int64
    assert drawn.tolist() != draw(numbers, 10, seed=2**70).tolist()
    pairs = np.stack([drawn.ravel()[:-1], drawn.ravel()[1:]])
    for observed in (np.bincount(drawn.ravel(), minlength=10), np.bincount(pairs[0] * 10 + pairs[1], minlength=100)):
        chi_square = ((observed - observed.mean()) ** 2 / observed.mean()).sum()
        freedom = len(observed) - 1
        assert chi_square < freedom + 5 * (2 * freedom) ** 0.5
    assert draw(np.array([5]), 1, 0).tolist() == [0]
    many = draw(np.arange(10_000) + 2**40, 1 << 39, seed=0)
    assert len(set(many.tolist())) == 10_000 and many.mean() == pytest.approx(1 << 38, rel=0.03)


def test_epochs_differ_in_their_order_and_a_step_may_span_several(stream: TokenStream, tmp_path: Path) -> None:
    loader = Loader(stream, seq_len=9, sequences_per_step=111, micro_batch=111, seed=0)
    first, second = (windows_of(loader.batch(step, 0), 9) for step in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(111))
    (tmp_path / "few").mkdir()
    loader = Loader(counting(tmp_path / "few", 10), seq_len=3, sequences_per_step=8, micro_batch=8, seed=0)
    windows = windows_of(loader.batch(0, 0), 3)
    assert sorted(windows[:3]) == sorted(windows[3:6]) == [0, 1, 2]
    assert loader.windows_per_epoch == 3
    assert loader.epoch_of(3) == 8.0


def test_the_files_borders_do_not_show(tmp_path: Path) -> None:
    whole = counting(tmp_path / "..", 500, 1000)
    parts = counting(tmp_path, 500, 7)
    starts = np.random.default_rng(0).integers(0, 500 - 40, 200)
    np.testing.assert_array_equal(parts.read(starts, 40), whole.read(starts, 40))
    np.testing.assert_array_equal(parts.read(starts, 40), starts[:, None] + np.arange(40))


def test_micro_steps_divide_a_step(tmp_path: Path) -> None:
    assert micro_steps(batch_tokens=524_288, seq_len=1024, micro_batch=16, world=8) == 4
    assert micro_steps(64, 64, 1) == 1
    assert count_windows(counting(tmp_path, 20), 19) == 1


@pytest.mark.parametrize(
    ("batch_tokens", "seq_len", "micro_batch", "world", "message"),
    [
        (1000, 64, 4, 1, r"1000 is not a multiple of .* = 256; nearest that fit: 768 or 1024$"),
        (768, 64, 5, 1, r"nearest that fit: 640 or 960, or a micro_batch of 4 or 6$"),
        (128, 64, 4, 1, r"nearest that fit: 256, or a micro_batch of 2$"),
        (100, 64, 4, 2, r"100 is not a multiple of .* 2 processes = 512; nearest that fit: 512"),
        (0, 64, 4, 1, r"nearest that fit: 256"),
        (64, 0, 4, 1, r"seq_len is 0"),
        (64, 64, 0, 1, r"micro_batch is 0"),
    ],
)
def test_a_step_that_does_not_divide_names_the_nearest_that_do(
    batch_tokens: int, seq_len: int, micro_batch: int, world: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        micro_steps(batch_tokens, seq_len, micro_batch, world)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 2, "world": 2}, "ranks go from 0 to 1"),
        ({"micro_batch": 5}, "nearest that fit"),
        ({"seq_len": 0}, "seq_len is 0"),
        ({"seq_len": 1000}, r"1000 tokens, fewer than one window of seq_len 1000 .* seq_len of at most 999"),
    ],
)
def test_a_loader_that_cannot_be_is_refused(stream: TokenStream, change: dict[str, int], message: str) -> None:
    arguments: dict[str, Any] = {"seq_len": 8, "sequences_per_step": 12, "micro_batch": 3, "seed": 0, **change}
    with pytest.raises(InputError, match=message):
        Loader(stream, **arguments)


def test_a_file_that_shrinks_while_in_use_is_told(stream: TokenStream) -> None:
    path = stream.shards[3].path
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"train_000003\.bin: became shorter during use"):
        stream.read(np.array([37 * 3]), 37)
    path.unlink()
    with pytest.raises(InputError, match=r"train_000003\.bin: cannot be read"):
        stream.read(np.array([37 * 3]), 37)


@settings(deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**40))
def test_every_index_has_one_image(n: int, seed: int, epoch: int) -> None:
    assert sorted(permute(np.arange(n), n, seed, epoch).tolist()) == list(range(n))


@settings(deadline=None)
@given(n=st.integers(2, 2**62 - 1), data=st.data())
def test_images_of_a_huge_set_are_distinct_inside_and_do_not_depend_on_what_else_is_asked(
    n: int, data: st.DataObject
) -> None:
    indices = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=50, unique=True))
    images = permute(np.array(indices), n, seed=1, epoch=2)
    assert len(set(images.tolist())) == len(indices)
    assert all(0 <= image < n for image in images.tolist())
    assert images.tolist() == [int(permute(np.array(index), n, 1, 2)) for index in indices]
    assert permute(np.array([indices]), n, 1, 2).tolist() == [images.tolist()]


@pytest.mark.parametrize("n", [3, 4, 5])
def test_every_permutation_of_a_few_is_about_equally_likely(n: int) -> None:
    draws = 4000
    seen = Counter(tuple(permute(np.arange(n), n, seed=0, epoch=epoch).tolist()) for epoch in range(draws))
    expected = draws / math.factorial(n)
    chi_square = sum((seen[p] - expected) ** 2 / expected for p in itertools.permutations(range(n)))
    freedom = math.factorial(n) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5  # five standard deviations


def test_orders_are_scattered_and_differ_between_seeds_and_epochs() -> None:
    n = 100_000
    order, *others = (permute(np.arange(n), n, *pair) for pair in ((0, 0), (0, 1), (1, 0), (1, 1)))
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.02
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert np.abs(np.diff(order)).mean() == pytest.approx(n / 3, rel=0.02)
    for one, other in itertools.combinations([order, *others], 2):
        assert (one == other).sum() < 12  # one in common is expected


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """Three micro-steps a step over 2,000 tokens in files of 300."""
    ids = np.random.default_rng(0).integers(0, 10, 2_000)
    return Loader(make_stream(tmp_path_factory.mktemp("shards"), ids, 300), 16, 12, 4, seed=5, eot=EOT)


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
            assert torch.equal(torch.stack(within_documents(given.tokens, EOT)), torch.stack(parts_of(given)[2:]))


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
    stream = make_stream(tmp_path, np.zeros(300))
    loader = Loader(stream, 16, 4, 4, seed=5)
    with pytest.raises(InputError, match="workers is -1; it must be 0 or more"):
        Prefetcher(loader, -1)
    with Prefetcher(loader, 2) as batches:
        first = batches.batch(0, 0)
        assert first.documents is None and first.positions is None
        stream.shards[0].path.unlink()
        with pytest.raises(InputError, match=r"train_000000\.bin: cannot be read"):
            for step in range(1, 20):
                batches.batch(step, 0)


def resident_bytes() -> int:
    return int(Path("/proc/self/status").read_text(encoding="ascii").split("VmRSS:")[1].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_resident_memory_stays_flat_over_a_pass(workers: int, tmp_path: Path) -> None:
    """64 MB of token files: if pages that were read counted, they would be there at the end."""
    loader = Loader(make_stream(tmp_path, np.zeros(32_000_000, dtype=np.uint16), 8_000_000), 1024, 64, 64, seed=5)
    gc.collect()
    steps = loader.windows_per_epoch // 64
    resident = []
    with Prefetcher(loader, workers) as batches:
        for step in range(steps):
            batches.batch(step, 0)
            if step >= steps // 4:
                resident.append(resident_bytes())
    assert max(resident) - resident[0] < 12_000_000  # of the 48 MB that were read since


@given(
    rows=st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(st.integers(7, 9), min_size=n, max_size=n), min_size=1))
)
@settings(max_examples=200, deadline=None)
def test_documents_and_positions_begin_anew_at_each_end_of_text(rows: list[list[int]]) -> None:
    documents, positions = within_documents(torch.tensor(rows), EOT)
    assert documents.dtype == positions.dtype == torch.int64
    for row, of_document, places in zip(rows, documents.tolist(), positions.tolist(), strict=True):
        number, place = 0, -1
        for token, document, position in zip(row, of_document, places, strict=True):
            number, place = (number + 1, 0) if token == EOT else (number, place + 1)
            assert (document, position) == (number, place)
