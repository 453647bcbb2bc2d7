"""From the logits of one position to the next token: what is filtered, and what is drawn.

    p = softmax(logits / temperature)

- greedy: argmax p, the same text each time, and in small models soon a loop;
- temperature below 1 sharpens p, above 1 flattens it;
- top-k (Fan et al. 2018, section 5.1) draws among the k most probable tokens;
- nucleus, or top-p (Holtzman et al. 2020, section 3.1) draws among the fewest tokens that together hold the mass top_p,
  so that their number follows how sure the model is.

Filters are functions from logits to logits, in which a token that is out has -inf. Of equally probable tokens the one
with the lower id goes first: in bf16 ties are common, and which token stays must not depend on the device.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from gpt2lab.errors import InputError
from gpt2lab.model.cache import KVCache
from gpt2lab.model.gpt import GPT, evaluating
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2lab.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Strategy:
    """How the next token is chosen. Filters apply in the order temperature, top-k, nucleus.

    Raises:
        InputError: A value out of its range, or greedy together with a setting that it would ignore.
    """

    temperature: float = 1.0
    """Divides the logits; above 0."""
    top_k: int | None = None
    """Tokens that take part, from 1 to the vocabulary; None is all of them."""
    top_p: float | None = None
    """Probability mass that takes part, in (0, 1]; None is all of it."""
    greedy: bool = False
    """Take the most probable token; nothing is drawn."""

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}; it must be above 0 (for the likeliest token: greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}; it must be at least 1, or left out for all tokens")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.greedy and (self.temperature, self.top_k, self.top_p) != (1.0, None, None):
            raise InputError(f"greedy takes the likeliest token and ignores {self._settings()}; give one or the other")

    def require_vocabulary(self, vocab_size: int) -> None:
        """Raise `InputError` where top_k is more than the vocabulary."""
        if self.top_k is not None and self.top_k > vocab_size:
            raise InputError(f"top_k is {self.top_k}; the vocabulary has {vocab_size} tokens: give at most that")

    def __str__(self) -> str:
        return "greedy" if self.greedy else self._settings()

    def _settings(self) -> str:
        words = {"top-k": self.top_k, "nucleus": self.top_p}
        given = [f"{name} {value}" for name, value in words.items() if value is not None]
        if self.temperature != 1.0 or not given:
            given.insert(0, f"temperature {self.temperature}")
        return ", ".join(given)


STRATEGIES: dict[str, Strategy] = {
    "greedy": Strategy(greedy=True),
    "temperature": Strategy(temperature=0.8),
    "top-k": Strategy(top_k=50),
    "nucleus": Strategy(top_p=0.9),
}
"""The four strategies by name, at their usual settings."""


def filter_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k largest logits of each row, (B, V) -> (B, V); k is at most V."""
    kth = logits.topk(k, dim=-1).values[:, -1:]  # (B, 1)
    above, tied = logits > kth, logits == kth
    places = k - above.sum(dim=-1, keepdim=True)  # left for those that tie for the last place
    return logits.masked_fill(~(above | (tied & (tied.cumsum(dim=-1) <= places))), -math.inf)


def filter_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the fewest largest logits of each row whose probabilities sum to at least p, (B, V) -> (B, V)."""
    if p == 1.0:
        return logits  # a sum in fp32 reaches 1 before its last terms
    ordered, order = F.softmax(logits, dim=-1).sort(dim=-1, descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    kept[:, 1:] = ordered.cumsum(dim=-1)[:, :-1] < p  # the first is always in; others while mass is missing
    return logits.masked_fill(~kept.scatter(-1, order, kept), -math.inf)


def probabilities(logits: torch.Tensor, strategy: Strategy) -> torch.Tensor:
    """Return the distribution (B, V), fp32, from which a strategy draws, for logits (B, V); greedy's is one token's.

    Raises:
        InputError: top_k is more than the vocabulary.
    """
    strategy.require_vocabulary(logits.shape[-1])
    if strategy.greedy:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
    # The largest logit goes to 0 first, so that no temperature, however small, makes it infinite.
    logits = (logits.float() - logits.amax(dim=-1, keepdim=True).float()) / strategy.temperature
    if strategy.top_k is not None:
        logits = filter_top_k(logits, strategy.top_k)
    if strategy.top_p is not None:
        logits = filter_top_p(logits, strategy.top_p)
    return F.softmax(logits, dim=-1)


def sample_next(logits: torch.Tensor, strategy: Strategy, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return the next token of each row, (B,), for logits (B, V); ``generator`` lies on their device."""
    if strategy.greedy:
        return logits.argmax(dim=-1)
    return torch.multinomial(probabilities(logits, strategy), 1, generator=generator).squeeze(1)


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


def encode_prompt(tokenizer: Tokenizer, text: str, samples: int, device: torch.device) -> torch.Tensor:
    """Return ids (samples, T) that begin a document with ``text``: end-of-text, where there is one, then the text.

    Raises:
        InputError: No text, and no end-of-text token to begin from.
    """
    ids = [] if tokenizer.eot is None else [tokenizer.eot]
    ids += tokenizer.encode(text)
    if not ids:
        raise InputError("the prompt is empty and the tokenizer has no <|endoftext|> to begin from; give a prompt")
    return torch.tensor([ids] * samples, device=device)


class TextStreamer:
    """Turns columns of ids into pieces of text, a row for each sample, up to each row's end-of-text.

    A row's pieces, joined, are what the tokenizer decodes from the row's ids, U+FFFD where the bytes are no UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer, samples: int) -> None:
        self._tokenizer = tokenizer
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(samples)]
        self._ended = [False] * samples

    def feed(self, column: torch.Tensor) -> list[str]:
        """Take the next id of each row, (B,); return the text that can now be printed, "" where there is none yet."""
        return [self._piece(row, token) for row, token in enumerate(column.tolist())]

    def finish(self) -> list[str]:
        """Return what each row still held back: U+FFFD for a character that was cut off, else ""."""
        return [decoder.decode(b"", final=True) for decoder in self._decoders]

    def _piece(self, row: int, token: int) -> str:
        self._ended[row] = self._ended[row] or token == self._tokenizer.eot
        return "" if self._ended[row] else self._decoders[row].decode(self._tokenizer.decode_bytes([token]))


def write_texts(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    samples: int,
    max_new_tokens: int,
    strategy: Strategy,
    seed: int,
    where: Runtime,
) -> list[str]:
    """Return ``samples`` texts that begin a document with ``prompt``, each up to its end or ``max_new_tokens``.

    Raises:
        InputError: A value of the strategy does not fit the vocabulary.
    """
    tokens = encode_prompt(tokenizer, prompt, samples, where.device)
    streamer = TextStreamer(tokenizer, samples)
    pieces = [[prompt] for _ in range(samples)]
    with where.autocast():
        for column in stream(model, tokens, max_new_tokens, strategy, seeded(seed, where.device), tokenizer.eot):
            for row, piece in zip(pieces, streamer.feed(column), strict=True):
                row.append(piece)
    for row, piece in zip(pieces, streamer.finish(), strict=True):
        row.append(piece)
    return ["".join(row) for row in pieces]
