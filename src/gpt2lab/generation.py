"""Text generation: from logits to the next token, from tokens to a sequence, from a sequence to text.

    p = softmax(logits / temperature)

- greedy decoding takes argmax p: always the same text, and with small models soon a loop;
- a temperature below 1 sharpens p, above 1 it flattens p;
- top-k sampling (Fan et al. 2018, section 5.1) draws among the k most probable tokens;
- nucleus or top-p sampling (Holtzman et al. 2020, section 3.1) draws among the fewest tokens that together have the
  probability top_p, so their number depends on how confident the model is.

Filters are functions from logits to logits that set excluded tokens to -inf. Among equally probable tokens, the one
with the lower id comes first: ties are common in bf16, and which token is kept must not depend on the device.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gpt2lab.errors import InputError, require
from gpt2lab.model.cache import BatchCache
from gpt2lab.model.language_model import Cache, LanguageModel, evaluating
from gpt2lab.runtime import Runtime, products_of
from gpt2lab.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class DecodingStrategy:
    """How the next token is chosen: temperature, then top-k, then nucleus; or greedily.

    Raises:
        InputError: A value is out of range, or greedy is combined with a setting that it would ignore.
    """

    temperature: float = 1.0
    """Divides the logits; must be positive."""
    top_k: int | None = None
    """Number of tokens to draw from; None is all of them."""
    top_p: float | None = None
    """Probability mass to draw from, in (0, 1]; None is all of it."""
    greedy: bool = False
    """Take the most probable token instead of sampling."""

    def __post_init__(self) -> None:
        sharp = "positive (greedy takes the most probable token)"
        require(0.0 < self.temperature < math.inf, "temperature", self.temperature, sharp)
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1; leave it out for all tokens")
        require(self.top_p is None or 0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        if self.greedy and (self.temperature, self.top_k, self.top_p) != (1.0, None, None):
            ignored = DecodingStrategy(self.temperature, self.top_k, self.top_p)
            raise InputError(f"greedy decoding would ignore {ignored}; give one of them")

    def require_vocabulary(self, vocab_size: int) -> None:
        """Raise `InputError` if top_k exceeds the vocabulary."""
        most = f"at most {vocab_size}, the size of the vocabulary"
        require(self.top_k is None or self.top_k <= vocab_size, "top_k", self.top_k, most)

    def __str__(self) -> str:
        if self.greedy:
            return "greedy"
        words = {"top-k": self.top_k, "nucleus": self.top_p}
        given = [f"{name} {value}" for name, value in words.items() if value is not None]
        if self.temperature != 1.0 or not given:
            given.insert(0, f"temperature {self.temperature}")
        return ", ".join(given)


STRATEGIES: dict[str, DecodingStrategy] = {
    "greedy": DecodingStrategy(greedy=True),
    "temperature": DecodingStrategy(temperature=0.8),
    "top-k": DecodingStrategy(top_k=50),
    "nucleus": DecodingStrategy(top_p=0.9),
}
"""The four decoding strategies with their usual settings."""


def filter_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k largest logits of each row, (B, V) -> (B, V); k is at most V."""
    kth = logits.topk(k, dim=-1).values[:, -1:]  # (B, 1)
    above, tied = logits > kth, logits == kth
    left = k - above.sum(dim=-1, keepdim=True)  # for the tokens that tie with the k-th
    return logits.masked_fill(~(above | (tied & (tied.cumsum(dim=-1) <= left))), -math.inf)


def filter_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the fewest largest logits of each row whose probabilities sum to at least p, (B, V) -> (B, V)."""
    if p == 1.0:
        return logits  # a sum in fp32 reaches 1 before its last terms
    ordered, order = F.softmax(logits, dim=-1).sort(dim=-1, descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    kept[:, 1:] = ordered.cumsum(dim=-1)[:, :-1] < p  # the first always; others while mass is missing
    return logits.masked_fill(~kept.scatter(-1, order, kept), -math.inf)


def probabilities(logits: torch.Tensor, strategy: DecodingStrategy) -> torch.Tensor:
    """Return the distribution (B, V), fp32, that a strategy samples from, for logits (B, V); one-hot for greedy.

    Raises:
        InputError: top_k exceeds the vocabulary.
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


