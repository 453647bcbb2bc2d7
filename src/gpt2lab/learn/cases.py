"""The arguments on which a part is compared with the reference: small, and chosen so that each known mistake shows.

Some parts are right in more than one way, or only show over several calls: `OBSERVE` says what is compared of them
instead of the returned value. A sample is judged by its frequencies, a cache by what comes out of it piece by piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gpt2lab.learn import gpt2

B, T, H, D, V, N_CTX = 2, 5, 3, 4, 11, 16
C = H * D
Args = tuple[Any, ...]


def cases(name: str, seed: int = 0) -> list[Args]:
    """Return the positional arguments of each call of a part, made anew; numbers are float64 and drawn by the seed."""
    return _CASES[name](_Draw(seed))


class _Draw:
    """Random arguments, each independent of those before."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def tokens(self, *shape: int, below: int = V) -> Tensor:
        return torch.randint(below, shape, generator=self.generator)

    def weights(self, prefix: str = "", n_layer: int = 3) -> gpt2.Weights:
        shapes = gpt2.parameter_shapes(gpt2.Config(V, N_CTX, C, H, n_layer))
        return gpt2.within({name: 0.5 * self(*shape) for name, shape in shapes.items()}, prefix)

    def heads(self, length: int = T) -> Tensor:
        return self(B, H, length, D)


# The cases of each part -----------------------------------------------------------------------------------------------

_TEXT = "low lower lowest newer newest wider éé éé éa aaaa aaa low low"
_ENCODED = ("low lowest newer", "abcd bcd abc", "ééé aé €", " a  b\n", "")


def _ids(text: str) -> list[int]:
    order = gpt2.byte_order()
    return [order.index(byte) for byte in text.encode()]


@cache
def _merges() -> tuple[tuple[int, int], ...]:
    """Return merges in which the pair learned first is neither the leftmost nor in the longest token."""
    a, b, c, d, space = _ids("abcd ")
    learned = gpt2.train_bpe([_TEXT], 270)
    more = [(b, c), (a, b), (c, d), (a, 256 + len(learned)), (d, space), (space, a), tuple(_ids("<|"))]
    return *learned, *more


def _encode(draw: _Draw) -> list[Args]:
    special = {"<|end|>": 500, "<|end|><|end|>": 501}
    plain = [(text, list(_merges())) for text in _ENCODED]
    marked = [(text, list(_merges()), special) for text in ("low<|end|>low <|end|><|end|>x", "a<|end|>")]
    return plain + marked


def _decode(draw: _Draw) -> list[Args]:
    merges, special = list(_merges()), {"<|end|>": 500}
    whole = gpt2.encode("lowest ééé €", merges)
    return [
        (whole, merges),
        (whole[:-1], merges),
        ([*_ids("é€")[1:], *_ids("a")], merges),
        ([75, 500], merges, special),
    ]


def _embed(draw: _Draw) -> list[Args]:
    return [(draw.tokens(B, T), draw(V, C), draw(N_CTX, C), start) for start in (0, 3)]


def _rotate(draw: _Draw) -> list[Args]:
    far = torch.tensor([0, 3, 4, 9, 200])
    return [(draw(B, H, T, 8), torch.arange(T)), (draw(B, H, T, 8), far), (draw(B, H, T, 8), far, 100.0)]


def _attention(draw: _Draw) -> list[Args]:
    mask = gpt2.causal_mask(T, T)
    return [(draw.heads(), draw.heads(), draw.heads(), mask), (draw.heads(3), draw.heads(), draw.heads())]


def _layer_norm(draw: _Draw) -> list[Args]:
    x, small = draw(B, T, C) + 1, 0.003 * draw(B, T, C)  # of a variance about eps
    small[0, 0] = 0.5  # of none
    return [(x, draw(C), draw(C)), (small, draw(C), draw(C))]


def _cross_entropy(draw: _Draw) -> list[Args]:
    targets = draw.tokens(B, T)
    counted = targets.clone()
    counted[0, 1:4] = -100
    large = torch.tensor([[1000.0, 0.0, -1000.0], [0.0, -1000.0, 900.0]], dtype=torch.float64)
    return [
        (draw(B, T, V), targets),
        (draw(B, T, V), counted),
        (draw(T, V), targets[1]),
        (large, torch.tensor([1, 2])),
        (large, torch.tensor([0, 2])),
    ]


def _batch(draw: _Draw) -> list[Args]:
    tokens = draw.tokens(30, below=500)
    return [(tokens, [0, 5, 2], 4), (tokens, [25], 4), (tokens, [3, 3], 1)]


