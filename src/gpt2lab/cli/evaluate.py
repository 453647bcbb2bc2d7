"""What is done with a trained model: ``gpt2lab sample``, ``report``, ``trust``, ``import-hf``, ``export-hf``,
``export-html``, ``export-gguf``, and ``gpt2lab eval perplexity|positions|hellaswag|harness|text``.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from tyro.conf import Positional, arg

from gpt2lab import console
from gpt2lab.cli.arguments import Checkpoint, Command, Model, Split
from gpt2lab.errors import InputError, require
from gpt2lab.files import new_directory, write_atomically, write_json
from gpt2lab.imports import trust
from gpt2lab.runs import Run

if TYPE_CHECKING:
    from gpt2lab.evaluation.measure import LoadedRun
    from gpt2lab.evaluation.text_quality import TextQuality as MeasuredTexts

TABLE_WIDTH = 130
"""Columns of the table of texts in a file; a narrower terminal wraps its lines."""


@dataclass(frozen=True)
class Sample(Command):
    """Generate text with a trained model, printed token by token.

    Without any of --greedy, --temperature, --top-k and --top-p, the strategy is nucleus sampling at 0.9.
    """

    model: Model
    prompt: str = ""
    """Text to continue; by default the model begins a new document."""
    special_tokens: bool = False
    """Recognize the tokenizer's special tokens in the prompt; by default their texts are ordinary text."""
    greedy: bool = False
    """Always take the most probable token."""
    temperature: float | None = None
    """Divide the logits by this number; below 1 makes likely tokens likelier."""
    top_k: int | None = None
    """Sample among this many of the most probable tokens (top-k sampling)."""
    top_p: float | None = None
    """Sample among the most probable tokens that together have this probability (nucleus sampling)."""
    samples: int = 1
    """Number of texts."""
    max_new_tokens: int = 300
    """Longest continuation in tokens."""
    seed: int = 1337
    """Random seed; the same seed gives the same texts."""

    def run(self) -> None:
        """Stream one text as it is generated, or print each of several as it ends."""
        from gpt2lab.generation import DecodingStrategy, encode_prompt, outgrows, seeded, stream, stream_text

        names = ("temperature", "top_k", "top_p")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        strategy = DecodingStrategy(**(given or ({} if self.greedy else {"top_p": 0.9})), greedy=self.greedy)
        require(self.samples >= 1, "samples", self.samples, "at least 1")
        run = self.model.load()
        model, tokenizer, samples = run.model, run.tokenizer, self.samples
        tokens = encode_prompt(tokenizer, self.prompt, samples, run.runtime.device, self.special_tokens)
        generator = seeded(self.seed, run.runtime.device)
        texts = dict.fromkeys(range(samples), self.prompt) if samples > 1 else {}
        if samples == 1:
            print(self.prompt, end="", flush=True)
        length = tokens.shape[1] - 1  # the last list of pieces is not a token
        with run.runtime.autocast():
            columns = stream(model, tokens, self.max_new_tokens, strategy, generator, tokenizer.eot)
            for pieces in stream_text(columns, tokenizer, samples):
                length += 1
                if samples == 1:
                    print(pieces[0] or "", end="", flush=True)
                for row in list(texts):
                    if (piece := pieces[row]) is None:
                        print(f"--- sample {row + 1} of {samples}, {strategy} ---\n{texts.pop(row)}\n", flush=True)
                    else:
                        texts[row] += piece
        if samples == 1:
            print()
        for row, text in texts.items():
            print(f"--- sample {row + 1} of {samples}, {strategy}, cut off ---\n{text}\n")
        if outgrows(model, length):
            print(
                f"output exceeded the {model.config.n_ctx:,}-token context; older tokens were dropped", file=sys.stderr
            )


@dataclass(frozen=True)
class _OnHeldOutText(Command):
    """A measurement on held-out text."""

    model: Model
    data: Path | None = None
    """Directory of prepared data; by default the data of the run."""
    split: Split | None = None
    """Split to measure; by default test."""
    text: Path | None = None
    """Measure a text file instead; <|endoftext|> in it separates documents."""
    by_document: bool = False
    """Let no window cross a document boundary; always on for runs with --mask-documents."""


