"""How well a model has learned the grammar of the stories: the share of its own that the grammar could have written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2lab.data.stories import Verdict, parse
from gpt2lab.errors import InputError

_SHOWN = 40  # characters of the text on either side of a break


@dataclass(frozen=True)
class Break:
    """Where a text first leaves the grammar or contradicts itself."""

    index: int
    """Which of the texts."""
    offset: int
    """The character at which it breaks."""
    message: str
    """What was expected there, and what was found."""
    excerpt: str
    """The text around it, with ``>>>`` before the character."""

    def __str__(self) -> str:
        return f"text {self.index}, character {self.offset}: {self.message}: {self.excerpt}"


@dataclass(frozen=True)
class StoryQuality:
    """What the parser says of a number of texts. Shares are fractions of all of them."""

    texts: int
    grammatical: float
    """Share in which each sentence can stand in its place, and which are complete."""
    consistent: float
    """Share that are grammatical, and in which what refers back agrees with what was said."""
    breaks: tuple[Break, ...]
    """The first break of each text that is not both, for the first few of them."""

    @property
    def figures(self) -> dict[str, float]:
        """Return the shares by name."""
        return {"grammatical": self.grammatical, "consistent": self.consistent}

    @property
    def protocol(self) -> str:
        """Return one sentence that says how the shares were taken."""
        return (
            f"Of {self.texts:,} whole texts, the share that the stories' grammar can write (grammatical) and that also "
            "agree with themselves (consistent); a text cut off before its end is neither."
        )


def judge_stories(texts: Sequence[str], breaks: int = 5) -> StoryQuality:
    """Judge texts by the grammar of the stories; keep the first ``breaks`` breaks for reading.

    Raises:
        InputError: There are no texts.
    """
    if not texts:
        raise InputError("there are no stories to judge; write at least one")
    verdicts = [parse(text) for text in texts]
    grammatical = sum(verdict.grammatical for verdict in verdicts)
    consistent = sum(verdict.grammatical and verdict.consistent for verdict in verdicts)
    broken = [_break(i, text, verdict) for i, (text, verdict) in enumerate(zip(texts, verdicts, strict=True))]
    found = tuple(b for b in broken if b is not None)[:breaks]
    return StoryQuality(len(texts), grammatical / len(texts), consistent / len(texts), found)


def _break(index: int, text: str, verdict: Verdict) -> Break | None:
    if verdict.offset is None or verdict.message is None:
        return None
    before, after = text[: verdict.offset][-_SHOWN:], text[verdict.offset :][:_SHOWN]
    excerpt = f"{before}>>>{after}".replace("\n", " ")
    return Break(index, verdict.offset, verdict.message, excerpt)
