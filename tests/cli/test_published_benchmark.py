"""`benchmarks/gpt2_published.py` from end to end, with a small random model on a hub of this machine."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from gpt2lab import GPT, GPTConfig, Tokenizer
from loopback_hub import loopback_hub

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpt2_published.py"
LINES = [
    "",
    " = A lighthouse = \n",
    "",
    " The light , built in 1 @,@ 901 , burns oil . \n",
    " = = Oil = = \n",
    " It 's dear . \n",
]
ITEM = {
    "ind": 1,
    "activity_label": "Lighting",
    "ctx": "A man goes up. He",
    "ctx_a": "A man goes up.",
    "ctx_b": "he",
    "endings": ["lights the lamp.", "eats it.", "is a lamp.", "flies."],
    "label": "0",
}


def as_parquet(columns: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def test_it_measures_every_figure_with_its_protocol(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["".join(LINES) * 3], 280)
    GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, n_ctx=64, vocab_size=tokenizer.n_vocab)).save_hf(tmp_path / "small")
    tokenizer.save(tmp_path / "small")
    files = {
        "owner/small": {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()},
        "datasets/Salesforce/wikitext": {
            "wikitext-2-raw-v1/test-00000-of-00001.parquet": as_parquet({"text": LINES * 5})
        },
        "datasets/Rowan/hellaswag": {
            "data/validation-00000-of-00001.parquet": as_parquet({key: [value] * 3 for key, value in ITEM.items()})
        },
    }
    with loopback_hub(files) as endpoint:
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, str(SCRIPT), "--model", "owner/small", "--items", "2", "--device", "cpu"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    figures = dict(re.findall(r"^(.+: \w+) ([\d.]+)$", done.stdout, re.MULTILINE))
    assert "wikitext-2, per word: word_perplexity" in figures and "hellaswag, harness: acc_norm" in figures
    assert abs(float(figures["wikitext-2, windows side by side: perplexity"]) / tokenizer.n_vocab - 1) < 0.05
    assert done.stdout.count("protocol: ") == 5 and "2 items of 4 endings" in done.stdout
    words = len(" ".join(LINES * 5).split())
    assert f"over its {words:,} whitespace-separated words" in done.stdout
