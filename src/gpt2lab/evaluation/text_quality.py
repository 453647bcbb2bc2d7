"""Quality of generated text by decoding strategy: held-out prompts continued, beside their reference continuations.

    held-out document    eot b b b b b | e e e e e e e ...
    the model writes     eot b b b b b | w w w w w ...      with greedy, temperature, top-k, nucleus at some settings

All texts have the same prompts and at most the same length, and the held-out text is measured by the same code.

The metrics are after Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration". Decoding that always takes
the most probable token writes text that is more probable than any human text, and repeats itself. Sampling from the
whole distribution writes text that is less probable than human text, and falls apart. No single metric shows both, so
each is compared with its value on held-out text: the closer, the more human.

`METRICS` is the registry: a metric is a function of a `TextSet`, and docs/metrics.md says how to add one. For stories
of the embedded corpus, the grammar that generates them also judges whether a text is well-formed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gpt2lab import formatting, plots
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.errors import InputError, require
from gpt2lab.evaluation.likelihood import Continuation, Progress, score
from gpt2lab.evaluation.perplexity import document_starts
from gpt2lab.files import write_atomically, write_checked_json
from gpt2lab.generation import DecodingStrategy, seeded, stream
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.runs import Run
from gpt2lab.runtime import Runtime
from gpt2lab.stories.corpus import parse
from gpt2lab.tokenizer.tokenizer import Tokenizer

LOOP_TIMES, LOOP_TOKENS = 3, 2
"""A text ends in a loop if its last phrase, of at least 2 tokens, occurs 3 times in a row (Holtzman et al. 2020)."""
BLEU_TEXTS = 64
"""Texts compared by self-BLEU at most; the work grows with their square."""
PROTOCOL = (
    "perplexity is that of the evaluated model, without decoding settings; distinct-n and self-BLEU (of at most "
    f"{BLEU_TEXTS} texts) are over words; repetition is the share of texts that end in {LOOP_TIMES} equal phrases of "
    f"{LOOP_TOKENS} tokens or more"
)


@dataclass(frozen=True)
class ScoredText:
    """A continuation of a prompt, generated or human, with its probability under the evaluated model."""

    prompt: str
    continuation: str
    ids: tuple[int, ...]
    """Tokens of the continuation, including the end-of-text token if it has one."""
    nats: float
    """Sum of the model's -ln p over the tokens."""
    ended: bool
    """Whether the text came to its end, rather than being cut off."""


@dataclass(frozen=True)
class TextSet:
    """Continuations of the same prompts with one decoding strategy, or the held-out ones."""

    texts: tuple[ScoredText, ...]
    references: tuple[str, ...]
    """Reference continuation of each prompt: the held-out text."""
    stories: bool
    """Whether the texts are whole stories of the embedded corpus, which its grammar can judge."""


Metric = Callable[[TextSet], float | None]
"""A metric of texts; None where it is undefined."""


def perplexity(text_set: TextSet) -> float:
    """Return exp of the mean -ln p of all tokens under the evaluated model, given their prompts."""
    tokens = sum(len(text.ids) for text in text_set.texts)
    return math.exp(sum(text.nats for text in text_set.texts) / tokens) if tokens else math.nan


def distinct(n: int) -> Metric:
    """Return the metric distinct-n (Li et al. 2016): the share of distinct n-grams of words, over all texts."""

    def share(text_set: TextSet) -> float | None:
        parts = [words(text.continuation) for text in text_set.texts]
        grams = [tuple(part[i : i + n]) for part in parts for i in range(len(part) - n + 1)]
        return len(set(grams)) / len(grams) if grams else None

    return share


def repetition(text_set: TextSet) -> float:
    """Return the share of texts that end in a loop."""
    return sum(ends_in_a_loop(text.ids) for text in text_set.texts) / len(text_set.texts)


