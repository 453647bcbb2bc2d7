"""`gpt2lab check`: a tick for each part that works, a cross and exit code 1 for one that does not."""

from __future__ import annotations

import pytest

from gpt2lab.cli.main import main
from gpt2lab.lab import check


def test_every_part_gets_its_tick(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for name in check.CHECKS:
        assert f"✓ {name}: " in said
    assert "✗" not in said


def test_a_part_that_fails_is_named_and_the_others_still_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "OVERFIT_LOSS", -1.0)
    monkeypatch.setattr(check, "OVERFIT_STEPS", 2)
    assert main(["check", "--device", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "✗ overfitting: InputError: loss" in said
    assert "✓ checkpoint: " in said
