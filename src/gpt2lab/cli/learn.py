"""``gpt2lab learn start``: the course in which one builds GPT-2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gpt2lab.cli.arguments import Command
from gpt2lab.learn import exercises

Chapters = Annotated[tuple[int, ...], arg(metavar="[CHAPTER ...]")]


@dataclass(frozen=True)
class LearnStart(Command):
    """Write the exercises: a file for each chapter, with the parts to complete, and my_gpt2.py, which joins them."""

    directory: Positional[Path]
    """Where to write; files that exist are never overwritten."""
    chapters: Positional[Chapters] = ()
    """Chapters from 1 to 10; all by default."""
    style: Literal["functions", "modules"] = "functions"
    """Write the layers of chapters 4 to 6 as functions of tensors, or as PyTorch modules."""

    def run(self) -> None:
        """Write the files and say what to do next."""
        written = exercises.start(self.directory, self.chapters, self.style)
        print(f"wrote {', '.join(path.name for path in written)} to {self.directory}")
        first = written[0]
        chapter = exercises.FILES.index(first.name) + 1
        page = f"docs/build/{chapter:02}-{exercises.SLUGS[chapter - 1]}.md"
        print(f"next: read {page}, complete {first}, then run: gpt2lab learn check {self.directory} {chapter}")