def self_bleu(text_set: TextSet) -> float | None:
    """Return the mean BLEU-4 of each text against all others (Zhu et al. 2018), 0 to 100: high if they are similar."""
    from sacrebleu.metrics.bleu import BLEU

    texts = [text.continuation for text in text_set.texts if text.continuation.strip()][:BLEU_TEXTS]
    if len(texts) < 2:
        return None
    bleu = BLEU(effective_order=True)
    return sum(bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)) / len(texts)


def mean_length(text_set: TextSet) -> float:
    """Return the mean number of tokens."""
    return sum(len(text.ids) for text in text_set.texts) / len(text_set.texts)


def relevance(text_set: TextSet) -> float | None:
    """Return the mean share of a prompt's names and objects that recur in its continuation."""
    shares = [
        len(named & {word.lower() for word in words(text.continuation)}) / len(named)
        for text in text_set.texts
        if (named := names_and_objects(text.prompt))
    ]
    return sum(shares) / len(shares) if shares else None


def story_share(name: str) -> Metric:
    """Return the metric of a share in `StoryQuality`. A story that was cut off counts as wrong, however it began."""

    def share(text_set: TextSet) -> float | None:
        stories = [text.prompt + text.continuation if text.ended else "" for text in text_set.texts]
        return judge_stories(stories).figures[name] if text_set.stories else None

    return share


METRICS: dict[str, Metric] = {
    "perplexity": perplexity,
    "distinct_1": distinct(1),
    "distinct_2": distinct(2),
    "distinct_3": distinct(3),
    "repetition": repetition,
    "self_bleu": self_bleu,
    "mean_length": mean_length,
    "relevance": relevance,
    "grammatical": story_share("grammatical"),
    "consistent": story_share("consistent"),
}
"""The metrics by name, in the order of the table."""


def text_stats(text_set: TextSet) -> dict[str, float]:
    """Return every metric that is defined for the texts, by name."""
    return {name: value for name, metric in METRICS.items() if (value := metric(text_set)) is not None}


_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_DETERMINERS = frozenset({"a", "an", "the", "his", "her", "its", "my", "your", "our", "their", "this", "that", "some"})
_FUNCTION_WORDS = _DETERMINERS | {
    "and", "or", "but", "nor", "so", "yet", "for", "of", "in", "on", "at", "to", "by", "with", "from", "as",
    "than", "into", "onto", "over", "under", "behind", "beside", "near", "after", "before", "while", "when",
    "where", "who", "which", "what", "i", "you", "he", "she", "it", "we", "they", "me", "him", "us", "them",
    "is", "am", "are", "was", "were", "be", "been", "being", "do", "does", "did", "has", "have", "had", "will",
    "would", "can", "could", "shall", "should", "may", "might", "must", "not", "no", "then", "there", "here",
    "very", "too", "said",
}  # fmt: skip
"""Words that end a noun phrase, or cannot be part of one."""