@dataclass(frozen=True)
class Perplexity(_OnHeldOutText):
    """Measure perplexity per token and per word, and bits per byte, on held-out text."""

    detokenize: Literal["wikitext"] | None = None
    """Undo the tokenization of this corpus first, as in GPT-2's paper."""
    context: int | None = None
    """Longest context in tokens; by default the sequence length of training."""
    stride: int | None = None
    """Tokens by which the window advances; by default half the context."""

    def run(self) -> None:
        """Print the figures with their protocol and add them to the run's evals.csv."""
        from gpt2lab.evaluation.measure import Measurement
        from gpt2lab.evaluation.perplexity import perplexity_of

        run = self.model.load()
        context = run.seq_len if self.context is None and self.text is None else self.context
        by_document = self.by_document or run.mask_documents  # trained on one document at a time
        text = run.held_out(self.data, self.split, self.text, self.detokenize)
        with text as held_out, console.bar("tokens") as progress, run.runtime.autocast():
            found = perplexity_of(run.model, held_out, context, self.stride, by_document, progress)
        run.print_and_record(Measurement("perplexity", held_out.name, found.protocol, found.figures))


@dataclass(frozen=True)
class Positions(_OnHeldOutText):
    """Measure the loss by position in the context, and plot it."""

    context: int | None = None
    """Window length in tokens; by default the model's context."""

    def run(self) -> None:
        """Print some of the curve; save all of it, with its plot, in the run directory."""
        from gpt2lab.evaluation.perplexity import loss_by_position, save_positions

        run = self.model.load()
        by_document = self.by_document or run.mask_documents
        text = run.held_out(self.data, self.split, self.text)
        with text as held_out, console.bar("tokens") as progress, run.runtime.autocast():
            curve = loss_by_position(run.model, held_out, self.context, by_document, progress)
        curve = replace(curve, protocol=run.protocol(curve.protocol))
        print(f"{curve.split}, checkpoint of step {run.checkpoint.step}\nposition  loss (nats per token)")
        last = len(curve.losses)
        for position in [*(1 << n for n in range(last.bit_length()) if 1 << n < last), last]:
            loss = curve.losses[position - 1]
            print(f"{position:8,}  {math.nan if loss is None else loss:.4f}")
        print(f"protocol: {curve.protocol}")
        for path in save_positions(run.run, run.checkpoint.step, curve):
            print(path)


@dataclass(frozen=True)
class HellaSwag(Command):
    """Measure accuracy on HellaSwag: how often the model prefers the right one of four endings.

    Contexts are cut from the left to fit the model. Items with an ending longer than its context are left out, by name.
    """

    model: Model
    items: Path | None = None
    """HellaSwag's .jsonl file; by default the validation split, downloaded from the Hub (needs the extra hub)."""
    style: Literal["completion", "harness"] = "completion"
    """completion (GPT-2 124M: 29.55 %), or the wording of lm-evaluation-harness (31.14 %)."""
    limit: int | None = None
    """Use only the first items."""

    def run(self) -> None:
        """Print the figures with their protocol and add them to the run's evals.csv."""
        from gpt2lab.evaluation.hellaswag import encode_items, fetch_hellaswag, hellaswag, read_hellaswag
        from gpt2lab.evaluation.measure import Measurement

        require(self.limit is None or self.limit >= 1, "limit", self.limit, "at least 1; leave it out for all items")
        run = self.model.load()
        items = (fetch_hellaswag() if self.items is None else read_hellaswag(self.items))[: self.limit]
        encoded = encode_items(run.tokenizer, items, run.model.config.n_ctx, self.style)
        with console.bar("endings") as progress, run.runtime.autocast():
            found = hellaswag(run.model, encoded, progress)
        run.print_and_record(Measurement("hellaswag", "val", found.protocol, found.figures))


