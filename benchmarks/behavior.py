"""Record what the program computes, to the last bit, and compare it after a change of the code.

    python benchmarks/behavior.py record FILE [--only PREFIX]      write FILE
    python benchmarks/behavior.py compare FILE [--only PREFIX]     record again; exit code 1 if anything differs

Losses and metrics are kept as hexadecimal floats; weights, shards and long texts as SHA-256. Almost everything goes
through the command line and the public API, so a record of an older version can be compared with a newer one. A record
is valid for one machine, one version of torch and one thread, to which every process here is limited. Real text is read
from the directory in GPT2LAB_DATA (by default ``../shared/data``). It takes four to five minutes on two cores.

Not recorded, since it varies between runs or is not computation: times, speeds, memory, versions, paths, plots, and the
wording of messages, protocols and tables; and, since a C++ compiler decides the bits, runs with --compile on and the
flex kernel.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file

from gpt2lab import GPT, GPTConfig, Tokenizer, TrainConfig, generate, train
from gpt2lab.data.sources import documents

DATA = Path(os.environ.get("GPT2LAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
SHAKESPEARE, WIKITEXT = DATA / "tinyshakespeare.txt", DATA / "wikitext2-valid.txt"
HELLASWAG = DATA / "hellaswag_val_1000.jsonl"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Record: TypeAlias = dict[str, str | list[str]]
Options: TypeAlias = Mapping[str, object]

SMALL: Options = {
    "steps": 50,
    "log_every": 1,
    "eval_every": 25,
    "eval_tokens": 2048,
    "checkpoint_every": 25,
    "batch_tokens": 512,
    "micro_batch": 8,
    "compile": "off",
    "precision": "fp32",
    "model.n_layer": 2,
    "model.n_head": 4,
    "model.n_embd": 64,
    "model.n_ctx": 64,
    "model.dropout": 0.0,
}
"""What the cases of training start from, by the names of `TrainConfig`: one micro-step a step."""
BASE: Options = {
    **SMALL,
    "batch_tokens": 1024,
    "micro_batch": 2,
    "model.n_ctx": 256,
    "model.dropout": 0.1,
    "hellaswag_every": 25,
    "sample_every": 25,
    "sample_prompt": "One day",
}
"""The run that is resumed, measured, sampled from and exported: two micro-steps a step."""
NARROW: Options = {"model.mask": "window", "model.window": 16}
DIVERGING: Options = {
    "batch_tokens": 16,
    "micro_batch": 1,
    "seq_len": 16,
    "optim.schedule": "constant",
    "optim.lr": 0.9,
    "optim.warmup_steps": 30,
}
"""Small batches, and a learning rate that becomes too high: losses spike."""
TRAINING: dict[str, Options] = {
    "adamw": {},
    "muon": {"optim.name": "muon"},
    "dropout": {"model.dropout": 0.1},
    "accumulation": {"micro_batch": 2},
    "short": {"seq_len": 32, "micro_batch": 16},
    "epochs": {"steps": None, "epochs": 0.2},
    "window": NARROW,
    "global": {"model.mask": "global", "model.window": 8, "model.prefix": 4},
    "strided": {"model.mask": "strided", "model.window": 8},
    "rope": {"model.position": "rope"},
    "sinusoidal": {"model.position": "sinusoidal"},
    "no-position": {"model.position": "none"},
    "grouped": {"model.n_kv_head": 2},
    "multi-query": {"model.n_kv_head": 1, "model.position": "rope", **NARROW},
    "post-norm": {"model.norm_placement": "post", "model.bias": False},
    "documents": {"mask_documents": True},
    "documents-rope": {"mask_documents": True, "model.position": "rope", **NARROW},
    "activation-checkpointing": {"activation_checkpointing": True, "model.dropout": 0.1},
    "wsd": {"optim.schedule": "wsd", "optim.decay_fraction": 0.4, "optim.warmup_tokens": 2000},
    "linear": {"optim.schedule": "linear", "optim.min_lr": 0.0, "optim.grad_clip": 0.5, "optim.beta2": 0.99},
    "spikes": {"on_spike": "skip", "spike_z": 0.3, **DIVERGING},
    # A few steps of a narrow model: CPUs without bf16 products are slow at this.
    "bf16": {"precision": "bf16", "steps": 4, "batch_tokens": 128, "micro_batch": 1, "model.n_embd": 32},
}
"""Runs on stories by name, with `train`: what differs from SMALL."""
COMMANDS: dict[str, Options] = {
    "cli": {"model.position": "rope", "model.bias": False, "mask_documents": True},
    "ddp": {"parallel": "ddp", "micro_batch": 2},
    "ddp-muon": {"parallel": "ddp", "micro_batch": 2, "optim.name": "muon", "model.dropout": 0.1},
    "fsdp": {"parallel": "fsdp", "micro_batch": 2},
    "fsdp-muon": {"parallel": "fsdp", "micro_batch": 2, "optim.name": "muon", "model.dropout": 0.1},
}
"""The same with the command line; those of ``parallel`` are of two processes, of two micro-steps each."""

PLAIN = ("reference", "matmul", "sdpa")
"""Kernels of every mask."""
WINDOW: dict[str, Any] = {"mask": "window", "window": 16}
GLOBAL: dict[str, Any] = {"mask": "global", "window": 8, "prefix": 4}
MODELS: dict[str, dict[str, Any]] = {
    **{f"causal-{kernel}": {"kernel": kernel} for kernel in ("auto", *PLAIN)},
    **{f"window-{kernel}": {"kernel": kernel, **WINDOW} for kernel in ("auto", *PLAIN, "banded")},
    **{f"global-{kernel}": {"kernel": kernel, **GLOBAL} for kernel in ("auto", "reference", "banded")},
    "strided": {"mask": "strided", "window": 8},
    "prefix": {"mask": "prefix", "prefix": 4},
    "bidirectional": {"mask": "bidirectional"},
    **{position: {"position": position} for position in ("rope", "sinusoidal", "none")},
    "grouped": {"n_kv_head": 2},
    "grouped-rope-window": {"n_kv_head": 1, "position": "rope", **WINDOW},
    "post-norm": {"norm_placement": "post"},
    "no-bias": {"bias": False, "n_inner": 48},
}
"""Architectures by name: what differs from GPT-2's."""

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"greedy": True},
    "all": {},
    "temperature": {"temperature": 0.8},
    "top-k": {"top_k": 20},
    "top-p": {"top_p": 0.9},
    "together": {"temperature": 0.7, "top_k": 50, "top_p": 0.8},
}

