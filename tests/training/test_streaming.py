"""Training on segments that are prepared on the fly and deleted equals training on all the data, on little disk."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import Alone, Doing, assert_same_run, at_step, go_on, interrupted, refusal, saved_steps, small, train

from gpt2lab.cli.main import main
from gpt2lab.data.dataset import HELD_OUT, TokenDataset, split_documents
from gpt2lab.data.loader import StreamLoader, permute
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import CORPORA
from gpt2lab.data.streaming import StreamingDataset
from gpt2lab.data.writing import DiskFull
from gpt2lab.errors import InputError
from gpt2lab.runs import Run
from gpt2lab.stories.corpus import stories
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.distributed import Communicator, Interrupted
from gpt2lab.training.setup import open_data
from loopback_hub import Hub, loopback_hub
from ranks import needs_fork

FILES, STEPS = 3, 50
BORDERS = (16, 31, 46)
"""Steps at which segments of the three files end."""
ROWS = 110


def parquet(number: int, count: int = ROWS) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": [f"{number}: {n} cats, {n + number} dogs." for n in range(count)]}), sink)
    return sink.getvalue()


@pytest.fixture(scope="module", autouse=True)
def hub() -> Iterator[Hub]:
    """A corpus of three files, ``o/three``, one of larger ones, ``o/large``, and one of a single file, ``o/one``."""
    with loopback_hub() as server, pytest.MonkeyPatch.context() as patch:
        for number in range(FILES):
            server.add("o/three", f"data/{number:03d}.parquet", parquet(number))
            server.add("o/large", f"data/{number:03d}.parquet", parquet(number, 1000))
        server.add("o/one", "data/only.parquet", parquet(7, 103))
        patch.setenv("HF_ENDPOINT", server.address)
        yield server


@pytest.fixture(autouse=True)
def no_faults(hub: Hub) -> Iterator[None]:
    """Leave no fault of the server to the next test."""
    yield
    hub.faults.clear()


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The byte tokenizer."""
    folder = tmp_path_factory.mktemp("tok") / "tok"
    Tokenizer.train([], 257).save(folder)
    return folder


def streaming(tok: Path, out: Path, corpus: str = "hub:o/three", **changes: Any) -> TrainConfig:
    """A run of 50 steps, with segments of 16, 15 and 15, and of the first file again."""
    return small(Path(f"stream:{corpus}"), out, **({"tokenizer": tok, "steps": STEPS} | changes))


def segments_of(tok: Path, folder: Path, corpus: str = "hub:o/three") -> StreamingDataset:
    """A corpus whose first segment is prepared."""
    dataset = StreamingDataset(corpus, Tokenizer.load(tok), folder)
    dataset.held_out()
    return dataset


def kept(tok: Path, folder: Path, content: bytes) -> TokenDataset:
    """Prepare a file of a corpus as data that is kept."""
    folder.mkdir()
    (folder / "only.parquet").write_bytes(content)
    return prepare([str(folder / "only.parquet")], Tokenizer.load(tok), folder / "data")


