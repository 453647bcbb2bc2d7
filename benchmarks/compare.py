"""How long a fair comparison takes: 4 variants x 3 seeds of nano, not compiled, then the same command again.

    python benchmarks/compare.py [--steps 1000] [--documents 4000] [--keep DIR]

The data is stories. The first command trains and measures twelve runs; the second must find all of them finished, and
shows what a comparison costs beyond its runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import texts
from gpt2lab.tokenizer.tokenizer import Tokenizer

RESULTS = Path(__file__).parent / "results" / "compare.json"
VARY = ("model.position=learned,rope", "model.n_kv_head=2,1")
MAIN = "import sys; from gpt2lab.cli.main import main; sys.exit(main())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="of each run (default 1000)")
    parser.add_argument("--documents", type=int, default=4000, help="stories (default 4000)")
    parser.add_argument("--keep", type=Path, help="a folder to work in and keep, which must not exist")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True)
        measure(options.keep, options.steps, options.documents)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.steps, options.documents)


def measure(folder: Path, steps: int, documents: int) -> None:
    """Prepare the data, run the comparison twice, and keep the times beside this script."""
    tokenizer = Tokenizer.train(texts(["stories"], max_documents=1000), 1024)
    prepare(["stories"], tokenizer, folder / "data", max_documents=documents)
    first, second = (compare(folder, steps) for _ in range(2))
    found = json.loads((folder / "comparison" / "comparison.json").read_text(encoding="utf-8"))
    result = {
        "variants": found["arms"],
        "seeds": found["seeds"],
        "steps": steps,
        "finished": sum(run["status"] == "finished" for run in found["runs"]),
        "seconds": round(first, 1),
        "seconds_again": round(second, 1),
        "findings": found["findings"],
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(result, indent=2, ensure_ascii=False))
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def compare(folder: Path, steps: int) -> float:
    """Run the command line once; return its seconds."""
    vary = [word for variation in VARY for word in ("--vary", variation)]
    where = ["--data", str(folder / "data"), "--out", str(folder / "comparison")]
    begin = time.perf_counter()
    length = ["--steps", str(steps), "--eval-every", str(max(1, steps // 10)), "--seeds", "3", "--compile", "off"]
    subprocess.run([sys.executable, "-c", MAIN, "compare", "--base", "nano", *vary, *where, *length], check=True)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
