"""The tokenizer against Hugging Face's ``tokenizers`` (training) and tiktoken (encoding), side by side in one run.

Training: 32,000 entries on Python's standard library (one document for each ``.py`` file, site-packages left out) and
on English; both trainers get the same list of documents and must find the same merges. Encoding: GPT-2's vocabulary,
on the same and on 10,000 strings of odd characters; the ids must be tiktoken's. Ours and theirs take turns, because a
machine's speed drifts; times are medians.

    python benchmarks/tokenizer.py --gpt2 DIR --english FILE... [--repeats 5] [--gigabyte]

``DIR`` holds encoder.json and vocab.bpe. ``--gigabyte`` also trains on 10**9 bytes and reports the peak memory. Prints
tables and writes `benchmarks/results/tokenizer.json` and `tokenizer.md`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path

import tiktoken
import tokenizers
import tokenizers.models
import tokenizers.pre_tokenizers
import tokenizers.trainers

from gpt2lab import Tokenizer
from gpt2lab.files import write_atomically, write_json
from gpt2lab.stories.corpus import stories
from gpt2lab.tokenizer.bpe import bytes_to_unicode, unicode_to_bytes

RESULTS = Path(__file__).parent / "results"
VOCAB_SIZE = 32_000
TIKTOKENS_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


@dataclass(frozen=True)
class Timing:
    """Seconds of one work by us and by the peer: medians of turns; ``cpu`` is over all processes and threads."""

    work: str
    peer: str
    megabytes: float
    ours: float
    theirs: float
    ours_cpu: float
    theirs_cpu: float
    equal: bool

    @property
    def ratio(self) -> float:
        """Our time over theirs."""
        return self.ours / self.theirs


def standard_library() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    return [path.read_bytes().decode("utf-8", errors="replace") for path in files]


def clocks() -> tuple[float, float]:
    times = os.times()
    return time.perf_counter(), times.user + times.system + times.children_user + times.children_system


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that ``work`` took: on the wall, and of all cores."""
    wall, cpu = clocks()
    work()
    end, end_cpu = clocks()
    return end - wall, end_cpu - cpu


def compare(
    name: str, peer: str, texts: list[str], ours: Callable[[], object], theirs: Callable[[], object], repeats: int
) -> Timing:
    """Time both in turns; what they return must be equal."""
    equal = ours() == theirs()
    turns = [(timed(ours), timed(theirs)) for _ in range(repeats)]
    median = [[statistics.median(turn[who][clock] for turn in turns) for clock in (0, 1)] for who in (0, 1)]
    size = sum(len(text.encode("utf-8", "replace")) for text in texts) / 1e6
    return Timing(name, peer, size, median[0][0], median[1][0], median[0][1], median[1][1], equal)


def train_ours(texts: list[str]) -> list[tuple[str, str]]:
    return [
        (bytes_to_unicode(left), bytes_to_unicode(right)) for left, right in Tokenizer.train(texts, VOCAB_SIZE).merges
    ]


def train_theirs(texts: list[str]) -> list[tuple[str, str]]:
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(theirs.to_str())["model"]["merges"]]


def tiktokens_gpt2(directory: Path) -> tiktoken.Encoding:
    ids = json.loads((directory / "encoder.json").read_text(encoding="utf-8"))
    special = {"<|endoftext|>": ids.pop("<|endoftext|>")}
    ranks = {unicode_to_bytes(token): number for token, number in ids.items()}
    return tiktoken.Encoding("gpt2", pat_str=TIKTOKENS_GPT2, mergeable_ranks=ranks, special_tokens=special)


def odd_strings(number: int) -> Iterator[str]:
    """Yield strings of all planes, controls, half surrogate pairs, marks, right to left, and long runs of space."""
    chance = random.Random(2019)
    kinds = [
        lambda: chr(chance.randrange(0x110000)),
        lambda: chr(chance.randrange(0x20)),
        lambda: chance.choice(" \n\t\u00a0") * chance.randrange(1, 200),
        lambda: chance.choice(["e\u0301\u0301", "\u05d0\u05d1\u05d2", "\U0001f469\u200d\U0001f680", "we'll", " 1999"]),
    ]
    for _ in range(number):
        yield "".join(chance.choice(kinds)() for _ in range(chance.randrange(1, 40)))


def encode_runs(gpt2: Tokenizer) -> dict[str, float]:
    """Return the seconds for 100 kB of what makes naive encoders quadratic."""
    gpt2.encode("load the core, which is no part of what is timed")
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=100_000)
    runs = {"one letter": "a" * 100_000, "spaces": " " * 100_000, "random letters": "".join(letters)}
    seconds = {name: timed(lambda text=text: gpt2.encode(text))[0] for name, text in runs.items()}
    readable = {f"{name}, readable": timed(lambda t=text: gpt2.encode_reference(t))[0] for name, text in runs.items()}
    return seconds | readable


