"""Preparing that is stopped, shared among processes or short of disk resumes to the files of an uninterrupted run."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_data import files_below, parquet, write

from gpt2lab.cli.main import main
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import PrepareConfig, prepare, prepare_shards
from gpt2lab.data.writing import DiskFull
from gpt2lab.errors import InputError
from gpt2lab.files import bytes_below
from gpt2lab.hub import Unreachable
from gpt2lab.tokenizer.tokenizer import Tokenizer
from loopback_hub import Hub
from ranks import FORKED, begin, needs_fork

FILES = 6
ARGUMENTS: dict[str, Any] = {"val_fraction": 0.1, "test_fraction": 0.1, "shard_tokens": 20_000}


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """A dataset of six files."""
    for number in range(FILES):
        rows = [f"file {number}, text {n}, {'word ' * (n % 50)}" for n in range(400)]
        hub.add("o/n", f"data/{number:03d}.parquet", parquet(rows))
    return hub


@pytest.fixture
def unbroken(hub: Hub, tmp_path: Path, tokenizer: Tokenizer) -> dict[str, bytes]:
    prepare(["hub:o/n"], tokenizer, tmp_path / "unbroken", **ARGUMENTS)
    return files_below(tmp_path / "unbroken")


def test_downloads_are_deleted_and_only_shards_manifest_and_tokenizer_stay(unbroken: dict[str, bytes]) -> None:
    assert {Path(name).suffix for name in unbroken} == {".bin", ".json"}
    assert {Path(name).parts[0] for name in unbroken if name.endswith(".json")} == {"manifest.json", "tokenizer"}
    assert [name for name in unbroken if name.startswith("train")][:2] == ["train_000000.bin", "train_000001.bin"]


def test_a_failed_download_keeps_finished_chunks_and_resumes_with_the_same_arguments(
    hub: Hub, tmp_path: Path, tokenizer: Tokenizer, unbroken: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    hub.faults["003.parquet"] = ["half", (503, 3600)]
    with pytest.raises(Unreachable, match="run the same command"):
        prepare(["hub:o/n"], tokenizer, out, **ARGUMENTS)
    with pytest.raises(InputError, match=r"out: incomplete, .* run the same command again to resume"):
        TokenDataset(out)
    with pytest.raises(InputError, match=r"begun with val_fraction 0\.1, now 0\.2; resume with the same"):
        prepare(["hub:o/n"], tokenizer, out, **{**ARGUMENTS, "val_fraction": 0.2})
    with pytest.raises(InputError, match="incomplete and begun with tokenizer"):
        prepare(["hub:o/n"], Tokenizer.train(["a b " * 9], 258), out, **ARGUMENTS)
    plan = out / "preparing" / "plan.json"
    content = plan.read_text(encoding="utf-8")
    plan.write_text(content.replace('"chunks"', '"chunk"'), encoding="utf-8")
    with pytest.raises(InputError, match=r'plan\.json: unknown field "chunk" \(did you mean "chunks"\?\)$'):
        prepare(["hub:o/n"], tokenizer, out, **ARGUMENTS)
    plan.write_text(content, encoding="utf-8")
    left = out / "preparing" / "00000" / "source"  # as if killed between its record and the deletion
    write(left / "000.parquet", bytes(50_000_000))  # and it does not count against max_disk
    hub.asked.clear()
    prepare(["hub:o/n"], tokenizer, out, **ARGUMENTS, max_disk=10_000_000)
    assert files_below(out) == unbroken
    assert hub.asked["002.parquet"] == 0 and hub.ranges  # nothing was fetched twice


def test_what_stopped_at_a_file_resumes_by_skipping_it(hub: Hub, tmp_path: Path, tokenizer: Tokenizer) -> None:
    hub.add("o/n", "data/003.parquet", parquet(["cut off"])[:-9])
    with pytest.raises(InputError, match=r"003\.parquet: not a complete Parquet file"):
        prepare(["hub:o/n"], tokenizer, tmp_path / "out", **ARGUMENTS)
    resumed = prepare(["hub:o/n"], tokenizer, tmp_path / "out", **ARGUMENTS, on_error="skip")
    config, out = PrepareConfig(("hub:o/n",), **ARGUMENTS, on_error="skip"), tmp_path / "shared"
    for rank in range(3):
        prepare_shards(config, tokenizer, out, rank=rank, world=3)
    assert files_below(resumed.directory) == files_below(out)
    [(name, why)] = resumed.manifest.left_out.skipped.items()
    assert name == "data/003.parquet" and why.startswith("not a complete Parquet file (")


@pytest.mark.parametrize("world", [2, 4, 9])
def test_several_processes_make_the_same_files_in_any_order(
    hub: Hub, tmp_path: Path, tokenizer: Tokenizer, unbroken: dict[str, bytes], world: int
) -> None:
    config = PrepareConfig(("hub:o/n",), **ARGUMENTS)
    out = tmp_path / "out"
    found = [prepare_shards(config, tokenizer, out, rank=rank, world=world) for rank in reversed(range(world))]
    assert [dataset is not None for dataset in found][-1]
    assert files_below(out) == unbroken
    assert prepare_shards(config, tokenizer, out, rank=world - 1, world=world) is not None  # comes late, nothing to do
    other = dataclasses.replace(config, shard_tokens=config.shard_tokens + 1)
    with pytest.raises(InputError, match="already exists and was not changed"):
        prepare_shards(other, tokenizer, out, rank=world - 1, world=world)


def test_a_rank_whose_download_fails_does_not_hold_up_the_others(
    hub: Hub, tmp_path: Path, tokenizer: Tokenizer, unbroken: dict[str, bytes]
) -> None:
    config, out = PrepareConfig(("hub:o/n",), **ARGUMENTS), tmp_path / "out"
    hub.faults["001.parquet"] = [404]
    with pytest.raises(InputError, match="HTTP 404"):
        prepare_shards(config, tokenizer, out, rank=1, world=2)
    assert prepare_shards(config, tokenizer, out, rank=0, world=2) is None
    assert prepare_shards(config, tokenizer, out, rank=1, world=2) is not None
    assert files_below(out) == unbroken


HOLD = """
import sys
from pathlib import Path
from gpt2lab.files import locked
with locked(Path(sys.argv[1]) / "preparing" / "lock", ValueError("locked"), [0]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_directory_locked_by_another_process_is_not_touched(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config, out = PrepareConfig(("stories",), max_documents=300), tmp_path / "out"
    with pytest.raises(DiskFull):
        prepare_shards(config, tokenizer, out, max_disk=2_000)
    before = files_below(out)
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            InputError, match="out is being prepared by another process; wait until it ends, or stop it"
        ):
            prepare_shards(config, tokenizer, out)
        assert files_below(out) == before | {"preparing/lock": b""}
        other.kill()
    assert prepare_shards(config, tokenizer, out) is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [({"deduplicate": True}, "--deduplicate"), ({"max_documents": 9}, "--max-documents")],
)
def test_options_that_need_document_order_refuse_several_processes(
    tmp_path: Path, tokenizer: Tokenizer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"{message} needs all documents in order"):
        prepare_shards(PrepareConfig(("stories",), **options), tokenizer, tmp_path / "out", rank=0, world=2)


