"""Weights in 8 and 4 bits from the command line: saved, loaded, sampled, measured, exported, refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gpt2lab import GPT
from gpt2lab.cli.main import main
from gpt2lab.evaluation.measure import LoadedRun
from gpt2lab.model.quantized import CODECS, QuantizedGPT, Width, dequantized
from gpt2lab.runs import Run
from gpt2lab.training.checkpoint import load_model

STORIES = Path(__file__).parents[2] / "docs" / "gallery" / "stories"
Output = Callable[..., str]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, tinyshakespeare: Path) -> Path:
    """A short text."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(tinyshakespeare.read_text(encoding="utf-8")[:4_000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with weights in int4."""
    path = tmp_path_factory.mktemp("saved") / "int4"
    assert main(["quantize", str(STORIES), str(path), "--width", "int4", "--no-measure"]) == 0
    return path


@pytest.fixture(scope="module")
def data(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data that fit the run."""
    path = tmp_path_factory.mktemp("data") / "stories"
    command = ["data", "prepare", "stories", "--tokenizer", str(saved), "--out", str(path), "--max-documents", "60"]
    assert main(command) == 0
    return path


@pytest.mark.parametrize("width", CODECS)
def test_saved_weights_are_loaded_as_they_were(width: Width, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    assert main(["quantize", str(STORIES), str(saved), "--width", width, "--no-measure"]) == 0
    fresh = LoadedRun(STORIES, "best", "cpu", "auto", width)
    loaded = LoadedRun(saved, "best", "cpu", "auto")
    assert isinstance(loaded.model, QuantizedGPT)
    assert loaded.width == width
    expected = fresh.model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    weights = [next(run.rglob("model.safetensors")).stat().st_size for run in (STORIES, saved)]
    assert weights[1] < {"int8": 0.3, "int4": 0.21}[width] * weights[0]


def test_the_commands_round_and_say_so(tmp_path: Path, output: Output, text: Path) -> None:
    saved = tmp_path / "int4"
    said = output("quantize", STORIES, saved, "--width", "int4", "--text", text)
    assert "2.61 MB to 533 kB" in said
    assert "%)" in said
    asked = ("--prompt", "One day", "--max-new-tokens", "20")
    first = output("sample", STORIES, *asked, "--quantize", "int4")
    assert output("sample", saved, *asked) == first
    measured = output("eval", "perplexity", saved, "--text", text)
    assert "The weights are int4." in measured
    assert "The weights are int4." in (saved / "evals.csv").read_text(encoding="utf-8")
    exported = tmp_path / "exported"
    output("export-hf", saved, exported)
    model, _ = load_model(Run.open(saved))
    assert isinstance(model, QuantizedGPT)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(GPT.from_hf(exported)(tokens).logits, dequantized(model)(tokens).logits)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("sample SAVED --quantize int8", "already holds int4 weights; quantize the run it was made from"),
        ("sample SAVED --precision fp32", "int4 weights are used with bf16 activations; leave out precision fp32"),
        ("sample STORIES --quantize int3", "invalid choice 'int3'"),
        ("quantize STORIES SAVED --width int8 --no-measure", "exists"),
        ("quantize STORIES NEW --no-measure --text README.md", "--no-measure would ignore the text to measure"),
        ("quantize STORIES NEW", "has no data to measure the cost on; give --data DIR, --text FILE or --no"),
        ("train --init SAVED --data DATA --out NEW", "int4, which cannot be trained; use the run that they were made"),
        ("train --quantize int8", "--quantize"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    command: str, said: str, saved: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"STORIES": STORIES, "SAVED": saved, "NEW": tmp_path / "new", "DATA": data}
    assert main([str(places.get(word, word)) for word in command.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1]
    assert not (tmp_path / "new").exists()
