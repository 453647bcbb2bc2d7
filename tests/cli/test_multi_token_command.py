"""A run with heads of multi-token prediction, through the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gpt2lab.model.gpt import GPT
from gpt2lab.runs import Run
from gpt2lab.training.checkpoint import load_model

Output = Callable[..., str]


def test_every_command_takes_a_run_with_further_heads(
    work: Path, small: list[str], tmp_path: Path, output: Output, refused: Output
) -> None:
    run, data = tmp_path / "run", ["--data", work / "data"]
    output("train", *data, "--out", run, *small, "--steps", 20, "--model.mtp-depth", 2, "--model.mtp-weight", 0.5)
    output("train", "--out", run, "--resume", "--steps", 22)
    model, last = load_model(Run(run), "last")
    assert len(model.blocks) == 3 and last.step == 22
    output("sample", run, "--max-new-tokens", 4)
    output("eval", "perplexity", run)
    output("train", *data, "--init", run, "--out", tmp_path / "tuned", "--steps", 2, "--batch-tokens", 128)
    output("report", run, "--out", tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Heads of multi-token prediction" in html and "0.5 times the loss of each of 2 heads is added" in html
    said = output("export-hf", run, tmp_path / "hf", "--checkpoint", "last")
    assert "left out, since it serves training only: multi-token prediction (2 heads)" in said
    assert GPT.from_hf(tmp_path / "hf").n_params == model.n_params - sum(
        p.numel() for block in model.blocks[1:] for p in block.parameters()
    )
    output("export-html", run, tmp_path / "model.html")
    train = ("train", *data, "--out", tmp_path / "new", *small, "--model.mtp-depth", 9)
    assert "model.mtp_depth 9 with seq_len 8: no token is that far ahead" in refused(*train, "--seq-len", 8)
