"""The facts of a run in words: its summary, its architecture, how it was trained, and where."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from gpt2lab.lab import words
from gpt2lab.lab.content import Fact
from gpt2lab.lab.record import Record


def summary(record: Record) -> str:
    """Say in a sentence or two what was trained on what, for how long, and how good it is."""
    said = _what(record)
    if record.metrics:
        said += f", trained {_how_long(record)}"
    split, figures = record.held_out_figures()
    perplexity, bits, gap = map(figures.get, ("perplexity", "bits_per_byte", "gap_percent"))
    if perplexity is None:
        return f"{said}. It was not measured on a test set."
    said += f". On the {split} set its perplexity is {words.number(perplexity)} per token"
    if bits is not None:
        said += f", which is {words.number(bits)} bits per byte"
    if gap is not None:
        said += f", {words.percent(gap)} above the entropy of the text"
    return f"{said}."


def _what(record: Record) -> str:
    model = record.options("model")
    if not all(isinstance(model.get(name), int) for name in ("n_layer", "n_head", "n_embd")):
        return "A run whose configuration cannot be read"
    size = f"{words.plural(model['n_layer'], 'layer')}, {words.plural(model['n_head'], 'head')}"
    parameters = "" if record.parameters is None else f" ({words.short(record.parameters)} parameters)"
    return f"A GPT-2 of {size} and width {words.count(model['n_embd'])}{parameters}"


def _how_long(record: Record) -> str:
    steps, tokens, seconds = (record.column(name) for name in ("step", "tokens", "seconds"))
    said = f"for {words.plural(steps[-1], 'step')} on {words.short(tokens[-1])} tokens ({data_name(record)})"
    return f"{said} in {words.duration(seconds[-1])} on {machine(record)}" if seconds else said


def data_name(record: Record) -> str:
    """Return the name of the data's folder and of the one it lies in, from a path of any system."""
    parts = PureWindowsPath(str(record.config.get("data", ""))).parts[-2:]
    return "/".join(part for part in parts if not part.endswith("\\")) or "unnamed data"


def machine(record: Record) -> str:
    """Return the name of the device that the run trained on."""
    device = str(record.config.get("device", "an unknown device"))
    key = "gpus" if device.startswith("cuda") else "processor"
    return str(record.environment.get(key, device))


_MODEL = {
    "n_layer": ("Layers", "L"),
    "n_head": ("Attention heads", "H"),
    "n_embd": ("Width of the residual stream", "C"),
    "head_dim": ("Width of a head", "D"),
    "n_inner": ("Width of the feed-forward layer", "F"),
    "n_ctx": ("Context, in tokens", "T"),
    "vocab_size": ("Vocabulary", "V"),
    "bias": ("Biases", ""),
    "dropout": ("Dropout", ""),
    "kernel": ("Attention kernel", ""),
    "n_kv_head": ("Heads of keys and values", ""),
    "position": ("Positions", ""),
    "rope_base": ("Base of the rotary angles", ""),
    "mask": ("Mask", ""),
    "window": ("Window of the mask, in tokens", ""),
    "prefix": ("First tokens that all read", ""),
    "norm": ("Place of layer norm", ""),
}
_GPT2: dict[str, Any] = {"n_kv_head": None, "position": "learned", "mask": "causal", "norm": "pre"}
_GPT2 |= {"window": None, "prefix": None}
"""What GPT-2 has of the options that make another architecture of it; these are shown where they differ."""


def model_facts(record: Record) -> tuple[Fact, ...]:
    """Return the architecture's numbers with the symbols of the equations.

    Options that make another architecture are left out where they are GPT-2's; one without a label keeps its name.
    """
    options = dict(record.options("model"))
    width, heads = options.get("n_embd"), options.get("n_head")
    if isinstance(width, int) and isinstance(heads, int) and heads > 0:
        options["head_dim"] = width // heads
    if isinstance(width, int) and options.get("n_inner", 0) is None:
        options["n_inner"] = 4 * width
    if options.get("position") != "rope":
        options.pop("rope_base", None)
    options = {name: value for name, value in options.items() if name not in _GPT2 or value != _GPT2[name]}
    order = [*(name for name in _MODEL if name in options), *(name for name in options if name not in _MODEL)]
    labelled = [(*_MODEL.get(name, (name, "")), options[name]) for name in order]
    facts = [Fact(label, words.setting(value), symbol) for label, symbol, value in labelled]
    parameters = words.MISSING if record.parameters is None else words.count(record.parameters)
    return (*facts, Fact("Parameters", parameters))


