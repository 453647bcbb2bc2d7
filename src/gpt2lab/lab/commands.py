"""What the verbs of the command line do: read, call the library, show progress, print."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from gpt2lab import runtime
from gpt2lab.data import TokenDataset, prepare, texts
from gpt2lab.errors import InputError
from gpt2lab.files import read_json
from gpt2lab.generation import STRATEGIES, Strategy, TextStreamer, encode_prompt, seeded, stream
from gpt2lab.lab import console
from gpt2lab.lab.measure import Measured, measure_perplexity
from gpt2lab.runs import Run
from gpt2lab.tokenizer import Tokenizer
from gpt2lab.training import TrainConfig, from_dict, load_model, saved_config
from gpt2lab.training.config import LENGTHS


def train_tokenizer(
    sources: Sequence[str],
    vocab_size: int,
    out: Path,
    pattern: str,
    special_tokens: Sequence[str],
    max_documents: int | None,
) -> Tokenizer:
    """Train a tokenizer on text and save it.

    Raises:
        InputError: The directory exists, a source cannot be read, or a setting is out of range.
    """
    if out.exists():
        raise InputError(f"{out} exists; give another --out")
    corpus = texts(sources, max_documents=max_documents)
    with console.bar("merges") as progress:
        tokenizer = Tokenizer.train(corpus, vocab_size, special_tokens, pattern=pattern, progress=progress)
    tokenizer.save(out)
    if tokenizer.n_vocab < vocab_size:
        print(f"the text gives {tokenizer.n_vocab:,} entries, not {vocab_size:,}: no pair is left that comes twice")
    print(f"{out}: {tokenizer.n_vocab:,} entries, fingerprint {tokenizer.fingerprint[:16]}")
    return tokenizer


def open_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from its own directory, or from that of a run or of prepared data."""
    return Tokenizer.load(path / "tokenizer" if (path / "tokenizer").is_dir() else path)


def encode_lines(path: Path, source: BinaryIO, out: TextIO) -> None:
    """Write the ids of each line of ``source``, its newline included, as a line of ``out``.

    Raises:
        InputError: The input is not UTF-8 (with the line).
    """
    tokenizer = open_tokenizer(path)
    for number, line in enumerate(source, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"standard input: line {number} is not UTF-8 at its byte {error.start}") from error
        out.write(" ".join(map(str, tokenizer.encode(text))) + "\n")


def decode_lines(path: Path, source: BinaryIO, out: BinaryIO) -> None:
    """Write the bytes of the ids in ``source``.

    Raises:
        InputError: Something is not an id of the vocabulary (with the line).
    """
    tokenizer = open_tokenizer(path)
    for number, line in enumerate(source, start=1):
        try:
            out.write(tokenizer.decode_bytes([int(word) for word in line.decode("ascii").split()]))
        except ValueError as error:
            raise InputError(f"standard input: line {number}: {error}; give ids parted by spaces") from error


