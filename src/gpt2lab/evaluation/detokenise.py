"""From tokenised text back to text as people write it, before a model reads it.

WikiText (Merity et al. 2016) is published split into words: spaces around punctuation, ``@-@`` for a word's hyphen.
GPT-2 never saw text like that, so its paper (Radford et al. 2019, section 3.1) undoes the splitting first, "invertible
de-tokenizers", which gains it 2.5 to 5 points of perplexity. Its code was not published; these rules undo what was done
to WikiText, and leave ``<unk>``, which nothing can undo. Perplexity per word still counts the words as given.

    " = = History = = "              == History ==
    1 @,@ 200 km ( 750 mi )          1,200 km (750 mi)
    the " <unk> " , he 'd say       the "<unk>", he'd say
"""

from __future__ import annotations

import re
from collections.abc import Callable

_WIKITEXT = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r" @([-,.])@ ", r"\1"),
        (r"(?<==) (?==)", ""),  # the marks of a heading
        (r'" ([^"\n]*?) "', r'"\1"'),
        (r"(?<=s) '(?= )", "'"),
        (r"(?<= )' ([^'\n]*?) '(?= )", r"'\1'"),
        (r" '(?=(?:s|m|d|t|ll|re|ve)\b)", "'"),
        (r"(?<=\d) ([–‑/]) (?=\d)", r"\1"),
        (r"([$£€]) (?=\d)", r"\1"),
        (r"([(\[{]) ", r"\1"),
        (r" (?=[,.;:!?%)\]}](?:[ ,.;:!?%)\]}\"']|$))", ""),
        (r"^ | $", ""),
    )
)


def wikitext(text: str) -> str:
    """Undo WikiText's tokenisation, line by line.

    >>> wikitext(" It weighs 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 – 4 @.@ 9 lb ) . ")
    'It weighs 0.7–2.2 kg (1.5–4.9 lb).'
    """
    for pattern, replacement in _WIKITEXT:
        text = pattern.sub(replacement, text)
    return text


DETOKENISERS: dict[str, Callable[[str], str]] = {"wikitext": wikitext}
"""What ``--detokenise`` takes: a function of whole lines."""
