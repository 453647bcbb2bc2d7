"""Damage every file that the program reads, and check that it says so or computes the same.

    python benchmarks/fuzz.py [--cases 10000] [--seed 0] [--only NAME]

Each case changes one file of a tokenizer, of prepared data, of a run or of an export, at random: bytes are flipped,
cut, inserted or zeroed, and in JSON a value is replaced or removed. A command that reads the file must then either end
with exit code 2 and one line, or say what it does without (an earlier checkpoint is used, a report has a remark), or
print the numbers that it printed before. A traceback, a hang of 30 seconds, and other numbers are failures; each is
printed with the seed that makes it again, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2lab.cli.main import main as gpt2lab

SECONDS = 30
SMALL = ["--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "16", "--model.n-ctx", "32"]
VALUES: list[Any] = [None, True, -1, 0, 1, 2, 1.5, 10**12, float("nan"), "", "x", "../x", [], [1], {}, {"a": 1}]


@dataclass(frozen=True)
class Target:
    """Files of a kind, and the command that reads them."""

    name: str
    files: str
    """Pattern below the target's directory."""
    command: tuple[str, ...]
    """Words of the command; ``{}`` is the directory of the target, ``{new}`` one that does not exist."""
    weight: int = 4
    """Share of the cases."""
    compared: bool = True
    """Whether the output must be the same; without a checksum a foreign format cannot tell."""


TARGETS = [
    Target("tokenizer", "tok/*", ("tokenizer", "show", "{}/tok"), compared=False),
    Target("data", "data/**/*", ("data", "show", "{}/data")),
    Target("chat", "chat/**/*", ("data", "show", "{}/chat"), weight=2),
    Target("perplexity", "run/**/*", ("eval", "perplexity", "{}/run")),
    Target("perplexity-data", "data/**/*", ("eval", "perplexity", "{}/run", "--data", "{}/data")),
    Target("sample", "run/**/*", ("sample", "{}/run", "--prompt", "One", "--greedy", "--max-new-tokens", "6")),
    Target("resume", "run/**/*", ("train", "--out", "{}/run", "--resume", "--steps", "5")),
    Target("report", "run/**/*", ("report", "{}/run", "--out", "{}/report.html"), weight=1),
    Target("import-hf", "out/*", ("import-hf", "{}/out", "{new}"), compared=False),
    Target("hellaswag", "items.jsonl", ("eval", "hellaswag", "{}/run", "--items", "{}/items.jsonl"), compared=False),
]


