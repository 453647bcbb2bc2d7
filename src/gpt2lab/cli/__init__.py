"""The command line: one function per verb, which parses, calls and prints.

Every flag is made by tyro from the types and docstrings of these functions or from `TrainConfig`. A verb imports what
it needs when it runs, so that ``gpt2lab --help`` answers at once. What a verb does stands in `gpt2lab.lab`.
"""

from gpt2lab.cli.dispatch import VERBS, main

__all__ = ["VERBS", "main"]
