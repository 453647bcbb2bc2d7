"""The facts of a run in words: its summary, its architecture, how it was trained, and where."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from gpt2lab import formatting
from gpt2lab.evaluation.text_quality import HELD_OUT
from gpt2lab.report.document import Fact
from gpt2lab.report.run_data import Record

_LISTED = {
    "gpt2": "Radford, Wu, Child, Luan, Amodei & Sutskever 2019, Language Models are Unsupervised Multitask Learners.",
    "bpe": "Sennrich, Haddow & Birch 2016, Neural Machine Translation of Rare Words with Subword Units.",
    "attention": "Vaswani et al. 2017, Attention Is All You Need.",
    "layer_norm": "Ba, Kiros & Hinton 2016, Layer Normalization.",
    "gelu": "Hendrycks & Gimpel 2016, Gaussian Error Linear Units.",
    "tied": "Press & Wolf 2017, Using the Output Embedding to Improve Language Models.",
    "schedule": "Brown et al. 2020, Language Models are Few-Shot Learners, appendix B.",
    "adamw": "Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization.",
    "muon": "Jordan et al. 2024, Muon: An Optimizer for Hidden Layers in Neural Networks.",
    "nucleus": "Holtzman, Buys, Du, Forbes & Choi 2020, The Curious Case of Neural Text Degeneration.",
    "self_bleu": "Zhu et al. 2018, Texygen: A Benchmarking Platform for Text Generation Models (self-BLEU).",
    "distinct": "Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models (distinct-n).",
    "recall": "Olsson et al. 2022, In-context Learning and Induction Heads; Arora et al. 2023, Zoology (recall).",
    "student": "Student 1908, The Probable Error of a Mean (the interval of a comparison).",
}
_OF_COMPARISONS = ("recall", "student")
"""The last ones, so that leaving them out renumbers nothing."""
CITE = {name: f"[{number}]" for number, name in enumerate(_LISTED, start=1)}
"""The mark by which a text cites an entry."""


def references(comparison: bool) -> tuple[str, ...]:
    """Return the entries in the order of their numbers; those of comparisons only where there is one."""
    return tuple(text for name, text in _LISTED.items() if comparison or name not in _OF_COMPARISONS)


def summary(record: Record) -> str:
    """Say in a sentence or two what was trained on what, for how long, and how good it is."""
    said = _what(record)
    if record.metrics:
        said += f", trained {_how_long(record)}"
    split, figures = record.held_out_figures()
    perplexity, bits, gap = map(figures.get, ("perplexity", "bits_per_byte", "gap_percent"))
    if perplexity is None:
        return f"{said}. It was not measured on a test set."
    said += f". On the {split} set its perplexity is {formatting.number(perplexity)} per token"
    if bits is not None:
        said += f", which is {formatting.number(bits)} bits per byte"
    if gap is not None:
        said += f", {formatting.percent(gap)} above the entropy of the text"
    return f"{said}."


def _what(record: Record) -> str:
    model = record.options("model")
    if not all(isinstance(model.get(name), int) for name in ("n_layer", "n_head", "n_embd")):
        return "A run whose configuration cannot be read"
    size = f"{formatting.plural(model['n_layer'], 'layer')}, {formatting.plural(model['n_head'], 'head')}"
    parameters = "" if record.parameters is None else f" ({formatting.short(record.parameters)} parameters)"
    return f"A GPT-2 of {size} and width {formatting.count(model['n_embd'])}{parameters}"


def _how_long(record: Record) -> str:
    steps, tokens, seconds = (record.column(name) for name in ("step", "tokens", "seconds"))
    said = f"for {formatting.plural(steps[-1], 'step')} on {formatting.short(tokens[-1])} tokens ({data_name(record)})"
    return f"{said} in {formatting.duration(seconds[-1])} on {machine(record)}" if seconds else said


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
    facts = [Fact(label, formatting.setting(value), symbol) for label, symbol, value in labelled]
    parameters = formatting.MISSING if record.parameters is None else formatting.count(record.parameters)
    return (*facts, Fact("Parameters", parameters))


def training_facts(record: Record) -> tuple[Fact, ...]:
    """Return how the run was trained, in words."""
    config, optim = record.config, record.options("optim")
    if not optim:  # nothing is known, or the weights were imported
        return ()
    muon = optim.get("name") == "muon"
    prints = record.state.get("fingerprints")
    marks = prints if isinstance(prints, dict) else {}
    vocabulary = formatting.setting(record.options("model").get("vocab_size"))
    return (
        Fact("Data", data_name(record), _fingerprint(marks, "data")),
        Fact("Tokenizer", f"byte-level BPE, {vocabulary} entries", _fingerprint(marks, "tokenizer")),
        Fact("Length", _length(record), _ended(record)),
        Fact("Batch", f"{formatting.setting(config.get('batch_tokens'))} tokens a step", _batch(record)),
        Fact(
            "Optimiser",
            ("Muon on the blocks' matrices, on the rest " if muon else "")
            + f"AdamW, β = ({formatting.setting(optim.get('beta1'))}, {formatting.setting(optim.get('beta2'))}), "
            f"ε = {formatting.setting(optim.get('eps'))}",
            f"weight decay {formatting.setting(optim.get('weight_decay'))}, on matrices only",
        ),
        Fact("Learning rate", *_schedule(optim)),
        *(
            [Fact("Muon's learning rate", formatting.setting(optim.get("muon_lr") or 0.02), "the same schedule")]
            if muon
            else []
        ),
        Fact("Gradient clipping", f"norm at most {formatting.setting(optim.get('grad_clip'))}"),
        Fact("Validation", f"every {formatting.setting(config.get('eval_every'))} steps", _validation(config)),
        Fact(
            "Precision",
            formatting.setting(config.get("precision")),
            f"compiler {formatting.setting(config.get('compile'))}",
        ),
        Fact("Device", formatting.setting(config.get("device")), machine(record)),
        Fact("Seed", str(config.get("seed")), "decides weights, order of the data and dropout"),
    )


def _fingerprint(marks: Mapping[str, Any], what: str) -> str:
    return f"fingerprint {str(marks[what])[:16]}" if what in marks else ""


def _length(record: Record) -> str:
    steps, epochs = record.column("step"), record.column("epoch")
    if not steps:
        return formatting.MISSING
    said = formatting.plural(steps[-1], "step")
    unit = "rounds of the stream" if record.streamed else "times through the training set"
    return f"{said}, {formatting.number(epochs[-1], 3)} {unit}" if epochs else said


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
    made_of = f"{formatting.plural(micro, 'sequence')} of {window:,}"
    made_of += f" on each of {world} processes" if world > 1 else ""
    return made_of if passes == 1 else f"{passes:,} passes of {made_of}, accumulated"


def _schedule(optim: Mapping[str, Any]) -> tuple[str, str]:
    """Return the peak, and how the rate goes up to it and down again."""
    lowest, warmup = optim.get("min_lr"), optim.get("warmup_steps")
    up = "5 % of the steps, 2,000 at most," if warmup is None else formatting.plural(warmup, "step")
    low = "a tenth of it" if lowest is None else formatting.setting(lowest)
    shapes = {
        "cosine": f"cosine decay to {low}",
        "linear": f"a line down to {low}",
        "constant": "constant",
        "wsd": "constant until a line down to 0 at the end",
    }
    down = shapes.get(str(optim.get("schedule", "cosine")), str(optim.get("schedule")))
    return f"{formatting.setting(optim.get('lr'))} at most", f"linear warm-up over {up} then {down}"


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
    return tuple(Fact(name, formatting.setting(value)) for name, value in record.environment.items())


_POSITION = {
    "sinusoidal": "Positions are fixed sines and cosines (Vaswani et al. 2017, section 3.5) in place of the learned P.",
    "rope": "Positions are rotary (Su et al. 2021): there is no P; before they meet, queries and keys are turned by "
    "angles that grow with their place.",
    "none": "There is no P: order is known by the causal mask alone (Haviv et al. 2022).",
}
_MASK = {
    "window": "A position reads itself and those just before it, {window} in all: M is 0 there only.",
    "global": "A position reads the last {window} and the first {prefix}, which also read one another.",
    "strided": "A position reads the last {window} and every {window}th before them (Child et al. 2019).",
    "prefix": "The first {prefix} positions read one another both ways.",
    "bidirectional": "Every position reads every other: M is 0.",
}


def deviations(model: dict[str, Any]) -> tuple[str, ...]:
    """Return what of a run's model differs from the equations of GPT-2."""
    said = [_POSITION.get(str(model.get("position")), "")]
    heads, shared = model.get("n_head"), model.get("n_kv_head")
    if isinstance(shared, int) and shared != heads:
        said.append(
            f"{formatting.plural(shared, 'head')} of keys and values "
            f"{'serves' if shared == 1 else 'serve'} the {heads} "
            "heads of queries (Shazeer 2019; Ainslie et al. 2023)."
        )
    mask = str(model.get("mask", "causal"))
    if mask in _MASK:
        said.append(_MASK[mask].format(window=model.get("window"), prefix=model.get("prefix")))
    elif mask != "causal":
        said.append(f"The mask M is {mask}.")
    if model.get("norm") == "post":
        said.append("Layer norm follows each sum in place of standing before each branch.")
    return tuple(filter(None, said))