ODD_TEXTS = (
    "",
    " \n\t  two  spaces\r\n",
    "naïve café, Ωμέγα, 日本語, 👩‍👩‍👧 e\u0301",
    "I'LL we've don't 12345 1,000.5 x=y+z; <|endoftext|> after",
    "half a pair \ud83d, nothing \x00 here",
)


# ---------------------------------------------------------------------------------------------------------------------
# Values that are equal where the bits are


def exact(value: float | None) -> str:
    """Return a number so that equal texts are equal bits; empty for None."""
    return "" if value is None else value.hex() if isinstance(value, float) else str(value)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_hash(path: Path) -> str:
    return sha256(path.read_bytes())


def text_hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass"))


def ids_hash(ids: Sequence[int]) -> str:
    return sha256(torch.tensor(ids, dtype=torch.int64).numpy().tobytes())


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a hash over names, types, shapes and bits, whatever their order in a file."""
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def numbers(tree: Any, leave_out: Iterable[str] = (), path: str = "") -> Record:
    """Return every number of a JSON tree by its path, without the fields that are left out."""
    if isinstance(tree, dict):
        below = {str(key): value for key, value in tree.items() if key not in leave_out}
    elif isinstance(tree, list):
        if all(value is None or type(value) in (int, float) for value in tree):
            return {path: list(map(exact, tree))}
        below = {str(index): value for index, value in enumerate(tree)}
    else:
        return {path: exact(tree)} if type(tree) in (int, float) else {}
    found: Record = {}
    for key, value in below.items():
        found |= numbers(value, leave_out, f"{path}/{key}" if path else key)
    return found


def under(prefix: str, record: Record) -> Record:
    return {f"{prefix}/{key}": value for key, value in record.items()}


# ---------------------------------------------------------------------------------------------------------------------
# The command line, and what lies in the directories that it writes


def gpt2lab(*words: object, processes: int = 1) -> str:
    """Run a command in a process of its own, or in several under torchrun; return what it prints.

    Raises:
        RuntimeError: It failed.
    """
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "gpt2lab", *map(str, words)]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def flags(options: Options) -> list[str]:
    """Return options by the names of `TrainConfig` as arguments."""
    words: list[str] = []
    for name, value in options.items():
        group, dot, key = name.replace("_", "-").rpartition(".")
        words.append(f"--{group}{dot}{'no-' if value is False else ''}{key}")
        if not isinstance(value, bool):
            words.append(str(value))
    return words


def config_of(options: Options, **places: Any) -> TrainConfig:
    """Return the configuration that `flags` of the same options make."""
    start = TrainConfig(**places)
    trees: dict[str, dict[str, Any]] = {"": {}, "model": {}, "optim": {}}
    for name, value in options.items():
        group, _, key = name.rpartition(".")
        trees[group][key] = value
    model, optim = (replace(getattr(start.filled_in(), name), **trees[name]) for name in ("model", "optim"))
    return replace(start.filled_in(), model=model, optim=optim, **trees[""])


def json_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def newest(run: Path, pattern: str) -> Path:
    """Return what matches in the directory of the highest step."""
    return max(run.glob(f"*/step_*/{pattern}"), key=lambda path: path.relative_to(run).parts[1])


def run_record(run: Path) -> Record:
    """Return what training computed: curves, weights, the optimiser's state, texts written meanwhile."""
    rows = rows_of(run / "metrics.csv")
    found: Record = {
        name: [exact(float(row[name])) for row in rows if row[name]]
        for name in ("step", "tokens", "train_loss", "val_loss", "lr", "grad_norm")
    }
    checkpoint = newest(run, "model.safetensors").parent
    for path in sorted(checkpoint.rglob("*.safetensors")):  # the optimiser's is several files under FSDP
        name = "weights" if path.name == "model.safetensors" else f"state/{path.relative_to(checkpoint).as_posix()}"
        found[name] = tensors_hash(load_file(path))
    samples = (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    found["samples"] = [json.loads(line)["text"] for line in samples]
    return found | figures_of(rows_of(run / "evals.csv"))


def figures_of(rows: Sequence[Mapping[str, str]]) -> Record:
    """Return rows of evals.csv by step, task and metric."""
    return {f"{row['step']}/{row['task']}/{row['metric']}": exact(float(row["value"])) for row in rows}


def data_record(folder: Path) -> Record:
    """Return what was prepared: a hash of each token file, the manifest's counts, the tokenizer."""
    manifest = json_of(folder / "manifest.json")
    found: Record = {path.name: file_hash(path) for path in sorted(folder.glob("*.bin"))}
    found |= {"tokenizer": Tokenizer.load(folder / "tokenizer").fingerprint}
    return found | numbers({"splits": manifest["splits"], "left_out": manifest["left_out"]})


# ---------------------------------------------------------------------------------------------------------------------
# What the parts share


def make_shared(root: Path) -> Iterator[str]:
    """Make what the parts start from in a folder; yield the name of each when it is there."""
    learned = ("--vocab-size", 1024, "--out", root / "words")
    gpt2lab("tokenizer", "train", "--input", "stories", "--max-documents", 1000, *learned)
    yield "words"
    gpt2lab("data", "prepare", "stories", "--max-documents", 400, *in_words(root), "--out", root / "stories")
    yield "stories"
    (root / "items.jsonl").write_text("".join(islice(short_items(), 20)), encoding="utf-8")
    gpt2lab("train", *on_stories(root), "--out", root / "base", "--hellaswag", root / "items.jsonl", *flags(BASE))
    yield "base"
    gpt2lab("export-hf", root / "base", root / "exported")
    yield "exported"


def in_words(root: Path) -> tuple[object, ...]:
    return "--tokenizer", root / "words"


def on_stories(root: Path) -> tuple[object, ...]:
    return "--data", root / "stories"


def new_folder(root: Path) -> Path:
    """Return a new folder of a part's own."""
    return Path(tempfile.mkdtemp(dir=root))


def copy_of_base(root: Path) -> Path:
    """Return a copy of the run ``base``, which a part may change."""
    return Path(shutil.copytree(root / "base", new_folder(root) / "base"))


def short_items() -> Iterator[str]:
    """Yield the lines of HellaSwag that fit a short context in any vocabulary."""
    for line in HELLASWAG.read_text(encoding="utf-8").splitlines(keepends=True):
        item = json.loads(line)
        if len(item["ctx"]) + max(map(len, item["endings"])) < 250:
            yield line


Part: TypeAlias = Callable[[Path], Record]
PARTS: dict[str, Part] = {}
"""What is recorded, by name: functions of the shared folder, which run side by side and in any order."""


def part(name: str) -> Callable[[Part], Part]:
    def add(function: Part) -> Part:
        PARTS[name] = function
        return function

    return add


# ---------------------------------------------------------------------------------------------------------------------
# Training


def train_case(options: Options, root: Path) -> Record:
    run = new_folder(root) / "run"
    config = config_of({**SMALL, **options}, data=root / "stories", out=run)
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        train(config)
    return run_record(run)


def train_command(options: Options, root: Path) -> Record:
    run = new_folder(root) / "run"
    words = ("train", *on_stories(root), "--out", run, *flags({**SMALL, **options}))
    gpt2lab(*words, processes=2 if "parallel" in options else 1)
    return run_record(run)


PARTS |= {f"train/{name}": partial(train_command, options) for name, options in COMMANDS.items()}
PARTS |= {f"train/{name}": partial(train_case, options) for name, options in TRAINING.items()}


@part("train/base")
def base(root: Path) -> Record:
    return run_record(root / "base")


@part("train/resumed")
def resumed(root: Path) -> Record:
    """From step 25 on, a run must become the one that never stopped."""
    run = copy_of_base(root)
    gpt2lab("train", "--out", run, "--resume", 25)
    found = run_record(run)
    return found | {"equals_uninterrupted": str(found == run_record(root / "base"))}


@part("train/fine-tuned")
def fine_tuned(root: Path) -> Record:
    run = new_folder(root) / "run"
    options = {name: value for name, value in BASE.items() if not name.startswith(("model.", "hellaswag"))}
    gpt2lab("train", *on_stories(root), "--init", root / "base", "--out", run, *flags(options))
    return run_record(run)


@part("train/stream")
def stream(root: Path) -> Record:
    run = new_folder(root) / "run"
    gpt2lab("train", "--data", "stream:stories", *in_words(root), "--out", run, *flags(SMALL))
    return run_record(run)


# ---------------------------------------------------------------------------------------------------------------------
# The model alone, and what it writes


def small_model(options: Mapping[str, Any]) -> GPT:
    """Return a model with random weights; they are large, so that every part of it matters."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 64, "vocab_size": 300, "dropout": 0.0}
    model = GPT(GPTConfig(**{**sizes, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


def pass_record(model: GPT, **inputs: torch.Tensor) -> Record:
    """Return logits, loss and gradients of one batch."""
    tokens = torch.randint(300, (2, 65), generator=torch.Generator().manual_seed(2))
    logits = model(tokens[:, :-1], **inputs).logits
    loss = model(tokens[:, :-1], tokens[:, 1:], **inputs).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": exact(loss.item()), "logits": tensors_hash({"": logits}), "gradients": tensors_hash(gradients)}


@part("model")
def models(root: Path) -> Record:
    """Passes of every architecture, also with documents, in training and in bf16."""
    found: Record = {}
    documents_of = (torch.arange(64) >= 20).long().expand(2, -1)
    positions = (torch.arange(64) - 20 * documents_of).contiguous()
    for name, options in MODELS.items():
        found |= under(name, pass_record(small_model(options)))
        if "prefix" not in options and options.get("mask") != "bidirectional":
            separate = pass_record(small_model(options), documents=documents_of, positions=positions)
            found |= under(f"{name}/documents", separate)
    for kernel in PLAIN:
        found |= under(f"dropout-{kernel}", pass_record(small_model({"dropout": 0.1, "kernel": kernel}).train()))
        with torch.autocast("cpu", torch.bfloat16):
            found |= under(f"bf16-{kernel}", pass_record(small_model({"kernel": kernel})))
    return found


def written(model: GPT, tokens: torch.Tensor, count: int, **how: Any) -> list[str]:
    """Return the ids of each row that `generate` gives."""
    ids = generate(model, tokens, count, generator=torch.Generator().manual_seed(7), **how)
    return [" ".join(map(str, row)) for row in ids.tolist()]


@part("generate")
def generated(root: Path) -> Record:
    """The public `generate`: strategies with a trained model, and windows that slide with random ones."""
    model, tokenizer = GPT.from_hf(root / "exported"), Tokenizer.load(root / "exported")
    prompts = [tokenizer.encode(text) for text in ("One day, a little", "On her birthday, she got a new", "Leo had a")]
    length = min(map(len, prompts))
    batch = torch.tensor([prompt[:length] for prompt in prompts])
    found: Record = {f"trained/{name}": written(model, batch, 60, **how) for name, how in STRATEGIES.items()}
    longest = max(map(len, prompts))
    padding = torch.tensor([longest - len(prompt) for prompt in prompts])
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    for name in ("greedy", "together"):
        found[f"padded/{name}"] = written(model, padded, 40, padding=padding, **STRATEGIES[name])
    found["end-of-text"] = written(model, batch, 250, eot=tokenizer.eot, temperature=1.2)
    found["beyond the context"] = written(model, batch[:1], 300, top_p=0.9)
    for name, options in MODELS.items():
        if options.get("kernel", "auto") == "auto":
            sliding, starts = small_model({"n_ctx": 16, **options}), torch.tensor([[1, 2, 3], [4, 5, 6]])
            for how in ("greedy", "together"):
                found[f"sliding/{name}/{how}"] = written(sliding, starts, 40, **STRATEGIES[how])
    return found


@part("sample")
def sampled(root: Path) -> Record:
    """Texts of the command line."""
    found: Record = {}
    cases: dict[str, Options] = {
        "nucleus": {"top-p": 0.9, "temperature": 1.0},
        "likeliest": {"top-k": 1, "top-p": 0.9, "temperature": 1.0},
        "together": {"top-k": 20, "top-p": 0.9, "temperature": 0.7, "seed": 5},
        "temperature": {"top-p": 1.0, "temperature": 0.8, "max-new-tokens": 400},
        "several": {"top-p": 0.9, "temperature": 1.0, "samples": 3},
        "earlier": {"top-p": 0.9, "temperature": 1.0, "checkpoint": 25},
    }
    for name, options in cases.items():
        how = flags({"prompt": "One day", "max-new-tokens": 60, "precision": "fp32", **options})
        said = gpt2lab("sample", root / "base", *how)
        found[name] = [line for line in said.splitlines() if not line.startswith("--- ")]  # headings are wording
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Text and tokens


def tokenizer_record(tokenizer: Tokenizer) -> Record:
    """Return its merges, and the ids that it gives real and odd texts."""
    texts = [path.read_text(encoding="utf-8") for path in (SHAKESPEARE, WIKITEXT)]
    ids = [tokenizer.encode(text) for text in texts]
    batch = tokenizer.encode_batch([text[at : at + 5000] for text in texts for at in range(0, 100_000, 5000)])
    return {
        "entries": str(tokenizer.n_vocab),
        "fingerprint": tokenizer.fingerprint,
        "merges": sha256(repr(tokenizer.merges).encode()),
        "vocabulary": sha256(repr(sorted(tokenizer.vocab.items())).encode()),
        "ids": [ids_hash(each) for each in ids],
        "tokens": [str(len(each)) for each in ids],
        "batch": ids_hash([token for each in batch for token in each]),
        "decoded": [text_hash(tokenizer.decode(each)) for each in ids],
        "readably": ids_hash(tokenizer.encode_reference(texts[1][:3000])),
        "odd": [" ".join(map(str, tokenizer.encode(text))) for text in ODD_TEXTS],
        "special": [" ".join(map(str, tokenizer.encode(text, allowed_special="all"))) for text in ODD_TEXTS],
    }


@part("tokenizer")
def tokenizers(root: Path) -> Record:
    """Vocabularies that are learned, with their files, and GPT-2's own."""
    found = under("openai", tokenizer_record(Tokenizer.gpt2(DATA / "gpt2")))
    folder = new_folder(root)
    for pattern in ("gpt2", "cl100k"):
        out = folder / pattern
        where = ("--input", SHAKESPEARE, "--vocab-size", 1024, "--pattern", pattern, "--out", out)
        gpt2lab("tokenizer", "train", *where)
        found |= under(pattern, tokenizer_record(Tokenizer.load(out)) | {"file": file_hash(out / "tokenizer.json")})
    for form in ("gpt2", "tiktoken"):
        gpt2lab("tokenizer", "export", folder / "gpt2", "--format", form, "--out", folder / form / "export")
        for path in sorted((folder / form / "export").iterdir()):
            found[f"exported/{form}/{path.suffix}"] = file_hash(path)
    found |= under("stories", tokenizer_record(Tokenizer.load(root / "words")))
    own = Tokenizer.train(
        *([SHAKESPEARE.read_text(encoding="utf-8")[:200_000]], 500, ("<|a|>", "<|b|>")),
        pattern=r"[\p{L}\p{N}_]+|[^\p{L}\p{N}_]",
        min_frequency=3,
        processes=1,
    )
    return found | under("own", tokenizer_record(own))


@part("stories")
def story_corpus(root: Path) -> Record:
    """The embedded corpus: the texts, and the information of each."""
    found: Record = {}
    for seed, count in ((0, 200), (3, 50)):
        made = list(documents(["stories"], seed=seed, max_documents=count))
        found[f"{seed}/text"] = text_hash("\n".join("".join(document.pieces()) for document in made))
        found[f"{seed}/bits"] = [exact(document.bits) for document in made]
    return found


def write_sources(folder: Path) -> None:
    """Write files of every kind: paragraphs that come twice, a damaged text, and one packed beside another."""
    text = SHAKESPEARE.read_text(encoding="utf-8")
    paragraphs = text.split("\n\n")[:2000]
    lines = [json.dumps({"body": paragraph}) for paragraph in paragraphs + paragraphs[:300]]
    (folder / "paragraphs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "damaged.txt").write_bytes("naïve café\n".encode("latin-1") * 200 + text[:5000].encode())
    mixed = folder / "mixed"
    mixed.mkdir()
    (mixed / "a.txt").write_text("<|endoftext|>".join(paragraphs[:400]), encoding="utf-8")
    (mixed / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(json.dumps({"text": p}) for p in paragraphs).encode()))


@part("data")
def prepared(root: Path) -> Record:
    """Token files and counts of several sources."""
    found = under("stories", data_record(root / "stories"))
    folder = new_folder(root)
    write_sources(folder)
    paragraphs: Options = {"column": "body", "deduplicate": True, "min-length": 40, "shard-tokens": 20_000}
    cases: dict[str, tuple[list[object], Options]] = {
        "seed": (["stories"], {"seed": 5, "max-documents": 100, "val-fraction": 0.2, "test-fraction": 0.0}),
        "shakespeare": ([SHAKESPEARE], {"val-fraction": 0.1}),
        "paragraphs": ([folder / "paragraphs.jsonl"], paragraphs),
        "damaged": ([folder / "damaged.txt"], {"errors": "replace"}),
        "mixed": ([folder / "mixed", WIKITEXT], {"max-documents": 1500}),
    }
    for name, (sources, options) in cases.items():
        out = folder / name / "prepared"
        gpt2lab("data", "prepare", *sources, *in_words(root), "--out", out, *flags(options))
        found |= under(name, data_record(out))
    adopted = folder / "adopted"
    adopted.mkdir()
    for path in (root / "stories").glob("*.bin"):
        shutil.copy(path, adopted)
    gpt2lab("data", "import", adopted, *in_words(root))
    return found | under("adopted", data_record(adopted))


# ---------------------------------------------------------------------------------------------------------------------
# Measuring, comparing, exporting


def evaluation(verb: str, options: Options, root: Path) -> Record:
    """Return the figures that ``gpt2lab eval`` adds to a run, and the numbers of the file that it may leave."""
    run = copy_of_base(root)
    before = rows_of(run / "evals.csv")
    gpt2lab("eval", verb, run, *flags({"precision": "fp32", **options}))
    found = figures_of(rows_of(run / "evals.csv")[len(before) :])
    if verb in ("positions", "text"):
        kept = json_of(newest(run, f"{verb}.json"))
        found |= numbers(kept)
        for number, example in enumerate(kept.get("examples", ())):
            found[f"completions/{number}"] = list(map(text_hash, example["completions"].values()))
    return found


PARTS |= {
    "eval/perplexity": partial(evaluation, "perplexity", {}),
    "eval/perplexity-short": partial(evaluation, "perplexity", {"split": "val", "context": 64, "stride": 16}),
    "eval/perplexity-documents": partial(evaluation, "perplexity", {"by-document": True, "checkpoint": 25}),
    "eval/perplexity-bf16": partial(evaluation, "perplexity", {"precision": "bf16", "context": 32, "stride": 32}),
    "eval/positions": partial(evaluation, "positions", {}),
    "eval/positions-documents": partial(evaluation, "positions", {"by-document": True, "context": 64}),
    "eval/text": partial(evaluation, "text", {"samples": 12}),
    "eval/text-short": partial(evaluation, "text", {"samples": 16, "prompt-tokens": 8, "max-new-tokens": 24}),
}


@part("eval/wikitext")
def wikitext(root: Path) -> Record:
    """Perplexity of a text file whose tokenization is undone."""
    file = new_folder(root) / "wikitext.txt"
    file.write_text(WIKITEXT.read_text(encoding="utf-8")[:30_000], encoding="utf-8")
    return evaluation("perplexity", {"text": file, "detokenize": "wikitext"}, root)


@part("eval/hellaswag")
def hellaswag(root: Path) -> Record:
    found: Record = {}
    for style in ("completion", "harness"):
        options = {"items": root / "items.jsonl", "style": style, "limit": 18}
        found |= under(style, evaluation("hellaswag", options, root))
    return found


@part("compare")
def compared(root: Path) -> Record:
    """A comparison of two arms; times, speed and memory are left out."""
    out = new_folder(root) / "comparison"
    arms = ("--vary", "model.position=learned,rope", "--seeds", 1)
    gpt2lab("compare", *on_stories(root), "--out", out, *arms, *flags({**SMALL, "steps": 20, "eval-every": 10}))
    timed = {"seconds", "seconds_to_loss", "tokens_per_s", "peak_memory_mb"}
    comparison = json_of(out / "comparison.json")
    metrics = {each["metric"]: each["arms"] for each in comparison["metrics"] if each["metric"] not in timed}
    found = numbers({"target_loss": comparison["target_loss"], "metrics": metrics})
    return found | under("runs", numbers(comparison["runs"], timed))


@part("plan")
def planned(root: Path) -> Record:
    """The numbers of a plan, in their order: memory, micro-batches, operations."""
    found: Record = {}
    for preset, gpus in (("gpt2", 8), ("gpt2-xl", 64)):
        said = gpt2lab("plan", "--preset", preset, "--gpu", "H100", "--gpus", gpus)
        found[preset] = re.findall(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", said)
    return found


@part("export")
def exported(root: Path) -> Record:
    """Weights, configuration and tokenizer for Hugging Face, and the run that is made of them again."""
    folder = root / "exported"
    found: Record = {"weights": tensors_hash(load_file(folder / "model.safetensors"))}
    found |= under("config", numbers(json_of(folder / "config.json")))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        found[name] = file_hash(folder / name)
    run = new_folder(root) / "imported"
    gpt2lab("import-hf", folder, run)
    found["imported"] = tensors_hash(load_file(newest(run, "model.safetensors")))
    how = flags({"top-p": 0.9, "temperature": 1.0, "max-new-tokens": 40, "precision": "fp32"})
    return found | {"imported/text": gpt2lab("sample", run, "--prompt", "One day", *how)}


# ---------------------------------------------------------------------------------------------------------------------
# Recording and comparing


def record_part(name: str, root: Path) -> Record:
    """Return the record of one part; where it fails, the reason under ``failed``."""
    try:
        return under(name, PARTS[name](root))
    except Exception as error:
        return {f"{name}/failed": f"{type(error).__name__}: {error}"}


def limit_threads() -> None:
    os.environ.update(ONE_THREAD)
    torch.set_num_threads(1)


def record(only: str, jobs: int) -> Record:
    """Run the parts whose keys can begin with ``only``, some at a time, and return what they give."""
    chosen = [name for name in PARTS if name.startswith(only) or only.startswith(f"{name}/")]
    begin, found = time.perf_counter(), Record()

    def say(what: str) -> None:
        print(f"{time.perf_counter() - begin:5.0f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory(prefix="behavior-") as folder:
        for made in make_shared(Path(folder)):
            say(made)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, spawn, initializer=limit_threads) as pool:
            waiting = {pool.submit(record_part, name, Path(folder)): name for name in chosen}
            for number, future in enumerate(as_completed(waiting), start=1):
                found |= future.result()
                say(f"{waiting[future]} ({number} of {len(waiting)})")
    return {key: found[key] for key in sorted(found) if key.startswith(only) or key.endswith("/failed")}


def difference(before: str | list[str] | None, after: str | list[str] | None) -> str:
    """Say in two short lines how values differ: of lists, at the first place."""
    where = ""
    if isinstance(before, list) and isinstance(after, list):
        pairs = zip(before, after, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(before), len(after)))
        where = f" at {place} (of {len(before)} and {len(after)})"
        before, after = ("".join(values[place : place + 1]) for values in (before, after))
    shown = ("absent" if value is None else repr(value)[:100] for value in (before, after))
    return "{}\n    before {}\n    after  {}".format(where, *shown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path, help="the record, as JSON")
    parser.add_argument("--only", default="", metavar="PREFIX", help="only keys that begin so, such as train/muon")
    parser.add_argument("--jobs", type=int, default=2, help="parts at a time (default 2)")
    options = parser.parse_args()
    earlier: Record = json_of(options.file) if options.action == "compare" else {}
    limit_threads()
    found = record(options.only, options.jobs)
    if options.action == "record":
        failed = [key for key in found if key.endswith("/failed")]
        for key in failed:
            print(f"{key}: {found[key]}")
        options.file.write_text(json.dumps(found, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
        print(f"{len(found)} values in {options.file}")
        return 1 if failed else 0
    expected = {key: value for key, value in earlier.items() if key.startswith(options.only)}
    differing = [key for key in sorted(expected | found) if expected.get(key) != found.get(key)]
    for key in differing:
        print(f"{key}{difference(expected.get(key), found.get(key))}")
    print(f"{len(differing)} of {len(expected | found)} values differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
