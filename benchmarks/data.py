"""How fast text becomes token files, and how fast the loader reads them back.

Preparing from Parquet is compared with tiktoken's own batch encoder on the same text and cores (the difference is
reading, hashing, splitting, writing). The text is the standard library's sources, which every machine has. The loader
reads files that were just read, in epochs' random order; how long a loop waits for
batches is measured for 0, 2 and 8 threads that read ahead, and resident memory before and during a whole pass.

    python benchmarks/data.py --tokenizer DIR [--tokens 500000000]      (5000000000 tokens take 10 GB of disk)

``DIR`` is a folder of GPT-2's vocabulary or one written by ``gpt2lab tokenizer train``. Prints a table and writes
`benchmarks/results/data.json`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiktoken
import torch

from gpt2lab.data.loader import Loader, Prefetcher
from gpt2lab.data.prepare import prepare
from gpt2lab.data.shards import UINT16, ShardWriter, TokenStream, open_shard
from gpt2lab.data.sources import documents
from gpt2lab.files import write_json
from gpt2lab.tokenizer.pretokenize import find_pattern
from gpt2lab.tokenizer.tokenizer import Tokenizer

RESULT = Path(__file__).parent / "results" / "data.json"
WORKERS = (0, 2, 8)
SHAPES = ((12, 64), (4, 256), (8, 1024), (32, 1024), (64, 1024))  # (micro_batch, seq_len)


def bare_encoder(tokenizer: Tokenizer) -> tiktoken.Encoding:
    """Return tiktoken's encoder with a tokenizer's ranks."""
    special = set(tokenizer.special_tokens.values())
    ranks = {token: number for number, token in tokenizer.vocab.items() if number not in special}
    return tiktoken.Encoding(
        "bare", pat_str=find_pattern(tokenizer.pattern).fast, mergeable_ranks=ranks, special_tokens={}
    )


def preparing(tokenizer: Tokenizer, folder: Path, repeats: int) -> dict[str, float]:
    """Prepare the standard library's sources, as Parquet of many row groups and as they lie, beside tiktoken alone."""
    texts = ["".join(document.pieces()) for document in documents(["pystdlib"])]
    pq.write_table(pa.table({"text": texts}), folder / "text.parquet", row_group_size=100)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    core = bare_encoder(tokenizer)
    seconds: dict[str, list[float]] = {"bare": [], "parquet": [], "pystdlib": []}
    for repeat in range(repeats):  # by turns, so that what else the machine does falls on all
        start = time.perf_counter()
        core.encode_ordinary_batch(texts, num_threads=os.cpu_count() or 1)
        seconds["bare"].append(time.perf_counter() - start)
        for name, source in (("parquet", str(folder / "text.parquet")), ("pystdlib", "pystdlib")):
            start = time.perf_counter()
            prepare([source], tokenizer, folder / f"{name}{repeat}")
            seconds[name].append(time.perf_counter() - start)
    bare, parquet, pystdlib = (min(times) for times in seconds.values())
    return {
        "megabytes": megabytes,
        "tiktoken_batch_mb_per_s": megabytes / bare,
        "prepare_parquet_mb_per_s": megabytes / parquet,
        "ratio": bare / parquet,
        "pystdlib_to_shards_seconds": pystdlib,
    }


def loading(folder: Path, tokens: int) -> dict[str, float]:
    writer = ShardWriter(folder, "train", UINT16, 100_000_000)
    random = np.random.default_rng(0)
    for begin in range(0, tokens, 5_000_000):
        writer.write(random.integers(0, 50_257, min(5_000_000, tokens - begin)).astype(np.uint16))
    writer.finish()
    stream = TokenStream("benchmark", [open_shard(path) for path in writer.paths])
    found = {}
    for micro_batch, seq_len in SHAPES:
        loader = Loader(stream, seq_len, micro_batch, micro_batch, seed=0)
        found[f"{micro_batch} x {seq_len}, million tokens/s"] = max(rate(loader, 1000) for _ in range(5)) / 1e6
    for eot, what in ((None, ""), (50_256, ", with documents")):
        loader = Loader(stream, 1024, 64, 64, seed=0, eot=eot)
        for workers in WORKERS:
            name = f"{workers} threads{what}, % of time waited"
            found[name] = 100 * statistics.median(waited(loader, workers) for _ in range(5))
    return {**found, **one_pass(Loader(stream, 1024, 64, 64, seed=0))}


def one_pass(loader: Loader) -> dict[str, float]:
    """Resident memory in MB before a whole pass, and the most during it."""
    found = {"resident before a pass, MB": resident_mb()}
    with Prefetcher(loader, 2) as batches:
        most = 0.0
        for step in range(loader.windows_per_epoch // 64):
            batches.batch(step, 0)
            most = max(most, resident_mb()) if step % 100 == 0 else most
    return found | {"resident during a pass, most, MB": most}


def waited(loader: Loader, workers: int, steps: int = 200) -> float:
    """The share of time that a loop waits for batches of 65,536 tokens while it computes some milliseconds for each."""
    matrix = torch.ones(512, 512)
    waiting = 0.0
    with Prefetcher(loader, workers) as batches:
        start = time.perf_counter()
        for step in range(steps):
            begin = time.perf_counter()
            batches.batch(step, 0)
            waiting += time.perf_counter() - begin
            for _ in range(4):
                torch.mm(matrix, matrix)
        return waiting / (time.perf_counter() - start)


def rate(loader: Loader, steps: int) -> float:
    """Tokens per second over ``steps`` batches."""
    start = time.perf_counter()
    tokens = sum(loader.batch(step, 0).tokens.numel() for step in range(steps))
    return tokens / (time.perf_counter() - start)


def resident_mb() -> float:
    """Resident memory in MB; 0 where the system is not Linux."""
    status = Path("/proc/self/status")
    return int(status.read_text().split("VmRSS:")[1].split()[0]) / 1024 if status.exists() else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=500_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        result = {
            "preparing": preparing(Tokenizer.load(options.tokenizer), folder, options.repeats),
            "loading": loading(folder, options.tokens),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "versions": f"Python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}",
        }
    for part in ("preparing", "loading"):
        for name, value in result[part].items():
            print(f"{name:36} {value:10.2f}")
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
