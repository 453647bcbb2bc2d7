"""Fetching from a server on loopback that is slow, busy, broken, or stops half way; and what the hub lists."""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import socket
import time
from pathlib import Path

import pytest

from gpt2lab import hub as client
from gpt2lab.data.sources import CONVERTED, find_dataset
from gpt2lab.errors import InputError
from gpt2lab.hub import RetryPolicy, SourceFile, Unreachable, fetch, get_json
from loopback_hub import COMMIT, Hub

CONTENT = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = RetryPolicy(attempts=3, wait=0.01, longest=1.0, timeout=1.0)


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """A dataset of one file."""
    hub.add("o/n", "data/a.bin", CONTENT)
    return hub


def get(hub: Hub, folder: Path, retry: RetryPolicy = QUICK) -> Path:
    url = f"{hub.address}/datasets/o/n/resolve/{COMMIT}/data/a.bin"
    fetch(SourceFile("data/a.bin", len(CONTENT), SHA256, url), folder / "a.bin", retry=retry)
    return folder / "a.bin"


FAULTS = [[], ["half"], ["drop", 503], ["slow"], [(429, 0)], ["half"] * 4, ["half", "no ranges"], ["wrong bytes"]]


@pytest.mark.parametrize("faults", FAULTS)
def test_what_passes_is_tried_again_until_the_file_is_whole(hub: Hub, tmp_path: Path, faults: list) -> None:
    hub.faults["a.bin"] = list(faults)
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert hub.asked["a.bin"] == len(faults) + 1 - faults.count("no ranges")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.faults["a.bin"] = ["half", 500, 500, 500]
    with pytest.raises(Unreachable, match=r"gave up after 3 attempts in 0 s \(HTTP 500"):
        get(hub, tmp_path, retry=RetryPolicy(attempts=3, wait=0.0))
    assert (tmp_path / "a.bin.partial").stat().st_size == len(CONTENT) // 2
    assert get(hub, tmp_path).read_bytes() == CONTENT
    assert f"bytes={len(CONTENT) // 2}-" in hub.ranges


def test_bytes_that_never_match_are_thrown_away(hub: Hub, tmp_path: Path) -> None:
    hub.faults["a.bin"] = ["wrong bytes"] * 9
    with pytest.raises(Unreachable, match=r"the bytes are not those published: SHA-256 \w{12}..., not"):
        get(hub, tmp_path)
    assert not list(tmp_path.iterdir())
    assert hub.asked["a.bin"] <= 2 * QUICK.attempts


def test_retry_after_is_honoured_up_to_a_limit(hub: Hub, tmp_path: Path) -> None:
    hub.faults["a.bin"] = [(429, 0.4)]
    began = time.monotonic()
    get(hub, tmp_path)
    assert time.monotonic() - began >= 0.4
    (tmp_path / "a.bin").unlink()
    hub.faults["a.bin"] = [(503, 3600)]
    with pytest.raises(Unreachable, match=r"HTTP 503 .*, and asks to retry after 3600 s; .* run the same"):
        get(hub, tmp_path)


@pytest.mark.parametrize(("status", "message"), [(404, "check the name"), (401, "set HF_TOKEN"), (403, "set HF_TOKEN")])
def test_what_will_not_change_ends_at_once(hub: Hub, tmp_path: Path, status: int, message: str) -> None:
    hub.faults["a.bin"] = [status]
    with pytest.raises(InputError, match=message) as caught:
        get(hub, tmp_path)
    assert hub.asked["a.bin"] == 1 and "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with contextlib.closing(socket.socket()) as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/x"
        with pytest.raises(Unreachable, match=r"gave up after 2 attempts in 0 s \(timed out\)"):
            get_json(url, retry=RetryPolicy(attempts=2, wait=0.0, timeout=0.1))
    with pytest.raises(Unreachable, match="refused"):
        get_json(url, retry=RetryPolicy(attempts=2, wait=0.0))


def test_an_answer_that_is_no_json_is_not_taken_for_one(hub: Hub) -> None:
    with pytest.raises(Unreachable, match="gave up"):
        get_json(f"{hub.address}/datasets/o/n/resolve/{COMMIT}/data/a.bin", retry=QUICK)


def test_the_listing_is_pinned_to_a_commit_and_read_page_by_page(hub: Hub) -> None:
    for number in range(8):
        hub.add("o/n", f"set/train-{number}.parquet", bytes([number]))
    files = client.list_files("o/n", "set", retry=QUICK)
    assert [file.name for file in files] == [f"set/train-{number}.parquet" for number in range(8)]
    assert files[3].version == hashlib.sha256(b"\3").hexdigest() and files[3].size == 1
    assert files[3].url == f"{hub.address}/datasets/o/n/resolve/{COMMIT}/set/train-3.parquet"


def test_the_token_of_the_user_is_sent_to_the_hub_only(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    client.list_files("o/n", retry=QUICK)
    assert set(hub.tokens) == {"Bearer hf_secret"}
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    get_json(f"{hub.address}/api/datasets/o/n/revision/main", retry=QUICK)
    assert hub.tokens[-1] is None


def test_splits_are_told_by_the_names_of_files_and_folders(hub: Hub) -> None:
    for path in ("s/train-0.parquet", "s/validation-0.parquet", "s/test.parquet"):
        hub.add("o/split", path, b"x")
    assert sorted(find_dataset("o/split", QUICK)) == ["test", "train", "val"]
    hub.revisions[CONVERTED] = COMMIT
    hub.add("o/folders", "default/train/0000.parquet", b"x")
    hub.add("o/folders", "default/partial-train/0001.parquet", b"x")
    assert {split: len(files) for split, files in find_dataset("o/folders", QUICK).items()} == {"train": 2}


REFUSED = {
    "nothing": "names no dataset",
    "o": "names no dataset",
    "o/none": "does not exist",
    "o/n": "does not exist or is not public",  # no Parquet, and no branch of converted files
    "o/sets": "holds several subsets: en, fr; name one: hub:o/sets/en",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_data_set_that_is_not_there_or_not_one_is_refused(hub: Hub, name: str) -> None:
    hub.add("o/sets", "en/train-0.parquet", b"x")
    hub.add("o/sets", "fr/train-0.parquet", b"x")
    with pytest.raises(InputError, match=re.escape(REFUSED[name])):
        find_dataset(name, QUICK)


@pytest.mark.parametrize("address", ["localhost:9", "huggingface.co", "ftp://huggingface.co"])
def test_an_endpoint_without_its_scheme_is_refused_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(InputError, match=f'HF_ENDPOINT is "{address}"; give an address such as https://huggingface.co'):
        client.list_files("o/n", retry=QUICK)


@pytest.mark.parametrize("answer", [{"error": "x"}, [], "x", None])
@pytest.mark.usefixtures("hub")
def test_a_server_that_is_no_hub_is_told(answer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "get_json", lambda *_: (answer, None))
    with pytest.raises(InputError, match="not the response of a Hub; check that HF_ENDPOINT names one"):
        client.list_files("o/n", retry=QUICK)