@dataclass(frozen=True)
class LMHarness(Command):
    """Evaluate the model with EleutherAI's lm-evaluation-harness (needs the extra harness)."""

    model: Model
    tasks: Annotated[tuple[str, ...], arg(metavar="TASK")]
    """Tasks of the harness, such as hellaswag lambada_openai."""
    tasks_dir: Path | None = None
    """Directory of task definitions to use instead of the harness's own."""
    limit: int | None = None
    """Use only the first items of each task."""
    shots: int | None = None
    """Number of examples before each item; by default the task's own."""

    def run(self) -> None:
        """Print the figures and add them to the run's evals.csv."""
        run = self.model.load()
        try:
            from gpt2lab.evaluation.harness import HarnessModel, run_harness
        except ImportError as error:
            raise InputError(f'{error}; install lm-evaluation-harness: pip install "gpt2lab[harness]"') from error
        model = HarnessModel(run.model, run.tokenizer, run.runtime, console.bar)
        for measured in run_harness(model, self.tasks, self.tasks_dir, self.limit, self.shots):
            run.print_and_record(measured)


@dataclass(frozen=True)
class TextQuality(Command):
    """Complete held-out prompts with each decoding strategy and compare the texts with the reference continuations."""

    model: Model
    data: Path | None = None
    """Directory of prepared data; by default the data of the run."""
    split: Split = "test"
    """Split that the prompts come from."""
    samples: int = 64
    """Number of prompts."""
    prompt_tokens: int | None = None
    """Length of a prompt in tokens; by default 32, or a quarter of the context if that is less."""
    max_new_tokens: int | None = None
    """Longest continuation in tokens; by default 256, or the rest of the context if that is less."""
    seed: int = 1337
    """Random seed; the same seed gives the same texts."""

    def run(self) -> None:
        """Print the table; save it, with its plot, in the run directory."""
        from gpt2lab.evaluation.text_quality import choose_prompts, measure_texts, save_text_quality

        run = self.model.load()
        dataset = run.dataset(self.data)
        split = run.split_name(dataset, self.split)
        size = (self.samples, self.prompt_tokens, self.max_new_tokens)
        prompts = choose_prompts(dataset, self.split, run.model.config.n_ctx, *size)
        with console.bar("strategies") as progress:
            quality = measure_texts(run.model, run.tokenizer, prompts, run.runtime, self.seed, progress)
        quality = replace(quality, protocol=run.protocol(quality.protocol))
        table = table_of(quality, f"{split}, checkpoint of step {run.checkpoint.step}")
        # print(width=...) of the shared console is limited to the terminal's width, and would cut figures off
        console.Console(width=max(console.console.width, TABLE_WIDTH), highlight=False).print(table)
        print(f"protocol: {quality.protocol}")
        for path in save_text_quality(run.run, run.checkpoint.step, split, quality):
            print(path)


