"""The commands as a tree: find the one that is called, run it, turn an error into one line and an exit code."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Mapping, Sequence

from gpt2lab import __version__
from gpt2lab.cli.arguments import Command
from gpt2lab.cli.compare import Compare
from gpt2lab.cli.data import ImportShards, ListCorpora, Prepare, ShowData
from gpt2lab.cli.evaluate import HellaSwag, LMHarness, Perplexity, Positions, TextQuality
from gpt2lab.cli.export import ExportHF, ImportHF, Report
from gpt2lab.cli.plan import Plan
from gpt2lab.cli.sample import Sample
from gpt2lab.cli.start import Check, Quickstart
from gpt2lab.cli.tokenizer import Decode, Encode, ExportTokenizer, ShowTokenizer, TrainTokenizer
from gpt2lab.cli.train import Train
from gpt2lab.errors import InputError, ReportedElsewhere, did_you_mean

Tree = Mapping[str, "type[Command] | Tree"]
COMMANDS: Tree = {
    "quickstart": Quickstart,
    "check": Check,
    "tokenizer": {
        "train": TrainTokenizer,
        "show": ShowTokenizer,
        "export": ExportTokenizer,
        "encode": Encode,
        "decode": Decode,
    },
    "data": {"list": ListCorpora, "prepare": Prepare, "import": ImportShards, "show": ShowData},
    "train": Train,
    "sample": Sample,
    "eval": {
        "perplexity": Perplexity,
        "positions": Positions,
        "hellaswag": HellaSwag,
        "harness": LMHarness,
        "text": TextQuality,
    },
    "compare": Compare,
    "plan": Plan,
    "report": Report,
    "import-hf": ImportHF,
    "export-hf": ExportHF,
}
"""Every command by name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 success, 1 a check failed, 2 bad input, 128 + n for signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding must not break the output
            stream.reconfigure(errors="replace")
    try:
        return _dispatch(arguments, COMMANDS, "gpt2lab")
    except InputError as error:
        if not isinstance(error, ReportedElsewhere):
            print(f"gpt2lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpt2lab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # nobody reads our output any more, as in `gpt2lab ... | head`
        sys.stderr.close()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"gpt2lab: {error.filename or 'a file'}: {error.strerror}; free space and try again", file=sys.stderr)
        return 2
    except Exception as error:
        from gpt2lab.training.distributed import Communicator, Interrupted

        if not isinstance(error, Interrupted):
            raise
        if Communicator.from_environment().is_main:
            print(error)
        return 128 + error.signal


def _dispatch(argv: list[str], commands: Tree, prog: str) -> int:
    """Run the command that ``argv`` begins with."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(commands, prog))
        return 0 if argv else 2
    if argv[0] == "--version" and prog == "gpt2lab":
        print(f"gpt2lab {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in commands:
        choices = ", ".join(commands)
        raise InputError(f'"{prog} {name}" is not a command{did_you_mean(name, commands)}; choose from {choices}')
    command = commands[name]
    if isinstance(command, Mapping):
        return _dispatch(rest, command, f"{prog} {name}")
    return command.parse(rest, f"{prog} {name}").run()


def _overview(commands: Tree, prog: str) -> str:
    """Return the help of a group of commands: a line for each, from its docstring."""
    lines = []
    for name, command in commands.items():
        group = command if isinstance(command, Mapping) else {"": command}
        lines += [(f"{name} {sub}".strip(), str(each.__doc__).split("\n")[0]) for sub, each in group.items()]
    width = max(len(name) for name, _ in lines)
    listed = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in lines)
    about = "GPT-2 from scratch, and a laboratory around it.\n\n" if prog == "gpt2lab" else ""
    return f"{about}usage: {prog} COMMAND [OPTIONS]\n\n{listed}\n\nRun {prog} COMMAND --help for its options."