def test_disk_use_stays_within_max_disk(
    hub: Hub, tmp_path: Path, tokenizer: Tokenizer, unbroken: dict[str, bytes]
) -> None:
    output = sum(len(content) for name, content in unbroken.items() if name.endswith(".bin"))
    largest = max(len(content) for content in hub.repositories["datasets/o/n"].values())
    most = 0

    def watch(*_: int) -> None:
        nonlocal most
        most = max(most, bytes_below(tmp_path / "out"))

    limit = output + largest + 100_000  # the estimate of what Parquet holds is coarse for files as small
    prepare(["hub:o/n"], tokenizer, tmp_path / "out", **ARGUMENTS, max_disk=3 * limit, progress=watch)
    assert 0 < most <= limit
    assert files_below(tmp_path / "out") == unbroken


def test_data_that_cannot_fit_is_refused_before_any_download(hub: Hub, tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DiskFull, match=r"about [\d,]+ bytes are needed .* but --max-disk allows 1,000;"):
        prepare(["hub:o/n"], tokenizer, tmp_path / "out", **ARGUMENTS, max_disk=1000)
    assert not (tmp_path / "out").exists()
    assert not any(name.endswith(".parquet") for name in hub.asked)


def test_data_that_turns_out_too_large_stops_and_resumes_with_more_disk(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for number in range(2):  # compresses far better than text: the estimate is too low
        rows = [f"{number} {n} " + "a" * 5000 for n in range(200)]
        write(tmp_path / f"{number}.parquet", parquet(rows, compression="zstd"))
    sources = [str(tmp_path / "*.parquet")]
    with pytest.raises(DiskFull, match=r"take [\d,]+ bytes or more, but --max-disk allows 500,000; "):
        prepare(sources, tokenizer, tmp_path / "out", max_disk=500_000)
    assert bytes_below(tmp_path / "out") < 500_000
    shutil.copytree(tmp_path / "out", tmp_path / "late")
    prepare(sources, tokenizer, tmp_path / "out", max_disk=9_000_000)
    prepare(sources, tokenizer, tmp_path / "unbroken")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "unbroken")
    os.utime(tmp_path / "1.parquet", (0, 0))
    with pytest.raises(InputError, match=r"1\.parquet: changed since preparing began"):
        prepare(sources, tokenizer, tmp_path / "late")


