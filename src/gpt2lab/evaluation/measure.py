"""A run directory, opened: `LoadedRun`, to evaluate one of its checkpoints, and `RunData`, to report what it holds.

    LoadedRun    a model is loaded once, and every result is stored with its protocol in the run's evals.csv
    RunData ─┬─ config, environment, metrics, evals, samples      files of the run
             ├─ state, parameters                                 of its newest checkpoint
             └─ texts, positions                                  saved evaluations of its newest step that has them

Text to evaluate on is a split of prepared data, or a text file. WikiText (Merity et al. 2016) is published as separate
tokens: spaces around punctuation, ``@-@`` for a hyphen within a word. GPT-2 was trained on ordinary text, so its paper
(Radford et al. 2019, section 3.1) undoes this with "invertible de-tokenizers", which lowers perplexity by 2.5 to 5.
That code is unpublished. The rules here invert the tokenization of WikiText, except ``<unk>``, which cannot be
restored. Perplexity per word still counts the words of the given text.

    " = = History = = "              == History ==
    1 @,@ 200 km ( 750 mi )          1,200 km (750 mi)
    the " <unk> " , he 'd say        the "<unk>", he'd say
"""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from gpt2lab import runtime
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.data.prepare import prepare
from gpt2lab.data.sources import texts
from gpt2lab.errors import InputError, one_of
from gpt2lab.evaluation.perplexity import POSITIONS_FILE, HeldOut, PositionCurve
from gpt2lab.evaluation.text_quality import TEXT_FILE, TextQuality
from gpt2lab.files import from_json, read_text, sha256_of
from gpt2lab.imports import import_from
from gpt2lab.model.gpt import GPT, attention_weights, require_gpt
from gpt2lab.model.quantized import QuantizedGPT, Width, dequantized, quantized
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.checkpoint import list_checkpoints, load_model, load_tokenizer
from gpt2lab.training.config import STREAM, ResolvedConfig, held_out_data, saved_config

T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """Results that were measured together, under one protocol."""

    task: str
    split: str
    protocol: str
    figures: dict[str, float]
    """Values by the name of their metric."""

    def record(self, run: Run, step: int) -> None:
        """Add each value to the run's evals.csv."""
        for metric, value in self.figures.items():
            run.add_eval(step, self.task, self.split, self.protocol, metric, value)


