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

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gpt2lab.errors import InputError


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