def table_of(texts: MeasuredTexts, title: str) -> Table:
    """Return the quality of texts as a table for the terminal, a row for each decoding strategy."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    head, *rows = texts.table
    for name in head:
        table.add_column(name.replace(" ", "\n"), justify="left" if name == "texts" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


@dataclass(frozen=True)
class Report(Command):
    """Write a report of runs, as a PDF or as one self-contained HTML file."""

    runs: Positional[tuple[Path, ...]]
    """Directories of runs, or of a comparison."""
    out: Path | None = None
    """File to write, .pdf or .html; by default report.html in the first directory."""
    title: str = ""
    """Title of the report; by default the name of the run."""
    author: str = ""
    """Author, shown below the title."""
    date: str = ""
    """Date, shown below the title."""
    notes: Path | None = None
    """A Markdown file with notes of your own, such as what could be improved; formulas stand between $ or $$."""

    def run(self) -> None:
        """Write the report and print its path."""
        from gpt2lab.report.content import Cover
        from gpt2lab.report.write import report_on

        if not self.runs:
            raise InputError("no run given; give the directory of at least one run")
        cover = Cover(self.title, self.author, self.date)
        print(report_on(self.runs, self.out or self.runs[0] / "report.html", self.notes, cover))


@dataclass(frozen=True)
class Trust(Command):
    """Trust the custom code in someone else's run, such as its mask, on this machine.

    Read the file first: it can do whatever you can. It is trusted by its SHA-256, in every run that has it.
    """

    directory: Positional[Path]
    """Directory of the run."""

    def run(self) -> None:
        """Trust the file, with the modules that it imports, and print their paths."""
        file = trust(Run.open(self.directory))
        for each in (file, *file.beside):
            print(f"{each.path}: trusted, SHA-256 {each._replace(beside=()).sha256}")


@dataclass(frozen=True)
class Quantize(Command):
    """Round a run's weights to 8 or 4 bits for writing on a CPU, and save them as a run of their own.

    Prints what that costs: size and perplexity, before and after, on the test split of the run or on a text.
    """

    directory: Positional[Path]
    """Directory of the run."""
    out: Positional[Path]
    """Directory of the new run; it must not exist."""
    width: Literal["int8", "int4"] = "int8"
    """int8 has a scale for each row of a matrix; int4 a scale and a zero point for every 32 numbers of a row."""
    checkpoint: Checkpoint = "best"
    """Checkpoint to round."""
    data: Path | None = None
    """Directory of prepared data, whose test split is measured; by default the data of the run."""
    text: Path | None = None
    """Measure on a text file instead; <|endoftext|> in it separates documents."""
    measure: bool = True
    """Measure the perplexity before and after."""

    def run(self) -> None:
        """Write the run and print the table."""
        from gpt2lab.evaluation.measure import LoadedRun
        from gpt2lab.formatting import size
        from gpt2lab.model.quantized import QuantizedGPT
        from gpt2lab.training.checkpoint import find
        from gpt2lab.training.session import save_quantized

        Run.require_new(self.out)
        if not self.measure and (self.data, self.text) != (None, None):
            raise InputError(
                "--no-measure would ignore the text to measure; leave out --data and --text, or --no-measure"
            )
        before = LoadedRun(self.directory, self.checkpoint, "cpu", "auto")
        if self.measure and before.config is None and self.data is self.text is None:
            raise InputError(
                f"{self.directory} was imported and has no data to measure the cost on; give --data DIR, --text FILE "
                "or --no-measure"
            )
        after = LoadedRun(self.directory, self.checkpoint, "cpu", "auto", self.width)
        losses = [self._loss(loaded) for loaded in (before, after)] if self.measure else []
        assert isinstance(after.model, QuantizedGPT)
        new = save_quantized(after.model, after.tokenizer, self.out, after.checkpoint, after.run.config)
        sizes = [
            (checkpoint.path / "model.safetensors").stat().st_size
            for checkpoint in (before.checkpoint, find(new, "last"))
        ]
        print(f"{self.out}: the weights of {self.directory}, step {after.checkpoint.step}, in {self.width}")
        print(f"size        {size(sizes[0])} to {size(sizes[1])}")
        if losses:
            first, second = map(math.exp, losses)
            print(f"perplexity  {first:.4f} to {second:.4f} ({100 * (second / first - 1):+.2f} %)")

    def _loss(self, run: LoadedRun) -> float:
        """Return the mean loss in nats per token."""
        from gpt2lab.evaluation.perplexity import perplexity_of

        text = run.held_out(self.data, None, self.text)
        with text as held_out, console.bar("tokens") as progress, run.runtime.autocast():
            return perplexity_of(run.model, held_out, progress=progress).loss


@dataclass(frozen=True)
class ImportHF(Command):
    """Import a GPT-2, Llama or Qwen3 in Hugging Face's format as a run, to sample, evaluate and fine-tune."""

    source: Positional[str]
    """Directory that save_pretrained wrote, or a name on the Hub: gpt2, gpt2-xl, distilgpt2, hub:user/model."""
    directory: Positional[Path]
    """Directory of the run; it must not exist."""
    tokenizer: Path | None = None
    """Directory of the tokenizer, or a name on the Hub; by default the one beside the model."""

    def run(self) -> None:
        """Import the model and print what the run holds."""
        from gpt2lab.hub import find_model
        from gpt2lab.model.gpt import GPT
        from gpt2lab.model.huggingface import FILES
        from gpt2lab.tokenizer.tokenizer import Tokenizer
        from gpt2lab.training.session import save_imported

        path = self.directory
        if path.exists():
            raise InputError(f"{path} exists; give another name for the run")
        folder = find_model(self.source, FILES)
        model = GPT.from_hf(folder)
        save_imported(model, Tokenizer.load(self.tokenizer or folder), path, self.source)
        vocabulary = f"a vocabulary of {model.config.vocab_size:,}"
        print(f"{path}: {model.n_params:,} parameters, {vocabulary}, imported from {self.source}")
        print(f"next: gpt2lab sample {path}, or gpt2lab train --init {path} --data DIR --out NEW")


