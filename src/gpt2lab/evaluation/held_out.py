"""Held-out text to evaluate a model on: a split of prepared data, or a text file.

WikiText (Merity et al. 2016) is published as separate tokens: spaces around punctuation, ``@-@`` for a hyphen within a
word. GPT-2 was trained on ordinary text, so its paper (Radford et al. 2019, section 3.1) undoes this with "invertible
de-tokenizers", which lowers perplexity by 2.5 to 5. That code is unpublished. The rules here invert the tokenization of
WikiText, except ``<unk>``, which cannot be restored. Perplexity per word still counts the words of the given text.

    " = = History = = "              == History ==
    1 @,@ 200 km ( 750 mi )          1,200 km (750 mi)
    the " <unk> " , he 'd say        the "<unk>", he'd say
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.shards import TokenStream
from gpt2lab.data.sources import texts
from gpt2lab.errors import InputError, one_of
from gpt2lab.files import sha256_of
from gpt2lab.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class HeldOut:
    """A split of prepared data to evaluate on."""

    dataset: TokenDataset
    split: str
    name: str
    """What results call it."""
    words: int
    """Words of the given text, separated by white space."""
    preparation: str = ""
    """What was done to the text first: a sentence that the protocol begins with, or nothing."""

    @classmethod
    def of_split(cls, dataset: TokenDataset, split: str) -> HeldOut:
        """Take a split and count the words of its decoded text. Raises what `TokenDataset.stream` does."""
        return cls(dataset, split, split, sum(len(text.split()) for text in dataset.documents(split)))

    @property
    def stream(self) -> TokenStream:
        """The tokens of the split."""
        return self.dataset.stream(self.split)

    @property
    def eot(self) -> int:
        """Id of the token that begins each document."""
        return self.dataset.manifest.tokenizer.eot


@contextmanager
def held_out_text(file: Path, tokenizer: Tokenizer, detokenize: str | None) -> Iterator[HeldOut]:
    """Tokenize a text file into a temporary directory; ``<|endoftext|>`` in the text separates documents.

    Args:
        file: UTF-8 text.
        tokenizer: The tokenizer of the model.
        detokenize: A name in `DETOKENIZERS`: undo this tokenization of the corpus first.

    Raises:
        InputError: The file cannot be read or holds no text, or the name is unknown.
    """
    if detokenize is not None:
        one_of("detokenize", detokenize, DETOKENIZERS)
    words = sum(len(piece.split()) for piece in texts([str(file)]))
    name = f"{file.name} ({sha256_of(file)[:16]})"
    with tempfile.TemporaryDirectory() as folder:
        source, preparation = file, ""
        if detokenize is not None:
            source = Path(folder) / "text.txt"
            source.write_text(DETOKENIZERS[detokenize](_read(file)), encoding="utf-8", newline="\n")
            preparation = f"The tokenization of {detokenize} is undone first; words are counted before that. "
        dataset = prepare([str(source)], tokenizer, Path(folder) / "data", val_fraction=0.0, test_fraction=0.0)
        yield HeldOut(dataset, "train", name, words, preparation)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


_WIKITEXT = tuple(
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r" @([-,.])@ ", r"\1"),
        (r"(?<==) (?==)", ""),  # a heading
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
    """Undo the tokenization of WikiText, line by line.

    >>> wikitext(" It weighs 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 – 4 @.@ 9 lb ) . ")
    'It weighs 0.7–2.2 kg (1.5–4.9 lb).'
    """
    for pattern, replacement in _WIKITEXT:
        text = pattern.sub(replacement, text)
    return text


DETOKENIZERS: dict[str, Callable[[str], str]] = {"wikitext": wikitext}
"""Functions of whole lines, by their names for ``--detokenize``."""