def words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in order.

    >>> words("Lily's boat, a red one!")
    ["Lily's", 'boat', ',', 'a', 'red', 'one', '!']
    """
    return _WORD.findall(text)


def ends_in_a_loop(ids: Sequence[int]) -> bool:
    """Return whether the last phrase, of at least 2 tokens, occurs 3 times in a row at the end.

    >>> ends_in_a_loop([9, 1, 2, 1, 2, 1, 2]), ends_in_a_loop([1, 2, 1, 2, 3])
    (True, False)
    """
    return any(
        all(ids[-n * (k + 1) : len(ids) - n * k] == ids[-n:] for k in range(1, LOOP_TIMES))
        for n in range(LOOP_TOKENS, len(ids) // LOOP_TIMES + 1)
    )


def names_and_objects(text: str) -> set[str]:
    """Return, in lower case, capitalized words within sentences and nouns after a determiner.

    The noun is taken to be the last of at most five words between the determiner and a punctuation mark or function
    word. There is no part-of-speech tagger: the heuristic errs, but equally on generated and on human text.

    >>> sorted(names_and_objects("One day Lily lost her big red boat in the park."))
    ['boat', 'lily', 'park']
    """
    found, parts = set(), words(text)
    for index, word in enumerate(parts):
        starts_sentence = index == 0 or not parts[index - 1][-1].isalnum()
        if word[0].isupper() and not starts_sentence and word.lower() not in _FUNCTION_WORDS:
            found.add(word.lower())
        if word.lower() in _DETERMINERS and (phrase := _noun_phrase(parts[index + 1 : index + 6])):
            found.add(phrase[-1].lower())
    return found


def _noun_phrase(following: Sequence[str]) -> Sequence[str]:
    """Return the words up to a punctuation mark or function word; nothing if there is neither."""
    for length, word in enumerate(following):
        if not word[0].isalnum() or word.lower() in _FUNCTION_WORDS:
            return following[:length]
    return []


EXCERPT = 40
"""Characters shown on either side of an error in a story, before which ``>>>`` stands."""


@dataclass(frozen=True)
class StoryQuality:
    """How many of a number of texts are well-formed stories."""

    texts: int
    figures: dict[str, float]
    """``grammatical``: the share of texts that are complete, and whose sentences the grammar allows in this order;
    ``consistent``: the share of texts that are grammatical and do not contradict themselves."""
    errors: tuple[str, ...]
    """Where each of the first few wrong texts violates the grammar or contradicts itself, with the text around it."""

    @property
    def protocol(self) -> str:
        """How the shares were measured, in one sentence."""
        return (
            f"Shares of {self.texts:,} whole texts that the grammar of the stories can generate (grammatical) and that "
            "also do not contradict themselves (consistent); a truncated text is neither."
        )


def judge_stories(texts: Sequence[str], errors: int = 5) -> StoryQuality:
    """Judge texts by the grammar of the stories, and keep the first ``errors`` errors.

    Raises:
        InputError: There are no texts.
    """
    if not texts:
        raise InputError("there are no stories to judge; generate at least one")
    verdicts = [parse(text) for text in texts]
    counts = {
        "grammatical": sum(verdict.grammatical for verdict in verdicts),
        "consistent": sum(verdict.grammatical and verdict.consistent for verdict in verdicts),
    }
    found = []
    for index, (text, verdict) in enumerate(zip(texts, verdicts, strict=True)):
        offset, message = verdict.offset, verdict.message
        if offset is not None and message is not None:
            excerpt = f"{text[:offset][-EXCERPT:]}>>>{text[offset:][:EXCERPT]}".replace("\n", " ")
            found.append(f"text {index}, character {offset}: {message}: {excerpt}")
    return StoryQuality(len(texts), {name: n / len(texts) for name, n in counts.items()}, tuple(found[:errors]))


TEXT_FILE = "text.json"
HELD_OUT = "held-out text"
SETTINGS = (
    DecodingStrategy(greedy=True),
    *(DecodingStrategy(temperature=t) for t in (0.5, 0.8, 1.0)),
    *(DecodingStrategy(top_k=k) for k in (5, 20, 50)),
    *(DecodingStrategy(top_p=p) for p in (0.5, 0.8, 0.9, 0.95)),
)
"""The strategies that are measured; a top-k larger than the vocabulary is left out."""
BATCH = 64
"""Texts generated at once."""
EXAMPLES = 4
"""Number of prompts whose continuations are kept for reading."""
READ = ("greedy", "temperature 1.0", "top-k 50", "nucleus 0.9")
"""Strategies shown beside the reference continuation: greedy, unrestricted sampling, and two in between."""
CAPTION = (
    "Diversity of the texts (self-BLEU; upwards they are less alike) against their perplexity under the model and, "
    "where a grammar exists, against the share that is grammatical. The star is the held-out text: texts left of it "
    "have a lower perplexity, texts below it are more alike."
)


@dataclass(frozen=True)
class Prompts:
    """Prompts of one length, and their reference continuations."""

    tokens: np.ndarray
    """Ids, (samples, T); the first is the end-of-text token if prompts begin documents."""
    endings: tuple[tuple[int, ...], ...]
    """Ids of each, with the end-of-text token if the document ends there."""
    max_new_tokens: int
    whole: bool
    """Whether prompt and continuation are a whole document; otherwise they are a stretch of the text."""
    stories: bool
    """Whether the text is the embedded corpus."""
    eot: int


@dataclass(frozen=True)
class Row:
    """The figures of one strategy, or of the held-out text."""

    name: str
    strategy: DecodingStrategy | None
    """None for the held-out text."""
    figures: dict[str, float]

    @property
    def family(self) -> str:
        """What kind of strategy it is: greedy, temperature, top-k or nucleus."""
        return self.name.partition(" ")[0]

    def number(self, metric: str) -> str:
        """Return a figure to three digits."""
        return formatting.number(self.figures[metric], 3)

    def share(self, metric: str) -> str:
        """Return a figure in percent, if it was measured."""
        return formatting.percent(100 * self.figures[metric]) if metric in self.figures else formatting.MISSING


@dataclass(frozen=True)
class Example:
    """A prompt, its reference continuation, and the continuation of each strategy."""

    prompt: str
    held_out: str
    completions: dict[str, str]

    @property
    def endings(self) -> tuple[tuple[str, str], ...]:
        """What wrote it, and the continuation: the reference, then those of `READ`."""
        return ((HELD_OUT, self.held_out), *((n, self.completions[n]) for n in READ if n in self.completions))


@dataclass(frozen=True)
class TextQuality:
    """The held-out text's figures first, then those of each strategy."""

    rows: tuple[Row, ...]
    examples: tuple[Example, ...]
    protocol: str

    @property
    def drawn(self) -> list[Row]:
        """The rows that have both perplexity and self-BLEU, which are compared."""
        return [row for row in self.rows if {"perplexity", "self_bleu"} <= row.figures.keys()]

    @property
    def can_be_drawn(self) -> bool:
        """Whether `draw_text_quality` has held-out text and at least one strategy to draw."""
        return len(self.drawn) > 1 and self.drawn[0].strategy is None

    @property
    def families(self) -> dict[str, list[Row]]:
        """The rows of `drawn` after the held-out text, by the kind of strategy."""
        families: dict[str, list[Row]] = {}
        for row in self.drawn[1:]:
            families.setdefault(row.family, []).append(row)
        return families

    def figures_of(self, name: str) -> dict[str, float]:
        """Return the figures of a row; empty if there is no row of that name."""
        return next((row.figures for row in self.rows if row.name == name), {})

    @property
    def table(self) -> list[tuple[str, ...]]:
        """The figures as text: the names of the metrics, then a row for the held-out text and for each strategy."""
        metrics = tuple(dict.fromkeys(metric for row in self.rows for metric in row.figures))
        rows = [(row.name, *(row.number(m) if m in row.figures else "" for m in metrics)) for row in self.rows]
        return [("texts", *(metric.replace("_", " ") for metric in metrics)), *rows]

    @property
    def findings(self) -> list[str]:
        """Greedy decoding, and each kind of sampling where it is about as diverse as the held-out text, in words."""
        if not self.can_be_drawn:
            return []
        human, families = self.drawn[0], self.families
        found = [
            f"Greedy decoding: self-BLEU {row.number('self_bleu')} against {human.number('self_bleu')} of the held-out "
            f"text, perplexity {row.number('perplexity')} against {human.number('perplexity')}; "
            f"{row.share('repetition')} of its texts end in a loop."
            for row in families.pop("greedy", [])
        ]
        metric, what = ("repetition", "ending in a loop")
        if "grammatical" in human.figures:
            metric = what = "grammatical"
        bleu = human.figures["self_bleu"]
        diverse = [min(rows, key=lambda row: abs(row.figures["self_bleu"] - bleu)) for rows in families.values()]
        if diverse:
            each = [
                f"{row.name} (self-BLEU {row.number('self_bleu')}): perplexity {row.number('perplexity')}, "
                f"{row.share(metric)} {what}"
                for row in diverse
            ]
            found.append(
                "Each kind of sampling at the setting that is nearest to the held-out text in diversity (self-BLEU "
                f"{human.number('self_bleu')}, perplexity {human.number('perplexity')}): {'; '.join(each)}."
            )
        return found