SHAKESPEARE_BY_CHARACTER = "333f749b4571300043e02025556b66bb1e50d858561445ea7b40312e99c4c6eb"
"""Fingerprint of Tiny Shakespeare with the byte tokenizer, its first 90 % to train on and the rest to validate."""


@dataclass(frozen=True)
class Published:
    """A figure that others published."""

    who: str
    what: str
    value: float
    difference: str
    """How their protocol is not quite ours."""


NANOGPT = (
    Published(
        "nanoGPT, its CPU recipe (0.8 M parameters)",
        "validation loss, nats per character",
        1.88,
        "estimated on 20 batches of the validation split",
    ),
    Published(
        "nanoGPT, its GPU recipe (10.7 M parameters)",
        "validation loss, nats per character",
        1.4697,
        "estimated on 200 batches of the validation split",
    ),
)
HELLASWAG = Published("GPT-2 124M", "HellaSwag acc_norm, completion style", 0.2955, "on all 10,042 items")


def published_losses(record: Record) -> tuple[Published, ...]:
    """Return validation losses that others reached on a run's data."""
    prints = record.state.get("fingerprints")
    known = isinstance(prints, dict) and prints.get("data") == SHAKESPEARE_BY_CHARACTER
    return NANOGPT if known else ()


def published(record: Record) -> tuple[Published, ...]:
    """Return every published figure that a run can be held against."""
    style = any(e.task == "hellaswag" and "completion" in e.protocol.lower() for e in record.evals)
    return (*published_losses(record), *([HELLASWAG] if style else []))


