"""What a report says about a run, as sentences and as named values.

Every number is one of the run directory's, rounded, or follows from them by the rule that stands here.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import torch

from gpt2lab.data.dataset import HELD_OUT, DataManifest
from gpt2lab.data.documents import SPLITS
from gpt2lab.errors import InputError
from gpt2lab.evaluation.measure import RunData
from gpt2lab.files import read_checked_json
from gpt2lab.formatting import MISSING, count, duration, number, percent, plural, setting, short
from gpt2lab.imports import file_of
from gpt2lab.model.attention import choose_kernel
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.language_model import profile
from gpt2lab.model.parts import BUILT_IN, named_in
from gpt2lab.report.equations import differences, learning_rate, parts, position
from gpt2lab.report.markdown import Markdown, read_markdown
from gpt2lab.report.references import CITE
from gpt2lab.runtime import DTYPES
from gpt2lab.training.config import flatten


@dataclass(frozen=True)
class Fact:
    """A named value; ``note`` is a unit, a symbol or a condition."""

    name: str
    value: str
    note: str = ""


def summary(data: RunData) -> str:
    """Return what was trained on what and for how long, and how good it is."""
    text = _architecture(data)
    if data.metrics:
        steps, tokens, seconds = (data.column(name) for name in ("step", "tokens", "seconds"))
        text += f", trained for {plural(steps[-1], 'step')} on {short(tokens[-1])} tokens ({data_name(data)})"
        text += f" in {duration(seconds[-1])} on {device_name(data)}" if seconds else ""
    split, figures = data.held_out_figures()
    perplexity, bits, gap = map(figures.get, ("perplexity", "bits_per_byte", "gap_percent"))
    if perplexity is None:
        return f"{text}. It was not evaluated on a test set."
    text += f". Its {split} perplexity is {number(perplexity)} per token"
    text += f", or {number(bits)} bits per byte" if bits is not None else ""
    text += f", {percent(gap)} above the entropy floor" if gap is not None else ""
    return f"{text}."


def _architecture(data: RunData) -> str:
    model = data.options("model")
    layers, heads, width = (model.get(name) for name in ("n_layer", "n_head", "n_embd"))
    if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(width, int)):
        return "A run whose configuration cannot be read"
    parameters = "" if data.parameters is None else f" ({short(data.parameters)} parameters)"
    if is_own(data):
        return f"A model of the author's own, class {model['network']}{parameters}"
    return f"A GPT-2 with {plural(layers, 'layer')}, {plural(heads, 'head')} and width {count(width)}{parameters}"


def data_name(data: RunData) -> str:
    """Return the last two parts of the path of the data, on any system."""
    parts = PureWindowsPath(str(data.config.get("data", ""))).parts[-2:]
    return "/".join(part for part in parts if not part.endswith("\\")) or "unnamed data"


def device_name(data: RunData) -> str:
    """Return the name of the device that the run was trained on."""
    device = str(data.config.get("device", "an unknown device"))
    return str(data.environment.get("gpus" if device.startswith("cuda") else "processor", device))


BYTE_VOCABULARY = 257
"""Size of a vocabulary of bytes and the end-of-text token: nothing is merged."""


def task(data: RunData) -> tuple[str, ...]:
    """Return paragraphs about the task, the data and its preparation."""
    entries = data.options("model").get("vocab_size")
    tokenizer = (
        f"by a byte-level BPE {CITE['bpe']} with a vocabulary of {setting(entries)}: a pattern (GPT-2's {CITE['gpt2']} "
        "unless another was given) splits it into words, numbers and punctuation, and the most frequent pairs of "
        "adjacent tokens are merged one by one"
    )
    if isinstance(entries, int) and entries <= BYTE_VOCABULARY:
        tokenizer = f"that are single bytes (a vocabulary of {entries}, with the end-of-text token)"
    seq_len = setting(data.config.get("seq_len") or data.options("model").get("n_ctx"))
    reading = (
        f"reads sequences of {seq_len} tokens; each is visited once per epoch, in an order drawn anew for each epoch."
    )
    if data.config.get("sampling") == "random":
        segment = " of one segment" if data.streamed else ""
        reading = f"reads sequences of {seq_len} tokens{segment}; each begins at a token that is drawn at random."
    elif data.streamed:
        reading = f"reads sequences of {seq_len} tokens of one segment, in an order drawn anew for each."
    goal = (
        "The task is to predict each token of a text from the tokens before it. A good model gives the text a high "
        "probability, which its loss measures, and writes text by sampling one token after another."
    )
    if "data" not in data.config:  # an imported model
        return goal, f"Text is split into tokens {tokenizer}. The data that it was trained on is not recorded."
    return (
        goal,
        f"The text ({data_name(data)}) is split into tokens {tokenizer}. Documents are separated by an end-of-text "
        f"token. {splits(data)} A training step {reading}",
    )


_SPLIT_RULES = {
    "hash": "A hash of its text decides to which split a document belongs ({}).",
    "position": "Each document is cut: its first part is for training, followed by {}.",
    "given": "The corpus comes in splits.",
}
_SPLIT_NAMES = {"train": "training", "val": "validation", "test": "testing"}


def splits(data: RunData) -> str:
    """Return by which rule the data was split, and how large each split is, from its manifest."""
    folder = data.run.stream / HELD_OUT if data.streamed else Path(str(data.config.get("data")))
    streamed = "It is prepared in segments during training. " if data.streamed else ""
    try:
        manifest = DataManifest.load(folder)
    except InputError:
        return f"{streamed}The manifest of {folder.name} cannot be read here, so the splits are not known."
    known = data.fingerprints.get("data")
    if not data.streamed and known not in (None, manifest.fingerprint):
        return f"{folder.name} holds other data now, so the splits of this run are not known."
    rule = manifest.split_rule
    fractions = {"validation": rule.val_fraction, "testing": rule.test_fraction}
    shares = " and ".join(f"{percent(100 * part)} for {name}" for name, part in fractions.items() if part)
    split_by = _SPLIT_RULES[rule.by].format(shares) if shares or rule.by == "given" else "All of it is for training."
    sizes = [
        f"{plural(found.documents, 'document')} ({count(found.tokens)} tokens) for {_SPLIT_NAMES[name]}"
        for name in SPLITS
        if (found := manifest.splits.get(name))
    ]
    held_out_of = "Validation and test documents are held out of the first one. " if data.streamed else ""
    masked = any(shard.mask_sha256 for shard in manifest.shards)
    marked = " Only tokens that are marked count in the loss: of conversations, the replies." if masked else ""
    return f"{streamed}{held_out_of}{split_by} That gives {', '.join(sizes)}.{marked}"


_MODEL = {
    "n_layer": ("Layers", "L"),
    "n_head": ("Attention heads", "H"),
    "n_embd": ("Embedding width", "C"),
    "head_dim": ("Head width", "D"),
    "n_inner": ("Feed-forward width", "F"),
    "n_ctx": ("Context length, in tokens", "T"),
    "vocab_size": ("Vocabulary size", "V"),
    "bias": ("Biases", ""),
    "dropout": ("Dropout", ""),
    "kernel": ("Attention kernel", ""),
    "n_kv_head": ("Key-value heads", ""),
    "position": ("Position encoding", ""),
    "rope_base": ("Base of the rotary angles", ""),
    "rope_pairing": ("Rotary pairing", ""),
    "rope_fraction": ("Rotated fraction of each head", ""),
    "rope_scaling": ("Scaling of the rotary angles", ""),
    "rope_factor": ("Times the trained context", ""),
    "rope_original_ctx": ("Trained context, in tokens", ""),
    "nope_every": ("Without positions: every n-th layer", ""),
    "mask": ("Attention mask", ""),
    "window": ("Window of the mask, in tokens", ""),
    "prefix": ("Prefix of the mask, in tokens", ""),
    "norm": ("Norm", ""),
    "norm_placement": ("Norms stand", ""),
    "norm_eps": ("Epsilon of the norms", "ε"),
    "norm_affine": ("Norms have weights", ""),
    "qk_norm": ("Queries and keys are normalized", ""),
    "attention_softcap": ("Bound of the attention scores", "b"),
    "attention_sinks": ("Heads have attention sinks", ""),
    "attention_gate": ("Attention has an output gate", ""),
    "value_residual": ("Values are mixed with those of layer 1", ""),
    "differential_attention": ("Pairs of heads subtract their maps", ""),
    "latent_dim": ("Width of the latent of keys and values", ""),
    "activation": ("Activation", ""),
    "feed_forward": ("Feed-forward layer", ""),
    "block": ("Block", ""),
    "parallel_blocks": ("Branches are parallel", ""),
    "tied_head": ("The embedding is the output head", ""),
    "logit_softcap": ("Bound of the logits", "c"),
    "z_loss": ("Weight of the loss on log Z", ""),
    "mtp_depth": ("Heads of multi-token prediction", "N"),
    "mtp_weight": ("Weight of their losses", "w"),
    "embedding_norm": ("Embeddings are normalized", ""),
    "mup_base_width": ("Base width of muP", ""),
}
_SIZES = {"n_layer", "n_head", "n_embd", "n_ctx", "vocab_size", "n_inner", "bias", "dropout", "kernel", "rope_base"}
_GPT2 = {name: value for name, value in dataclasses.asdict(GPTConfig()).items() if name not in _SIZES}
"""GPT-2's values of the options that change the architecture; these are shown only if they differ."""


