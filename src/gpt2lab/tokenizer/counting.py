"""Counting the words of a corpus, the first half of training a tokenizer.

Texts are gathered into chunks of some megabytes and each chunk is split and counted by whichever process is free: this
one, or helpers that are fed through pipes. Only the chunks under way and the distinct words are in memory. Counts are
sums, so the result is the same for any number of processes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from gpt2lab.tokenizer.pretokenize import Pattern, split_fast, well_formed


def count_words(texts: Iterable[str], pattern: Pattern, special_tokens: Sequence[str] = ()) -> Counter[str]:
    """Count the words of ``texts``.

    The texts of special tokens are cut out, and no word reaches over them.
    """
    counts: Counter[str] = Counter()
    for part in _parts(texts, special_tokens):
        counts.update(split_fast(pattern, part))
    return counts


def _parts(texts: Iterable[str], special_tokens: Sequence[str]) -> Iterator[str]:
    special = re.compile("|".join(map(re.escape, sorted(special_tokens, key=len, reverse=True))))
    for text in texts:
        if any(token in text for token in special_tokens):
            yield from map(well_formed, special.split(text))
        else:
            yield well_formed(text)
