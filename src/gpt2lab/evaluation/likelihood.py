"""Masks under which a loss is none: what is to be predicted has been read.

A loss is -ln p(token | the tokens before it), and the losses of a text add up to -ln p(text) only where no token sees
those after it. Under a mask that looks ahead the figure falls to nothing with training, and says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from gpt2lab.errors import InputError
from gpt2lab.model.cache import KVCache
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT, evaluating


def require_causal_mask(config: GPTConfig) -> None:
    """Raise `InputError` where the mask lets a token read what follows it."""
    if config.attention_mask.looks_ahead:
        raise InputError(
            f"mask {config.mask} lets a token read what follows it, so what it gives a text is no probability; "
            "measure a model of another mask"
        )


PASS_TOKENS = 4_096
"""Positions of a pass at most, those of the cache counted: it bounds memory, and changes no figure."""
LOGIT_ROWS = 64
"""Rows of logits held at once: 13 MB of fp32 at GPT-2's vocabulary, which stay in a CPU's cache."""
NARROWEST = 0.8
"""A row shorter than this share of the longest begins a batch of its own: at most a fifth is padding."""


@dataclass(frozen=True)
class Continuation:
    """What is scored: ``ids`` after ``context``, both at least one id."""

    context: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """What the model thinks of a continuation."""

    nats: float
    """Sum of -ln p over its tokens."""
    greedy: bool
    """Whether each of its tokens is the likeliest in its place."""


@torch.no_grad()
def score(
    model: GPT, continuations: Sequence[Continuation], progress: Callable[[int, int], None] | None = None
) -> list[Score]:
    """Score continuations, in evaluation mode and the caller's autocast; the scores are in their order.

    Where context and continuation together have more than the model reads, the oldest tokens are dropped.

    Args:
        model: The model.
        continuations: In any order; equal contexts are read once.
        progress: Called with the continuations scored so far and their number.

    Raises:
        InputError: An empty context or continuation, a continuation longer than the model's context, a mask that
            looks ahead, under which a token is read before it is scored, or a model whose figures are NaN.
    """
    require_causal_mask(model.config)
    fitted = [_fit(continuation, model.config.n_ctx) for continuation in continuations]
    scores: list[Score | None] = [None] * len(fitted)
    done = 0
    with evaluating(model):
        for contexts, members in _groups(fitted):
            behind = _read(model, contexts)
            for batch in batches_by_length([len(fitted[i].ids) for i, _ in members], PASS_TOKENS, len(contexts[0])):
                rows = [members[n] for n in batch]
                found = _score_rows(model, behind, [fitted[i] for i, _ in rows], [row for _, row in rows])
                for (i, _), scored in zip(rows, found, strict=True):
                    scores[i] = _number(scored)
                done += len(rows)
                if progress is not None:
                    progress(done, len(fitted))
    return [scored for scored in scores if scored is not None]


def _number(scored: Score) -> Score:
    """Return a score that is one: of NaNs the first would count as the lowest."""
    if math.isnan(scored.nats):
        raise InputError(
            "the model gives NaN for a probability; its weights are damaged, or too large for the precision: "
            "take fp32, or another checkpoint"
        )
    return scored


def batches_by_length(lengths: Sequence[int], budget: int, before: int = 0) -> list[list[int]]:
    """Return indices in batches of about the same length, longest first.

    Args:
        lengths: Tokens of each row.
        budget: Tokens of a batch at most, padding counted; a row that is longer stands alone.
        before: Tokens in the cache before each row, which count too.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        full = batches and (len(batches[-1]) + 1) * (longest + before) > budget
        if not batches or full or lengths[index] < NARROWEST * longest:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches


def _fit(continuation: Continuation, n_ctx: int) -> Continuation:
    """Drop what is too old to be read. The last token of a continuation is a target only, and takes no place."""
    room = n_ctx + 1 - len(continuation.ids)
    if not continuation.context or not continuation.ids:
        raise InputError("a continuation to score and the text before it need at least one token each")
    if room < 1:
        raise InputError(
            f"a continuation of {len(continuation.ids)} tokens; the model reads {n_ctx}: score shorter ones, or use a "
            "tokenizer of more entries"
        )
    return Continuation(continuation.context[-room:], continuation.ids)


def _groups(
    continuations: Sequence[Continuation],
) -> Iterable[tuple[list[tuple[int, ...]], list[tuple[int, int]]]]:
    """Yield contexts of one length, and of each continuation behind them its index and its context's row.

    A group is small enough for its contexts to be read in one pass.
    """
    behind: dict[tuple[int, ...], list[int]] = {}
    for index, continuation in enumerate(continuations):
        behind.setdefault(continuation.context, []).append(index)
    for batch in _same_length(sorted(behind, key=len)):
        yield batch, [(index, row) for row, context in enumerate(batch) for index in behind[context]]


def _same_length(contexts: Sequence[tuple[int, ...]]) -> Iterable[list[tuple[int, ...]]]:
    batch: list[tuple[int, ...]] = []
    for context in contexts:
        if batch and (len(context) != len(batch[0]) or len(batch) * len(context) >= PASS_TOKENS):
            yield batch
            batch = []
        batch.append(context)
    if batch:
        yield batch


def _read(model: GPT, contexts: Sequence[tuple[int, ...]]) -> KVCache:
    """Return a cache of all but the last token of contexts of one length."""
    tokens = torch.tensor(contexts, device=model.wte.weight.device)[:, :-1]
    cache = model.new_cache(len(contexts), room=tokens.shape[1])
    if tokens.shape[1]:
        model.hidden(tokens, cache=cache)
    return cache


def _score_rows(model: GPT, behind: KVCache, continuations: Sequence[Continuation], rows: Sequence[int]) -> list[Score]:
    """Score continuations that each follow a row of the cache."""
    device = model.wte.weight.device
    lengths = torch.tensor([len(c.ids) for c in continuations], device=device)
    T = int(lengths.max())
    padded = [(c.context[-1], *c.ids, *[0] * (T - len(c.ids))) for c in continuations]
    tokens = torch.tensor(padded, device=device)  # (B, T + 1)
    cache = model.new_cache(len(rows), room=behind.length + T)
    cache.copy_rows(behind, torch.tensor(rows, device=device))
    x = model.hidden(tokens[:, :-1], cache=cache)  # (B, T, C)
    real = torch.arange(T, device=device) < lengths[:, None]
    nats, likeliest = _judge(model, x[real], tokens[:, 1:][real])
    sums = torch.zeros(len(rows), dtype=torch.float64)
    owner = torch.arange(len(rows)).repeat_interleave(lengths.cpu())
    sums.index_add_(0, owner, nats.double().cpu())
    missed = torch.bincount(owner[~likeliest.cpu()], minlength=len(rows))
    return [Score(nats, count == 0) for nats, count in zip(sums.tolist(), missed.tolist(), strict=True)]


def _judge(model: GPT, x: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return -ln p of targets (N,) after the stream x (N, C), fp32, and whether each is the likeliest; (N,) both."""
    nats, likeliest = [], []
    for part, wanted in zip(x.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True):
        logits = model.head(part).float()  # (R, V)
        chosen, top = logits.gather(1, wanted[:, None]), logits.amax(dim=-1, keepdim=True)
        likeliest.append((chosen == top).squeeze(1))
        nats.append((logits.sub_(top).exp_().sum(dim=-1, keepdim=True).log_() + top - chosen).squeeze(1))
    return torch.cat(nats), torch.cat(likeliest)