def _decays(draw: _Draw) -> list[Args]:
    shapes = gpt2.parameter_shapes(gpt2.Config(V, N_CTX, C, H, n_layer=1))
    return [(name, draw(*shape)) for name, shape in shapes.items()]


def _parameters(draw: _Draw) -> gpt2.Weights:
    return {"c_fc.weight": draw(3, 2), "c_fc.bias": draw(3), "ln_f.weight": draw(3)}


def _adamw(draw: _Draw) -> list[Args]:
    return [
        (_parameters(draw), _parameters(draw), {}, 0.1),
        (_parameters(draw), _parameters(draw), {}, 0.05, (0.8, 0.9), 0.1, 0.5),
    ]


def _learning_rate(draw: _Draw) -> list[Args]:
    return [(step, 10, 3, 1.0, 0.1) for step in range(10)] + [(step, 6, 0, 2.0, 0.5) for step in range(6)]


def _clip(draw: _Draw) -> list[Args]:
    grads = {"a": 3 * draw(3, 2), "b": draw(4), "c": 0.1 * draw(2)}
    return [(grads, 2.0), ({"a": torch.full((2,), 0.3, dtype=torch.float64), "b": 0.01 * draw(2)}, 1.0)]


def _loss_of(weights: gpt2.Weights, inputs: Tensor, targets: Tensor) -> Tensor:
    outputs = gpt2.linear(inputs, weights["c_fc.weight"], weights["c_fc.bias"]) * weights["ln_f.weight"]
    return (outputs - targets).square().mean()


def _train_step(draw: _Draw) -> list[Args]:
    batches = [(draw(4, 2), draw(4, 3)) for _ in range(3)]
    return [(_parameters(draw), batches, _loss_of, {}, 0.1, norm) for norm in (0.5, 100.0)]


def _probabilities(draw: _Draw) -> list[Args]:
    logits = torch.tensor([2.0, 0.5, -1.0, 2.5, 1.0, 0.0, 1.6, -3.0, 1.2, 0.3, -0.4], dtype=torch.float64)
    ties = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 0.0], dtype=torch.float64)
    settings = [(), (0.5,), (2.0, 4), (1.0, None, 0.8), (2.0, None, 0.6), (2.0, 5, 0.7), (1.0, 1), (1.0, None, 0.01)]
    mixed = logits[torch.randperm(V, generator=draw.generator)]
    return [(mixed, *setting) for setting in settings] + [(ties, 1.0, 2), (ties, 1.0, 4), (ties, 1.0, None, 0.4)]


def _extend_cache(draw: _Draw) -> list[Args]:
    return [({}, draw.heads(6), draw.heads(6), base) for base in (None, 10000.0)]


def _generate(draw: _Draw) -> list[Args]:
    """Return three texts that are certain and a random one, by a model that does not just repeat its last token."""
    weights = draw.weights(n_layer=1)
    weights["wte.weight"] *= 0.2
    settings = [(1.0, 1), (1e-7,), (1.0, None, 1e-6), ()]
    return [(draw.tokens(4).tolist(), weights, H, 5, torch.Generator(), *setting) for setting in settings]


def _hellaswag_choice(draw: _Draw) -> list[Args]:
    """Return questions with endings of 1 to 5 tokens after contexts of one length, padded to one length."""
    place = torch.arange(9)
    made = []
    for _ in range(16):
        ends = 4 + draw.tokens(4, below=5)[:, None]
        made.append((2 * draw(4, 9, V), draw.tokens(4, 9), (place >= 4) & (place <= ends)))
    return made


def _interval(draw: _Draw) -> list[Args]:
    return [(draw(n).tolist(),) for n in (3, 5, 8)]