BYTES = 257
"""Entries of a vocabulary of bytes and the end-of-text token: nothing is merged."""


def task(record: Record) -> tuple[str, ...]:
    """Return paragraphs on the task, the data and its preparation."""
    window = formatting.setting(record.config.get("seq_len") or record.options("model").get("n_ctx"))
    learn = (
        "The task is to predict each token of a text from those before it. A model that does it well gives a text a "
        "high probability, which its loss measures, and can write by drawing one token after another."
    )
    prepare = (
        f"The text ({data_name(record)}{_sizes(record)}) is cut into tokens{_tokenizer(record)}. Documents are parted "
        f"by an end-of-text token. {_reading(record, window)}"
    )
    return learn, prepare


def _reading(record: Record, window: str) -> str:
    if record.streamed:
        return (
            "It is prepared in rounds while training goes on; what is held out for validation and test is of the "
            f"first. A training step reads windows of {window} tokens of one round, in an order drawn anew for each."
        )
    return (
        "Documents are held out for validation and test as the corpus comes divided, else by a hash of their text or, "
        f"where there are few, the last part of each. A training step reads windows of {window} tokens; each is "
        "visited once in a pass over the training set, in an order drawn anew for each pass."
    )


def _tokenizer(record: Record) -> str:
    entries = record.options("model").get("vocab_size")
    if isinstance(entries, int) and entries <= BYTES:
        return f" that are single bytes ({entries} entries, with the end-of-text token)"
    return (
        f" by a byte-level BPE {CITE['bpe']} of {formatting.setting(entries)} entries: a pattern, GPT-2's "
        f"{CITE['gpt2']} unless another was given, splits it into pieces such as words, numbers and marks, and the "
        "most frequent pairs of neighbours are merged one by one"
    )


def _sizes(record: Record) -> str:
    """Say how long the training set is, where the passes over it are recorded."""
    tokens, epochs = record.column("tokens"), record.column("epoch")
    if not tokens or not epochs or epochs[-1] <= 0 or record.streamed:
        return ""
    return f", some {formatting.short(tokens[-1] / epochs[-1])} training tokens"


NEAR_FLOOR, FAR_FROM_FLOOR = 15.0, 50.0
"""Percent above the entropy of the text."""
OVERFITTING = 0.05
"""Share of the lowest validation loss by which the training loss lies below it, or the last validation above it."""
FALLING = 0.01
"""Share by which the validation loss fell over the last fifth of the run."""
HELPING = 0.01
"""Share by which the loss is lower at the end of a window than at its beginning, at least, where context helps."""
JUDGED = "nucleus 0.9"
"""The strategy whose texts are judged."""
ALIKE = 3.0
"""Points of self-BLEU within which texts are as diverse as others."""
FORGETTING = 0.2
"""Share of the held-out text's relevance that is missed."""
LOOPING = 0.3
"""Share of the word triples of a text that stand earlier in it."""


def strengths(record: Record) -> tuple[str, ...]:
    """Return what speaks for a run."""
    return tuple(text for good, text in _judgements(record) if good)


def weaknesses(record: Record) -> tuple[str, ...]:
    """Return what speaks against it."""
    return tuple(text for good, text in _judgements(record) if not good)


def _judgements(record: Record) -> Iterator[tuple[bool, str]]:
    yield from _against_entropy(record)
    yield from _generalisation(record)
    yield from _still_falling(record)
    yield from _context(record)
    yield from _stories(record)
    yield from _texts(record)
    yield from _loops(record)


