"""muP: with the width, activations change as they do in the base, by the rules of Yang et al. 2022, table 8."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support import PLAIN, assert_same_run, go_on, interrupted, refusal, small, train

from gpt2lab.cli.main import main
from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.report.references import REFERENCES
from gpt2lab.training.config import OptimConfig
from gpt2lab.training.optim import make_optimizer, set_learning_rate

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coordinates.py"
WIDE: dict[str, Any] = {"n_layer": 2, "n_head": 8, "n_embd": 256, "n_ctx": 16, "vocab_size": 257, "dropout": 0.0}


@pytest.fixture(scope="module")
def coordinates() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coordinates", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_activations_of_a_wide_model_change_as_those_of_a_narrow_one(coordinates: ModuleType) -> None:
    narrow = coordinates.changes(64, None, steps=4, lr=1e-2)
    assert coordinates.changes(64, 64, steps=4, lr=1e-2) == narrow  # at the base width, nothing is scaled
    standard, scaled = (coordinates.changes(256, base, steps=4, lr=1e-2) for base in (None, 64))
    for part in ("attention", "feed-forward", "last block"):
        for step in (1, 4):
            assert standard[part][step] > 3 * narrow[part][step]
            assert 0.5 < scaled[part][step] / narrow[part][step] < 1.5
    assert standard["logits"][4] > 2 * narrow["logits"][4]
    assert 0.5 < scaled["logits"][4] / narrow["logits"][4] < 1.5


def test_initialization_logits_and_rates_are_those_of_table_8() -> None:
    plain, scaled = (GPT(GPTConfig(**WIDE, mup_base_width=base)).eval() for base in (None, 64))
    for (name, before), after in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        if before.dim() == 2:
            expected = before.std().item() / (2 if name.startswith("h.") else 1)
            assert after.std().item() == pytest.approx(expected, rel=0.05), name
    plain.load_state_dict(scaled.state_dict())
    tokens = torch.arange(10)[None]
    torch.testing.assert_close(scaled(tokens).logits, plain(tokens).logits / 4)
    optimizer = make_optimizer(scaled, OptimConfig(lr=1e-3, weight_decay=0.1))
    names = {id(parameter): name for name, parameter in scaled.named_parameters()}
    set_learning_rate(optimizer, 1e-3 / 2)
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            inside, decayed = name.startswith("h.") and parameter.dim() == 2, parameter.dim() == 2
            assert group["lr"] == pytest.approx(1e-3 / 2 / (4 if inside else 1))
            assert group["weight_decay"] == pytest.approx(0.1 * decayed * (4 if inside else 1))
            seen.add(name)
    assert seen == set(names.values())


def test_a_run_resumes_and_its_report_has_the_equation(data: Path, tmp_path: Path) -> None:
    model = dataclasses.replace(PLAIN, mup_base_width=4)
    config = small(data, tmp_path / "run", model=model)
    unbroken = train(dataclasses.replace(config, out=tmp_path / "unbroken"))
    interrupted(config, 10)
    assert_same_run(go_on(config), unbroken)
    assert main(["report", str(unbroken.path), "--out", str(tmp_path / "report.html")]) == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "as muP requires" in html and "Tensor Programs V" in html and "Base width of muP" in html
    assert REFERENCES["mup_base_width"].startswith("Yang")


def test_what_it_does_not_fit_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"^mup_base_width is 0; it must be at least 1$"):
        GPTConfig(mup_base_width=0)
    with pytest.raises(
        InputError, match=r"^mup_base_width 64 with n_inner 96: muP scales every hidden width with n_embd; "
    ):
        GPTConfig(mup_base_width=64, n_inner=96)
    model = dataclasses.replace(PLAIN, mup_base_width=8)
    muon = small(data, tmp_path / "muon", model=model, optim=OptimConfig(name="muon"))
    refusal(
        lambda: train(muon), r"^optim\.name muon with model\.mup_base_width 8: muP's rates are for adamw; take adamw"
    )
    run = train(small(data, tmp_path / "run", model=model, steps=1))
    assert main(["export-hf", str(run.path), str(tmp_path / "out")]) == 2
    assert "mup_base_width" in capsys.readouterr().err
    assert math.isclose(GPTConfig(**WIDE, mup_base_width=64).mup_scale, 4.0)