_CASES: Mapping[str, Callable[[_Draw], list[Args]]] = {
    "byte_order": lambda draw: [()],
    "pretokenize": lambda draw: [
        ("Hi, you're  12 ok",),
        (" I'M caffè2 _x\n\n  y \n",),
        ("日本語 a-b 1,5!?  ",),
        ("",),
    ],
    "merge": lambda draw: [
        ([1, 2, 1, 2, 2, 1, 3], (1, 2), 256),
        ([1, 1, 1, 2, 1, 1, 1, 1, 3], (1, 1), 300),
        ([3, 1, 2], (1, 2), 9),
        ([1], (1, 2), 9),
        ([], (1, 2), 9),
    ],
    "train_bpe": lambda draw: [
        ([_TEXT], 275),
        (["ba ab cd", "ab cd", "c"], 262),
        (["zz", "zz ab"], 300),
        (["ab"], 256),
    ],
    "encode": _encode,
    "decode": _decode,
    "embed": _embed,
    "rotate": _rotate,
    "causal_mask": lambda draw: [(3, 5), (4, 4), (1, 3), (2, 3)],
    "attention": _attention,
    "split_heads": lambda draw: [(draw(B, T, C), H)],
    "merge_heads": lambda draw: [(draw.heads(),)],
    "window_mask": lambda draw: [(5, 5, 2), (3, 6, 2), (4, 4, 1), (3, 3, 9), (6, 6, 3)],
    "multi_head_attention": lambda draw: [(draw(B, T, C), draw.weights("h.0.attn."), H)],
    "layer_norm": _layer_norm,
    "gelu": lambda draw: [(2 * draw(B, T, C),), (torch.linspace(-4, 4, 9, dtype=torch.float64),)],
    "feed_forward": lambda draw: [(draw(B, T, C), draw.weights("h.0.mlp."))],
    "block": lambda draw: [(draw(B, T, C), draw.weights("h.0."), H)],
    "gpt": lambda draw: [(draw.tokens(B, T), draw.weights(), H)],
    "cross_entropy": _cross_entropy,
    "batch": _batch,
    "initial_weights": lambda draw: [(gpt2.Config(64, 48, 32, 4, n_layer=3), draw.generator)],
    "decays": _decays,
    "adamw": _adamw,
    "learning_rate": _learning_rate,
    "clip": _clip,
    "train_step": _train_step,
    "probabilities": _probabilities,
    "sample": lambda draw: [(torch.tensor([0.3, 0.0, 0.7, 0.0], dtype=torch.float64), draw.generator)],
    "extend_cache": _extend_cache,
    "cached_attention": lambda draw: [(draw(B, 6, C), draw.weights("h.0.attn."), H, {})],
    "next_logits": lambda draw: [(draw.tokens(B, 6), draw.weights(), H, [{}, {}, {}])],
    "generate": _generate,
    "perplexity": lambda draw: [([1.0, 2.0, 4.0], [30, 40, 5]), ([0.5], [7])],
    "bits_per_byte": lambda draw: [(3.0, 4), (1000.0, 700)],
    "windows": lambda draw: [(20, 8, 4), (24, 8, 8), (5, 8, 4), (9, 8, 4), (22, 8, 3), (17, 8, 8)],
    "hellaswag_choice": _hellaswag_choice,
    "interval": _interval,
}


# What is compared of a part that is not its returned value ------------------------------------------------------------

PIECES = (slice(0, 3), slice(3, 4), slice(4, 6))
"""Six tokens as they are read with a cache: a prompt, a token, two at once."""


