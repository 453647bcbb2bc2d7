"""``gpt2lab tokenizer train|show|add-special|import|export|encode|decode``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from gpt2lab import console
from gpt2lab.cli.arguments import Command
from gpt2lab.data.sources import texts
from gpt2lab.errors import InputError, require
from gpt2lab.tokenizer.pretokenize import find_pattern
from gpt2lab.tokenizer.tokenizer import Tokenizer, longest_tokens, measure_compression, render_token

Files = Annotated[tuple[str, ...], arg(metavar="FILE")]
_SAMPLE = (
    "It's 1999, isn't it?  A naïve café: 3.14159 + e\u0301 = 你好 👩\u200d🚀\n\tfor word in unbelievably_long_names:\n"
)
_SHOWN = 400
"""Characters of the input that are shown if no text is given."""
_ID_DIGITS = 19
"""Digits of the largest 64-bit integer; Python refuses to parse an integer of thousands."""


@dataclass(frozen=True)
class TrainTokenizer(Command):
    """Train a byte-level BPE tokenizer on text."""

    input: Files
    """Files (.txt .jsonl .csv .parquet .gz ...), directories, patterns, corpora (see data list), hub:OWNER/NAME."""
    vocab_size: int
    """Vocabulary size: 256 bytes, the merges and the special tokens. 257 gives a byte tokenizer."""
    out: Path
    """Directory to write; it must not exist."""
    pattern: str = "gpt2"
    """Pre-tokenization pattern: gpt2, cl100k, or a regular expression."""
    special_tokens: tuple[str, ...] = ("<|endoftext|>",)
    """Tokens that ordinary text never encodes to."""
    max_documents: int | None = None
    """Train on at most this many documents."""
    column: str | None = None
    """Column that holds the text in JSON, CSV and Parquet; "text" by default."""
    errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not UTF-8: reject the file, or replace each and continue."""
    on_error: Literal["stop", "skip"] = "stop"
    """A file that cannot be read: stop, or skip it and list it at the end."""
    format: Literal["text", "chat"] = "text"
    """chat: JSON objects of messages, or of prompt and completion; their text is that of data prepare."""

    def run(self) -> None:
        """Train and save the tokenizer."""
        if self.out.exists():
            raise InputError(f"{self.out} exists; give another --out")
        names, skipped = ("max_documents", "column", "errors", "on_error", "format"), dict[str, str]()
        options = {name: getattr(self, name) for name in names}
        corpus = texts(self.input, **options, whole=find_pattern(self.pattern).cut is None, skipped=skipped)
        with console.merging_bar() as (read, progress):
            corpus, special = _counted(corpus, read), self.special_tokens
            tokenizer = Tokenizer.train(corpus, self.vocab_size, special, pattern=self.pattern, progress=progress)
        console.print_skipped(skipped)
        if tokenizer.n_vocab < self.vocab_size:
            print(f"no pair occurs twice after {tokenizer.n_vocab:,} entries; the vocabulary is smaller than asked for")
        _save(tokenizer, self.out)


@dataclass(frozen=True)
class _OfTokenizer(Command):
    """A command about a tokenizer."""

    tokenizer: Positional[Path]
    """Directory of a tokenizer, a run or prepared data, or a name on the Hub: gpt2, hub:OWNER/NAME."""


