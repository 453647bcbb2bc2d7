"""How probable a model finds continuations of given contexts, and whether greedy decoding would produce them.

    nats(continuation | context) = sum_t -ln p(c_t | context, c_1 ... c_(t-1))

Continuations of one context, as in multiple-choice tasks, share its keys and values. Contexts of equal length are read
together, without padding; then each continuation is read after its own context:

    first pass     the contexts of one length, without their last token         (contexts, S)   into a cache
    second pass    [last token of the context, c_1 ... c_(n-1)]                 (rows, n)       on rows of the cache

Continuations of similar length form a batch, to keep padding small. Logits are computed for continuations only.

Associative recall is measured on the same principle: how well a model repeats random tokens that it has read once.

    a b c d e ... a b c d e ...        loss on the second occurrence of each token, by the distance to the first
    |-- d tokens --|-- again --|

Only the first occurrence tells what comes next, so a model without recall spends ln V nats or more on both. A model
that looks up "what followed this token before" (the induction heads of Olsson et al. 2022; the associative recall of
Arora et al. 2023, "Zoology", section 3) spends far less on the second. How the loss grows with the distance shows how
far back an attention pattern or a position encoding can look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from gpt2lab.errors import InputError, require
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.language_model import Cache, LanguageModel, evaluating

Progress = Callable[[int, int], None]
"""Called with the number of units done and their total."""
PASS_TOKENS = 4_096
"""Tokens in a forward pass at most, cached ones included. It bounds memory and does not affect the scores."""
LOGIT_ROWS = 64
"""Rows of logits computed at a time: 13 MB of fp32 at GPT-2's vocabulary size, which fit into the cache of a CPU."""
RECALL_TOKENS = 8_192
"""Tokens in a forward pass at most where recall is measured."""
MIN_FILL = 0.8
"""A row shorter than this fraction of the longest starts a new batch, so at most a fifth of a batch is padding."""


@dataclass(frozen=True)
class Continuation:
    """Token ids to score after a context; both have at least one id."""

    context: tuple[int, ...]
    ids: tuple[int, ...]

    def fits(self, n_ctx: int) -> bool:
        """Whether a model with this context length reads all of it; the last token is only a target and is not read."""
        return len(self.context) + len(self.ids) <= n_ctx + 1


@dataclass(frozen=True)
class Score:
    """The score of a continuation."""

    nats: float
    """Sum of -ln p over its tokens."""
    greedy: bool
    """Whether greedy decoding would produce it: each token is the most probable at its position."""


def require_causal_mask(config: GPTConfig) -> None:
    """Raise `InputError` if the mask lets a token attend to later ones.

    The losses of a text add up to -ln p(text) only if no token sees what it predicts. Otherwise training drives the
    loss towards zero, and it measures nothing.
    """
    if config.looks_ahead:
        raise InputError(
            f"mask {config.mask} lets tokens attend to later ones, so the model does not assign probabilities to text; "
            "use a model with a causal mask"
        )


@torch.no_grad()
def score(model: LanguageModel, continuations: Sequence[Continuation], progress: Progress | None = None) -> list[Score]:
    """Score continuations, in evaluation mode and under the caller's autocast; the result is in their order.

    If context and continuation together exceed the context length of the model, the oldest tokens are dropped.

    Args:
        model: The model; its mask must be causal.
        continuations: In any order. Equal contexts are read once.
        progress: Called with the number of continuations scored so far and their total.

    Raises:
        InputError: An empty context or continuation, a continuation longer than the model's context, a mask that is
            not causal, or a probability that is NaN.
    """
    require_causal_mask(model.config)
    continuations = [_truncate(continuation, model.config.n_ctx) for continuation in continuations]
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, continuation in enumerate(continuations):
        by_context.setdefault(continuation.context, []).append(index)
    scores: dict[int, Score] = {}
    with evaluating(model):
        for contexts in _groups_of_equal_length(by_context):
            cache = _read(model, contexts)
            members = [(index, row) for row, context in enumerate(contexts) for index in by_context[context]]
            lengths = [len(continuations[index].ids) for index, _ in members]
            for batch in batches_by_length(lengths, PASS_TOKENS, len(contexts[0])):
                indices, rows = zip(*(members[n] for n in batch), strict=True)
                found = _score_rows(model, cache, [continuations[index] for index in indices], rows)
                scores.update(zip(indices, found, strict=True))
                if progress is not None:
                    progress(len(scores), len(continuations))
    return [scores[index] for index in range(len(continuations))]