def _observe_decode(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except UnicodeDecodeError:
        return "UnicodeDecodeError"


def _observe_initial_weights(function: Callable[..., Any], config: gpt2.Config, generator: torch.Generator) -> Any:
    """Return of each tensor its shape, its standard deviation, and whether it is normal; what the seeds change."""
    seed = generator.initial_seed()
    first, again, other = _with_seeds(lambda g: function(config, g), (seed, seed, seed + 1))
    if not isinstance(first, dict):
        return first
    seen: dict[str, Any] = {name: [list(t.shape), *_distribution(t, config)] for name, t in first.items()}
    names = [name for name, tensor in first.items() if tensor.dim() > 1]
    repeats = all(torch.equal(first[name], again[name]) for name in first)
    return seen, ["repeats", repeats], ["differs", not any(torch.equal(first[name], other[name]) for name in names)]


def _distribution(tensor: Tensor, config: gpt2.Config) -> list[Any]:
    if tensor.eq(tensor.flatten()[0]).all():
        return ["all", tensor.flatten()[0].item()]
    C, layers = config.n_embd, config.n_layer
    likely = [0.02, 0.02 / math.sqrt(2 * layers), 0.02 / math.sqrt(layers), 0.02 / (2 * layers), 0.01, 0.02**0.5, 1.0]
    likely += [1 / math.sqrt(3 * C), 1 / math.sqrt(3 * 4 * C)]  # nn.Linear's
    std, mean = tensor.std().item(), tensor.mean().item()
    nearest = min(likely, key=lambda value: abs(math.log(std / value)))
    is_near = tensor.numel() < 1000 or abs(std / nearest - 1) < 0.1
    has_tails = tensor.numel() < 1000 or tensor.abs().max().item() > 2.5 * std
    return ["random", f"{nearest if is_near else std:.1g}", "mean 0", abs(mean) < 0.5 * std, "tails", has_tails]


def _with_seeds(call: Callable[[torch.Generator], Any], seeds: tuple[int, ...]) -> list[Any]:
    """Call with generators of these seeds, with another global seed each time."""
    results = []
    with torch.random.fork_rng(devices=[]):
        for i, seed in enumerate(seeds):
            torch.manual_seed(1000 + i)
            results.append(call(torch.Generator().manual_seed(seed)))
    return results


def _observe_adamw(function: Callable[..., Any], weights: Any, grads: Any, state: dict, *rest: Any) -> Any:
    """Return the weights after each of three steps with different gradients."""
    steps, kept = [], dict(weights)
    for scale in (1.0, -0.5, 2.0):
        function(weights, {name: scale * grad for name, grad in grads.items()}, state, *rest)
        steps.append({name: weight.clone() for name, weight in kept.items()})
    return steps


def _observe_train_step(function: Callable[..., Any], weights: Any, *rest: Any) -> Any:
    """Return loss, norm and weights of two steps."""
    steps, kept = [], dict(weights)
    for _ in range(2):
        returned = function(weights, *rest)
        if not isinstance(returned, tuple | list):
            return returned
        steps.append([*map(float, returned), {name: weight.detach().clone() for name, weight in kept.items()}])
    return steps


def _observe_sample(function: Callable[..., Any], probabilities: Tensor, generator: torch.Generator) -> Any:
    """Return what the frequencies of 200 draws are close to, and whether the generator decides alone."""

    def draws(generator: torch.Generator) -> list[int]:
        return [function(probabilities.clone(), generator) for _ in range(200)]

    seed = generator.initial_seed()
    first, again = _with_seeds(draws, (seed, seed))
    shares = torch.tensor([first.count(i) / len(first) for i in range(len(probabilities))], dtype=torch.float64)
    known = {"as asked": probabilities, "uniform": torch.full_like(shares, 1 / len(shares))}
    known |= {"softmax": probabilities.softmax(dim=-1), "one": shares.round()}
    distances = {name: (shares - expected).abs().max().item() for name, expected in known.items()}
    closest = min(distances, key=lambda name: distances[name])
    many = _with_seeds(lambda g: function(probabilities.clone(), g), tuple(range(seed, seed + 20)))
    certain = [function(row, generator) for row in torch.eye(4, dtype=torch.float64)]
    return {
        "int": all(type(draw) is int for draw in first),
        "frequencies": closest if distances[closest] < 0.12 else "others",
        "the certain one": certain,
        "same seed, same draws": first == again,
        "the next draw is another": len(set(first)) > 1,
        "other seed, other draws": len(set(many)) > 1,
    }


def _observe_extend_cache(function: Callable[..., Any], cache: dict, k: Tensor, v: Tensor, base: float | None) -> Any:
    """Return keys and values after each of three calls with two tokens each."""
    return [function(cache, k[:, :, i : i + 2], v[:, :, i : i + 2], base) for i in (0, 2, 4)]


def _observe_cached_attention(function: Callable[..., Any], x: Tensor, weights: Any, n_head: int, cache: dict) -> Any:
    return [function(x[:, piece], weights, n_head, cache) for piece in PIECES]


def _observe_next_logits(function: Callable[..., Any], tokens: Tensor, weights: Any, n_head: int, caches: list) -> Any:
    return [function(tokens[:, piece], weights, n_head, caches) for piece in PIECES]


def _observe_generate(
    function: Callable[..., Any], tokens: list[int], weights: Any, n_head: int, n: int, generator: Any, *rest: Any
) -> Any:
    """Return the text if it is the same with all seeds, else what all texts share and whether the seed decides."""
    texts = _with_seeds(lambda g: function(list(tokens), weights, n_head, n, g, *rest), (0, 0, 1))
    if not all(isinstance(text, list) for text in texts) or all(text == texts[0] for text in texts):
        return texts[0]
    return {
        "prompt": all(text[: len(tokens)] == tokens for text in texts),
        "lengths": [len(text) for text in texts],
        "same seed, same text": texts[0] == texts[1],
    }


OBSERVE: Mapping[str, Callable[..., Any]] = {
    "decode": _observe_decode,
    "initial_weights": _observe_initial_weights,
    "adamw": _observe_adamw,
    "train_step": _observe_train_step,
    "sample": _observe_sample,
    "extend_cache": _observe_extend_cache,
    "cached_attention": _observe_cached_attention,
    "next_logits": _observe_next_logits,
    "generate": _observe_generate,
}
"""What to compare of a part: OBSERVE[name](function, *args) instead of function(*args)."""