def model_facts(data: RunData) -> tuple[Fact, ...]:
    """Return the architecture with the symbols of the equations; an option without a label keeps its name."""
    if is_own(data):
        return _own_model_facts(data)
    options = dict(data.options("model"))
    width, heads = options.get("n_embd"), options.get("n_head")
    if isinstance(width, int) and isinstance(heads, int) and heads > 0:
        options["head_dim"] = width // heads
    if options.get("n_inner", 0) is None:
        with suppress(InputError, TypeError):  # of a damaged configuration
            options["n_inner"] = GPTConfig(**data.options("model")).inner
    if options.get("position") != "rope":
        options = {name: value for name, value in options.items() if not name.startswith("rope_")}
    sha256 = options.pop("import_sha256", None)
    shown = {name: setting(value) for name, value in options.items() if name not in _GPT2 or value != _GPT2[name]}
    if "kernel" in shown:
        shown["kernel"] = _kernel(data, shown["kernel"])
    labels = _MODEL | {name: (name, "") for name in options if name not in _MODEL}
    if (file := imported_file(data)) is not None:
        for kind in {kind for kind, name in named_in(options) if (kind, name) not in BUILT_IN}:
            labels[kind] = (labels[kind][0], f"defined in imports/{file.name}, SHA-256 {sha256[:16]}")
    facts = [Fact(label, shown[name], symbol) for name, (label, symbol) in labels.items() if name in shown]
    return (*facts, Fact("Parameters", MISSING if data.parameters is None else count(data.parameters)))


