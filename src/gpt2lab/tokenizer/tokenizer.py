"""The tokenizer that everything else uses: text to ids and back.

Ids follow GPT-2: the first 256 are the bytes, in GPT-2's order, then come the merges by rank, then the special tokens.
A special token (``<|endoftext|>`` between documents) is recognized only where it is allowed; elsewhere its text is
ordinary text, so that no web page can corrupt a data set. Every ``str`` encodes, every list of ids decodes to bytes.

Encoding runs on tiktoken's core, loaded with these merges, and equals :meth:`Tokenizer.encode_reference`, which is the
definition. Functions at the end show how a tokenizer cuts a text and how well its vocabulary compresses it.
"""

from __future__ import annotations

import codecs
import dataclasses
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, get_args

import numpy as np

from gpt2lab.errors import InputError, one_of
from gpt2lab.tokenizer.bpe import BYTES, Merge, Ties, Vocabulary
from gpt2lab.tokenizer.formats import WRITERS, read_gpt2, read_tiktoken, read_tokenizer
from gpt2lab.tokenizer.pretokenize import cut_stream, find_pattern, grouped, special_pattern
from gpt2lab.tokenizer.train import count_words, learn_merges

END_OF_TEXT = "<|endoftext|>"
_GROUP = 1 << 18  # characters that one thread encodes at a time


