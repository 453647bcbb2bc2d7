"""Batches as a pure function of (seed, step, micro_step, rank, world), and windows in order."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2lab.data.loader import Batch, Loader, count_windows, micro_steps
from gpt2lab.data.shards import UINT16, ShardWriter, TokenStream, open_shard
from gpt2lab.errors import InputError


def make_stream(directory: Path | str, tokens: int, shard_tokens: int = 1000) -> TokenStream:
    """A stream whose token at position i is i."""
    writer = ShardWriter(Path(directory), "train", UINT16, shard_tokens)
    writer.write(np.arange(tokens))
    writer.finish()
    return TokenStream("train", [open_shard(path) for path in writer.paths])


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    """1,000 tokens in files of 37."""
    return make_stream(tmp_path, 1000, shard_tokens=37)


def windows_of(batch: Batch, seq_len: int) -> list[int]:
    """Which windows a batch over `make_stream` holds, checking that it holds them rightly."""
    starts = batch.tokens[:, :1]
    assert torch.equal(batch.tokens, starts + torch.arange(seq_len))
    assert torch.equal(batch.targets, batch.tokens + 1)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert not (starts % seq_len).any()
    return (starts[:, 0] // seq_len).tolist()


def step_of(stream: TokenStream, step: int, seq_len: int, sequences: int, micro_batch: int, world: int) -> list[int]:
    """The windows of a step in the order of (micro_step, rank, row)."""
    loaders = [Loader(stream, seq_len, sequences, micro_batch, 3, world, rank) for rank in range(world)]
    batches = [loader.batch(step, m) for m in range(loaders[0].micro_steps) for loader in loaders]
    return [window for batch in batches for window in windows_of(batch, seq_len)]


@settings(deadline=None, max_examples=40)
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
        stream = make_stream(directory, tokens, shard_tokens)
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


def test_a_batch_depends_on_its_arguments_alone(stream: TokenStream) -> None:
    loader = Loader(stream, seq_len=8, sequences_per_step=6, micro_batch=3, seed=1)
    forward = [(step, m, windows_of(loader.batch(step, m), 8)) for step in range(50) for m in range(2)]
    fresh = Loader(stream, seq_len=8, sequences_per_step=6, micro_batch=3, seed=1)
    for step, m, windows in reversed(forward):
        assert windows_of(fresh.batch(step, m), 8) == windows
    other = Loader(stream, seq_len=8, sequences_per_step=6, micro_batch=3, seed=2)
    assert [windows_of(other.batch(step, m), 8) for step, m, _ in forward] != [windows for *_, windows in forward]


def test_epochs_differ_in_their_order(stream: TokenStream) -> None:
    loader = Loader(stream, seq_len=9, sequences_per_step=111, micro_batch=111, seed=0)
    first, second = (windows_of(loader.batch(step, 0), 9) for step in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(111))


def test_more_sequences_than_windows_go_through_several_epochs(tmp_path: Path) -> None:
    loader = Loader(make_stream(tmp_path, 10), seq_len=3, sequences_per_step=8, micro_batch=8, seed=0)
    windows = windows_of(loader.batch(0, 0), 3)
    assert sorted(windows[:3]) == sorted(windows[3:6]) == [0, 1, 2]
    assert loader.windows_per_epoch == 3
    assert loader.epoch_of(3) == 8.0


def test_the_files_borders_do_not_show(tmp_path: Path) -> None:
    whole = make_stream(tmp_path / "..", 500, 1000)
    parts = make_stream(tmp_path, 500, 7)
    starts = np.random.default_rng(0).integers(0, 500 - 40, 200)
    np.testing.assert_array_equal(parts.read(starts, 40), whole.read(starts, 40))
    np.testing.assert_array_equal(parts.read(starts, 40), starts[:, None] + np.arange(40))


def test_text_shorter_than_a_window_is_refused_with_what_would_fit(tmp_path: Path) -> None:
    short = make_stream(tmp_path, 20)
    assert count_windows(short, 19) == 1
    with pytest.raises(InputError, match=r"20 tokens, fewer than one window of seq_len 20 .* seq_len of at most 19"):
        Loader(short, 20, 1, 1, 0)


def test_micro_steps_divide_a_step() -> None:
    assert micro_steps(batch_tokens=524_288, seq_len=1024, micro_batch=16, world=8) == 4
    assert micro_steps(64, 64, 1) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1000, 64, 4, 1), r"1000 is not a multiple of .* = 256; nearest that fit: 768 or 1024$"),
        ((768, 64, 5, 1), r"nearest that fit: 640 or 960, or a micro_batch of 4 or 6$"),
        ((128, 64, 4, 1), r"nearest that fit: 256, or a micro_batch of 2$"),
        ((100, 64, 4, 2), r"100 is not a multiple of .* 2 processes = 512; nearest that fit: 512"),
        ((0, 64, 4, 1), r"nearest that fit: 256"),
        ((64, 0, 4, 1), r"seq_len is 0"),
        ((64, 64, 0, 1), r"micro_batch is 0"),
    ],
)
def test_a_step_that_does_not_divide_names_the_nearest_that_do(
    arguments: tuple[int, int, int, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        micro_steps(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 2, "world": 2}, "ranks go from 0 to 1"),
        ({"micro_batch": 5}, "nearest that fit"),
        ({"seq_len": 0}, "seq_len is 0"),
    ],
)
def test_a_loader_that_cannot_be_is_refused(stream: TokenStream, change: dict[str, int], message: str) -> None:
    arguments = {"seq_len": 8, "sequences_per_step": 12, "micro_batch": 3, "seed": 0, **change}
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


def test_reading_does_not_grow_the_process(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux's account of the resident memory")

    def resident_mb() -> float:
        return int(status.read_text(encoding="ascii").split("VmRSS:")[1].split()[0]) / 1024

    writer = ShardWriter(tmp_path, "train", UINT16, 16_000_000)
    for _ in range(32):
        writer.write(np.zeros(1_000_000, dtype=np.uint16))
    writer.finish()
    loader = Loader(TokenStream("train", [open_shard(path) for path in writer.paths]), 1024, 64, 64, 0)
    loader.batch(0, 0)
    before = resident_mb()
    for step in range(loader.windows_per_epoch // 64):
        loader.batch(step, 0)
    assert resident_mb() < before + 16  # of 64 MB read