def sample_next(
    logits: torch.Tensor, strategy: DecodingStrategy, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Return the next token of each row, (B,), for logits (B, V); ``generator`` is on their device."""
    if strategy.greedy:
        return logits.argmax(dim=-1)
    return torch.multinomial(probabilities(logits, strategy), 1, generator=generator).squeeze(1)


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """Return a generator on a device with the given seed."""
    return torch.Generator(device).manual_seed(seed)


def generate(
    model: LanguageModel,
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

    A row that has generated ``eot`` is filled with it, and generation stops when all rows have. See `stream` for the
    rest and for what is raised, and `DecodingStrategy` for the settings.
    """
    strategy = DecodingStrategy(temperature, top_k, top_p, greedy)
    columns = list(stream(model, tokens, max_new_tokens, strategy, generator, eot, padding))
    return torch.cat([tokens, *(column[:, None] for column in columns)], dim=1)


def stream(
    model: LanguageModel,
    tokens: torch.Tensor,
    max_new_tokens: int,
    strategy: DecodingStrategy,
    generator: torch.Generator | None = None,
    eot: int | None = None,
    padding: torch.Tensor | None = None,
    on_logits: Callable[[torch.Tensor], object] | None = None,
) -> Iterator[torch.Tensor]:
    """Continue prompts, yielding each column of new tokens as soon as it is generated.

    The model runs in evaluation mode, without gradients and in the caller's autocast; between columns it is in its
    previous mode. The same model, prompts, strategy and generator state on the same device give the same tokens. A row
    gets other random numbers alone than in a batch, but its text does not depend on whether other rows have ended.

    Args:
        model: The model.
        tokens: Prompts of one length, shape (B, T), T at least 1, on the model's device; an empty prompt is the
            end-of-text token (see `encode_prompt`).
        max_new_tokens: Maximum number of columns.
        strategy: How each token is chosen.
        generator: Source of randomness, on the model's device; None is a new one, seeded by the system. The global
            generator is not used.
        eot: A row that has generated this token is filled with it; generation stops when all rows have. None: never.
        padding: Number of empty positions at the start of each row, (B,), for prompts of different lengths (see
            `pad_left`). A row continues as it would alone until a window slides: all windows slide together, when the
            longest is full.
        on_logits: Called with the logits (B, V) that each column is chosen from.

    Yields:
        The next token of each row, shape (B,).

    Raises:
        InputError: At the call: an argument is out of range or on another device, or padding leaves a row empty. With
            the first column: the model gives NaN.
    """
    if generator is None:
        generator = torch.Generator(tokens.device)
        generator.seed()
    if generator.device.type != tokens.device.type:
        raise InputError(
            f"the generator is on {generator.device} and the tokens are on {tokens.device}; use the same device"
        )
    strategy.require_vocabulary(model.config.vocab_size)
    _check(model.config.vocab_size, tokens, max_new_tokens, eot, padding)
    n_ctx = model.config.n_ctx

    def columns() -> Iterator[torch.Tensor]:
        modules = [*model.modules()]
        cache = model.new_cache(len(tokens), padding)
        window = unread = tokens if cache.endless else tokens[:, -n_ctx:]
        cache.clear(tokens.shape[1] - window.shape[1])
        ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        for written in range(max_new_tokens):
            with evaluating(modules):
                logits = next_logits(model, unread, cache)
            if not written and logits.isnan().any():  # greedy decoding would turn it into text
                raise InputError(
                    "the model gives NaN for the next token; its weights are damaged or overflow this precision; use "
                    "fp32 or another checkpoint"
                )
            if on_logits is not None:
                on_logits(logits)
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
            elif cache.looks_ahead:  # a new token changes the keys of earlier ones
                cache.clear()
                unread = window

    return columns()


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prompts of different lengths right-aligned in one tensor (B, T), and their ``padding`` (B,).

    >>> pad_left([[7, 8, 9], [5]])
    (tensor([[7, 8, 9],
            [0, 0, 5]]), tensor([0, 2]))
    """
    T = max(map(len, prompts))
    rows = [[0] * (T - len(prompt)) + list(prompt) for prompt in prompts]
    return torch.tensor(rows, device=device), torch.tensor([T - len(prompt) for prompt in prompts], device=device)


def outgrows(model: LanguageModel, length: int) -> bool:
    """Return whether a text of this many tokens, prompt included, exceeds the context, so that tokens are dropped."""
    return length > model.config.n_ctx and not model.new_cache(0).endless


# Not inference_mode: its tensors could not be saved for a backward pass if a model is later trained on them.
@torch.no_grad()
def next_logits(model: LanguageModel, tokens: torch.Tensor, cache: Cache | BatchCache) -> torch.Tensor:
    """Return the next token's logits (B, V) after tokens (B, T), a prompt or one token, which continue the cache.

    The model must be in evaluation mode.
    """
    with products_of(tokens.numel()):
        return model.head(model.hidden(tokens, cache=cache)[:, -1])


def _check(V: int, tokens: torch.Tensor, max_new_tokens: int, eot: int | None, padding: torch.Tensor | None) -> None:
    least = "(B, T), both at least 1: an empty prompt is the end-of-text token"
    require(tokens.dim() == 2 and 0 not in tokens.shape, "the shape of the prompts", tuple(tokens.shape), least)
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= V:
        raise InputError(f"the prompt contains id {low if low < 0 else high}; the model's ids are 0 to {V - 1}")
    require(max_new_tokens >= 0, "max_new_tokens", max_new_tokens, "at least 0")
    require(eot is None or 0 <= eot < V, "eot", eot, f"an id of the model, 0 to {V - 1}")
    rows, T = tokens.shape
    if padding is not None:
        fits = padding.shape == (rows,) and bool(0 <= padding.min() <= padding.max() < T)
        require(fits, "padding", padding.tolist(), f"one number for each of the {rows} rows, from 0 to {T - 1}")


def encode_prompt(
    tokenizer: Tokenizer, text: str, samples: int, device: torch.device, special_tokens: bool = False
) -> torch.Tensor:
    """Return ids (samples, T) that begin a document with ``text``: end-of-text, if the tokenizer has it, then the text.

    ``special_tokens`` says whether those in the text are recognized.

    Raises:
        InputError: The text is empty and there is no end-of-text token.
    """
    ids = [] if tokenizer.eot is None else [tokenizer.eot]
    ids += tokenizer.encode(text, "all" if special_tokens else ())
    if not ids:
        raise InputError("the prompt is empty and the tokenizer has no <|endoftext|> to start from; give a prompt")
    return torch.tensor([ids] * samples, device=device)


def stream_text(columns: Iterable[torch.Tensor], tokenizer: Tokenizer, rows: int) -> Iterator[list[str | None]]:
    """Turn the columns of `stream` into text as they come.

    Yields:
        For each column, the text that each row can print now ("" within a character), None once the row has ended. The
        last list holds what rows still held back: U+FFFD for a character that was cut off. Joined, the pieces of a row
        are what the tokenizer decodes from its ids before end-of-text.
    """
    decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in range(rows)]
    ended = [False] * rows
    for column in columns:
        ids = column.tolist()
        ended = [done or token == tokenizer.eot for done, token in zip(ended, ids, strict=True)]
        yield [
            None if done else decoder.decode(tokenizer.decode_bytes([token]))
            for done, decoder, token in zip(ended, decoders, ids, strict=True)
        ]
    yield [decoder.decode(b"", final=True) for decoder in decoders]


def generate_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    samples: int,
    max_new_tokens: int,
    strategy: DecodingStrategy,
    seed: int,
    runtime: Runtime,
) -> list[str]:
    """Return ``samples`` texts that begin a document with ``prompt``, each up to its end or ``max_new_tokens``.

    Raises:
        InputError: The strategy does not fit the vocabulary.
    """
    tokens = encode_prompt(tokenizer, prompt, samples, runtime.device)
    generator = seeded(seed, runtime.device)
    with runtime.autocast():
        columns = stream(model, tokens, max_new_tokens, strategy, generator, tokenizer.eot)
        pieces = list(stream_text(columns, tokenizer, samples))
    return [prompt + "".join(filter(None, row)) for row in zip(*pieces, strict=True)]