@dataclass(frozen=True)
class ShowTokenizer(_OfTokenizer):
    """Show how a tokenizer splits text and how well its vocabulary fits."""

    text: str | None = None
    """Text to split; by default the beginning of the input, or a sample."""
    input: Files = ()
    """Text to measure bytes per token on, given as for tokenizer train; by default the text."""
    gpt2: str | None = None
    """Compare with GPT-2's own tokenizer: its directory, "tiktoken" for tiktoken's cache, or hub:OWNER/NAME."""
    longest: int = 10
    """Number of the longest tokens to list."""
    max_documents: int | None = None
    """Measure at most this many documents."""
    column: str | None = None
    """Column that holds the text in JSON, CSV and Parquet; "text" by default."""

    def run(self) -> None:
        """Print the split, the fit and the longest tokens."""
        require(self.longest >= 0, "--longest", self.longest, "0 or more")
        if not self.input and (self.max_documents, self.column) != (None, None):
            raise InputError("--max-documents and --column need --input, the text that they apply to")
        read = partial(texts, self.input, max_documents=self.max_documents, column=self.column)
        text = self.text if self.text is not None else _first_lines(read()) if self.input else _SAMPLE
        tokenizer = Tokenizer.load(self.tokenizer)
        tokenizers = {str(self.tokenizer): tokenizer}
        if self.gpt2 is not None:
            tokenizers["GPT-2"] = Tokenizer.gpt2(self.gpt2)
        special = ", ".join(f"{name} = {token:,}" for name, token in tokenizer.special_tokens.items()) or "none"
        print(f"{self.tokenizer}: {tokenizer.n_vocab:,} entries, 256 bytes and {len(tokenizer.merges):,} merges")
        print(f"special tokens: {special}; pattern: {tokenizer.pattern}; fingerprint {tokenizer.fingerprint[:16]}")
        for name, each in tokenizers.items():
            print(f"\n{name}:")
            vocabulary = each.vocab
            console.print_tokens([render_token(vocabulary[number]) for number in each.encode(text)])
        print()
        _print_fits(tokenizers, read if self.input else lambda: [text])
        if self.longest:
            print(f"\nlongest tokens of {self.tokenizer}:")
        for token_id, token in longest_tokens(tokenizer, self.longest):
            print(f'  {token_id:>7,}  {len(token):>3} bytes  "{render_token(token)}"')


@dataclass(frozen=True)
class ExportTokenizer(_OfTokenizer):
    """Write a tokenizer in the format of another program."""

    out: Path
    """Directory to write into; no file in it is overwritten."""
    format: Literal["huggingface", "gpt2", "tiktoken"] = "huggingface"
    """Hugging Face's tokenizer.json, GPT-2's vocab.json and merges.txt, or tiktoken's rank file."""

    def run(self) -> None:
        """Write the files and print their paths."""
        tokenizer = Tokenizer.load(self.tokenizer)
        for file in tokenizer.export(self.out, self.format):
            print(file)
        if self.format == "tiktoken":
            print("a rank file holds neither special tokens nor the pattern; pass these to tiktoken.Encoding:")
            print(f"  special_tokens={tokenizer.special_tokens!r}")
            print(f"  pat_str={find_pattern(tokenizer.pattern).published!r}")


@dataclass(frozen=True)
class AddSpecial(_OfTokenizer):
    """Add special tokens to a tokenizer; the ids of all others stay."""

    token: UseAppendAction[tuple[tuple[str, ...], ...]]
    """Texts of the new special tokens, such as "<|user|>" "<|assistant|>"; they get the next ids in this order."""
    out: Path
    """Directory to write; it must not exist."""

    def run(self) -> None:
        """Save the tokenizer with the tokens."""
        if self.out.exists():
            raise InputError(f"{self.out} exists; give another --out")
        _save(Tokenizer.load(self.tokenizer).with_special(itertools.chain(*self.token)), self.out)