def is_own(data: RunData) -> bool:
    """Whether the model is a class of the author's own."""
    return data.options("model").get("network") is not None


def _own_model_facts(data: RunData) -> tuple[Fact, ...]:
    """Return what is known of a class of the author's own: the options that it read, its size, and its files."""
    options, estimate = data.options("model"), "estimated as 6 per parameter"
    read, known = set(options) & {"n_layer", "n_head", "n_embd", "n_ctx", "vocab_size"}, "as given"
    with suppress(InputError, TypeError):  # its code is not trusted, or the configuration is damaged
        read, known = profile(GPTConfig(**options)).read, "read by the class"
    labels = [(name, *_MODEL.get(name, (name, ""))) for name in options if name in read - {"network", "import_sha256"}]
    return (
        Fact("Class", str(options["network"]), "the author's own, not gpt2lab's"),
        *(
            Fact(name, f"{plural(source.count(chr(10)), 'line')}", f"SHA-256 {sha256}")
            for name, sha256, source in sources(data)
        ),
        *(Fact(label, setting(options[name]), symbol or known) for name, label, symbol in labels),
        Fact("Parameters", MISSING if data.parameters is None else count(data.parameters), "as the class made them"),
        Fact("FLOPs per token", MISSING if data.parameters is None else short(6 * data.parameters), estimate),
    )


class Source(NamedTuple):
    """A file of the author's own."""

    name: str
    """Its path in the run directory."""
    sha256: str
    text: str