def choose_prompts(
    dataset: TokenDataset,
    split: str,
    n_ctx: int,
    samples: int,
    prompt_tokens: int | None = None,
    max_new_tokens: int | None = None,
) -> Prompts:
    """Choose prompts spread evenly over a split: of documents that fit, or of stretches if there are few of those.

    Args:
        dataset: The data.
        split: Which part of it.
        n_ctx: The model's context; prompt and continuation fit into it.
        samples: How many.
        prompt_tokens: Tokens of a prompt; None is 32, or a quarter of the context.
        max_new_tokens: Tokens that follow at most; None is 256, or what the context leaves.

    Raises:
        InputError: A number is out of range, or the split is too short.
    """
    P = min(32, max(1, n_ctx // 4)) if prompt_tokens is None else prompt_tokens
    N = min(256, n_ctx - P) if max_new_tokens is None else max_new_tokens
    require(samples >= 2, "samples", samples, "at least 2")
    if P < 1 or N < 1 or n_ctx < P + N:
        raise InputError(
            f"prompt_tokens is {P} and max_new_tokens {N}; each must be at least 1, and both together at most the "
            f"{n_ctx} tokens that the model reads"
        )
    eot, tokens = dataset.manifest.tokenizer.eot, dataset.stream(split)
    begins = document_starts(tokens, eot)
    sizes = np.diff(begins, append=len(tokens))  # with the token that begins each
    fitting = np.flatnonzero((sizes > P + 1) & (sizes <= P + N))
    last = len(tokens) - P - N
    if whole := len(fitting) >= samples:
        chosen = fitting[np.arange(samples) * len(fitting) // samples]
        prompts = tokens.read(begins[chosen], P + 1)
        endings = [(*tokens.read(begins[[i]] + P + 1, int(sizes[i]) - P - 1)[0].tolist(), eot) for i in chosen.tolist()]
    elif last < samples:
        raise InputError(
            f"{tokens.name}: {len(tokens)} tokens are too few for {samples} prompts of {P} tokens and continuations "
            f"of {N}; ask for fewer samples or tokens, or prepare more held-out text"
        )
    else:
        prompts, rest = np.split(tokens.read(np.arange(samples) * last // samples, P + N), [P], axis=1)
        endings = [_until(row, eot) for row in rest.tolist()]
    return Prompts(prompts, tuple(endings), N, whole, dataset.manifest.source.names == ("stories",), eot)


def measure_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Prompts,
    where: Runtime,
    seed: int,
    progress: Progress | None = None,
) -> TextQuality:
    """Continue prompts with every decoding strategy of `SETTINGS`, and measure all texts.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompts: From `choose_prompts`.
        where: Device and precision.
        seed: Seed of the random generator of each strategy.
        progress: Called with the strategies done and their number.
    """
    strategies = [s for s in SETTINGS if s.top_k is None or s.top_k <= model.config.vocab_size]
    held_out = _text_set(model, tokenizer, prompts, prompts.endings, where)
    rows = [Row(HELD_OUT, None, text_stats(held_out))]
    kept = [Example(text.prompt, text.continuation, {}) for text in held_out.texts[:EXAMPLES]]
    for number, strategy in enumerate(strategies):
        written = _write(model, prompts, strategy, where, seed + number)
        text_set = _text_set(model, tokenizer, prompts, written, where)
        rows.append(Row(str(strategy), strategy, text_stats(text_set)))
        for example, text in zip(kept, text_set.texts, strict=False):
            example.completions[str(strategy)] = text.continuation
        if progress is not None:
            progress(number + 1, len(strategies))
    return TextQuality(tuple(rows), tuple(kept), _protocol(prompts))


def _write(
    model: LanguageModel, prompts: Prompts, strategy: DecodingStrategy, where: Runtime, seed: int
) -> list[tuple[int, ...]]:
    """Return the ids that the model generates after each prompt, with the end-of-text token if it generated one."""
    generator, rows = seeded(seed, where.device), []
    for begin in range(0, len(prompts.tokens), BATCH):
        ids = torch.from_numpy(prompts.tokens[begin : begin + BATCH].astype(np.int64)).to(where.device)
        with where.autocast():
            columns = list(stream(model, ids, prompts.max_new_tokens, strategy, generator, prompts.eot))
        rows += torch.stack(columns, dim=1).tolist()
    return [_until(row, prompts.eot) for row in rows]


def _text_set(
    model: LanguageModel, tokenizer: Tokenizer, prompts: Prompts, rows: Sequence[tuple[int, ...]], where: Runtime
) -> TextSet:
    """Return texts with their probability under the model."""
    contexts = [tuple(row) for row in prompts.tokens.tolist()]
    with where.autocast():
        scores = score(model, [Continuation(*pair) for pair in zip(contexts, rows, strict=True)])

    def decoded(ids: Sequence[int]) -> str:
        return tokenizer.decode([i for i in ids if i != prompts.eot])

    texts = tuple(
        ScoredText(decoded(context), decoded(ids), ids, s.nats, ids[-1] == prompts.eot)
        for context, ids, s in zip(contexts, rows, scores, strict=True)
    )
    return TextSet(texts, tuple(map(decoded, prompts.endings)), prompts.stories and prompts.whole)


def _until(row: Sequence[int], eot: int) -> tuple[int, ...]:
    """Cut a row of ids after its first end-of-text token."""
    return tuple(row[: row.index(eot) + 1] if eot in row else row)


def _protocol(prompts: Prompts) -> str:
    samples, T = prompts.tokens.shape
    taken = (
        f"the first {T - 1} tokens of documents of at most {T - 1 + prompts.max_new_tokens}, spread evenly"
        if prompts.whole
        else f"{T} tokens, spread evenly over the text"
    )
    return (
        f"{samples} prompts from held-out text ({taken}), each continued by at most {prompts.max_new_tokens} "
        f"tokens; {PROTOCOL}."
    )


def save_text_quality(run: Run, step: int, split: str, quality: TextQuality) -> tuple[Path, ...]:
    """Write ``text.json``, ``text.png`` and ``text.md`` for the weights of a step; return their paths."""
    folder = run.evaluations(step)
    title = f"{run.path.name}, step {step:,}"
    write_checked_json(folder / TEXT_FILE, {"step": step, "split": split, **dataclasses.asdict(quality)})
    plots.write_png(folder / "text.png", draw_text_quality(quality, title))
    write_atomically(folder / "text.md", _markdown(quality, title))
    return folder / TEXT_FILE, folder / "text.png", folder / "text.md"


def draw_text_quality(quality: TextQuality, title: str = "") -> plots.Figure:
    """Plot the metrics of `TextQuality.drawn`; see `CAPTION`."""
    families = {
        family: {row.name.removeprefix(family).strip(): row.figures for row in rows}
        for family, rows in quality.families.items()
    }
    return plots.text_quality(quality.drawn[0].figures, families, title)


def _markdown(quality: TextQuality, title: str) -> str:
    """Return the table and the examples as a page that shows ``text.png``."""
    head, *rows = quality.table
    rows = [head, ("---", *("---:" for _ in head[1:])), *rows]
    parts = [f"# Texts by decoding strategy: {title}", "![Fluency against diversity](text.png)", CAPTION]
    parts += [*quality.findings, "\n".join(f"| {' | '.join(row)} |" for row in rows), quality.protocol]
    parts += ["## Prompts and their continuations"]
    for example in quality.examples:
        parts.append(f"**{_escaped(example.prompt)}**")
        parts += [f"> *{name}:* {_escaped(ending)}" for name, ending in example.endings]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """Return a text on one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_<>\[\]#|])", r"\\\1", " ¶ ".join(text.strip().splitlines()))
