"""Messages for what a user did wrong."""

from __future__ import annotations

import pytest

from gpt2lab.errors import InputError, did_you_mean, one_of

PRESETS = ("nano", "tiny", "gpt2", "gpt2-medium")


@pytest.mark.parametrize(
    ("given", "suggested"),
    [("nanno", "nano"), ("gpt2-medum", "gpt2-medium"), ("GPT2", None), ("xyz", None), ("", None)],
)
def test_the_nearest_name_is_suggested_where_one_is_near(given: str, suggested: str | None) -> None:
    expected = f' (did you mean "{suggested}"?)' if suggested else ""
    assert did_you_mean(given, PRESETS) == expected


def test_names_may_come_from_any_iterable() -> None:
    assert did_you_mean("nan", {"nano": 1}) == ' (did you mean "nano"?)'
    assert did_you_mean("nan", iter([])) == ""


def test_an_allowed_name_passes() -> None:
    one_of("preset", "gpt2", iter(PRESETS))


def test_an_unknown_name_is_told_the_nearest_and_all() -> None:
    with pytest.raises(InputError) as error:
        one_of("preset", "tinny", PRESETS)
    assert str(error.value) == (
        'unknown preset "tinny" (did you mean "tiny"?); choose from nano, tiny, gpt2, gpt2-medium'
    )


def test_bad_input_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)
