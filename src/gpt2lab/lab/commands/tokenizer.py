"""What ``gpt2lab tokenizer ...`` does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from gpt2lab.data.sources import texts
from gpt2lab.errors import InputError
from gpt2lab.hub import PREFIX
from gpt2lab.lab import console
from gpt2lab.tokenizer.pretokenize import find_pattern
from gpt2lab.tokenizer.tokenizer import Tokenizer, longest_tokens, measure_fit, show_token, split_text


def train_tokenizer(
    sources: Sequence[str],
    vocab_size: int,
    out: Path,
    pattern: str,
    special_tokens: Sequence[str],
    max_documents: int | None,
    column: str | None,
    errors: str,
) -> Tokenizer:
    """Train a tokenizer on text and save it.

    Raises:
        InputError: The directory exists, a source cannot be read, or a setting is out of range.
    """
    if out.exists():
        raise InputError(f"{out} exists; give another --out")
    whole = find_pattern(pattern).cut is None
    corpus = texts(sources, max_documents=max_documents, column=column, errors=errors, whole=whole)
    with console.merging_bar() as (read, progress):
        corpus = _counted(corpus, read)
        tokenizer = Tokenizer.train(corpus, vocab_size, special_tokens, pattern=pattern, progress=progress)
    tokenizer.save(out)
    if tokenizer.n_vocab < vocab_size:
        print(f"the text gives {tokenizer.n_vocab:,} entries, not {vocab_size:,}: no pair is left that comes twice")
    print(f"{out}: {tokenizer.n_vocab:,} entries, fingerprint {tokenizer.fingerprint[:16]}")
    return tokenizer


def _counted(pieces: Iterable[str], read: Callable[[int], None]) -> Iterator[str]:
    """Yield the pieces of a text and tell ``read`` the characters that were."""
    characters = 0
    for piece in pieces:
        yield piece
        characters += len(piece)
        read(characters)


def open_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from its own directory, from that of a run or of prepared data, or from ``hub:OWNER/NAME``.

    Raises:
        InputError: None lies there, or it is damaged.
    """
    if (name := path.as_posix()).startswith(PREFIX):
        return Tokenizer.gpt2(name)
    return Tokenizer.load(path / "tokenizer" if (path / "tokenizer").is_dir() else path)


_SAMPLE = (
    "It's 1999, isn't it?  A naïve café: 3.14159 + e\u0301 = 你好 👩\u200d🚀\n\tfor word in unbelievably_long_names:\n"
)
_SHOWN = 400
"""Characters of the files shown where no text is given."""
_ID_DIGITS = 19
"""Of the largest integer of 64 bits; Python refuses to read one of thousands."""


def show_tokenizer(
    path: Path,
    text: str | None,
    sources: Sequence[str],
    gpt2: str | None,
    longest: int,
    max_documents: int | None,
    column: str | None,
) -> None:
    """Print how a tokenizer splits a text, how well it and GPT-2's own fit it, and its longest tokens.

    Raises:
        InputError: A tokenizer or a source cannot be read, or an option is out of range or without effect.
    """
    if longest < 0:
        raise InputError(f"--longest is {longest}; it must be 0 or more")
    if not sources and (max_documents, column) != (None, None):
        raise InputError("--max-documents and --column say how to read --input; give that too")
    read = functools.partial(texts, sources, max_documents=max_documents, column=column)
    if text is None:
        text = _beginning(read()) if sources else _SAMPLE
    tokenizers = {str(path): open_tokenizer(path)}
    if gpt2 is not None:
        tokenizers["GPT-2"] = Tokenizer.gpt2(gpt2)
    tokenizer = tokenizers[str(path)]
    special = ", ".join(f"{name} = {number:,}" for name, number in tokenizer.special_tokens.items()) or "none"
    print(f"{path}: {tokenizer.n_vocab:,} entries, 256 bytes and {len(tokenizer.merges):,} merges")
    print(
        f"special tokens: {special}; splitting pattern: {tokenizer.pattern}; fingerprint {tokenizer.fingerprint[:16]}"
    )
    for name, one in tokenizers.items():
        print(f"\n{name}:")
        console.print_tokens([show_token(token) for token in split_text(one, text)])
    print()
    _print_fits(tokenizers, read if sources else lambda: [text])
    if longest:
        print(f"\nlongest tokens of {path}:")
    for number, token in longest_tokens(tokenizer, longest):
        print(f'  {number:>7,}  {len(token):>3} bytes  "{show_token(token)}"')


def _beginning(pieces: Iterable[str]) -> str:
    """Return the first lines of a text, about as many as a screen holds."""
    start = next(iter(pieces))[:_SHOWN]
    return start[: start.rfind("\n") + 1] or start


def _print_fits(tokenizers: Mapping[str, Tokenizer], corpus: Callable[[], Iterable[str]]) -> None:
    width = max(map(len, tokenizers))
    print(f"{'':{width}}  {'bytes':>13}  {'tokens':>13}  {'bytes a token':>13}  {'vocabulary used':>15}")
    for name, tokenizer in tokenizers.items():
        with console.counting(f"measuring {name}") as say:
            fit = measure_fit(tokenizer, _counted(corpus(), lambda n: say(f"{n / 1e6:,.1f} M characters")))
        figures = f"{fit.n_bytes:>13,}  {fit.n_tokens:>13,}  {fit.bytes_per_token:>13.2f}  {fit.share_used:>15.1%}"
        print(f"{name:{width}}  {figures}")


def export_tokenizer(path: Path, out: Path, form: str) -> list[Path]:
    """Write a tokenizer for other programs, and print what was written.

    Raises:
        InputError: The form cannot hold this tokenizer, or a file exists.
    """
    tokenizer = open_tokenizer(path)
    files = tokenizer.export(out, form)
    for file in files:
        print(file)
    if form == "tiktoken":
        print("a rank file holds neither special tokens nor pattern; give tiktoken.Encoding these:")
        print(f"  special_tokens={tokenizer.special_tokens!r}")
        print(f"  pat_str={find_pattern(tokenizer.pattern).published!r}")
    return files


def encode_lines(path: Path, source: BinaryIO, out: TextIO) -> None:
    """Write the ids of each line of ``source``, its newline included, as a line of ``out``.

    Raises:
        InputError: The input is not UTF-8 (with the line).
    """
    tokenizer = open_tokenizer(path)
    for number, line in enumerate(source, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"standard input: line {number} is not UTF-8 at its byte {error.start}") from error
        out.write(" ".join(map(str, tokenizer.encode(text))) + "\n")


def decode_lines(path: Path, source: BinaryIO, out: BinaryIO) -> None:
    """Write the bytes of the ids in ``source``.

    Raises:
        InputError: Something is not an id of the vocabulary (with the line).
    """
    tokenizer = open_tokenizer(path)
    for number, line in enumerate(source, start=1):
        try:
            out.write(tokenizer.decode_bytes(map(_as_id, line.split())))
        except InputError as error:
            raise InputError(f"standard input: line {number}: {error}") from None


def _as_id(word: bytes) -> int:
    if not word.isdigit() or len(word) > _ID_DIGITS:
        raise InputError(f'"{word[:_SHOWN].decode("utf-8", "replace")}" is no id; give ids parted by spaces')
    return int(word)