def sources(data: RunData) -> list[Source]:
    """Return the file that the model ran with, and those that it imports; nothing if one is missing or altered."""
    with suppress(InputError, OSError):
        if (file := file_of(data.run)) is not None:
            every = (each._replace(beside=()) for each in (file, *file.beside))
            return [
                Source(f"imports/{each.path.name}", each.sha256, each.source.decode("utf-8", errors="replace"))
                for each in every
            ]
    return []


def own_model(data: RunData) -> Markdown | None:
    """Return whose the model is, if it is a class of the author's own, and what is known of it."""
    if not is_own(data):
        return None
    file, *beside = [f"`{source.name}`" for source in sources(data)] or ["a file that is missing or was altered"]
    imported = f" (which imports {' and '.join(beside)})" if beside else ""
    return read_markdown(
        f"**Model.** The model is the author's own: class `{data.options('model')['network']}`, defined in "
        f"{file}{imported}. gpt2lab knows it by its logits and its loss only, so there are no equations of it here. "
        "Its FLOPs are estimated as 6 per parameter and token."
    )


def _kernel(data: RunData, asked: str) -> str:
    """Return the attention kernel of the training steps: what ``auto`` chooses for this configuration, and why."""
    config = data.config
    try:
        model, dtype = GPTConfig(**data.options("model")), DTYPES[config["precision"]]
        T = config.get("seq_len") or model.n_ctx
        device = torch.device(config["device"])
        asking = device, dtype, T, T, True, model.changes_scores
        chosen = (choose_kernel(mask, *asking) for mask in dict.fromkeys(model.masks))
        kernels = ", ".join(f"{kernel} (auto: {why})" for kernel, why in dict.fromkeys(chosen))
    except (InputError, KeyError, TypeError, RuntimeError):
        return asked
    return kernels if asked == "auto" else asked


def imported_file(data: RunData) -> Path | None:
    """Return the imported file that defines parts of the model; None if all are built in, or the file is missing."""
    sha256 = data.options("model").get("import_sha256")
    return data.run.imported(sha256) if isinstance(sha256, str) else None


def equations(data: RunData) -> list[Markdown]:
    """Return the equations of the model that ran, part by part; of the author's own, those of its loss."""
    model = data.options("model")
    if (own := own_model(data)) is not None:
        return [own, read_markdown(parts({})["Loss"])]
    return [*map(read_markdown, (position(model), *parts(model, imported_file(data)).values()))]


def deviations(data: RunData) -> list[Markdown]:
    """Return the equations of the parts that are not as in GPT-2, after that of the positions."""
    if (own := own_model(data)) is not None:
        return [own]
    model = data.options("model")
    return [*map(read_markdown, (position(model), *differences(model, imported_file(data))))]


def gpt2_equations() -> list[Markdown]:
    """Return the equations of GPT-2 itself."""
    return [*map(read_markdown, parts({}).values())]


def schedule(data: RunData) -> Markdown | None:
    """Return the equations of the learning rate if it followed a cosine."""
    cosine = data.options("optim").get("schedule", "cosine") == "cosine"
    return read_markdown(learning_rate()) if cosine else None


def has_biases(data: RunData) -> bool:
    """Whether the linear layers add a bias."""
    return data.options("model").get("bias") is not False


GROWTH = {"grow_batch": "Steps at which the batch doubles", "grow_seq_len": "Steps at which sequences double"}


