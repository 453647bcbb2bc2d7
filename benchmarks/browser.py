"""What a model in one HTML file takes in Chromium: its size, the time until it is ready, and the time of a token.

    python benchmarks/browser.py [--run docs/gallery/stories] [--rounds 7]

Each round writes 200 tokens after "One day" with nucleus sampling at 0.9, without end-of-text. The figure is the median
of the rounds after the first two, in which the browser compiles the script; the fastest round is given as well, since
other work on the machine slows all. Writes results/browser.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import sync_playwright

from gpt2lab.evaluation.measure import LoadedRun
from gpt2lab.runtime import device_name
from gpt2lab.server.single_file import write_single_file

RESULTS = Path(__file__).parent / "results" / "browser.json"
TOKENS = 200
ROUND = """async (tokens) => {
    let { ids } = await engine.tokenize("One day"), made = 0;
    const begin = performance.now();
    for (let seed = 1; made < tokens; seed++)
        for await (const { id } of engine.generate({ ids, max_tokens: tokens - made, top_p: 0.9, seed })) made++;
    return (performance.now() - begin) / made;
}"""
LOOK = """async () => {
    const { ids } = await engine.tokenize("One day, a girl named Anna lost her ball in the garden. ".repeat(9));
    const begin = performance.now();
    await engine.inspect({ ids: ids.slice(0, 100) });
    return performance.now() - begin;
}"""


def measure(run: Path, rounds: int) -> dict[str, Any]:
    """Return the size in bytes and the times in ms."""
    loaded = LoadedRun(run, "best", "cpu", "fp32")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "model.html"
        write_single_file(loaded.gpt, loaded.tokenizer, run.name, file)
        path = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(file.as_uri())
        ready = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        tokens = [page.evaluate(ROUND, TOKENS) for _ in range(rounds)]
        return {
            "processor": device_name(torch.device("cpu")),
            "browser": f"Chromium {browser.version}",
            "run": str(run),
            "parameters": loaded.model.n_params,
            "bytes": file.stat().st_size,
            "ready_ms": ready,
            "first_round_ms_per_token": tokens[0],
            "ms_per_token": statistics.median(tokens[2:]),
            "fastest_round_ms_per_token": min(tokens),
            "inspect_100_tokens_ms": statistics.median(page.evaluate(LOOK) for _ in range(3)),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("docs/gallery/stories"), help="default docs/gallery/stories")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    args = parser.parse_args()
    found = measure(args.run, args.rounds)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
