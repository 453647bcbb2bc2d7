"""``stream:NAME``: a corpus as the data of a run that prepares it while it trains, and keeps little of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.disk import DiskFull
from gpt2lab.data.download import Unreachable
from gpt2lab.data.finishing import source_info
from gpt2lab.data.journal import Journal, Plan
from gpt2lab.data.manifest import DataManifest, TokenizerInfo
from gpt2lab.data.planning import Recipe, make_plan, output_bytes
from gpt2lab.data.rounds import HELD_OUT, Rounds, trained_on
from gpt2lab.data.split import SplitRule
from gpt2lab.errors import InputError
from gpt2lab.tokenizer import END_OF_TEXT, Tokenizer


class RollingDataset:
    """Stands where a `TokenDataset` does; what is known before anything is prepared is in its ``manifest``."""

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        directory: Path,
        max_disk: int | None = None,
        column: str | None = None,
    ) -> None:
        """Take the corpus ``name``, any source of `documents`, prepared in ``directory``, where it may be begun.

        ``column`` is that of `documents`.

        Raises:
            InputError: The tokenizer has no ``<|endoftext|>``.
        """
        if tokenizer.eot is None:
            raise InputError(f"the tokenizer has no {END_OF_TEXT}, which stands between documents; train one with it")
        self.directory = directory
        self._tokenizer = tokenizer
        self._max_disk = max_disk
        self._recipe = Recipe((name,), column=column)
        made_with = TokenizerInfo(tokenizer.fingerprint, tokenizer.n_vocab, tokenizer.eot)
        self.manifest = DataManifest(source_info(self._recipe), made_with, SplitRule("given", 0.0, 0.0), {}, ())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the plan: which portions there are, at which commit, and how they become tokens.

        Raises:
            InputError: The corpus is unknown, cannot be reached, or was begun here with another tokenizer.
            DiskFull: No round of it fits.
        """
        return hashlib.sha256(json.dumps(asdict(self._plan()), sort_keys=True).encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""
        return self._tokenizer

    def held_out(self) -> TokenDataset:
        """Return what is held out, with the first round prepared as well. Raises what `prepare` does."""
        self._plan()
        self.rounds().prepare_first(self._recipe)
        return TokenDataset(self.directory / HELD_OUT)

    @contextmanager
    def begun_only_if_used(self) -> Iterator[None]:
        """Delete what a block began to prepare, where it ends in an error that the same command would meet again."""
        was_there = self.directory.exists()
        try:
            yield
        except (DiskFull, Unreachable):
            raise
        except InputError:
            if not was_there:
                shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def rounds(self) -> Rounds:
        """Return what is trained on."""
        return Rounds(self.directory, self._tokenizer, self._max_disk)

    def move_to(self, directory: Path) -> None:
        """Move all that was prepared."""
        self.directory = self.directory.rename(directory)

    def _plan(self) -> Plan:
        make = partial(_plan_rounds, self._recipe, self._tokenizer, self._max_disk)
        return Journal(self.directory).plan(self._recipe.arguments(self._tokenizer), make)


def _plan_rounds(recipe: Recipe, tokenizer: Tokenizer, max_disk: int | None) -> Plan:
    plan = make_plan(recipe, tokenizer, None, 1)
    if not (trained := trained_on(plan)):
        raise InputError(f"{recipe.names[0]}: has no split to train on; take another corpus")
    needed = max(portion.download + output_bytes([portion], tokenizer) for portion in trained)
    if max_disk is not None and needed > max_disk:
        raise DiskFull(
            f"{recipe.names[0]}: about {needed:,} bytes are needed (a download and its tokens), --max-disk allows "
            f"{max_disk:,}; give more, and twice as much to have the next round ready in time"
        )
    return plan