@dataclass(frozen=True)
class ImportTokenizer(Command):
    """Read a tiktoken file of ranks, such as cl100k_base.tiktoken."""

    ranks: Positional[Path]
    """The file: a token in base64 and its rank in each line."""
    pattern: str
    """Pre-tokenization pattern, which the file does not hold: gpt2, cl100k, or a regular expression."""
    out: Path
    """Directory to write; it must not exist."""
    special_tokens: tuple[str, ...] = ()
    """Special tokens, each as TEXT=ID, such as "<|endoftext|>=100257", or all as TEXT for the ids after the ranks."""

    def run(self) -> None:
        """Save the tokenizer, and say which ids no token has."""
        if self.out.exists():
            raise InputError(f"{self.out} exists; give another --out")
        tokenizer = Tokenizer.from_tiktoken(self.ranks, self.pattern, _with_ids(self.special_tokens))
        _save(tokenizer, self.out)
        if reserved := [name for name in tokenizer.special_tokens if name.startswith("<|reserved_")]:
            ids = "1 id without a token is" if len(reserved) == 1 else f"{len(reserved):,} ids without a token are"
            print(f"{ids} reserved: {reserved[0]}{', ..' if len(reserved) > 1 else ''}")


def _with_ids(words: Sequence[str]) -> dict[str, int] | Sequence[str]:
    """Return special tokens with the ids given as TEXT=ID; the texts alone if none is."""
    parted = {
        text: number for text, _, number in (word.rpartition("=") for word in words) if text and number.isdecimal()
    }
    if parted and len(parted) < len(words):
        raise InputError(f"special tokens {' '.join(words)}: give all as TEXT=ID, each once, or all as TEXT")
    return {text: int(number) for text, number in parted.items()} or words


def _save(tokenizer: Tokenizer, out: Path) -> None:
    tokenizer.save(out)
    print(f"{out}: {tokenizer.n_vocab:,} entries, fingerprint {tokenizer.fingerprint[:16]}")


@dataclass(frozen=True)
class Encode(_OfTokenizer):
    """Encode text from standard input; each line of text gives a line of ids."""

    def run(self) -> None:
        """Encode line by line, newlines included."""
        tokenizer = Tokenizer.load(self.tokenizer)
        for number, line in enumerate(sys.stdin.buffer, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"standard input, line {number}: not UTF-8 at byte {error.start}") from error
            sys.stdout.write(" ".join(map(str, tokenizer.encode(text))) + "\n")


@dataclass(frozen=True)
class Decode(_OfTokenizer):
    """Decode ids from standard input, separated by spaces, to text."""

    def run(self) -> None:
        """Decode line by line."""
        tokenizer = Tokenizer.load(self.tokenizer)
        for number, line in enumerate(sys.stdin.buffer, start=1):
            try:
                sys.stdout.buffer.write(tokenizer.decode_bytes(map(_as_id, line.split())))
            except InputError as error:
                raise InputError(f"standard input, line {number}: {error}") from None


def _counted(pieces: Iterable[str], read: Callable[[int], None]) -> Iterator[str]:
    """Yield pieces of text and report the number of characters so far."""
    characters = 0
    for piece in pieces:
        yield piece
        characters += len(piece)
        read(characters)


def _first_lines(pieces: Iterable[str]) -> str:
    """Return the first lines of a text, about a screenful."""
    start = next(iter(pieces))[:_SHOWN]
    return start[: start.rfind("\n") + 1] or start


def _print_fits(tokenizers: Mapping[str, Tokenizer], corpus: Callable[[], Iterable[str]]) -> None:
    width = max(map(len, tokenizers))
    print(f"{'':{width}}  {'bytes':>13}  {'tokens':>13}  {'bytes/token':>13}  {'vocabulary used':>15}")
    for name, tokenizer in tokenizers.items():
        with console.counting(f"measuring {name}") as show:
            fit = measure_compression(tokenizer, _counted(corpus(), lambda n: show(f"{n / 1e6:,.1f} M characters")))
        figures = f"{fit.n_bytes:>13,}  {fit.n_tokens:>13,}  {fit.bytes_per_token:>13.2f}  {fit.vocab_used:>15.1%}"
        print(f"{name:{width}}  {figures}")


def _as_id(word: bytes) -> int:
    if not word.isdigit() or len(word) > _ID_DIGITS:
        raise InputError(f'"{word[:_SHOWN].decode("utf-8", "replace")}" is not an id; give ids separated by spaces')
    return int(word)
