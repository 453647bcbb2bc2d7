"""Messages for wrong user input."""

from __future__ import annotations

import pytest

from gpt2lab.errors import InputError, did_you_mean, one_of

PRESETS = ("nano", "tiny", "gpt2", "gpt2-medium")


@pytest.mark.parametrize(
    ("given", "suggested"),
    [("nanno", "nano"), ("gpt2-medum", "gpt2-medium"), ("GPT2", None), ("xyz", None), ("", None)],
)
def test_a_near_name_is_suggested(given: str, suggested: str | None) -> None:
    expected = f' (did you mean "{suggested}"?)' if suggested else ""
    assert did_you_mean(given, PRESETS) == did_you_mean(given, dict.fromkeys(PRESETS)) == expected
    assert did_you_mean(given, iter([])) == ""


def test_only_allowed_names_pass() -> None:
    one_of("preset", "gpt2", iter(PRESETS))
    with pytest.raises(ValueError, match="unknown preset") as error:
        one_of("preset", "tinny", PRESETS)
    assert type(error.value) is InputError
    assert str(error.value) == (
        'unknown preset "tinny" (did you mean "tiny"?); choose from nano, tiny, gpt2, gpt2-medium'
    )