def _against_entropy(record: Record) -> Iterator[tuple[bool, str]]:
    gap = record.test_figures().get("gap_percent", math.nan)
    spent = formatting.percent(gap)
    said = f"On the test set it spends {spent} more bits than the text's entropy, which no model can beat"
    if gap <= NEAR_FLOOR:
        yield True, f"{said}: that is close to it."
    elif gap >= FAR_FROM_FLOOR:
        yield False, f"{said}: much is left to learn."


def _generalisation(record: Record) -> Iterator[tuple[bool, str]]:
    val, train = _held_out(record), record.column("train_loss")
    if len(val) < 2 or not train:
        return
    lowest = min(loss for _, loss in val)
    step = next(step for step, loss in val if loss == lowest)
    last = val[-1][1]
    figures = f"training loss {formatting.number(train[-1])}, validation loss {formatting.number(last)}"
    if last > (1 + OVERFITTING) * lowest:
        yield (
            False,
            f"It overfits: the validation loss was lowest, {formatting.number(lowest)}, "
            f"at step {formatting.count(step)} and "
            f"rose to {formatting.number(last)}. The best checkpoint is the one that is measured.",
        )
    elif last - train[-1] > OVERFITTING * last:
        yield False, f"It fits its training text better than others ({figures}): more text or dropout would help."
    else:
        yield True, f"It generalises: at the end {figures}."


def _still_falling(record: Record) -> Iterator[tuple[bool, str]]:
    val = _held_out(record)
    earlier = [loss for step, loss in val if step <= 0.8 * val[-1][0]] if val else []
    if not earlier:
        return
    fall = 1 - val[-1][1] / earlier[-1]
    if fall > FALLING:
        yield (
            False,
            f"It is not trained out: over about the last fifth of the steps the validation loss still fell by "
            f"{formatting.percent(100 * fall)}.",
        )


def _stories(record: Record) -> Iterator[tuple[bool, str]]:
    shares = {e.metric: e.value for e in record.evals if e.task == "stories"}
    for metric, meaning in (("grammatical", "follow the grammar"), ("consistent", "agree with themselves throughout")):
        share = shares.get(metric)
        if share is not None and not 0.5 < share < 0.9:
            yield share >= 0.9, f"{formatting.percent(100 * share)} of the stories that it writes {meaning}."


def _context(record: Record) -> Iterator[tuple[bool, str]]:
    points = () if record.positions is None else record.positions.points
    if len(points) < 2:
        return
    (near, first), (far, last) = points[0], points[-1]
    said = f"loss {formatting.number(first)} with {formatting.plural(near, 'token')} before it, "
    said += f"{formatting.number(last)} with some {formatting.count(far)}"
    if first - last >= HELPING * first:
        yield True, f"It uses its context: {said}."
    else:
        yield False, f"Context hardly helps it, or not at all: {said}."


def _texts(record: Record) -> Iterator[tuple[bool, str]]:
    if record.texts is None:
        return
    model, human = record.texts.figures_of(JUDGED), record.texts.figures_of(HELD_OUT)
    if "self_bleu" in model.keys() & human.keys():
        more = model["self_bleu"] - human["self_bleu"]
        said = (
            f"self-BLEU {formatting.number(model['self_bleu'], 3)} against {formatting.number(human['self_bleu'], 3)}"
        )
        if abs(more) <= ALIKE:
            yield True, f"At {JUDGED} its texts are as diverse as held-out ones: {said}."
        else:
            kind = "more alike" if more > 0 else "more scattered"
            yield False, f"At {JUDGED} its texts are {kind} than held-out ones: {said}."
    if "relevance" in model.keys() & human.keys() and model["relevance"] < (1 - FORGETTING) * human["relevance"]:
        said = f"{formatting.number(model['relevance'], 3)} against {formatting.number(human['relevance'], 3)}"
        yield False, f"It brings back less of what a beginning names than held-out text does: relevance {said}."


def _loops(record: Record) -> Iterator[tuple[bool, str]]:
    shares = [repeated(s.text) for s in record.samples if s.strategy == "greedy"]
    if shares and (share := max(shares)) > LOOPING:
        yield (
            False,
            f"Greedy decoding goes round in circles: {formatting.percent(100 * share)} of a text's word triples stand "
            "earlier in it.",
        )


def repeated(text: str) -> float:
    """Return the share of a text's word triples that stand earlier in it."""
    spoken = text.split()
    triples = list(zip(spoken, spoken[1:], spoken[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def _held_out(record: Record) -> list[tuple[float, float]]:
    """Return step and loss of each validation."""
    rows = [(row["step"], row["val_loss"]) for row in record.metrics]
    return [(step, loss) for step, loss in rows if step is not None and loss is not None and math.isfinite(loss)]