class LoadedRun:
    """A run with the weights of one of its checkpoints; the precision ``auto`` is that of training, if supported.

    Args:
        path: Run directory.
        which: Checkpoint: ``best``, ``last`` or a step.
        device: Device, or ``auto``.
        precision: Precision, or ``auto``.
        quantize: ``int8`` or ``int4``: round the weights. Activations are then bf16.

    Raises:
        InputError: The run, checkpoint, device or precision does not exist, the checkpoint is damaged, or the weights
            cannot be rounded.
    """

    def __init__(self, path: Path, which: str, device: str, precision: str, quantize: Width | None = None) -> None:
        runtime.tune_allocator()
        self.runtime = runtime.resolve(device, precision)
        self.run = Run.open(path)
        self.model, self.checkpoint = load_model(self.run, which, self.runtime.device)
        self.width = self._quantize(quantize, precision)
        """Bits of the weights if they are quantized, else None."""
        self.config = None if self.checkpoint.data_fingerprint is None else saved_config(self.run)
        """None if the model was imported."""
        if precision == "auto" and self.config is not None and self.width is None:
            self.runtime = _as_trained(self.runtime, self.config)
        self.tokenizer = load_tokenizer(self.run, self.checkpoint)

    def _quantize(self, width: Width | None, precision: str) -> Width | None:
        """Round the weights if that is asked for, unless they were loaded so; return their width."""
        held = self.checkpoint.width
        if width is not None and held is None:
            if self.runtime.device.type != "cpu":
                raise InputError(f"quantize {width} is for CPUs, and the device is {self.runtime.device}; leave it out")
            self.model = quantized(self.gpt, width)
        elif width not in (None, held):
            raise InputError(f"{self.checkpoint.path} already holds {held} weights; quantize the run it was made from")
        width = width or held
        if width is not None:
            if precision not in ("auto", "bf16"):
                raise InputError(f"{width} weights are used with bf16 activations; leave out precision {precision}")
            self.runtime = runtime.resolve("cpu", "bf16")
        return width

    @property
    def gpt(self) -> GPT:
        """The model as an ordinary GPT, if its inside is known; quantized weights as what they stand for.

        Raises:
            InputError: It is a class of the user's own.
        """
        return dequantized(self.model) if isinstance(self.model, QuantizedGPT) else require_gpt(self.model)

    def protocol(self, measured: str) -> str:
        """Return a protocol that says whether the weights are quantized."""
        return measured if self.width is None else f"{measured} The weights are {self.width}."

    @property
    def seq_len(self) -> int:
        """Tokens in a training sequence; for an imported model, the context length."""
        return self.model.config.n_ctx if self.config is None else self.config.seq_len

    @property
    def mask_documents(self) -> bool:
        """Whether attention stayed within documents in training."""
        return self.config is not None and self.config.mask_documents

    def dataset(self, data: Path | None) -> TokenDataset:
        """Open prepared data, by default those of the run.

        Raises:
            InputError: The data cannot be read, were prepared with another tokenizer, or are needed but not given.
        """
        if data is None:
            if self.config is None:
                raise InputError(
                    f"{self.run.path} was imported and has no data; give --data DIR, prepared with its tokenizer"
                )
            data = held_out_data(self.run, self.config)
        dataset = TokenDataset(data)
        dataset.require_tokenizer(self.tokenizer)
        return dataset

    def split_name(self, dataset: TokenDataset, split: str) -> str:
        """Return what results call a split: its name, and which data it is of unless the run was trained on them."""
        known = dataset.fingerprint == self.checkpoint.data_fingerprint
        return split if known else f"{split} of {dataset.directory} ({dataset.fingerprint[:16]})"

    @contextmanager
    def held_out(
        self, data: Path | None, split: str | None, text: Path | None, detokenize: str | None = None
    ) -> Iterator[HeldOut]:
        """Open a text file if one is given, else a split.

        Raises:
            InputError: Both are given, or what is given cannot be read.
        """
        if text is None:
            if detokenize is not None:
                raise InputError(f"detokenize {detokenize} needs a text file; give --text FILE")
            dataset, split = self.dataset(data), split or "test"
            yield HeldOut.of_split(dataset, split, self.split_name(dataset, split))
            return
        if data is not None or split is not None:
            raise InputError("--text evaluates on a text file; leave out --data and --split, or --text")
        with held_out_text(text, self.tokenizer, detokenize) as held_out:
            yield held_out

    def print_and_record(self, measured: Measurement) -> None:
        """Print results with their protocol and add them to the run's evals.csv."""
        measured = dataclasses.replace(measured, protocol=self.protocol(measured.protocol))
        measured.record(self.run, self.checkpoint.step)
        print(f"{measured.split}, checkpoint of step {self.checkpoint.step}")
        for name, value in measured.figures.items():
            print(f"{name.replace('_', ' '):16}  {value:.4f}")
        print(f"protocol: {measured.protocol}")


def _as_trained(found: Runtime, config: ResolvedConfig) -> Runtime:
    """Return the runtime with the precision of training, so that evaluations of a run agree: ``auto`` may go by timing.

    What was trained in bf16 on a GPU may be slow in it on a CPU, so on another kind of device only fp32 is kept.
    """
    if config.precision != "fp32" and torch.device(config.device).type != found.device.type:
        return found
    try:
        kept = runtime.resolve(str(found.device), config.precision)
    except InputError:  # tf32 on an older GPU
        return found
    return dataclasses.replace(kept, precision_reason="as in training")


@contextmanager
def held_out_text(file: Path, tokenizer: Tokenizer, detokenize: str | None) -> Iterator[HeldOut]:
    """Tokenize a text file into a temporary directory; ``<|endoftext|>`` in the text separates documents.

    Args:
        file: UTF-8 text.
        tokenizer: The tokenizer of the model.
        detokenize: A name in `DETOKENIZERS`: undo this tokenization of the corpus first.

    Raises:
        InputError: The file cannot be read or holds no text, or the name is unknown.
    """
    if detokenize is not None:
        one_of("detokenize", detokenize, DETOKENIZERS)
    words = sum(len(piece.split()) for piece in texts([str(file)]))
    name = f"{file.name} ({sha256_of(file)[:16]})"
    with tempfile.TemporaryDirectory() as folder:
        source, preparation = file, ""
        if detokenize is not None:
            source = Path(folder) / "text.txt"
            source.write_text(DETOKENIZERS[detokenize](read_text(file)), encoding="utf-8", newline="\n")
            preparation = f"The tokenization of {detokenize} is undone first; words are counted before that. "
        dataset = prepare([str(source)], tokenizer, Path(folder) / "data", val_fraction=0.0, test_fraction=0.0)
        yield HeldOut.of_split(dataset, "train", name, words, preparation)


