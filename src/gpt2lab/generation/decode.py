"""Text one token at a time: read the prompt, then give each new token back to the model.

    prompt (B, T) --next_logits--> (B, V) --sample_next--> (B,) --next_logits--> (B, V) --sample_next--> (B,) ...

Keys and values of what was read stay in a cache, so a token costs one position. A model reads at most n_ctx tokens. Of
a longer prompt it reads the last n_ctx; when the window is full, its older half is dropped and the newer read again,
since learned positions belong to places in the window and not to tokens:

    n_ctx = 6    a b c d e f | g      becomes      e f g | h      then      e f g h | i    and so on

So a token costs one position except once in n_ctx / 2 tokens, and it always sees at least half a window. A model whose
mask is a window, and whose positions are not learned, needs none of this: its cache rolls, and it goes on for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from gpt2lab.errors import InputError
from gpt2lab.generation.sampling import Strategy, sample_next
from gpt2lab.model import GPT, KVCache, evaluating


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """Return a generator on a device, started from a seed."""
    return torch.Generator(device).manual_seed(seed)


def generate(
    model: GPT,
    tokens: torch.Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    generator: torch.Generator | None = None,
    eot: int | None = None,
    padding: torch.Tensor | None = None,
) -> torch.Tensor:
    """Continue prompts (B, T) by up to ``max_new_tokens``; return (B, T + new), prompts and padding included.

    A row that has written ``eot`` is filled with it, and when all have, it stops. For the other rules, and what is
    raised, see `stream`; for the values of the strategy, `Strategy`.
    """
    strategy = Strategy(temperature, top_k, top_p, greedy)
    columns = list(stream(model, tokens, max_new_tokens, strategy, generator, eot, padding))
    return torch.cat([tokens, *(column[:, None] for column in columns)], dim=1)


def stream(
    model: GPT,
    tokens: torch.Tensor,
    max_new_tokens: int,
    strategy: Strategy,
    generator: torch.Generator | None = None,
    eot: int | None = None,
    padding: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Continue prompts, and hand out each column of new tokens as soon as it is made.

    The model runs in evaluation mode, without gradients and in the caller's autocast, and is left as it was between
    columns. The same model, prompts, strategy and generator state on the same device give the same tokens. A row alone
    draws other numbers than in company; but what it writes does not depend on whether the others have ended.

    Args:
        model: The model.
        tokens: Prompts of one length, shape (B, T), T at least 1, on the model's device; start an empty one with the
            end-of-text token (`encode_prompt` does).
        max_new_tokens: Columns at most.
        strategy: How a token is chosen.
        generator: Drawn from, on the model's device; None is a new one, seeded by the system. The global generator is
            left alone.
        eot: A row that has written this token is filled with it, and when all have, it stops. None: never.
        padding: How many places at the beginning of each row are empty, (B,), where prompts are of different lengths
            (`pad_left` makes both). A row writes what it would write alone, as long as no window slides: the rows'
            windows slide together, when the longest is full.

    Yields:
        The next token of each row, shape (B,).

    Raises:
        InputError: At the call: no prompt, an id outside the vocabulary, a negative number of tokens, a generator on
            another device, a top_k beyond the vocabulary, padding that leaves a row without a token. With the first
            column: a model that gives NaN.
    """
    if generator is None:
        generator = torch.Generator(tokens.device)
        generator.seed()
    if generator.device.type != tokens.device.type:
        raise InputError(f"the generator is on {generator.device} and the tokens on {tokens.device}; use one device")
    _check(model, tokens, max_new_tokens, strategy, eot)
    if padding is not None and (
        padding.shape != tokens.shape[:1] or not 0 <= padding.min() <= padding.max() < tokens.shape[1]
    ):
        raise InputError(
            f"padding is {padding.tolist()}; give one number for each of the {len(tokens)} rows, from 0 to below their "
            f"{tokens.shape[1]} places"
        )
    return _columns(model, tokens, max_new_tokens, strategy, generator, eot, padding)


def _columns(
    model: GPT,
    tokens: torch.Tensor,
    max_new_tokens: int,
    strategy: Strategy,
    generator: torch.Generator,
    eot: int | None,
    padding: torch.Tensor | None,
) -> Iterator[torch.Tensor]:
    n_ctx = model.config.n_ctx
    cache = model.new_cache(len(tokens), padding)
    window = unread = tokens if cache.endless else tokens[:, -n_ctx:]
    cache.clear(tokens.shape[1] - window.shape[1])
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for written in range(max_new_tokens):
        logits = next_logits(model, unread, cache)
        if not written:
            _require_numbers(logits)
        column = sample_next(logits, strategy, generator)
        if eot is not None:
            column = column.masked_fill(ended, eot)
            ended |= column == eot
        yield column
        if eot is not None and bool(ended.all()):
            return
        if cache.endless:
            unread = column[:, None]
            continue
        window = torch.cat([window, column[:, None]], dim=1)
        unread = window[:, cache.length :]
        if cache.length == n_ctx:
            kept = (n_ctx + 1) // 2
            cache.clear(window.shape[1] - kept)
            window = unread = window[:, -kept:]
        elif cache.looks_ahead:  # each new token changes what those before it are
            cache.clear()
            unread = window


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prompts of different lengths flush right in one tensor (B, T), and their ``padding`` (B,).

    >>> pad_left([[7, 8, 9], [5]])
    (tensor([[7, 8, 9],
            [0, 0, 5]]), tensor([0, 2]))
    """
    T = max(map(len, prompts))
    rows = [[0] * (T - len(prompt)) + list(prompt) for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor([T - len(prompt) for prompt in prompts], device=device)


def outgrows(model: GPT, length: int) -> bool:
    """Whether a text of so many tokens, prompt included, is more than the model reads at once, so that parts go."""
    endless = KVCache(model.config, 0, torch.device("cpu"), torch.float32).endless
    return length > model.config.n_ctx and not endless


# Not inference_mode: a model that is later trained on these tokens could not save them for its backward pass.
@torch.no_grad()
def next_logits(model: GPT, tokens: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """Read tokens (B, T) behind what the cache holds, a prompt or one token; return the next one's logits (B, V)."""
    with evaluating(model):
        return model.head(model.hidden(tokens, cache=cache)[:, -1])


def _require_numbers(logits: torch.Tensor) -> None:
    """Raise `InputError` where a logit is NaN, of which greedy decoding would make text. Waits for the device."""
    if logits.isnan().any():
        raise InputError(
            "the model gives NaN for the next token; its weights are damaged, or too large for the precision: take "
            "fp32, or another checkpoint"
        )


def _check(model: GPT, tokens: torch.Tensor, max_new_tokens: int, strategy: Strategy, eot: int | None) -> None:
    V = model.config.vocab_size
    if tokens.dim() != 2 or 0 in tokens.shape:
        raise InputError(
            f"the prompts have shape {tuple(tokens.shape)}; give (B, T), both at least 1: an empty prompt is the "
            "end-of-text token alone"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= V:
        raise InputError(f"the prompt holds id {low if low < 0 else high}; the model knows ids from 0 to {V - 1}")
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}; give 0 or more")
    strategy.require_vocabulary(V)
    if eot is not None and not 0 <= eot < V:
        raise InputError(f"eot is {eot}; the model knows ids from 0 to {V - 1}")