def training_facts(record: Record) -> tuple[Fact, ...]:
    """Return how the run was trained, in words."""
    config, optim = record.config, record.options("optim")
    if not optim:  # nothing is known, or the weights were imported
        return ()
    muon = optim.get("name") == "muon"
    prints = record.state.get("fingerprints")
    marks = prints if isinstance(prints, dict) else {}
    vocabulary = words.setting(record.options("model").get("vocab_size"))
    return (
        Fact("Data", data_name(record), _fingerprint(marks, "data")),
        Fact("Tokenizer", f"byte-level BPE, {vocabulary} entries", _fingerprint(marks, "tokenizer")),
        Fact("Length", _length(record), _ended(record)),
        Fact("Batch", f"{words.setting(config.get('batch_tokens'))} tokens a step", _batch(record)),
        Fact(
            "Optimiser",
            ("Muon on the blocks' matrices, on the rest " if muon else "")
            + f"AdamW, β = ({words.setting(optim.get('beta1'))}, {words.setting(optim.get('beta2'))}), "
            f"ε = {words.setting(optim.get('eps'))}",
            f"weight decay {words.setting(optim.get('weight_decay'))}, on matrices only",
        ),
        Fact("Learning rate", *_schedule(optim)),
        *(
            [Fact("Muon's learning rate", words.setting(optim.get("muon_lr") or 0.02), "the same schedule")]
            if muon
            else []
        ),
        Fact("Gradient clipping", f"norm at most {words.setting(optim.get('grad_clip'))}"),
        Fact("Validation", f"every {words.setting(config.get('eval_every'))} steps", _validation(config)),
        Fact("Precision", words.setting(config.get("precision")), f"compiler {words.setting(config.get('compile'))}"),
        Fact("Device", words.setting(config.get("device")), machine(record)),
        Fact("Seed", str(config.get("seed")), "decides weights, order of the data and dropout"),
    )


def _fingerprint(marks: Mapping[str, Any], what: str) -> str:
    return f"fingerprint {str(marks[what])[:16]}" if what in marks else ""


def _length(record: Record) -> str:
    steps, epochs = record.column("step"), record.column("epoch")
    if not steps:
        return words.MISSING
    said = words.plural(steps[-1], "step")
    unit = "rounds of the stream" if record.streamed else "times through the training set"
    return f"{said}, {words.number(epochs[-1], 3)} {unit}" if epochs else said


def _ended(record: Record) -> str:
    finished = record.state.get("finished")
    return f"ended: {finished}" if finished else "not ended"


def _batch(record: Record) -> str:
    """Say how a step's batch is made up, where the configuration has whole numbers for it."""
    config = record.config
    window = config.get("seq_len") or record.options("model").get("n_ctx")
    batch, micro = config.get("batch_tokens"), config.get("micro_batch")
    if not (isinstance(batch, int) and isinstance(micro, int) and isinstance(window, int) and micro * window > 0):
        return ""
    world = record.state.get("world")
    world = world if isinstance(world, int) and world > 0 else 1
    passes = batch // (micro * window * world)
    made_of = f"{words.plural(micro, 'sequence')} of {window:,}"
    made_of += f" on each of {world} processes" if world > 1 else ""
    return made_of if passes == 1 else f"{passes:,} passes of {made_of}, accumulated"


def _schedule(optim: Mapping[str, Any]) -> tuple[str, str]:
    """Return the peak, and how the rate goes up to it and down again."""
    lowest, warmup = optim.get("min_lr"), optim.get("warmup_steps")
    up = "5 % of the steps, 2,000 at most," if warmup is None else words.plural(warmup, "step")
    low = "a tenth of it" if lowest is None else words.setting(lowest)
    shapes = {
        "cosine": f"cosine decay to {low}",
        "linear": f"a line down to {low}",
        "constant": "constant",
        "wsd": "constant until a line down to 0 at the end",
    }
    down = shapes.get(str(optim.get("schedule", "cosine")), str(optim.get("schedule")))
    return f"{words.setting(optim.get('lr'))} at most", f"linear warm-up over {up} then {down}"


def _validation(config: Mapping[str, Any]) -> str:
    tokens = config.get("eval_tokens")
    return f"on {tokens:,} tokens, spread evenly" if tokens else "on the whole validation set"


def flatten(config: Mapping[str, Any]) -> tuple[Fact, ...]:
    """Return every option as ``config.json`` has it, under the name that its flag has: ``model.n_layer``.

    A path below the working directory is shown from there, as it would be typed: a report is given to others.
    """
    return tuple(Fact(name, json.dumps(_typed(value), ensure_ascii=False)) for name, value in _leaves(config, ""))


def _typed(value: Any) -> Any:
    here = Path.cwd()
    if isinstance(value, str) and Path(value).is_absolute() and Path(value).is_relative_to(here):
        return Path(value).relative_to(here).as_posix()
    return value


def _leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def environment(record: Record) -> tuple[Fact, ...]:
    """Return the versions and the machine."""
    return tuple(Fact(name, words.setting(value)) for name, value in record.environment.items())