_WIKITEXT = (
    (r" @([-,.])@ ", r"\1"),
    (r"(?<==) (?==)", ""),  # a heading
    (r'" ([^"\n]*?) "', r'"\1"'),
    (r"(?<=s) '(?= )", "'"),
    (r"(?<= )' ([^'\n]*?) '(?= )", r"'\1'"),
    (r" '(?=(?:s|m|d|t|ll|re|ve)\b)", "'"),
    (r"(?<=\d) ([–‑/]) (?=\d)", r"\1"),
    (r"([$£€]) (?=\d)", r"\1"),
    (r"([(\[{]) ", r"\1"),
    (r" (?=[,.;:!?%)\]}](?:[ ,.;:!?%)\]}\"']|$))", ""),
    (r"^ | $", ""),
)
"""Patterns and what replaces them, in this order."""


def wikitext(text: str) -> str:
    """Undo the tokenization of WikiText, line by line.

    >>> wikitext(" It weighs 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 – 4 @.@ 9 lb ) . ")
    'It weighs 0.7–2.2 kg (1.5–4.9 lb).'
    """
    for pattern, replacement in _WIKITEXT:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text


DETOKENIZERS: dict[str, Callable[[str], str]] = {"wikitext": wikitext}
"""Functions of whole lines, by their names for ``--detokenize``."""


@dataclass(frozen=True)
class EvalRow:
    """A row of evals.csv."""

    step: int
    task: str
    split: str
    protocol: str
    metric: str
    value: float


@dataclass(frozen=True)
class SampleText:
    """A line of samples.jsonl. ``text`` begins with the ``prompt``."""

    step: int
    strategy: str
    prompt: str
    text: str
    verdict: str = ""


class RunData:
    """What a run directory holds; nothing that is missing or damaged raises."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.damage: list[str] = []
        """What cannot be read, in one line each; that part is empty."""
        self.refused: list[str] = []
        """Why the code that the model needs was not run; what the run directory holds is known all the same."""
        for path in (run.path / name for name in ("metrics.csv", "evals.csv", "samples.jsonl")):
            if path.is_file() and not self._read(path.read_bytes, b"\n").endswith(b"\n"):
                what = "ends within a line, which is left out; its write was interrupted, or it was cut"
                self.damage.append(f"{path}: {what}")
        self.config = self._read(lambda: run.config, {})
        if self.config:
            self._read(lambda: import_from(run), None, self.refused)
        self.environment = self._read(lambda: run.environment, {})
        self.metrics = self._read(run.metrics, [])
        self.evals = self._read(lambda: [_eval_row(row) for row in run.evals()], [])
        file = run.path / "samples.jsonl"
        self.samples = self._read(lambda: [from_json(SampleText, s, file, others=True) for s in run.samples()], [])
        self.state: dict[str, Any] = {}
        """The scalars of the newest checkpoint; empty if there is none."""
        self.parameters: int | None = None
        """Without the padding of the vocabulary, the tied head counted once; None if there are no weights."""
        if complete := [c for c in list_checkpoints(run) if (c.path / "manifest.json").is_file()]:
            self.state = self._read(lambda: complete[-1].state, {})
            counted = self.state.get("parameters")  # of a class of the author's own
            self.parameters = counted or self._read(lambda: _count_parameters(complete[-1].path, self.config), None)
        self.texts = self._read(lambda: run.saved_evaluation(TEXT_FILE, TextQuality), None)
        """Quality of the texts of each decoding strategy, if it was measured."""
        self.positions = self._read(lambda: run.saved_evaluation(POSITIONS_FILE, PositionCurve), None)
        """Loss by position, if it was measured."""

    def _read(self, read: Callable[[], T], default: T, problems: list[str] | None = None) -> T:
        try:
            return read()
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            problems = self.damage if problems is None else problems
            problems.append(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
            return default

    def options(self, group: str) -> dict[str, Any]:
        """Return a group of the configuration, such as ``model``; empty if there is none."""
        options = self.config.get(group)
        return options if isinstance(options, dict) else {}

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the data and the tokenizer, as far as the newest checkpoint has them."""
        fingerprints = self.state.get("fingerprints")
        return {k: str(v) for k, v in fingerprints.items()} if isinstance(fingerprints, dict) else {}

    @property
    def streamed(self) -> bool:
        """Whether the corpus was prepared in shards during training, which ``epoch`` counts then."""
        return str(self.config.get("data")).startswith(STREAM)

    def column(self, name: str) -> list[float]:
        """Return the finite values of a column of metrics.csv, in the order of steps."""
        return [y for _, y in self.curve("step", name)]

    def curve(self, x: str, y: str) -> list[tuple[float, float]]:
        """Return two columns of metrics.csv as points, where both have a value and that of ``y`` is finite."""
        pairs = [(row[x], row[y]) for row in self.metrics]
        return [(a, b) for a, b in pairs if a is not None and b is not None and math.isfinite(b)]

    def test_figures(self) -> dict[str, float]:
        """Return the newest perplexity figures on the test set by name, all of one protocol."""
        return self._figures_on("test")

    def held_out_figures(self) -> tuple[str, dict[str, float]]:
        """Return "test" and its figures; if there are none, "validation" and its figures."""
        test = self.test_figures()
        val = {} if test else self._figures_on("val")
        return ("validation", val) if val else ("test", test)

    def _figures_on(self, split: str) -> dict[str, float]:
        rows = [e for e in self.evals if (e.task, e.split) == ("perplexity", split)]
        if not rows:
            return {}
        newest = max(reversed(rows), key=lambda e: e.step)
        return {e.metric: e.value for e in rows if (e.step, e.protocol) == (newest.step, newest.protocol)}


