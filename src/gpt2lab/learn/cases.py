"""The arguments on which a part is compared with the reference, small and always the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpt2lab.learn import gpt2

B, T, H, D, V = 2, 5, 2, 4, 11
C = H * D


def cases(name: str) -> list[tuple[Any, ...]]:
    """Return the positional arguments of each call of a part, made anew."""
    return _CASES[name]()


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _weights(prefix: str = "") -> dict[str, Tensor]:
    shapes = gpt2.parameter_shapes(gpt2.Config(V, 16, C, H, 2))
    return gpt2.within({name: 0.5 * _normal(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}, prefix)


def _tokens() -> Tensor:
    return torch.tensor([[1, 2, 3, 4, 5], [5, 4, 9, 2, 1]])


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _loss(weights: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    return (weights["a"] * inputs - targets).square().mean()


_normals = partial(_normal, B, H, T, D)
_CASES: Mapping[str, Callable[[], list[tuple[Any, ...]]]] = {
    "byte_order": lambda: [()],
    "pretokenize": lambda: [("Hi, you're  12 ok",)],
    "merge": lambda: [([1, 2, 1, 2, 2], (1, 2), 256)],
    "train_bpe": lambda: [(["low lower lowest"], 260)],
    "encode": lambda: [("low é", [(75, 78)])],
    "decode": lambda: [([75, 78, 256, 130], [(75, 78)])],
    "embed": lambda: [(_tokens(), _normal(V, C), _normal(16, C), start) for start in (0, 3)],
    "rotate": lambda: [(_normals(), torch.arange(T))],
    "causal_mask": lambda: [(3, 5), (4, 4)],
    "attention": lambda: [
        (_normals(), _normals(seed=1), _normals(seed=2), gpt2.causal_mask(T, T)),
        (_normal(B, H, 3, D), _normals(seed=1), _normals(seed=2)),
    ],
    "split_heads": lambda: [(_normal(B, T, C), H)],
    "merge_heads": lambda: [(_normals(),)],
    "window_mask": lambda: [(3, 5, 2)],
    "multi_head_attention": lambda: [(_normal(B, T, C), _weights("h.0.attn."), H)],
    "layer_norm": lambda: [(_normal(B, T, C), _normal(C, seed=1), _normal(C, seed=2))],
    "gelu": lambda: [(_normal(B, T, C),)],
    "feed_forward": lambda: [(_normal(B, T, C), _weights("h.0.mlp."))],
    "block": lambda: [(_normal(B, T, C), _weights("h.0."), H)],
    "gpt": lambda: [(_tokens(), _weights(), H)],
    "cross_entropy": lambda: [(_normal(B, T, V), _tokens())],
    "batch": lambda: [(torch.arange(30), [0, 5], 4)],
    "initial_weights": lambda: [(gpt2.Config(V, 16, C, H, 2), _generator())],
    "decays": lambda: [("a.weight", _normal(2, 2)), ("a.bias", _normal(2))],
    "adamw": lambda: [({"a": _normal(2, 2)}, {"a": _normal(2, 2, seed=1)}, {}, 0.1)],
    "learning_rate": lambda: [(step, 10, 3, 1.0, 0.1) for step in range(10)],
    "clip": lambda: [({"a": _normal(3)}, 0.5)],
    "train_step": lambda: [({"a": _normal(3)}, [(_normal(3, seed=1), _normal(3, seed=2))], _loss, {}, 0.1)],
    "probabilities": lambda: [(_normal(V), 0.8, 4, 0.9)],
    "sample": lambda: [(torch.eye(V, dtype=torch.float64)[3], _generator())],
    "extend_cache": lambda: [({}, _normals(), _normals(seed=1), None)],
    "cached_attention": lambda: [(_normal(B, T, C), _weights("h.0.attn."), H, {})],
    "next_logits": lambda: [(_tokens(), _weights(), H, [{}, {}])],
    "generate": lambda: [([1, 2], _weights(), H, 4, _generator(), 1.0, 1)],
    "perplexity": lambda: [([1.0, 2.0], [3, 4])],
    "bits_per_byte": lambda: [(3.0, 4)],
    "windows": lambda: [(20, 8, 4)],
    "hellaswag_choice": lambda: [
        (_normal(4, T, V), torch.arange(4 * T).view(4, T) % V, torch.arange(T).expand(4, T) > 2)
    ],
    "interval": lambda: [([1.0, 2.0, 4.0],)],
}
