"""The commands as a tree: find the one that is called, run it, turn an error into one line and an exit code."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Mapping, Sequence

from gpt2lab import __version__
from gpt2lab.errors import InputError, ReportedElsewhere, did_you_mean

Command = tuple[str, str]
"""``module:class`` below `gpt2lab.cli`, and the first line of its help. A module is imported when its command runs."""
Group = Mapping[str, Command]
COMMANDS: Mapping[str, Command | Group] = {
    "quickstart": ("train:Quickstart", "Train a GPT-2 from scratch and write its report, without any download."),
    "check": ("train:Check", "Check that everything works on this machine; exit code 1 if something does not."),
    "tokenizer": {
        "train": ("tokenizer:TrainTokenizer", "Train a byte-level BPE tokenizer on text."),
        "show": ("tokenizer:ShowTokenizer", "Show how a tokenizer splits text and how well its vocabulary fits."),
        "add-special": ("tokenizer:AddSpecial", "Add special tokens to a tokenizer."),
        "import": ("tokenizer:ImportTokenizer", "Read a tiktoken file of ranks."),
        "export": ("tokenizer:ExportTokenizer", "Write a tokenizer in the format of another program."),
        "encode": ("tokenizer:Encode", "Encode text from standard input to ids, line by line."),
        "decode": ("tokenizer:Decode", "Decode ids from standard input to text."),
    },
    "data": {
        "list": ("data:ListCorpora", "List the corpora that are known by name."),
        "prepare": ("data:Prepare", "Tokenize text into shards, split into train, validation and test."),
        "import": ("data:ImportShards", "Use token files of another project as prepared data."),
        "show": ("data:ShowData", "Show what prepared data holds: counts, tokens, lengths, duplicates, documents."),
    },
    "train": ("train:Train", "Train a GPT-2 on prepared data, or resume a run."),
    "sample": ("evaluate:Sample", "Generate text with a trained model, printed token by token."),
    "play": ("serve:Play", "Open trained models in the browser: write, look inside, compare, watch."),
    "serve": ("serve:Serve", "Serve trained models with OpenAI's completions API."),
    "eval": {
        "perplexity": ("evaluate:Perplexity", "Measure perplexity per token and per word, and bits per byte."),
        "positions": ("evaluate:Positions", "Measure the loss by position in the context, and plot it."),
        "hellaswag": ("evaluate:HellaSwag", "Measure accuracy on HellaSwag, with two ways of scoring the endings."),
        "harness": ("evaluate:LMHarness", "Evaluate the model with EleutherAI's lm-evaluation-harness."),
        "text": ("evaluate:TextQuality", "Compare the texts of each decoding strategy with held-out continuations."),
    },
    "compare": ("train:Compare", "Compare variants of a model fairly, with paired seeds and confidence intervals."),
    "learn": {
        "start": ("learn:LearnStart", "Write the exercises of the course, from bytes to a GPT-2 of your own."),
        "check": ("learn:LearnCheck", "Check your parts one by one: what is right, and what is wrong and why."),
        "grade": (
            "learn:LearnGrade",
            "Grade a class: points by a rubric, a page for each student and one for the teacher.",
        ),
    },
    "plan": ("train:Plan", "Estimate what a training run takes: memory, time, floating-point operations, disk."),
    "report": ("evaluate:Report", "Write a report of runs, as a PDF or as one self-contained HTML file."),
    "trust": ("evaluate:Trust", "Trust the custom code in someone else's run."),
    "quantize": ("evaluate:Quantize", "Round a run's weights to 8 or 4 bits, for writing on a CPU."),
    "import-hf": ("evaluate:ImportHF", "Import a model in Hugging Face's format as a run."),
    "export-hf": ("evaluate:ExportHF", "Export a run for Hugging Face's transformers."),
    "export-html": ("evaluate:ExportHTML", "Export a run as one HTML file that runs the model in a browser, offline."),
    "export-gguf": ("evaluate:ExportGGUF", "Export a run as a GGUF file for llama.cpp."),
}


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
        from gpt2lab.files import is_full

        if not is_full(error):
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


def _dispatch(argv: list[str], commands: Mapping[str, Command | Group], prog: str) -> int:
    """Run the command that ``argv`` begins with."""
    if argv[:1] == ["help"] and len(argv) > 1:
        return _dispatch([*argv[1:], "--help"], commands, prog)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview(commands, prog))
        return 0 if argv else 2
    if argv[0] in ("--version", "version") and prog == "gpt2lab":
        print(f"gpt2lab {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in commands:
        choices = ", ".join(commands)
        raise InputError(f'"{prog} {name}" is not a command{did_you_mean(name, commands)}; choose from {choices}')
    command = commands[name]
    if isinstance(command, Mapping):
        return _dispatch(rest, command, f"{prog} {name}")
    module, _, kind = command[0].partition(":")
    return getattr(importlib.import_module(f"gpt2lab.cli.{module}"), kind).parse(rest, f"{prog} {name}").run() or 0


def _overview(commands: Mapping[str, Command | Group], prog: str) -> str:
    """Return the help of a group of commands, a line for each."""
    lines = []
    for name, command in commands.items():
        group = command if isinstance(command, Mapping) else {"": command}
        lines += [(f"{name} {sub}".strip(), summary) for sub, (_, summary) in group.items()]
    width = max(len(name) for name, _ in lines)
    listed = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in lines)
    about = "GPT-2 from scratch, and a laboratory around it.\n\n" if prog == "gpt2lab" else ""
    return f"{about}usage: {prog} COMMAND [OPTIONS]\n\n{listed}\n\nRun {prog} COMMAND --help for its options."