def _eval_row(row: dict[str, str]) -> EvalRow:
    return EvalRow(**row | {"step": int(row["step"]), "value": float(row["value"])})  # type: ignore[arg-type]


def _count_parameters(checkpoint: Path, config: dict[str, Any]) -> int:
    """Count from the shapes in the header of the weights, whatever the architecture; no tensor is read."""
    weights = checkpoint / "model.safetensors"
    try:
        with safe_open(weights, framework="np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  not a mapping
    except (OSError, SafetensorError) as error:
        raise InputError(f"{weights}: cannot be read ({error}); the checkpoint is damaged") from error
    heads = [shapes[name] for name in ("wte.weight", "lm_head.weight") if name in shapes]
    padding = sum((rows - config["model"]["vocab_size"]) * width for rows, width in heads)
    return sum(math.prod(shape) for shape in shapes.values()) - padding


MAX_TOKENS = 22
MAX_PARAMETERS = 200_000_000
"""Larger models are not loaded for a figure."""


@dataclass(frozen=True)
class AttentionMap:
    """Attention weights of the first and the last layer over a text, the mean over their heads."""

    tokens: tuple[str, ...]
    layers: dict[str, list[list[float]]]
    """(T, T) weights by title, such as "Layer 1"; row i holds the weights of query i."""
    step: int


def attention_map(data: RunData) -> AttentionMap | None:
    """Run the best checkpoint on the newest sample.

    None if there is neither, the model is too large, or it or its blocks are a user's own, which may have no attention.

    Raises:
        InputError: The checkpoint or the tokenizer is damaged.
    """
    if not data.samples or not 0 < (data.parameters or 0) <= MAX_PARAMETERS:
        return None
    model, checkpoint = load_model(data.run, "best")
    if not isinstance(model, GPT) or model.config.block is not None:
        return None
    tokenizer = load_tokenizer(data.run, checkpoint)
    start = [] if tokenizer.eot is None else [tokenizer.eot]
    ids = [*start, *tokenizer.encode(data.samples[-1].text[:2_000])][: min(MAX_TOKENS, model.config.n_ctx)]
    if len(ids) < 2:
        return None
    means = attention_weights(model, torch.tensor([ids])).mean(dim=2)[:, 0]  # (L, T, T)
    labels = tuple("start" if i == tokenizer.eot else _visible(tokenizer.decode([i])) for i in ids)
    return AttentionMap(labels, {f"Layer {n}": means[n - 1].tolist() for n in (1, len(means))}, checkpoint.step)


def _visible(text: str) -> str:
    """Return a token as a label that shows spaces and line breaks."""
    return "".join({" ": "␣", "\n": "↵"}.get(c, c if c.isprintable() else "�") for c in text)