class Tokenizer:
    """Byte-level byte-pair encoding. Make one with :meth:`train`, :meth:`load` or :meth:`gpt2`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        *,
        pattern: str = "gpt2",
        min_frequency: int = 2,
        ties: Ties = "smallest_ids",
        processes: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tokenizer:
        """Learn a vocabulary from texts.

        Args:
            texts: Any iterable of documents; read once, never held as a whole.
            vocab_size: Number of tokens: 256 bytes, merges and special tokens. Without room for merges the result is
                the tokenizer of bytes. If the texts give fewer merges, ``n_vocab`` of the result is smaller.
            special_tokens: They get the last ids; no merge is learned from their texts.
            pattern: ``gpt2``, ``cl100k`` or a custom regular expression.
            min_frequency: A pair that occurs less often is not merged.
            ties: Which of equally frequent pairs is merged: ``smallest_ids`` as in Hugging Face's trainer, or
                ``greatest_bytes``, the lexicographically greatest, as in Stanford CS336's.
            processes: How many processes count words; by default the number of cores. The result does not depend on it.
            progress: Called with (merges made, merges wanted) from time to time.

        Raises:
            InputError: ``vocab_size`` or another number is too small, the texts are empty, a special token is given
                twice or is also an ordinary token, or the pattern cannot be used.
        """
        names = [special_tokens] if isinstance(special_tokens, str) else list(special_tokens)
        for name, times in Counter(names).items():
            if times > 1:
                raise InputError(f"the special token {name!r} is given {times} times; give each once")
        splitting = find_pattern(pattern)
        n_merges = vocab_size - len(BYTES) - len(names)
        if n_merges < 0:
            least = f"{vocab_size - n_merges} (256 bytes and {len(names)} special tokens)"
            raise InputError(f"a vocabulary of {vocab_size} is too small: give at least {least}")
        if min_frequency < 1 or (processes is not None and processes < 1):
            raise InputError(f"min_frequency {min_frequency} and processes {processes} must be 1 or more")
        one_of("ties", ties, get_args(Ties))
        if isinstance(texts, str):
            raise InputError("the texts to train on are a single str; give a list, such as [text]")
        pairs: list[tuple[int, int]] = []
        if n_merges:
            counts = count_words(texts, splitting, names, processes=processes)
            if not counts:
                raise InputError("there is no text to train a tokenizer on; give at least one non-empty text")
            pairs = learn_merges(counts, n_merges, min_frequency=min_frequency, ties=ties, progress=progress)
        return cls(Vocabulary.from_pairs(pairs, names, splitting))

    @classmethod
    def gpt2(cls, source: Path | str) -> Tokenizer:
        """Read GPT-2's own vocabulary.

        Args:
            source: A directory with encoder.json and vocab.bpe, or vocab.json and merges.txt; ``"tiktoken"`` for
                tiktoken's cache; or a name on the Hugging Face Hub, such as ``"hub:openai-community/gpt2"``.

        Raises:
            InputError: A file is missing or damaged, or cannot be fetched.
        """
        return cls(read_gpt2(source))

    @classmethod
    def from_tiktoken(
        cls, file: Path | str, pattern: str, special_tokens: Mapping[str, int] | Iterable[str] = ()
    ) -> Tokenizer:
        """Read a tiktoken file of ranks; it encodes as ``tiktoken.Encoding`` does with the same arguments.

        Args:
            file: It holds a line for each ordinary token: its bytes in base64, a space, its rank.
            pattern: ``gpt2``, ``cl100k`` or a custom regular expression; the file does not say which.
            special_tokens: Their ids, or their names, which then get the ids after the ranks. The ids that these leave
                free, at most 1,000, become special tokens called ``<|reserved_ID|>``, since a model needs a row for
                each.

        Raises:
            InputError: The file cannot be read (with the line), its ranks cannot be written as merges, the pattern
                cannot be used, or a special token is given twice, has the name of a reserved one, or an id that is
                taken or too large.
        """
        return cls(read_tiktoken(Path(file), find_pattern(pattern), special_tokens))

    @classmethod
    def load(cls, source: Path | str) -> Tokenizer:
        """Read what :meth:`save` wrote, or any byte-level BPE in Hugging Face's format (``tokenizer.json``).

        Args:
            source: That file, its directory, the directory of a run or of prepared data, or a name on the Hugging Face
                Hub, such as ``gpt2`` or ``hub:OWNER/NAME``. Without a ``tokenizer.json``, GPT-2's two files are read.

        Raises:
            InputError: There is none, it is damaged or not a byte-level BPE, or it cannot be fetched.
        """
        return cls(read_tokenizer(source))

    def with_special(self, names: Iterable[str]) -> Tokenizer:
        """Return this tokenizer with more special tokens, whose ids follow the present ones.

        Every text keeps its ids. A trained model takes such a tokenizer when it is fine-tuned (``init``).

        Raises:
            InputError: No name is given, one is given twice or is a token already, or cannot be one.
        """
        names, present = [names] if isinstance(names, str) else list(names), self._vocabulary.special_tokens
        if not names:
            raise InputError("no special token to add is given; name at least one, such as <|user|>")
        for name, times in Counter(names).items():
            if times > 1 or name in present:
                has = f"given {times} times" if times > 1 else f"in the vocabulary already, with the id {present[name]}"
                raise InputError(f"the special token {name!r} is {has}; add each once")
        added = {name: self.n_vocab + i for i, name in enumerate(names)}
        return Tokenizer(dataclasses.replace(self._vocabulary, special_tokens={**present, **added}))

    def extends(self, other: Tokenizer) -> bool:
        """Return whether this is the other tokenizer, or that one with more special tokens after its ids."""
        mine, theirs = self._vocabulary, other._vocabulary
        ordinary = all(getattr(mine, name) == getattr(theirs, name) for name in ("ids", "merges", "pattern"))
        return ordinary and theirs.special_tokens.items() <= mine.special_tokens.items()

    def save(self, directory: Path | str) -> None:
        """Write ``tokenizer.json``, in Hugging Face's format, into a directory, which is created if missing.

        Raises:
            InputError: The directory holds another tokenizer.
        """
        self.export(directory, "huggingface")

    def export(self, directory: Path | str, form: str) -> list[Path]:
        """Write the tokenizer for other programs into a directory; return the files.

        Args:
            directory: Created if missing.
            form: ``huggingface`` (tokenizer.json), ``gpt2`` (vocab.json and merges.txt) or ``tiktoken`` (ranks).

        Raises:
            InputError: The format is unknown or cannot hold this tokenizer, or a file exists.
        """
        one_of("format", form, WRITERS)
        return WRITERS[form](self._vocabulary, Path(directory))

    @property
    def n_vocab(self) -> int:
        """The number of tokens, including special ones: ids are 0 to ``n_vocab - 1``."""
        return len(self._vocabulary.by_id)

    @property
    def vocab(self) -> dict[int, bytes]:
        """The bytes of every id; those of a special token are its text."""
        return dict(self._vocabulary.by_id)

    @property
    def merges(self) -> list[Merge]:
        """The two parts of each merge, by rank."""
        return list(self._vocabulary.merges)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The id of each special token."""
        return dict(self._vocabulary.special_tokens)

    @property
    def eot(self) -> int | None:
        """The id of ``<|endoftext|>``, which separates documents; ``None`` if the vocabulary has none."""
        return self._vocabulary.special_tokens.get(END_OF_TEXT)

    @property
    def pattern(self) -> str:
        """The splitting pattern: its name, or the expression of a custom one."""
        return self._vocabulary.pattern.name

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over merges, ids, special tokens and pattern: equal if every text gets equal ids."""
        return self._vocabulary.fingerprint

    def encode(
        self, text: str, allowed_special: Iterable[str] = (), disallowed_special: Iterable[str] = ()
    ) -> list[int]:
        """Return the ids of a text.

        Args:
            text: Any ``str``. Half a surrogate pair, which no encoding can hold, counts as U+FFFD.
            allowed_special: The special tokens to recognize: names, or ``"all"``. Others are ordinary text.
            disallowed_special: Those whose text is an error unless they are allowed: names, or ``"all"``.

        Raises:
            InputError: ``text`` holds a disallowed special token, or a name is no special token of this vocabulary.
        """
        allowed = self._allowed(allowed_special)
        _refuse(text, self._allowed(disallowed_special) - allowed)
        return self._encode(text, allowed).tolist()

    def encode_batch(
        self, texts: Iterable[str], allowed_special: Iterable[str] = (), disallowed_special: Iterable[str] = ()
    ) -> list[list[int]]:
        """Return the ids of each text, encoded on all cores; arguments and errors are those of :meth:`encode`."""
        allowed = self._allowed(allowed_special)
        refused = self._allowed(disallowed_special) - allowed
        groups = self._encode_groups(grouped(_without(refused, texts), _GROUP), allowed)
        return [ids.tolist() for group in groups for ids in group]

    def encode_arrays(
        self, batches: Iterable[Sequence[str]], allowed_special: Iterable[str] = ()
    ) -> Iterator[list[np.ndarray]]:
        """Yield the ids of each batch's texts as uint32; all cores encode the next few batches meanwhile."""
        return self._encode_groups(batches, self._allowed(allowed_special))

    def encode_iter(
        self,
        source: TextIO | Iterable[str],
        allowed_special: Iterable[str] = (),
        disallowed_special: Iterable[str] = (),
    ) -> Iterator[int]:
        """Yield the ids of a text that need not fit into memory: the same as :meth:`encode` of the whole text.

        Args:
            source: An open text file, or strings that are parts of one text, cut anywhere.
            allowed_special: As in :meth:`encode`.
            disallowed_special: Likewise.

        Raises:
            InputError: As by :meth:`encode`, when the text is read as far.
        """
        allowed, at = self._allowed(allowed_special), 0
        refused = self._allowed(disallowed_special) - allowed
        for piece in cut_stream(source, self._vocabulary.pattern, allowed | refused):
            _refuse(piece, refused, at)
            yield from self._encode(piece, allowed).tolist()
            at += len(piece)

    def encode_reference(self, text: str) -> list[int]:
        """Return the same as :meth:`encode`, slowly, by the readable algorithm of :mod:`gpt2lab.tokenizer.bpe`."""
        return self._vocabulary.encode_reference(text).tolist()

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of some ids.

        Raises:
            InputError: An id is outside the vocabulary.
        """
        tokens = self._vocabulary.by_id
        try:
            return b"".join([tokens[number] for number in ids])
        except KeyError as unknown:
            what = f"the id {unknown.args[0]} is outside the vocabulary"
            raise InputError(f"{what}; ids are 0 to {self.n_vocab - 1}") from None

    def decode_iter(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of ids as they come, in whole characters only; joined it is the result of :meth:`decode`.

        A character may be spread over several tokens: bytes are held back until they complete one. ::

            ids      e2 | 82 ac 20 | 41           text   "" | "€ " | "A"

        Raises:
            InputError: An id is outside the vocabulary.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for number in ids:
            if text := decoder.decode(self.decode_bytes([number])):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some ids; bytes that are not UTF-8, such as half a character, become U+FFFD.

        Raises:
            InputError: An id is outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def _allowed(self, names: Iterable[str]) -> frozenset[str]:
        if names == "all":
            return frozenset(self._vocabulary.special_tokens)
        allowed = [names] if isinstance(names, str) else list(names)
        for name in allowed:
            one_of("special token", name, self._vocabulary.special_tokens)
        return frozenset(allowed)

    def _encode(self, text: str, allowed: frozenset[str]) -> np.ndarray:
        if not allowed:
            return self._vocabulary.encode(text)
        parts: list[np.ndarray] = []
        start = 0
        for match in special_pattern(allowed).finditer(text):
            special = self._vocabulary.special_tokens[match.group()]
            parts += [self._vocabulary.encode(text[start : match.start()]), np.array([special], np.uint32)]
            start = match.end()
        return np.concatenate([*parts, self._vocabulary.encode(text[start:])])

    def _encode_groups(self, groups: Iterable[Sequence[str]], allowed: frozenset[str]) -> Iterator[list[np.ndarray]]:
        """Yield the ids of each group, in order; threads, one per core, work on the next few groups."""
        workers = os.cpu_count() or 1
        pending: deque[Future[list[np.ndarray]]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            for group in groups:
                pending.append(pool.submit(lambda texts: [self._encode(text, allowed) for text in texts], group))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()


def _refuse(text: str, refused: frozenset[str], at: int = 0) -> None:
    """Raise `InputError` if a text, from character ``at`` of the whole, holds a special token that is refused."""
    if refused and (found := special_pattern(refused).search(text)):
        raise InputError(
            f"the text holds the special token {found.group()!r} at character {at + found.start()}; allow it by "
            "allowed_special, or leave it out of disallowed_special to encode it as ordinary text"
        )


def _without(refused: frozenset[str], texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        _refuse(text, refused)
        yield text


# ------------------------------------------------------------------------------------------------------- inspection


@dataclass(frozen=True)
class Compression:
    """How well a vocabulary compresses some texts.

    Attributes:
        n_tokens: Number of tokens of the texts.
        n_bytes: Number of bytes of the texts, as UTF-8.
        n_used: Number of distinct tokens among them.
        n_vocab: Size of the vocabulary.
    """

    n_tokens: int
    n_bytes: int
    n_used: int
    n_vocab: int

    @property
    def bytes_per_token(self) -> float:
        """The compression ratio: the more bytes per token, the shorter the text is for a model."""
        return self.n_bytes / self.n_tokens if self.n_tokens else 0.0

    @property
    def vocab_used(self) -> float:
        """The fraction of the vocabulary that occurs in the texts, 0 to 1."""
        return self.n_used / self.n_vocab


def measure_compression(tokenizer: Tokenizer, texts: Iterable[str]) -> Compression:
    """Measure how well a tokenizer compresses some texts, which are read once and not held."""
    n_tokens = n_bytes = 0
    used: set[int] = set()
    for text in texts:
        ids = tokenizer.encode(text)
        n_tokens += len(ids)
        n_bytes += len(tokenizer.decode_bytes(ids))
        used.update(ids)
    return Compression(n_tokens, n_bytes, len(used), tokenizer.n_vocab)


def longest_tokens(tokenizer: Tokenizer, number: int) -> list[tuple[int, bytes]]:
    """Return the longest ordinary tokens in bytes, longest first, each with its id."""
    special = set(tokenizer.special_tokens.values())
    ordinary = [(i, token) for i, token in tokenizer.vocab.items() if i not in special]
    return sorted(ordinary, key=lambda item: -len(item[1]))[:number]


def render_token(token: bytes) -> str:
    r"""Return a token as a terminal can show it, with escapes for unprintable characters and partial ones."""
    text = token.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
