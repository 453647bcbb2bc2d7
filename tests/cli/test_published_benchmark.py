"""`benchmarks/gpt2_published.py` from end to end, with a small random model on a hub of this machine."""

from __future__ import annotations

import io
import re
import runpy
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from gpt2lab import GPT, GPTConfig, Tokenizer
from loopback_hub import hub_client, loopback_hub

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


def test_it_measures_every_figure_with_its_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "--model=owner/small", "--items=2", "--device=cpu"])
    with loopback_hub(files) as hub, hub_client(hub.address, tmp_path / "home"), pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    figures = dict(re.findall(r"^(.+: \w+) ([\d.]+)$", said, re.MULTILINE))
    assert "wikitext-2, per word: word_perplexity" in figures and "hellaswag, harness: acc_norm" in figures
    assert abs(float(figures["wikitext-2, windows side by side: perplexity"]) / tokenizer.n_vocab - 1) < 0.05
    assert said.count("protocol: ") == 5 and "2 items of 4 endings" in said
    words = len(" ".join(LINES * 5).split())
    assert f"over its {words:,} whitespace-separated words" in said