@pytest.fixture(scope="module")
def unbroken(tok: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that never stopped. Read it, do not write to it."""
    return train(streaming(tok, tmp_path_factory.mktemp("streaming") / "run"))


def test_a_corpus_of_one_file_is_trained_on_as_if_it_were_kept(tok: Path, tmp_path: Path, hub: Hub) -> None:
    whole = kept(tok, tmp_path / "kept", parquet(7, 103))
    assert (whole.manifest.splits["train"].tokens - 1) // 16 == 128  # 16 steps, and no window is left over
    plain = train(small(whole.directory, tmp_path / "plain", steps=36))
    config = streaming(tok, tmp_path / "run", "hub:o/one", steps=36)
    interrupted(config, 20)
    run = go_on(config)
    assert_same_run(run, plain, 36)
    assert hub.asked["only.parquet"] == 1  # it was fetched and prepared once for all three passes
    for split in ("val", "test"):
        (mine,), (theirs,) = (TokenDataset(d).stream(split).shards for d in (run.stream / HELD_OUT, whole.directory))
        assert mine.path.read_bytes() == theirs.path.read_bytes()


def test_batches_are_those_of_each_file_in_its_own_permutation(tok: Path, tmp_path: Path) -> None:
    segments = segments_of(tok, tmp_path / "stream")
    files = [kept(tok, tmp_path / str(number), parquet(number)).stream("train") for number in range(FILES)]
    loader = StreamLoader(segments, 16, 8, 4, seed=5)
    step = 0
    for number in range(FILES + 1):
        segments.prepare(number)
        stream = files[number % FILES]
        count = (len(stream) - 1) // 16
        for within in range(count // 8):
            asked = [loader.batch(step, micro_step) for micro_step in (0, 1)]
            starts = permute(np.arange(within * 8, within * 8 + 8), count, seed=5, epoch=number) * 16
            read = torch.from_numpy(stream.read(starts, 17).astype(np.int64))
            assert torch.equal(torch.cat([batch.tokens for batch in asked]), read[:, :-1])
            assert torch.equal(torch.cat([batch.targets for batch in asked]), read[:, 1:])
            assert loader.epoch_of(step) == number + within / (count // 8)
            step += 1
        assert loader.begins_section(step) and loader.epoch_of(step) == number + 1
        segments.keep_from(number + 1)
        assert not segments.is_ready(number)
    assert step == BORDERS[-1] + BORDERS[0]


def test_random_windows_stay_within_the_segment_of_their_step(tok: Path, tmp_path: Path) -> None:
    segments = segments_of(tok, tmp_path / "stream")
    loader = StreamLoader(segments, 16, 8, 4, seed=5, random=True)
    ordered = StreamLoader(segments, 16, 8, 4, seed=5)
    for number in range(2):
        segments.prepare(number)
    for step in (0, BORDERS[0]):
        stream = loader.section(step).stream
        rows = [loader.batch(step, micro_step).tokens for micro_step in (0, 1)]
        starts = np.concatenate([loader.windows(step, micro_step) for micro_step in (0, 1)])
        assert (starts % 16).any() and ordered.section(step).stream.name == stream.name
        assert torch.equal(torch.cat(rows), torch.from_numpy(stream.read(starts, 16).astype(np.int64)))


def test_training_segments_are_deleted_and_held_out_splits_kept(unbroken: Run) -> None:
    assert {*BORDERS, STEPS} <= set(saved_steps(unbroken))
    assert {path.suffix for path in (unbroken.stream / "preparing").rglob("*") if path.is_file()} == {".json"}
    assert main(["eval", "perplexity", str(unbroken.path), "--split", "val"]) == 0
    assert not list(unbroken.path.parent.glob("*.stream"))


@pytest.mark.parametrize(
    ("stop", "which"),
    [
        pytest.param(7, "last", id="within the first segment"),
        pytest.param(16, "last", id="at a border"),
        pytest.param(40, "last", id="in the third segment"),
        pytest.param(33, 12, id="from an earlier step, which prepares deleted segments again"),
    ],
)
def test_a_resumed_run_is_the_same_run(unbroken: Run, tok: Path, tmp_path: Path, stop: int, which: str | int) -> None:
    config = streaming(tok, tmp_path / "run")
    interrupted(config, stop)
    assert_same_run(go_on(config, which), unbroken, STEPS)


class Watch(threading.Thread):
    """Measures downloads and token files of a run again and again; ``most`` is what they took at once."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out, self.most, self.over = out, 0, threading.Event()

    def run(self) -> None:
        before = 0
        while not self.over.wait(0.001):
            now = sum(map(self._bytes, (self.out / "stream", Path(f"{self.out}.stream"))))
            self.most = max(self.most, min(before, now))  # one walk may count a file and what replaced it
            before = now

    def _bytes(self, folder: Path) -> int:
        found = 0
        for place, _, names in os.walk(folder):
            for name in names:
                if not name.endswith((".json", ".tmp")):
                    with contextlib.suppress(FileNotFoundError):
                        found += (Path(place) / name).stat().st_size
        return found


def test_disk_use_stays_within_max_disk(tok: Path, tmp_path: Path) -> None:
    def run_of(name: str, **changes: Any) -> TrainConfig:
        return streaming(tok, tmp_path / name, "hub:o/large", batch_tokens=1280, micro_batch=40, steps=40, **changes)

    unbounded = train(run_of("unbounded"))
    segments = StreamingDataset.reopen(unbounded.stream)
    for number in range(3):
        segments.prepare(number)
    bound = 75_000
    kept = sum(path.stat().st_size for path in unbounded.stream.rglob("*.bin"))
    assert kept > 1.5 * bound  # one segment in use and two ahead, as it is without a bound

    def let_it_prepare() -> None:
        following = tmp_path / "bounded" / "stream" / "preparing" / "00001"
        while not following.exists():
            time.sleep(0.001)
        time.sleep(0.5)  # many times what a segment takes: without a bound it would be ready
        assert not (following / "record.json").exists()

    watch = Watch(tmp_path / "bounded")
    watch.start()
    bounded = train(run_of("bounded", max_disk="75kB"), at_step(3, let_it_prepare))
    watch.over.set()
    watch.join()
    assert 0.6 * bound < watch.most <= bound
    assert_same_run(bounded, unbounded, 40)


def test_a_failed_download_ends_training_after_saving(unbroken: Run, hub: Hub, tok: Path, tmp_path: Path) -> None:
    config = streaming(tok, tmp_path / "run")
    hub.faults["002.parquet"] = [404]
    refusal(lambda: train(config), r"preparing ahead: .*002\.parquet: HTTP 404 .*resume with --resume")
    assert saved_steps(Run(tmp_path / "run"))[-1] == BORDERS[1]
    assert_same_run(go_on(config), unbroken, STEPS)


def test_a_signal_ends_waiting_for_a_segment(unbroken: Run, hub: Hub, tok: Path, tmp_path: Path) -> None:
    def stop_if_waiting(record: logging.LogRecord) -> bool:
        if record.getMessage() == "waiting for segment 1 of the data to be prepared":
            signal.raise_signal(signal.SIGTERM)
        return True

    config, log = streaming(tok, tmp_path / "run"), logging.getLogger("gpt2lab")
    hub.faults["001.parquet"] = [(503, 100)]
    log.addFilter(stop_if_waiting)
    try:
        with pytest.raises(Interrupted, match="stopped after step 16, state saved"):
            train(config)
    finally:
        log.removeFilter(stop_if_waiting)
    hub.faults.clear()  # the preparer may have been ended before it asked
    assert_same_run(go_on(config), unbroken, STEPS)


def test_after_a_failed_first_download_the_same_command_works(
    unbroken: Run, hub: Hub, tok: Path, tmp_path: Path
) -> None:
    config = streaming(tok, tmp_path / "run")
    hub.faults["000.parquet"] = [404]
    refusal(lambda: train(config), "HTTP 404")
    assert not (tmp_path / "run").exists()
    assert_same_run(train(config), unbroken, STEPS)


def test_a_run_that_fails_before_its_first_step_leaves_only_what_was_prepared(
    hub: Hub, tok: Path, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise InputError("no such tracker")

    config = streaming(tok, tmp_path / "run", steps=10)
    refusal(lambda: train(config, Doing(begin=fail)), "no such tracker")
    assert [path.name for path in tmp_path.iterdir()] == ["run.stream"]
    hub.asked.clear()
    train(config)
    assert not hub.asked["000.parquet"] and not (tmp_path / "run.stream").exists()


def test_a_segment_with_other_bytes_than_the_first_time_is_refused(tok: Path, tmp_path: Path) -> None:
    segments = segments_of(tok, tmp_path / "stream")
    ledger = tmp_path / "stream" / "ledger.json"
    ledger.write_text(ledger.read_text(encoding="utf-8").replace('"tokens": 2', '"tokens": 3'), encoding="utf-8")
    segments.remove_all()
    refusal(lambda: segments.prepare(0), r"segment 0 of hub:o/three .* differ from the 3,079 of the first time")


def test_stories_never_end(tok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CORPORA, "stories", dataclasses.replace(CORPORA["stories"], documents=100))
    tokenizer, segments = Tokenizer.load(tok), segments_of(tok, tmp_path / "stream", "stories")
    for number in range(3):
        segments.prepare(number)
        told = [story.text for story in itertools.islice(stories(0, 100 * number), 100)]
        found = [tokenizer.decode(ids.tolist()) for ids in split_documents(segments.stream(number).blocks(), 256)]
        assert len(found) > 80 and [text for text in told if text in found] == found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corpus": "fineweeb"}, r'"fineweeb" is not a file, directory or corpus \(did you mean "fineweb"\?\)'),
        ({"corpus": "hub:o/none"}, "HTTP 404"),
        ({"max_disk": "1kB"}, r"hub:o/three: about [\d,]+ bytes are needed .* but --max-disk allows 1,000"),
        ({"max_disk": "much"}, '"much" is not a size'),
        ({"max_disk": "9kB"}, r"take [\d,]+ bytes or more, but --max-disk allows 9,000"),
        ({"tokenizer": None}, "data stream:hub:o/three needs --tokenizer DIR"),
        ({"steps": None, "epochs": 1.0}, "epochs 1.0: stream:hub:o/three has no known length; give steps"),
        ({"column": "label"}, r'has no column "label"'),
        ({"batch_tokens": 4096}, r"segment 0 of the data has 2,079 tokens, fewer than the 4,096 of a step"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_a_run(tok: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    refused = refusal(lambda: train(streaming(tok, tmp_path / "run", **change)), said)
    assert not (tmp_path / "run").exists()
    began = isinstance(refused, DiskFull) and "--max-disk allows 9,000" in str(refused)
    assert (tmp_path / "run.stream").exists() is began  # with more room it resumes


def test_the_column_can_be_named(tok: Path, tmp_path: Path) -> None:
    texts = [f"{n} cats." for n in range(300)]
    pq.write_table(pa.table({"words": texts, "text": list(range(300))}), tmp_path / "a.parquet")
    corpus, options = str(tmp_path / "a.parquet"), {"steps": 2, "checkpoint_every": 2}
    unnamed = streaming(tok, tmp_path / "run", corpus, **options)
    refusal(lambda: train(unnamed), 'column "text" holds int64, not text; name another with --column')
    run = train(streaming(tok, tmp_path / "run", corpus, column="words", **options))
    held_out = list(TokenDataset(run.stream / HELD_OUT).documents("val"))
    assert held_out and set(held_out) < set(texts)
    refusal(lambda: go_on(unnamed, column="text"), "column was words when the run started and cannot be text")


def test_streaming_on_two_processes_is_refused(tok: Path, tmp_path: Path) -> None:
    config, two = streaming(tok, tmp_path / "run"), Communicator(world_size=2)
    said = "stream:hub:o/three can be streamed by one process only, not by 2"
    refusal(lambda: open_data(config, tmp_path / "run", two), said)


@pytest.mark.fault
@needs_fork  # Windows has no SIGKILL
def test_a_run_killed_at_any_moment_resumes_to_the_uninterrupted_one(
    unbroken: Run, tok: Path, tmp_path: Path, start: Callable[..., Alone]
) -> None:
    config = streaming(tok, tmp_path / "run", checkpoint_every=1)
    for step in (3, 15, 16, 24, 31, 40):
        training = start(config)
        while not (tmp_path / "run" / "checkpoints" / f"step_{step:08d}").exists():
            assert training.process.is_alive()
            time.sleep(0.001)
        training.kill_after(0)
    assert_same_run(go_on(config), unbroken, STEPS)


@pytest.mark.fault
@needs_fork  # Windows has no SIGKILL
def test_a_preparer_that_is_killed_ends_training_with_one_line(
    unbroken: Run, hub: Hub, tok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr("gpt2lab.data.streaming.subprocess.Popen", Noted)
    hub.faults["001.parquet"] = [(503, 100)]
    config = streaming(tok, tmp_path / "run")
    hooks = at_step(5, lambda: started[0].kill())
    refusal(lambda: train(config, hooks), r"prepares the data ended \(exit status -9\); .* resume with --resume")
    assert saved_steps(Run(tmp_path / "run"))[-1] == BORDERS[0]
    monkeypatch.undo()
    hub.faults.clear()
    assert_same_run(go_on(config), unbroken, STEPS)
