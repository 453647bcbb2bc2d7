"""A folder of prepared data, opened and checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gpt2lab.data.foreign import OPENERS
from gpt2lab.data.manifest import MANIFEST, DataManifest, ShardInfo
from gpt2lab.data.shards import Shard, checked_sha256
from gpt2lab.data.stream import TokenStream
from gpt2lab.data.survey import split_documents
from gpt2lab.errors import InputError, one_of
from gpt2lab.tokenizer import Tokenizer

TOKENIZER = "tokenizer"


class TokenDataset:
    """A folder of token files with its manifest; see `DataManifest` for what it says of them."""

    def __init__(self, directory: Path) -> None:
        """Open ``directory``; its token files are read when `stream` asks for them.

        Raises:
            InputError: No prepared data there, half-written, damaged, or files that the manifest does not name.
        """
        self.directory = directory
        self.manifest = DataManifest.load(directory)
        named = {shard.name for shard in self.manifest.shards}
        if unnamed := sorted({path.name for path in directory.glob("*.bin")} - named):
            raise InputError(f"{directory / unnamed[0]}: not named by the manifest; move it elsewhere")

    @property
    def fingerprint(self) -> str:
        """The same for the same shards of the same tokenizer, wherever they lie."""
        return self.manifest.fingerprint

    def stream(self, split: str, every_byte: bool = True) -> TokenStream:
        """Return the tokens of ``"train"``, ``"val"`` or ``"test"`` after checking their files.

        Args:
            split: The split.
            every_byte: Whether files are read to the end and compared by SHA-256; else only headers and sizes are
                looked at, which is enough where another process has the same files checked.

        Raises:
            InputError: No such split, or a file that is missing, truncated, changed, or holds an id that is none.
        """
        if split not in self.manifest.splits:
            held = ", ".join(self.manifest.splits)
            raise InputError(
                f"{self.directory}: has no {split} split, only {held}; choose one of these, or prepare it with "
                f"--{split}-fraction"
            )
        infos = [shard for shard in self.manifest.shards if shard.split == split]
        return TokenStream(f"{self.directory} ({split})", [self._checked(info, every_byte) for info in infos])

    def _checked(self, info: ShardInfo, every_byte: bool) -> Shard:
        one_of(f"form of {info.name} in {self.directory / MANIFEST}:", info.form, OPENERS)
        shard = OPENERS[info.form](self.directory / info.name)
        if shard.tokens != info.tokens:
            raise InputError(f"{shard.path}: {shard.tokens} tokens, the manifest says {info.tokens}; prepare it again")
        if not every_byte:
            return shard
        sha256 = checked_sha256(shard, self.manifest.tokenizer.n_vocab)
        if sha256 != info.sha256:
            raise InputError(
                f"{shard.path}: changed since it was written (SHA-256 {sha256[:12]}..., the manifest says "
                f"{info.sha256[:12]}...); copy or prepare it again"
            )
        return shard

    def documents(self, split: str) -> Iterator[str]:
        """Yield the text of each document of a split. Raises what `stream` and `tokenizer` do."""
        tokenizer = self.tokenizer()
        for ids in split_documents(self.stream(split), self.manifest.tokenizer.eot):
            yield tokenizer.decode(ids.tolist())

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer saved with the data. Raises `InputError` where it is not the one of the manifest."""
        tokenizer = Tokenizer.load(self.directory / TOKENIZER)
        if tokenizer.fingerprint != self.manifest.tokenizer.fingerprint:
            raise InputError(
                f"{self.directory / TOKENIZER}: not the tokenizer that the data was made with "
                f"({self._made_with}...); copy or prepare the data again"
            )
        return tokenizer

    def require_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise `InputError` unless the data was made with this tokenizer."""
        if tokenizer.fingerprint != self.manifest.tokenizer.fingerprint:
            raise InputError(
                f"{self.directory}: made with tokenizer {self._made_with}..., given {tokenizer.fingerprint[:16]}...; "
                f"use {self.directory / TOKENIZER} or prepare the data with yours"
            )

    @property
    def _made_with(self) -> str:
        return self.manifest.tokenizer.fingerprint[:16]