def training_facts(data: RunData) -> tuple[Fact, ...]:
    """Return how the run was trained; nothing if that is unknown or the weights were imported."""
    config, optim = data.config, data.options("optim")
    if not optim:
        return ()
    muon, eval_tokens, finished = optim.get("name") == "muon", config.get("eval_tokens"), data.state.get("finished")
    beta1, beta2, eps, decay = (setting(optim.get(name)) for name in ("beta1", "beta2", "eps", "weight_decay"))
    adamw = f"AdamW, β = ({beta1}, {beta2}), ε = {eps}"
    optimizer = f"Muon for the matrices of the blocks, for the rest {adamw}" if muon else adamw
    fingerprints = {name: f"fingerprint {fingerprint[:16]}" for name, fingerprint in data.fingerprints.items()}
    vocabulary = setting(data.options("model").get("vocab_size"))
    tokens = f"on {eval_tokens:,} evenly spread tokens" if eval_tokens else "on the whole validation set"
    from_scratch = "recipe" in config and config.get("init") is None
    muon_rate = Fact("Learning rate of Muon", setting(optim.get("muon_lr") or 0.02), "the same schedule")
    return (
        Fact("Data", data_name(data), fingerprints.get("data", "")),
        Fact("Tokenizer", f"byte-level BPE, vocabulary of {vocabulary}", fingerprints.get("tokenizer", "")),
        Fact("Length", _length(data), f"finished: {finished}" if finished else "not finished"),
        *_segments(data),
        Fact("Batch", f"{setting(config.get('batch_tokens'))} tokens per step", _batch(data)),
        *(Fact(title, setting(config[name])) for name, title in GROWTH.items() if config.get(name, "off") != "off"),
        *([Fact("Recipe", str(config["recipe"]))] if from_scratch else []),
        Fact("Optimizer", optimizer, f"weight decay {decay}, on matrices only"),
        Fact("Learning rate", f"peak {setting(optim.get('lr'))}", _schedule(optim)),
        *([muon_rate] if muon else []),
        Fact("Gradient clipping", f"norm at most {setting(optim.get('grad_clip'))}"),
        Fact("Validation", f"every {setting(config.get('eval_every'))} steps", tokens),
        Fact("Precision", setting(config.get("precision")), f"compile {setting(config.get('compile'))}"),
        Fact("Device", setting(config.get("device")), device_name(data)),
        Fact("Seed", str(config.get("seed")), "for weights, order of the data and dropout"),
    )


def _length(data: RunData) -> str:
    steps = data.column("step")
    return f"{plural(steps[-1], 'step')}, {passes(data)}".removesuffix(", ") if steps else MISSING


def _segments(data: RunData) -> list[Fact]:
    """Return how a run was resumed with other options, if it was."""
    starts = [f"at step {begin:,} ({plural(options['steps'], 'step')} planned)" for begin, options in segments_of(data)]
    return [Fact("Resumed with other options", ", ".join(starts[1:]))] if starts[1:] else []


def passes(data: RunData) -> str:
    """Return how often the training set was read; an empty string if that is unknown."""
    epochs = data.column("epoch")
    unit = "segments of the stream" if data.streamed else "epochs"
    return f"{number(epochs[-1], 3)} {unit}" if epochs else ""


def _batch(data: RunData) -> str:
    """Return how the batch of a step is made up, if the configuration says so."""
    config, world = data.config, data.state.get("world")
    seq_len = config.get("seq_len") or data.options("model").get("n_ctx")
    batch, micro = config.get("batch_tokens"), config.get("micro_batch")
    if not (isinstance(batch, int) and isinstance(micro, int) and isinstance(seq_len, int) and micro * seq_len > 0):
        return ""
    world = world if isinstance(world, int) and world > 0 else 1
    text = f"{plural(micro, 'sequence')} of {seq_len:,}" + (f" on each of {world} processes" if world > 1 else "")
    steps = batch // (micro * seq_len * world)
    return text if steps == 1 else f"{steps:,} micro-steps of {text}, accumulated"


_SCHEDULES = {
    "cosine": "cosine decay to {lowest}",
    "linear": "linear decay to {lowest}",
    "wsd": "constant, with a linear decay to 0 at the end",
}


def _schedule(optim: Mapping[str, Any]) -> str:
    lowest, warmup, shape = optim.get("min_lr"), optim.get("warmup_steps"), str(optim.get("schedule", "cosine"))
    decay = _SCHEDULES.get(shape, shape).replace("{lowest}", "a tenth of it" if lowest is None else setting(lowest))
    steps = "5 % of the steps (at most 2,000)" if warmup is None else plural(warmup, "step")
    return f"linear warmup over {steps}, then {decay}"


def configuration(config: Mapping[str, Any]) -> tuple[Fact, ...]:
    """Return every option of ``config.json`` under the name of its flag, such as ``model.n_layer``."""
    options = flatten(config).items()
    return tuple(Fact(name, json.dumps(_below_here(value), ensure_ascii=False)) for name, value in options)