def _truncate(continuation: Continuation, n_ctx: int) -> Continuation:
    """Drop the oldest tokens of the context. The last token of a continuation is only a target and is not read."""
    room = n_ctx + 1 - len(continuation.ids)
    if not continuation.context or not continuation.ids:
        raise InputError("a continuation and its context need at least one token each")
    if room < 1:
        raise InputError(
            f"the continuation has {len(continuation.ids)} tokens, but the context length of the model is {n_ctx}; "
            "score shorter continuations, or use a tokenizer with a larger vocabulary"
        )
    return Continuation(continuation.context[-room:], continuation.ids)


def _groups_of_equal_length(contexts: Collection[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Yield groups of contexts of equal length, each small enough for one pass."""
    for length, group in groupby(sorted(contexts, key=len), key=len):
        same, size = list(group), math.ceil(PASS_TOKENS / length)
        yield from (same[begin : begin + size] for begin in range(0, len(same), size))


def batches_by_length(lengths: Sequence[int], budget: int, cached: int = 0) -> list[list[int]]:
    """Group rows of similar length into batches of indices, longest first.

    Args:
        lengths: Tokens in each row.
        budget: Tokens in a batch at most, padding included; a longer row forms its own batch.
        cached: Tokens in the cache before each row, which count towards the budget.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = batches and (len(batches[-1]) + 1) * (longest + cached) > budget
        if not batches or full or lengths[index] < MIN_FILL * longest:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def _read(model: LanguageModel, contexts: Sequence[tuple[int, ...]]) -> Cache:
    """Return a cache of contexts of equal length, without their last token."""
    tokens = torch.tensor(contexts, device=model.device)[:, :-1]
    cache = model.new_cache(len(contexts), room=tokens.shape[1])
    if tokens.shape[1]:
        model.hidden(tokens, cache=cache)
    return cache


def _score_rows(
    model: LanguageModel, contexts: Cache, continuations: Sequence[Continuation], rows: Sequence[int]
) -> list[Score]:
    """Score continuations that each follow a row of the cached contexts."""
    device = model.device
    lengths = torch.tensor([len(c.ids) for c in continuations], device=device)
    T = int(lengths.max())
    padded = [(c.context[-1], *c.ids, *[0] * (T - len(c.ids))) for c in continuations]
    tokens = torch.tensor(padded, device=device)  # (B, T + 1)
    cache = model.new_cache(len(rows), room=contexts.length + T)
    cache.copy_rows(contexts, torch.tensor(rows, device=device))
    x = model.hidden(tokens[:, :-1], cache=cache)  # (B, T, C)
    real = torch.arange(T, device=device) < lengths[:, None]
    nats, likeliest = _token_scores(model, x[real], tokens[:, 1:][real])
    if nats.isnan().any():
        raise InputError(
            "the model outputs NaN; its weights are damaged or overflow at this precision: use fp32 or another "
            "checkpoint"
        )
    sums = torch.zeros(len(rows), dtype=torch.float64)
    owner = torch.arange(len(rows)).repeat_interleave(lengths.cpu())
    sums.index_add_(0, owner, nats.double().cpu())
    missed = torch.bincount(owner[~likeliest.cpu()], minlength=len(rows))
    return [Score(nats, count == 0) for nats, count in zip(sums.tolist(), missed.tolist(), strict=True)]


def _token_scores(model: LanguageModel, x: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return -ln p of targets (N,) given hidden states x (N, C), in fp32, and whether each is the most probable."""
    nats, likeliest = [], []
    for states, wanted in zip(x.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True):
        logits = model.head(states).float()  # (R, V)
        chosen, top = logits.gather(1, wanted[:, None]), logits.amax(dim=-1, keepdim=True)
        likeliest.append((chosen == top).squeeze(1))
        nats.append((logits.sub_(top).exp_().sum(dim=-1, keepdim=True).log_() + top - chosen).squeeze(1))
    return torch.cat(nats), torch.cat(likeliest)


@dataclass(frozen=True)
class Recall:
    """Mean losses in nats; each entry belongs to one distance."""

    distances: tuple[int, ...]
    """Tokens from a token to its second occurrence."""
    first: tuple[float, ...]
    """Mean loss on the first occurrence."""
    second: tuple[float, ...]
    """Mean loss on the second occurrence."""
    sequences: int
    """Random sequences for each distance."""
    drawn: int
    """Tokens that the sequences are drawn from."""

    @property
    def chance(self) -> float:
        """Loss of a uniform guess among the tokens that are drawn, in nats."""
        return math.log(self.drawn)

    @property
    def protocol(self) -> str:
        """How the losses were measured, in one sentence."""
        return (
            f"{self.sequences} sequences of random tokens, drawn from {self.drawn:,} without repetition if they are "
            "enough, each given twice in a row; mean loss over the tokens of each occurrence except its first; a "
            f"uniform guess costs {self.chance:.3f} nats."
        )


def recall_probe(
    model: LanguageModel,
    distances: Sequence[int] | None = None,
    sequences: int = 64,
    ids: Sequence[int] | None = None,
    seed: int = 0,
) -> Recall:
    """Measure the recall of a model at several distances, in evaluation mode and under the caller's autocast.

    Args:
        model: The model; its mask must be causal.
        distances: Tokens between the two occurrences; by default `doubling_distances` of its context length.
        sequences: Random sequences for each distance.
        ids: Ids to draw from, such as those that occur in the data; by default the whole vocabulary.
        seed: The same seed draws the same sequences, for every model and the same ids.

    Raises:
        InputError: A distance that does not fit the context, or a mask that is not causal.
    """
    distances = doubling_distances(model.config.n_ctx) if distances is None else distances
    drawn = torch.arange(model.config.vocab_size) if ids is None else torch.tensor(ids)
    device = model.device
    pairs = []
    for d in distances:
        tokens = _random_sequences(drawn, sequences, d, torch.Generator().manual_seed(seed + d)).to(device)
        parts = tokens.split(max(1, RECALL_TOKENS // (2 * d)))
        losses = torch.tensor([repeat_losses(model, part) for part in parts], dtype=torch.float64)
        weights = torch.tensor([float(len(part)) for part in parts], dtype=torch.float64)
        pairs.append(((losses * weights[:, None]).sum(0) / weights.sum()).tolist())
    first, second = zip(*pairs, strict=True)
    return Recall(tuple(distances), first, second, sequences, len(drawn))


def doubling_distances(n_ctx: int) -> tuple[int, ...]:
    """Return 4, 8, 16 ... as long as two occurrences fit into a context, then the largest distance that fits."""
    last = n_ctx // 2
    return (*(2**k for k in range(2, last.bit_length()) if 2**k < last), last)


def repeat_losses(model: LanguageModel, tokens: torch.Tensor) -> tuple[float, float]:
    """Return the mean loss in nats on the first and on the second occurrence of sequences given twice in a row.

    Args:
        model: The model; it runs in evaluation mode, under the caller's autocast.
        tokens: (B, d) ids; 2 d is at most the context length of the model.

    Raises:
        InputError: Sequences of one token or too long for the context, or a mask that is not causal.
    """
    require_causal_mask(model.config)
    d, n_ctx = tokens.shape[1], model.config.n_ctx
    require(2 <= d <= n_ctx // 2, "the length of the sequence", d, f"2 to {n_ctx // 2}, half of the model's context")
    twice = torch.cat([tokens, tokens], dim=1)  # (B, 2 d)
    with evaluating(model):
        losses = model.token_losses(twice[:, :-1], twice[:, 1:])  # (B, 2 d - 1); entry i is of token i + 1
    return losses[:, : d - 1].double().mean().item(), losses[:, d:].double().mean().item()


def _random_sequences(ids: torch.Tensor, rows: int, d: int, generator: torch.Generator) -> torch.Tensor:
    """Draw (rows, d) ids, without replacement within a row unless there are fewer ids than d."""
    if d > len(ids):
        return ids[torch.randint(len(ids), (rows, d), generator=generator)]
    return torch.stack([ids[torch.randperm(len(ids), generator=generator)[:d]] for _ in range(rows)])