@dataclass(frozen=True)
class ExportHF(Command):
    """Export a run's model, tokenizer and model card for Hugging Face's transformers."""

    directory: Positional[Path]
    """Directory of the run."""
    out: Positional[Path]
    """Directory to write; it must not exist, or be empty."""
    checkpoint: Checkpoint = "best"
    """Checkpoint to export."""

    def run(self) -> None:
        """Write the directory and print how to load it."""
        from gpt2lab.evaluation.measure import LoadedRun
        from gpt2lab.formatting import plural
        from gpt2lab.model.gpt import without_mtp
        from gpt2lab.model.huggingface import write_hf
        from gpt2lab.report.write import model_card
        from gpt2lab.tokenizer.tokenizer import END_OF_TEXT

        loaded, out = LoadedRun(self.directory, self.checkpoint, "cpu", "auto"), self.out
        model, tokenizer, step = without_mtp(loaded.gpt), loaded.tokenizer, loaded.checkpoint.step
        eot = None if tokenizer.eot is None else END_OF_TEXT
        with new_directory(out) as folder:
            write_hf(model.config, model.state_dict(), folder, tokenizer.eot)
            tokenizer.export(folder, "huggingface")
            if tokenizer.pattern == "gpt2":  # the only pattern that this pair of files can stand for
                tokenizer.export(folder, "gpt2")
            for_auto_tokenizer = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": model.config.n_ctx,
                "clean_up_tokenization_spaces": False,
                "bos_token": eot,
                "eos_token": eot,
            }
            write_json(folder / "tokenizer_config.json", for_auto_tokenizer)
            card = model_card(loaded.run, model.config, step, out.resolve().name, eot)
            write_atomically(folder / "README.md", card)
        print(f"{out}: {model.n_params:,} parameters of step {step:,}, with tokenizer and model card")
        if heads := loaded.model.config.mtp_depth:
            print(f"left out, since it serves training only: multi-token prediction ({plural(heads, 'head')})")
        print(f'AutoModelForCausalLM.from_pretrained("{out}"); AutoTokenizer.from_pretrained("{out}")')


@dataclass(frozen=True)
class ExportHTML(Command):
    """Export a run's model as one HTML file that runs it in a browser, offline; its weights are rounded to 8 bits."""

    directory: Positional[Path]
    """Directory of the run."""
    out: Positional[Path]
    """File to write; it must not exist."""
    checkpoint: Checkpoint = "best"
    """Checkpoint to export."""

    def run(self) -> None:
        """Write the file and print its size."""
        from gpt2lab.evaluation.measure import LoadedRun
        from gpt2lab.formatting import size
        from gpt2lab.server.single_file import write_single_file

        loaded = LoadedRun(self.directory, self.checkpoint, "cpu", "auto")
        write_single_file(loaded.gpt, loaded.tokenizer, loaded.run.path.resolve().name, self.out)
        print(f"{self.out}: {size(self.out.stat().st_size)}; open it in a browser")


@dataclass(frozen=True)
class ExportGGUF(Command):
    """Export a run's model as a GGUF file for llama.cpp and the programs built on it."""

    directory: Positional[Path]
    """Directory of the run."""
    out: Positional[Path]
    """File to write; it must not exist."""
    type: Literal["f32", "f16", "bf16", "q8_0", "q4_0"] = "f16"
    """Type of the matrices: floating point, or 8 or 4 bits with a scale for every 32 numbers of a row."""
    checkpoint: Checkpoint = "best"
    """Checkpoint to export."""

    def run(self) -> None:
        """Write the file and print its size."""
        from gpt2lab.evaluation.measure import LoadedRun
        from gpt2lab.formatting import size
        from gpt2lab.llama_cpp import write_gguf
        from gpt2lab.model.gpt import without_mtp

        loaded = LoadedRun(self.directory, self.checkpoint, "cpu", "auto")
        name = loaded.run.path.resolve().name
        write_gguf(without_mtp(loaded.gpt), loaded.tokenizer, name, self.out, self.type)
        print(f"{self.out}: {size(self.out.stat().st_size)}; for example: llama-cli -m {self.out}")