def prepare_data(
    sources: Sequence[str],
    tokenizer: Path,
    out: Path,
    max_documents: int | None,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> TokenDataset:
    """Prepare token shards, and print what they hold."""
    with console.counting("preparing") as show:
        dataset = prepare(
            sources,
            open_tokenizer(tokenizer),
            out,
            seed=seed,
            max_documents=max_documents,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            progress=lambda n, size, tokens: show(f"{n:,} documents, {size / 1e6:,.1f} MB, {tokens:,} tokens"),
        )
    for split, info in dataset.manifest.splits.items():
        counts = f"{info.documents:,} documents  {info.tokens:,} tokens  {info.bytes:,} bytes"
        print(f"{split:5}  {counts} ({info.bytes / info.tokens:.2f} a token)")
    print(f"{out}: fingerprint {dataset.fingerprint[:16]}")
    return dataset


def strategy_from(name: str, temperature: float | None, top_k: int | None, top_p: float | None) -> Strategy:
    """Return a named strategy with single settings replaced."""
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return dataclasses.replace(STRATEGIES[name], **{key: value for key, value in given.items() if value is not None})


def print_samples(
    path: Path,
    prompt: str,
    strategy: Strategy,
    samples: int,
    max_new_tokens: int,
    seed: int,
    which: str,
    device: str,
    precision: str,
) -> None:
    """Write texts with a run's model: a single one is printed as it comes, several each when it ends."""
    if samples < 1:
        raise InputError(f"samples is {samples}; give at least 1")
    where = runtime.resolve(device, precision)
    run = Run.open(path)
    model, _ = load_model(run, which, where.device)
    tokenizer = Tokenizer.load(run.tokenizer)
    tokens = encode_prompt(tokenizer, prompt, samples, where.device)
    streamer = TextStreamer(tokenizer, samples)
    open_texts = dict.fromkeys(range(samples), prompt)
    if samples == 1:
        print(prompt, end="", flush=True)
    with where.autocast():
        for column in stream(model, tokens, max_new_tokens, strategy, seeded(seed, where.device), tokenizer.eot):
            ids, pieces = column.tolist(), streamer.feed(column)
            if samples == 1:
                print(pieces[0], end="", flush=True)
                continue
            for row in list(open_texts):
                open_texts[row] += pieces[row]
                if ids[row] == tokenizer.eot:
                    print(f"--- sample {row + 1} of {samples}, {strategy} ---\n{open_texts.pop(row)}\n", flush=True)
    rest = streamer.finish()
    if samples == 1:
        print(rest[0])
        return
    for row, text in open_texts.items():
        print(f"--- sample {row + 1} of {samples}, {strategy}, cut off ---\n{text}{rest[row]}\n")


def print_perplexity(
    path: Path,
    data: Path | None,
    split: str,
    context: int | None,
    stride: int | None,
    which: str,
    device: str,
    precision: str,
) -> Measured:
    """Measure a run's perplexity, print it with its protocol and add it to the run's evals.csv."""
    where = runtime.resolve(device, precision)
    run = Run.open(path)
    config = saved_config(run)
    model, checkpoint = load_model(run, which, where.device)
    dataset = TokenDataset(data or config.data)
    dataset.require_tokenizer(Tokenizer.load(run.tokenizer))
    with console.bar("tokens") as progress:
        measured = measure_perplexity(
            model, dataset, split, config.window if context is None else context, stride, where, progress
        )
    if dataset.fingerprint != checkpoint.state["fingerprints"]["data"]:
        measured = dataclasses.replace(measured, split=f"{split} of {dataset.directory} ({dataset.fingerprint[:16]})")
    measured.record(run, checkpoint.step)
    print(f"{measured.split} split, checkpoint of step {checkpoint.step}")
    for name, value in measured.figures.items():
        print(f"{name.replace('_', ' '):16}  {value:.4f}")
    print(f"protocol: {measured.protocol}")
    return measured


def training_defaults(argv: list[str]) -> tuple[TrainConfig, list[str]]:
    """Return the configuration that the flags of ``gpt2lab train`` start from, and the flags without ``--config``.

    Flags may be spelt with ``_`` as well.

    It is that of the run which is resumed, of a file given by ``--config``, or of the preset.

    Raises:
        InputError: Two of them are given, or the file does not hold one.
    """
    argv = [re.sub(r"^--[^=]+", lambda flag: flag[0].replace("_", "-"), word) for word in argv]
    file, preset, out = (_value_of(argv, flag) for flag in ("--config", "--preset", "--out"))
    resume = _value_of(argv, "--resume")
    if "--config" in argv and (file is None or file.startswith("--")):
        raise InputError("--config needs a file, such as RUN/config.json")
    if file is not None and (preset is not None or resume is not None):
        other = "--preset" if preset is not None else "--resume"
        raise InputError(f"--config and {other} both say where options start from; give one of them")
    if resume is not None and out is not None:
        start = saved_config(Run.open(Path(out)))
    elif file is not None:
        start = dataclasses.replace(from_dict(read_json(Path(file)), where=file), out=None, resume=None)
    else:
        start = TrainConfig(preset=preset or "nano")
    if any(_value_of(argv, f"--{name.replace('_', '-')}") is not None for name in LENGTHS):
        start = dataclasses.replace(start, steps=None, epochs=None, max_tokens=None)
    return start, _without(argv, "--config")


def _value_of(argv: list[str], flag: str) -> str | None:
    for index, word in enumerate(argv):
        if word == flag and index + 1 < len(argv):
            return argv[index + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def _without(argv: list[str], flag: str) -> list[str]:
    if flag in argv:
        index = argv.index(flag)
        return argv[:index] + argv[index + 2 :]
    return [word for word in argv if not word.startswith(f"{flag}=")]