def _below_here(value: Any) -> Any:
    """Return a path below the working directory relative to it: reports are shared, and it says enough."""
    path, here = Path(value if isinstance(value, str) else ""), Path.cwd()
    return path.relative_to(here).as_posix() if path.is_absolute() and path.is_relative_to(here) else value


def environment(data: RunData) -> tuple[Fact, ...]:
    """Return the versions and the machine."""
    return tuple(Fact(name, setting(value)) for name, value in data.environment.items())


def commands(data: RunData) -> tuple[Fact, ...]:
    """Return the commands that reproduce a run and its report."""
    run = shlex.quote(data.run.path.as_posix())
    again = _commands_of_training(data)
    return (
        *(Fact("Train it again" if n == 1 else "then", command) for n, command in enumerate(again, start=1)),
        Fact("Evaluate it", f"gpt2lab eval perplexity {run}"),
        Fact("Sample from it", f'gpt2lab sample {run} --prompt "Once upon a time"'),
        Fact("Make this report", f"gpt2lab report {run} --out report.pdf"),
    )


def _commands_of_training(data: RunData) -> list[str]:
    """Return the commands that train a run again, one for each segment.

    A segment that ended before its planned steps is trained to its end, so that its schedule is the same, and keeps
    the checkpoint from which the next one resumes.
    """
    if "optim" not in data.config:  # an imported model
        return []
    path, world = data.run.path.as_posix(), data.state.get("world")
    train, again = "gpt2lab train", shlex.quote(f"{path}-again")
    if isinstance(world, int) and world > 1:
        train = f"torchrun --standalone --nproc-per-node {world} -m {train}"
    segments = segments_of(data)
    first = f"{path}/config.json" if len(segments) < 2 else data.run.segments[0].as_posix()
    commands = [f"{train} --config {shlex.quote(first)} --out {again}"]
    for (_, before), (begin, options) in pairwise(segments):
        if begin != before["steps"]:
            commands[-1] += f" --checkpoint-every {begin} --keep-last {before['steps']}"
        changed = [
            f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
            for name, value in options.items()
            if value != before.get(name) and name not in ("out", "resume", "profile_steps")
        ]
        commands.append(" ".join([f"{train} --out {again} --resume {begin}", *changed]))
    return commands


def segments_of(data: RunData) -> list[tuple[int, dict[str, Any]]]:
    """Return the step after which each segment of a run began, and its options by name; nothing if one is damaged."""
    try:
        segments = [(step, flatten(read_checked_json(file))) for step, file in data.run.segments.items()]
    except (InputError, AttributeError):
        return []
    return segments if all(isinstance(options.get("steps"), int) for _, options in segments) else []


SHAKESPEARE_BY_CHARACTER = "333f749b4571300043e02025556b66bb1e50d858561445ea7b40312e99c4c6eb"
"""Fingerprint of Tiny Shakespeare with the byte tokenizer, the first 90 % for training and the rest for validation."""
NANOGPT_LOSSES = {
    "nanoGPT, its CPU recipe (0.8 M parameters)": (1.88, "estimated on 20 batches of the validation split"),
    "nanoGPT, its GPU recipe (10.7 M parameters)": (1.4697, "estimated on 200 batches of the validation split"),
}
"""The loss, and how its protocol differs from ours."""


def published_losses(data: RunData) -> dict[str, float]:
    """Return published validation losses on the data of a run, by the model."""
    same = data.fingerprints.get("data") == SHAKESPEARE_BY_CHARACTER
    return {model: loss for model, (loss, _) in NANOGPT_LOSSES.items() if same}


def published(data: RunData) -> tuple[Fact, ...]:
    """Return every published figure that a run can be compared with."""
    facts = [
        Fact(f"{model}: validation loss, nats per character", number(loss), NANOGPT_LOSSES[model][1])
        for model, loss in published_losses(data).items()
    ]
    if any(e.task == "hellaswag" and "completion" in e.protocol.lower() for e in data.evals):
        facts.append(Fact("GPT-2 124M: HellaSwag acc_norm, completion style", number(0.2955), "on all 10,042 items"))
    return tuple(facts)
