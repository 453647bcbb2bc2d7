"""The verbs as a tree: find the one that is called, run it, turn what went wrong into a line and an exit code."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Sequence
from typing import Any

from gpt2lab import __version__
from gpt2lab.cli import compare, data, evaluation, lab, tokenizer, training, weights
from gpt2lab.cli.parsing import call
from gpt2lab.errors import InputError, ReportedElsewhere, did_you_mean


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 a check failed, 2 bad input, 128 + n ended by signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding must not break the output
            stream.reconfigure(errors="replace")
    try:
        return _dispatch(arguments, VERBS, "gpt2lab") or 0
    except InputError as error:
        if not isinstance(error, ReportedElsewhere):
            print(f"gpt2lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpt2lab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `gpt2lab ... | head`
        sys.stderr.close()
        return 141
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"gpt2lab: {error.filename or 'a file'}: {error.strerror}; make room and try again", file=sys.stderr)
        return 2
    except Exception as error:
        from gpt2lab.training.distributed import Interrupted, Processes

        if not isinstance(error, Interrupted):
            raise
        if Processes.from_environment().main:
            print(error)
        return 128 + error.signal


VERBS: dict[str, Any] = {
    "quickstart": lab.quickstart,
    "check": lab.check,
    "tokenizer": {
        "train": tokenizer.train,
        "show": tokenizer.show,
        "export": tokenizer.export,
        "encode": tokenizer.encode,
        "decode": tokenizer.decode,
    },
    "data": {"list": data.list_, "prepare": data.prepare, "adopt": data.adopt, "show": data.show},
    "train": training.train,
    "sample": evaluation.sample,
    "eval": {
        "perplexity": evaluation.perplexity,
        "positions": evaluation.positions,
        "hellaswag": evaluation.hellaswag,
        "harness": evaluation.harness,
        "text": evaluation.text,
    },
    "compare": compare.compare,
    "plan": lab.plan,
    "report": lab.report,
    "import-hf": weights.import_hf,
    "export-hf": weights.export_hf,
}
"""The command line as a tree of functions."""


def _dispatch(argv: list[str], verbs: dict[str, Any], prog: str) -> int:
    """Run the verb that ``argv`` begins with."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(verbs, prog))
        return 0 if argv else 2
    if argv[0] == "--version" and prog == "gpt2lab":
        print(f"gpt2lab {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in verbs:
        raise InputError(f'there is no "{prog} {name}"{did_you_mean(name, verbs)}; choose from {", ".join(verbs)}')
    verb = verbs[name]
    if isinstance(verb, dict):
        return _dispatch(rest, verb, f"{prog} {name}")
    return verb(rest) if verb in (training.train, compare.compare) else call(verb, rest, f"{prog} {name}")


def _overview(verbs: dict[str, Any], prog: str) -> str:
    """Return the help of a group of verbs: a line for each, from its docstring."""
    lines = []
    for name, verb in verbs.items():
        group = verb if isinstance(verb, dict) else {"": verb}
        lines += [(f"{name} {sub}".strip(), str(function.__doc__).split("\n")[0]) for sub, function in group.items()]
    width = max(len(name) for name, _ in lines)
    listed = "\n".join(f"  {name:<{width}}  {about}" for name, about in lines)
    about = "GPT-2 from scratch, and a laboratory around it.\n\n" if prog == "gpt2lab" else ""
    return f"{about}usage: {prog} COMMAND [OPTIONS]\n\n{listed}\n\nEach has its own --help."