def build(root: Path) -> None:
    """Make a tokenizer, data, a run, an export and HellaSwag items in a new directory."""
    root.mkdir()
    tok, data, run, out, chat = (str(root / name) for name in ("tok", "data", "run", "out", "chat"))
    pairs = [json.dumps({"prompt": f"After {n}:", "completion": f" {n + 1}"}) for n in range(100)]
    (root / "chat.jsonl").write_text("\n".join(pairs), encoding="utf-8")
    replies = ["--format", "chat", "--val-fraction", "0.3", "--test-fraction", "0"]
    stories = ["--max-documents", "40"]
    training = ["--steps", "4", "--batch-tokens", "128", "--eval-every", "2", "--checkpoint-every", "4"]
    for words in (
        ["tokenizer", "train", "--input", "stories", "--vocab-size", "300", "--out", tok, *stories],
        ["data", "prepare", "stories", "--tokenizer", tok, "--out", data, *stories],
        ["data", "prepare", f"{chat}.jsonl", "--tokenizer", tok, "--out", chat, *replies],
        ["train", "--data", data, "--out", run, *training, *SMALL, "--precision", "fp32", "--device", "cpu"],
        ["eval", "perplexity", run],
        ["export-hf", run, out],
    ):
        code, said = call(words, seconds=600)
        if code != 0:
            raise RuntimeError(f"{' '.join(words)}: {said}")
    item = {"ind": 1, "activity_label": "Play", "ctx": "A", "ctx_a": "A cat", "ctx_b": "it", "label": 0}
    lines = [json.dumps({**item, "ind": n, "endings": ["runs.", "sat.", "is a.", "x."]}) for n in range(3)]
    (root / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def call(words: list[str], seconds: int = SECONDS) -> tuple[int | str, str]:
    """Run a command here; return its exit code, or the traceback that it ended with, and what it printed."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no end after {seconds} seconds")

    out = io.StringIO()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            return gpt2lab(words), out.getvalue()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2, out.getvalue()
    except Exception:
        return traceback.format_exc(), out.getvalue()
    finally:
        signal.alarm(0)


def damage(path: Path, chance: random.Random) -> str:
    """Change a file at random; return what was done."""
    content = path.read_bytes()
    if path.suffix == ".json" and chance.random() < 0.7 and len(content) < 1 << 20:
        tree = json.loads(content)
        said = _change_value(tree, chance)
        path.write_text(json.dumps(tree, indent=2), encoding="utf-8")
        return said
    at = chance.randrange(len(content) + 1)
    size = chance.choice([1, 2, 8, 100])
    kind = chance.choice(["flip", "cut", "insert", "zero", "delete"])
    noise = chance.randbytes(size)
    if kind == "flip":
        changed = content[:at] + bytes(a ^ (b or 1) for a, b in zip(content[at : at + size], noise, strict=False))
        changed += content[at + size :]
    elif kind == "cut":
        changed = content[:at]
    else:
        changed = content[:at] + {"insert": noise, "zero": bytes(size), "delete": b""}[kind]
        changed += content[at if kind == "insert" else at + size :]
    path.write_bytes(changed)
    return f"{kind} {size} at byte {at}"


def _change_value(tree: Any, chance: random.Random) -> str:
    """Replace or remove a value anywhere in a JSON tree."""
    holders = [tree]
    for holder in holders:  # grows: every object and list of the tree
        children = holder.values() if isinstance(holder, dict) else holder
        holders += [child for child in children if isinstance(child, dict | list) and child]
    holder = chance.choice(holders)
    key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    if chance.random() < 0.2:
        return f"remove {key!r}: {str(holder.pop(key))[:60]}"
    before, holder[key] = holder[key], chance.choice(VALUES)
    return f"{key!r}: {str(before)[:60]} becomes {holder[key]!r}"


def outcome(target: Target, root: Path) -> tuple[int | str, str]:
    """Run the command of a target; what a report says counts as printed."""
    code, said = call([word.format(root, new=root / "new") for word in target.command])
    if (page := root / "report.html").exists():
        said += re.sub(r"<(style|svg).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return code, said.replace(str(root), "")


def numbers(said: str) -> list[str]:
    """Return the numbers of an output, without times and speeds."""
    losses = re.sub(r" data +[\d.]+ %.*tokens/s", "", said)
    kept = [line for line in losses.splitlines() if not re.search(r"FLOP/s|seconds|MiB| s\b|[0-9]:[0-9]", line)]
    return re.findall(r"\d[\d,.]*", "\n".join(kept))


def problem(target: Target, made: Path, expected: list[str], seed: int) -> tuple[str, str | None]:
    """Run one case; return what became of it, and what is wrong, if anything."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "case"
        shutil.copytree(made, root)
        path = chance.choice([p for p in sorted(root.glob(target.files)) if p.is_file() and p.stat().st_size])
        done = damage(path, chance)
        code, said = outcome(target, root)
    where = f"{target.name}, seed {seed}: {path.relative_to(root)}: {done}"
    if isinstance(code, str):
        return "traceback", f"{where}\n{code}"
    if code == 2:
        one_line = [line for line in said.strip().splitlines() if line.startswith("gpt2lab: ")]
        return "refused", None if len(one_line) == 1 else f"{where}: exit code 2 with {said[-300:]!r}"
    if code != 0:
        return "other", f"{where}: exit code {code} with {said[-300:]!r}"
    remarks = "".join(re.findall(r'class="remarks".*?</aside>', said, re.DOTALL))
    named = (str(path.relative_to(root)), str(path.parent.relative_to(root)), "no complete checkpoint")
    if "skipped a damaged checkpoint" in said or any(name in remarks for name in named):
        return "noticed", None
    if target.compared and numbers(said) != expected:
        return "changed", f"{where}: other numbers without a word: {said[-400:]!r}"
    return "same", None


def cases(made: Path, count: int, seed: int, only: str | None = None) -> Iterator[tuple[str, str, str | None]]:
    """Damage copies of what `build` made; yield target, result and problem of each of ``count`` cases."""
    expected: dict[str, list[str]] = {}
    targets = [target for target in TARGETS if only in (None, target.name)]
    for target in targets:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "case"
            shutil.copytree(made, root)
            code, said = outcome(target, root)
        if code != 0:
            raise RuntimeError(f"{target.name} fails on files that are whole: {code} {said}")
        expected[target.name] = numbers(said)
    weighted = [target for target in targets for _ in range(target.weight)]
    for number in range(seed, seed + count):
        target = weighted[number % len(weighted)]
        yield target.name, *problem(target, made, expected[target.name], number)


def main() -> int:
    """Run the cases and print a table of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[target.name for target in TARGETS])
    args = parser.parse_args()
    results: Counter[tuple[str, str]] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        build(made := Path(folder) / "made")
        for target, result, wrong in cases(made, args.cases, args.seed, args.only):
            results[target, result] += 1
            if wrong is not None:
                failed += 1
                print(wrong, flush=True)
    for (target, result), count in sorted(results.items()):
        print(f"{target:16} {result:10} {count:6,}")
    print(f"{failed} of {args.cases:,} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
