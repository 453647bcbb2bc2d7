from __future__ import annotations

from pathlib import Path

import pytest

from gpt2lab.evaluation.held_out import DETOKENIZERS

wikitext = DETOKENIZERS["wikitext"]


@pytest.mark.parametrize(
    ("given", "as_written"),
    [
        (" = Homarus gammarus = \n", "= Homarus gammarus =\n"),
        (" = = = Early life = = = \n", "=== Early life ===\n"),
        (" 1 @,@ 200 km ( 750 mi ) , 0 @.@ 5 % , a far @-@ off isle \n", "1,200 km (750 mi), 0.5%, a far-off isle\n"),
        (' It was " a <unk> " , he said . ', 'It was "a <unk>", he said.'),
        (" The dogs ' owner 's hat ; they 've gone , I 'm not . ", "The dogs' owner's hat; they've gone, I'm not."),
        (" weighing $ 5 – 6 and £ 7 [ sic ] : ", "weighing $5–6 and £7 [sic]:"),
        ("Nothing to do here - \"really\".", "Nothing to do here - \"really\"."),
    ],
)  # fmt: skip
def test_wikitext_becomes_ordinary_text(given: str, as_written: str) -> None:
    assert wikitext(given) == as_written


def test_no_artifact_of_the_tokenization_remains(wikitext2: Path) -> None:
    given = wikitext2.read_text(encoding="utf-8")
    text = wikitext(given)
    assert text.count("\n") == given.count("\n")
    for artifact in (" @-@ ", " @,@ ", " @.@ ", " , ", " . ", " )", "( ", " 's ", " \n", "\n "):
        assert artifact not in text
    assert text.count("<unk>") == given.count("<unk>")
