"""The command line: one function per verb, which parses, calls and prints.

Every flag is made by tyro from the types and docstrings below or from `TrainConfig`. A verb imports what it needs
when it runs, so that ``gpt2lab --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import Positional, arg

from gpt2lab import __version__
from gpt2lab.errors import InputError, did_you_mean

T = TypeVar("T")
Checkpoint = Annotated[str, arg(metavar="best|last|STEP")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 a check failed, 2 bad input, 128 + n ended by signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding must not break the output
            stream.reconfigure(errors="replace")
    try:
        return _dispatch(arguments, VERBS, "gpt2lab") or 0
    except InputError as error:
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
        from gpt2lab.training import Interrupted

        if not isinstance(error, Interrupted):
            raise
        print(error)
        return 128 + error.signal


def quickstart(text: Path | None = None, out: Path | None = None, seed: int = 1337) -> int:
    """From text to a trained GPT-2 and its report, without any download.

    Args:
        text: A text file to learn from; without it, stories that the program writes itself.
        out: Directory of the run, which must not exist; without it, runs/quickstart, with a number where that exists.
            The prepared data lies beside it.
        seed: Decides the initial weights, the order of the data and the samples.
    """
    from gpt2lab.lab.quickstart import run_quickstart

    run_quickstart(text, out, seed)
    return 0


def check(data: Path | None = None, device: str = "auto") -> int:
    """Check that everything works on this machine; exit code 1 where something does not.

    Args:
        data: Directory that gpt2lab data prepare wrote, to read a batch of; without it, stories.
        device: auto, cpu, cuda, cuda:1 or mps.
    """
    from gpt2lab.lab.check import run_checks

    return 0 if run_checks(data, device) else 1


def tokenizer_train(
    input: Annotated[tuple[str, ...], arg(metavar="FILE")],
    vocab_size: int,
    out: Path,
    pattern: str = "gpt2",
    special_tokens: tuple[str, ...] = ("<|endoftext|>",),
    max_documents: int | None = None,
) -> int:
    """Learn a byte-level BPE from text.

    Args:
        input: Text files, folders of them, or "stories".
        vocab_size: Entries: 256 bytes, then merges, then the special tokens. 257 gives the byte tokenizer.
        out: Directory to write; it must not exist.
        pattern: How text is split before merging: gpt2, cl100k, or a regular expression.
        special_tokens: Entries that text cannot produce.
        max_documents: Use only so many documents.
    """
    from gpt2lab.lab.commands import train_tokenizer

    train_tokenizer(input, vocab_size, out, pattern, special_tokens, max_documents)
    return 0


def tokenizer_encode(tokenizer: Positional[Path]) -> int:
    """Turn text on standard input into ids on standard output, a line for a line.

    Args:
        tokenizer: Directory of a tokenizer, or of a run.
    """
    from gpt2lab.lab.commands import encode_lines

    encode_lines(tokenizer, sys.stdin.buffer, sys.stdout)
    return 0


def tokenizer_decode(tokenizer: Positional[Path]) -> int:
    """Turn ids on standard input, parted by spaces, into text on standard output.

    Args:
        tokenizer: Directory of a tokenizer, or of a run.
    """
    from gpt2lab.lab.commands import decode_lines

    decode_lines(tokenizer, sys.stdin.buffer, sys.stdout.buffer)
    return 0


def data_prepare(
    sources: Positional[tuple[str, ...]],
    tokenizer: Path,
    out: Path,
    max_documents: int | None = None,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    seed: int = 0,
) -> int:
    """Turn text into token shards with a manifest, split into train, validation and test.

    Args:
        sources: Text files, folders of them, or "stories".
        tokenizer: Directory of the tokenizer.
        out: Directory to write; it must not exist.
        max_documents: Take only the first so many documents.
        val_fraction: Share of the documents held out for validation; 0 for none.
        test_fraction: Share held out for the final test; 0 for none.
        seed: Seed of "stories".
    """
    from gpt2lab.lab.commands import prepare_data

    prepare_data(sources, tokenizer, out, max_documents, val_fraction, test_fraction, seed)
    return 0


def sample(
    run: Positional[Path],
    prompt: str = "",
    strategy: Literal["greedy", "temperature", "top-k", "nucleus"] = "nucleus",
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    samples: int = 1,
    max_new_tokens: int = 300,
    seed: int = 1337,
    checkpoint: Checkpoint = "best",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
) -> int:
    """Write texts with a trained model, streamed as they come.

    Args:
        run: Directory of a run.
        prompt: What the texts begin with.
        strategy: greedy; temperature 0.8; top-k 50; or nucleus 0.9.
        temperature: Divide the logits by it; in place of the strategy's.
        top_k: Draw among so many tokens; in place of the strategy's.
        top_p: Draw among the fewest tokens of this probability mass; in place of the strategy's.
        samples: Texts to write.
        max_new_tokens: Longest continuation in tokens.
        seed: Same seed, same texts.
        checkpoint: Which weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, fp32, bf16 or fp16.
    """
    from gpt2lab.lab.commands import print_samples, strategy_from

    chosen = strategy_from(strategy, temperature, top_k, top_p)
    print_samples(run, prompt, chosen, samples, max_new_tokens, seed, checkpoint, device, precision)
    return 0


def eval_perplexity(
    run: Positional[Path],
    data: Path | None = None,
    split: Literal["train", "val", "test"] = "test",
    context: int | None = None,
    stride: int | None = None,
    checkpoint: Checkpoint = "best",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
) -> int:
    """Measure perplexity and bits per byte on held-out text.

    Args:
        run: Directory of a run.
        data: Prepared data; without it, what the run was trained on.
        split: Which part of it.
        context: Tokens that the model sees at most; without it, the length it was trained with.
        stride: Tokens by which the window moves on; without it, half the context.
        checkpoint: Which weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, fp32, bf16 or fp16.
    """
    from gpt2lab.lab.commands import print_perplexity

    print_perplexity(run, data, split, context, stride, checkpoint, device, precision)
    return 0


def report(runs: Positional[tuple[Path, ...]], out: Path | None = None) -> int:
    """Make a self-contained HTML report of runs.

    Args:
        runs: Directories of runs.
        out: File to write; without it, report.html in the first run's directory.
    """
    from gpt2lab.lab.report import write_report
    from gpt2lab.runs import Run

    if not runs:
        raise InputError("no run given; name the directory of a run")
    print(write_report([Run.open(path) for path in runs], out or runs[0] / "report.html"))
    return 0


def train(argv: list[str]) -> int:
    """Train a GPT-2 on prepared data, or go on with a run."""
    from gpt2lab.lab.commands import training_defaults
    from gpt2lab.training import TrainConfig

    argv = _resume_last(argv)
    defaults, rest = training_defaults(argv)
    config = _parse(TrainConfig, rest, "gpt2lab train", default=defaults)
    from gpt2lab.lab import console, train

    console.log_to_console()
    with console.training_bar() as on_step:
        run = train(config, on_step)
    print(f"{run.path}: config.json metrics.csv curves.png samples.jsonl checkpoints/")
    return 0


def _resume_last(argv: list[str]) -> list[str]:
    """Let ``--resume`` stand alone for ``--resume last``."""
    for index, word in enumerate(argv):
        if word == "--resume" and (index + 1 == len(argv) or argv[index + 1].startswith("--")):
            return [*argv[: index + 1], "last", *argv[index + 1 :]]
    return argv


VERBS: dict[str, Any] = {
    "quickstart": quickstart,
    "check": check,
    "tokenizer": {"train": tokenizer_train, "encode": tokenizer_encode, "decode": tokenizer_decode},
    "data": {"prepare": data_prepare},
    "train": train,
    "sample": sample,
    "eval": {"perplexity": eval_perplexity},
    "report": report,
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
    return train(rest) if verb is train else _call(verb, rest, f"{prog} {name}")


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


def _parse(what: Callable[..., T], argv: list[str], prog: str, default: T | None = None) -> T:
    """Let tyro build ``what`` from the arguments; its framed message on bad ones becomes one line."""
    framed = io.StringIO()
    defaults = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(framed):
            return tyro.cli(what, args=argv, prog=prog, **defaults)  # type: ignore[call-overload]
    except SystemExit as stop:
        if stop.code != 2:
            raise
    raise InputError(_one_line(framed.getvalue(), prog))


def _call(verb: Callable[..., int], argv: list[str], prog: str) -> int:
    """Parse the arguments of a function first, then run it: only the parser's messages are caught."""

    @functools.wraps(verb)
    def bind(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(verb, *args, **kwargs)

    return _parse(bind, argv, prog)()


def _one_line(framed: str, prog: str) -> str:
    """Turn a framed message of several paragraphs into a line: what is wrong, the nearest option, where to look.

    >>> _one_line("╭─ Unrecognized ─╮\\n│ Unrecognized options: --x │\\n╰───╯", "gpt2lab train")
    'train: Unrecognized options: --x; see gpt2lab train --help'
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", framed)
    rows = [line.strip("│ ") for line in text.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split(r"^[─-]+$", "\n".join(rows), flags=re.MULTILINE)
    if "╭" not in text:  # where only ASCII can be printed, the frame's title is a paragraph
        del paragraphs[0]
    parts = [" ".join(paragraph.split()).rstrip(".") for paragraph in paragraphs]
    said = [re.sub(r"Perhaps you meant: (\S+).*", r"did you mean \1?", part) for part in parts if "--help" not in part]
    return f"{prog.removeprefix('gpt2lab ')}: {'; '.join(filter(None, said))}; see {prog} --help"