@pytest.mark.parametrize("size", ["much", "20 GBs", "", "1.2.3GB"])
def test_a_bound_that_is_no_size_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save(tmp_path / "tok")
    command = ["data", "prepare", "stories", "--tokenizer", str(tmp_path / "tok"), "--out", str(tmp_path / "out")]
    assert main([*command, "--max-disk", size]) == 2
    assert f'"{size}" is not a size; give one such as 20GB' in capsys.readouterr().err
    assert main([*command, "--max-disk", "0.5 kB"]) == 2
    assert "--max-disk allows 500" in capsys.readouterr().err


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond 60 kB, as if the disk were full."""
    resource = pytest.importorskip("resource", reason="Windows has no limit on the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_reported_at_once_with_the_bytes_needed_and_free_and_resumes(
    hub: Hub, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("o/large", "data/000.parquet", parquet([f"{n} " * 40 for n in range(9000)], compression="none"))
    tokenizer.save(tmp_path / "tok")
    for source in (["stories", "--max-documents", "400"], ["hub:o/large"]):
        command = ["data", "prepare", *source, "--tokenizer", str(tmp_path / "tok"), "--out"]
        out, unbroken = tmp_path / source[0] / "out", tmp_path / source[0] / "unbroken"
        with full_disk():
            assert main([*command, str(out)]) == 2
        *before, said = capsys.readouterr().err.splitlines()
        assert not before or source == ["hub:o/large"]  # which logs its downloads
        assert "the disk is full" in said and "bytes are needed" in said and "are free" in said
        assert hub.asked["000.parquet"] == int(source == ["hub:o/large"])  # and not again
        assert main([*command, str(out)]) == 0, capsys.readouterr().err
        assert main([*command, str(unbroken)]) == 0
        assert files_below(out) == files_below(unbroken)
    assert hub.ranges  # what was here was not fetched twice


def test_a_stop_after_the_manifest_leaves_a_folder_that_the_same_command_tidies(
    hub: Hub, tmp_path: Path, tokenizer: Tokenizer, unbroken: dict[str, bytes]
) -> None:
    out = tmp_path / "unbroken"
    for number in range(FILES):
        (out / "preparing" / f"{number:05d}").mkdir(parents=True)
    with pytest.raises(InputError, match="already exists and was not changed"):
        prepare(["hub:o/n"], tokenizer, out, **{**ARGUMENTS, "val_fraction": 0.2})
    prepare(["hub:o/n"], tokenizer, out, **ARGUMENTS)
    assert files_below(out) == unbroken and not (out / "preparing").exists()


def prepare_by_command(environment: dict[str, str], out: Path, tok: Path) -> None:
    """Be the process of ``gpt2lab data prepare``."""
    begin(environment)
    options = ["--tokenizer", str(tok), "--out", str(out), "--val-fraction", "0.1", "--test-fraction", "0.1"]
    sys.exit(main(["data", "prepare", "hub:o/n", *options]))


def start(out: Path, tok: Path, rank: int = 0, world: int = 1) -> Any:
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    process = FORKED.Process(target=prepare_by_command, args=(environment, out, tok))
    process.start()
    return process


def exit_code(process: Any) -> int:
    process.join(120)
    return process.exitcode


@pytest.mark.fault
@needs_fork
def test_preparing_killed_at_random_moments_gives_the_same_files(
    hub: Hub, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    tokenizer.save(tmp_path / "tok")
    out = tmp_path / "out"
    assert exit_code(start(tmp_path / "warm", tmp_path / "tok")) == 0  # the first starts the server
    began = time.monotonic()
    assert exit_code(start(tmp_path / "unbroken", tmp_path / "tok")) == 0
    whole = time.monotonic() - began
    kills = 0
    for attempt in range(40):
        process = start(out, tmp_path / "tok")
        process.join(whole * (0.3 + 0.02 * attempt))
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        if (out / "manifest.json").exists():
            break
    assert kills > 0
    if not (out / "manifest.json").exists() or (out / "preparing").exists():  # or killed before the journal went
        assert exit_code(start(out, tmp_path / "tok")) == 0
    assert files_below(out) == files_below(tmp_path / "unbroken")


@pytest.mark.fault
@needs_fork
def test_ranks_at_the_same_time_make_the_files_of_one(hub: Hub, tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "tok")
    assert exit_code(start(tmp_path / "unbroken", tmp_path / "tok")) == 0
    ranks = [start(tmp_path / "out", tmp_path / "tok", rank, 3) for rank in range(3)]
    assert [exit_code(rank) for rank in ranks] == [0, 0, 0]
    assert files_below(tmp_path / "out") == files_below(tmp_path / "unbroken")


@pytest.mark.fault
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting takes the rights of root")
def test_a_small_file_system_that_fills_loses_nothing(hub: Hub, tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "tok")
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine mounts no file system for us")
    try:
        with pytest.raises(DiskFull, match=r"the disk is full .* bytes are needed, .* are free"):
            prepare(["hub:o/n"], tokenizer, small / "out", **ARGUMENTS)
        finished = list((small / "out" / "preparing").glob("*/record.json"))
        assert finished
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        hub.asked.clear()
        prepare(["hub:o/n"], tokenizer, small / "out", **ARGUMENTS)
        assert hub.asked["000.parquet"] == 0
        prepare(["hub:o/n"], tokenizer, tmp_path / "unbroken", **ARGUMENTS)
        assert files_below(small / "out") == files_below(tmp_path / "unbroken")
    finally:
        subprocess.run(["umount", str(small)], check=True)