def gigabyte() -> Iterator[str]:
    """Yield 10**9 bytes: the standard library's files and stories, by turns, no two alike."""
    library = standard_library()
    told = stories()
    size = 0
    for number in count():
        for text in (f"# {number}\n{library[number % len(library)]}", *(next(told).text for _ in range(20))):
            yield text
            size += len(text.encode("utf-8"))
        if size >= 10**9:
            return


def train_on_a_gigabyte() -> None:
    """Train in this process; print seconds and peak memory as JSON."""
    seconds, cpu = timed(lambda: Tokenizer.train(gigabyte(), VOCAB_SIZE))
    helpers = (os.cpu_count() or 1) - 1
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_gib": (own + helpers * child) * 1024 / 2**30}))


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    lines = info.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def machine() -> dict[str, str | int | None]:
    packages = {name: version(name) for name in ("tokenizers", "tiktoken", "regex", "numpy")}
    return {
        "machine": f"{platform.system()} {platform.machine()}, {processor()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **packages,
    }


def as_markdown(report: dict, timings: list[Timing]) -> str:
    lines = [
        "# Tokenizer",
        "",
        ", ".join(f"{name} {value}" for name, value in report["machine"].items())
        + f"; medians of {report['repeats']}, by turns. CPU seconds are summed over cores.",
        "",
        "| work | MB | ours, s (CPU) | peer | peer, s (CPU) | ours / peer | result |",
        "|---|---|---|---|---|---|---|",
    ]
    for t in timings:
        ours, theirs = f"{t.ours:.2f} ({t.ours_cpu:.2f})", f"{t.theirs:.2f} ({t.theirs_cpu:.2f})"
        same = "identical" if t.equal else "DIFFERENT"
        lines.append(f"| {t.work} | {t.megabytes:.1f} | {ours} | {t.peer} | {theirs} | {t.ratio:.2f} | {same} |")
    lines += ["", "Encoding 100,000 characters in one word:", "", "| run | seconds |", "|---|---|"]
    lines += [f"| {name} | {seconds:.3f} |" for name, seconds in report["runs"].items()]
    if "gigabyte" in report:
        big = report["gigabyte"]
        lines += ["", f"Training {VOCAB_SIZE:,} on 10^9 bytes, generating them included: {big['seconds']:.0f} s, "]
        lines[-1] += f"peak memory of all processes {big['peak_gib']:.2f} GiB."
    return "\n".join(lines) + "\n"


def training(library: list[str], english: list[str], repeats: int) -> Iterator[Timing]:
    for name, texts in (("standard library", library), ("English", english)):
        ours, theirs = functools.partial(train_ours, texts), functools.partial(train_theirs, texts)
        yield compare(f"train 32,000 on {name}", "tokenizers", texts, ours, theirs, repeats)


def encoding(directory: Path, library: list[str], english: list[str], repeats: int) -> Iterator[Timing]:
    gpt2, peer = Tokenizer.gpt2(directory), tiktokens_gpt2(directory)
    lines = [line for text in english for line in text.splitlines(keepends=True)]
    corpora = {
        "standard library": library,
        "English, whole": english,
        "English, by line": lines,
        "10,000 odd strings": list(odd_strings(10_000)),
    }
    for name, texts in corpora.items():
        ours = functools.partial(gpt2.encode_batch, texts)
        theirs = functools.partial(peer.encode_ordinary_batch, texts, num_threads=os.cpu_count() or 1)
        yield compare(f"encode {name}", "tiktoken", texts, ours, theirs, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt2", type=Path, help="directory of encoder.json and vocab.bpe")
    parser.add_argument("--english", type=Path, nargs="+", help="text files, one document each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gigabyte", action="store_true", help="also train on 10**9 bytes")
    parser.add_argument("--only-gigabyte", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_gigabyte:
        train_on_a_gigabyte()
        return
    library, english = standard_library(), [path.read_text(encoding="utf-8") for path in options.english]
    timings: list[Timing] = []
    for timing in chain(
        training(library, english, options.repeats), encoding(options.gpt2, library, english, options.repeats)
    ):
        print(f"{timing.work}: {timing.ratio:.2f} of {timing.peer}'s time", flush=True)
        timings.append(timing)
    report: dict = {"machine": machine(), "repeats": options.repeats, "timings": [asdict(t) for t in timings]}
    report["runs"] = encode_runs(Tokenizer.gpt2(options.gpt2))
    if options.gigabyte:
        command = [sys.executable, __file__, "--only-gigabyte"]
        report["gigabyte"] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    write_json(RESULTS / "tokenizer.json", report)
    table = as_markdown(report, timings)
    write_atomically(RESULTS / "tokenizer.md", table)
    print(table)


if __name__ == "__main__":
    main()
