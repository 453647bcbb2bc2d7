"""Weights in 8 or 4 bits, for writing on a CPU, where each new token reads every weight once.

    int8    w = q s              q in -127..127, a scale s for each row (output feature)
    int4    w = (q - 8) s + z    q in 0..15, s and z for each group of 32 numbers in a row

Only the matrices of attention and feed-forward layers, the embedding and the head are rounded; vectors and positions
stay fp32, activations and sums are bf16 and fp32. Scales are bf16, in which PyTorch's packed products take them, and
numbers are rounded to the nearest that those scales can express. This is block-wise rounding without data (Dettmers &
Zettlemoyer 2023, section 2): a block is a row in int8, a group as in Frantar et al. 2023, section 5, in int4.

A few rows, as in decoding, are multiplied by the packed weights directly. With many rows, as in reading a prompt, the
arithmetic takes longer than reading, so the weights are decoded for an ordinary product.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from gpt2lab.errors import InputError
from gpt2lab.model.attention import CausalSelfAttention
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT, without_mtp
from gpt2lab.model.layers import FeedForward
from gpt2lab.runtime import has_fast_bf16

Width = Literal["int8", "int4"]
"""Bits of a weight."""
GROUP = 32
"""Numbers of a row that share a scale and a zero point in int4."""
ROWS, COLUMNS = 16, 32
"""Rows and columns of a matrix must be multiples of these: the packed products read whole blocks."""
CLIPPED = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Parts of a group's range that int4 tries: cutting off the extremes leaves smaller steps for the others."""

Tensors = dict[str, torch.Tensor]


class Codec(ABC):
    """How a matrix (N, K) becomes whole numbers, and how x (R, K) is multiplied by them."""

    names: tuple[str, ...]
    """Names of the tensors that hold a matrix."""

    @abstractmethod
    def shapes(self, N: int, K: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of each tensor."""

    @abstractmethod
    def encode(self, matrix: torch.Tensor) -> Tensors:
        """Round a matrix (N, K)."""

    @abstractmethod
    def decode(self, held: Tensors) -> torch.Tensor:
        """Return the matrix (N, K) that the tensors stand for, fp32."""

    @abstractmethod
    def pack(self, held: Tensors) -> tuple[Any, ...]:
        """Return what `product` needs in place of the matrix."""

    @abstractmethod
    def product(self, x: torch.Tensor, packed: tuple[Any, ...]) -> torch.Tensor:
        """Return x W^T (R, N), bf16, for x (R, K) in bf16."""


class Int8(Codec):
    """A scale for each row; the largest number of a row becomes 127."""

    names = ("numbers", "scale")

    def shapes(self, N: int, K: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of each tensor."""
        return {"numbers": ((N, K), torch.int8), "scale": ((N,), torch.bfloat16)}

    def encode(self, matrix: torch.Tensor) -> Tensors:
        """Round a matrix (N, K)."""
        scale = (matrix.float().abs().amax(dim=1) / 127).bfloat16()
        numbers = (matrix / _divisor(scale)[:, None]).round().clamp(-127, 127).to(torch.int8)
        return {"numbers": numbers, "scale": scale}

    def decode(self, held: Tensors) -> torch.Tensor:
        """Return the matrix (N, K), fp32."""
        return held["numbers"].float() * held["scale"].float()[:, None]

    def pack(self, held: Tensors) -> tuple[Any, ...]:
        """Return the tensors: they are what the product reads."""
        return held["numbers"], held["scale"]

    def product(self, x: torch.Tensor, packed: tuple[Any, ...]) -> torch.Tensor:
        """Return x W^T (R, N) in bf16."""
        return torch.ops.aten._weight_int8pack_mm(x, *packed)


class Int4(Codec):
    """A scale and a zero point for each group of 32, two numbers in a byte, the first in its low half."""

    names = ("numbers", "scale", "zero")

    def shapes(self, N: int, K: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of each tensor."""
        of_groups = (N, K // GROUP), torch.bfloat16
        return {"numbers": ((N, K // 2), torch.uint8), "scale": of_groups, "zero": of_groups}

    def encode(self, matrix: torch.Tensor) -> Tensors:
        """Round a matrix (N, K): of several ranges for each group, the one with the smallest squared error."""
        groups = matrix.float().unflatten(1, (-1, GROUP))  # (N, K / 32, 32)
        low, high = groups.amin(dim=2), groups.amax(dim=2)
        least = torch.full_like(low, torch.inf)
        numbers = torch.empty(groups.shape, dtype=torch.uint8)
        kept = [torch.empty_like(low, dtype=torch.bfloat16) for _ in range(2)]
        for part in CLIPPED:
            middle, half = (low + high) / 2, (high - low) / 2 * part
            scale = (half * 2 / 15).bfloat16()
            zero = (middle - half + 8 * scale.float()).bfloat16()
            steps = (groups - zero.float()[..., None]) / _divisor(scale)[..., None]
            tried = (steps.round() + 8).clamp(0, 15)
            error = ((tried - 8) * scale.float()[..., None] + zero.float()[..., None] - groups).square().sum(dim=2)
            better = error < least
            least = torch.where(better, error, least)
            numbers = torch.where(better[..., None], tried.to(torch.uint8), numbers)
            kept = [torch.where(better, new, old) for new, old in zip((scale, zero), kept, strict=True)]
        first, second = numbers.flatten(1).unflatten(1, (-1, 2)).unbind(dim=2)
        return {"numbers": first | (second << 4), "scale": kept[0], "zero": kept[1]}

    def decode(self, held: Tensors) -> torch.Tensor:
        """Return the matrix (N, K), fp32."""
        scale, zero = (held[name].float()[..., None] for name in ("scale", "zero"))
        groups = self._numbers(held).float().unflatten(1, (-1, GROUP))
        return ((groups - 8) * scale + zero).flatten(1)

    def pack(self, held: Tensors) -> tuple[Any, ...]:
        """Return the numbers in the layout of this CPU's product, and scales and zero points as it takes them."""
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(self._numbers(held).int(), 1)
        return packed, GROUP, torch.stack([held["scale"].T, held["zero"].T], dim=2).contiguous()  # (K / 32, N, 2)

    def product(self, x: torch.Tensor, packed: tuple[Any, ...]) -> torch.Tensor:
        """Return x W^T (R, N) in bf16."""
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, *packed)

    def _numbers(self, held: Tensors) -> torch.Tensor:
        """Return the numbers (N, K), one in a byte."""
        pairs = held["numbers"]
        return torch.stack([pairs & 15, pairs >> 4], dim=2).flatten(1)


CODECS: dict[Width, Codec] = {"int8": Int8(), "int4": Int4()}


def _divisor(scale: torch.Tensor) -> torch.Tensor:
    """Return scales in fp32, 1 in place of 0: then all numbers are equal, and any divisor gives 0."""
    return scale.float().masked_fill(scale == 0, 1.0)


@functools.cache
def few_rows() -> int:
    """Return up to how many rows the packed product is the faster one, as measured."""
    return 16 if has_fast_bf16() else 128


class QuantizedLinear(nn.Module):
    """A linear layer whose matrix (N, K) is held in few bits."""

    def __init__(self, N: int, K: int, bias: bool, width: Width) -> None:
        super().__init__()
        self.codec = CODECS[width]
        for name, (shape, dtype) in self.codec.shapes(N, K).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(N), requires_grad=False) if bias else None
        self._packed: tuple[Any, ...] | None = None

    def held(self) -> Tensors:
        """Return the tensors that hold the matrix."""
        return {name: self.get_buffer(name) for name in self.codec.names}

    @property
    def weight(self) -> torch.Tensor:
        """The matrix (N, K), fp32, decoded at each access."""
        return self.codec.decode(self.held())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (.., K) to (.., N) in bf16."""
        *shape, K = x.shape
        rows = x.reshape(-1, K)
        y = self.product(rows.bfloat16()) if rows.shape[0] <= few_rows() else self.decoded_product(rows)
        y = y.view(*shape, -1)
        return y if self.bias is None else y.add_(self.bias)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W^T (R, N), bf16, for x (R, K) in bf16."""
        if self._packed is None:
            self._packed = self.codec.pack(self.held())
        return self.codec.product(x, self._packed)

    def decoded_product(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same, for x in any dtype."""
        dtype = torch.bfloat16 if has_fast_bf16() else torch.float32
        with torch.autocast("cpu", enabled=False):
            return F.linear(x.to(dtype), self.weight.to(dtype)).bfloat16()


class QuantizedEmbedding(nn.Module):
    """A token embedding (V, C), which is also a tied output head."""

    def __init__(self, V: int, C: int, width: Width) -> None:
        super().__init__()
        self.table = QuantizedLinear(V, C, False, width)

    @property
    def weight(self) -> torch.Tensor:
        """The matrix (V, C), fp32, decoded at each access."""
        return self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows (.., C) of ids (..), fp32."""
        rows = {name: tensor[ids.flatten()] for name, tensor in self.table.held().items()}
        return self.table.codec.decode(rows).view(*ids.shape, -1)

    def unembed(self, x: torch.Tensor) -> torch.Tensor:
        """Return the products (.., V) of x (.., C) with every row, bf16."""
        return self.table(x)


class QuantizedGPT(GPT):
    """A GPT for inference on a CPU, under bf16 autocast. Its state dictionary holds whole numbers and scales.

    Raises:
        InputError: The rows or columns of a matrix are not multiples of `ROWS` and `COLUMNS`.
    """

    def __init__(self, config: GPTConfig, width: Width) -> None:
        with torch.device("meta"):
            super().__init__(config)
            self.width: Width = width
            self._n_params = super().n_params
            for parent, name, matrix in _matrices(self):
                N, K = matrix.weight.shape
                self._check(name, N, K)
                if isinstance(matrix, nn.Embedding):
                    setattr(parent, name, QuantizedEmbedding(N, K, width))
                else:
                    setattr(parent, name, QuantizedLinear(N, K, matrix.bias is not None, width))
        self.requires_grad_(False)

    @property
    def n_params(self) -> int:
        """Parameters of the unpadded model, however many bits each has."""
        return self._n_params

    def _check(self, name: str, N: int, K: int) -> None:
        if K % COLUMNS or N % ROWS:
            raise InputError(
                f"{self.width} needs rows in multiples of {ROWS} and columns in multiples of {COLUMNS}, and {name} has "
                f"{N} x {K}; leave the weights as they are"
            )


def _matrices(model: GPT) -> Iterator[tuple[nn.Module, str, nn.Linear | nn.Embedding]]:
    """Yield the matrices that are rounded: what holds each, and its name there."""
    for module in [*model.modules()]:
        if isinstance(module, CausalSelfAttention | FeedForward):
            for name, matrix in module.named_children():
                if isinstance(matrix, nn.Linear) and name.startswith("c_") and name != "c_latent":
                    yield module, name, matrix
    yield model, "wte", model.wte
    if not model.config.tied_head:
        yield model, "lm_head", model.lm_head


@torch.no_grad()
def quantized(model: GPT, width: Width) -> QuantizedGPT:
    """Round the weights of a model; heads of multi-token prediction are left out. Raises as `QuantizedGPT`."""
    model = without_mtp(model)
    rounded = QuantizedGPT(model.config, width)
    weights = {name: weight.detach().cpu() for name, weight in model.state_dict().items()}
    for name, module in rounded.named_modules():
        if isinstance(module, QuantizedLinear):
            matrix = weights.pop(f"{name.removesuffix('.table')}.weight")
            weights |= {f"{name}.{part}": tensor for part, tensor in module.codec.encode(matrix).items()}
    rounded.load_state_dict(weights, assign=True)
    return rounded.eval()


def dequantized(model: QuantizedGPT) -> GPT:
    """Return an ordinary model, fp32, with the weights that the rounded ones stand for."""
    with torch.device("meta"):
        plain = GPT(model.config)
    weights = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            for part in module.codec.names:
                del weights[f"{name}.{part}"]
            weights[f"{name.removesuffix('.table')}.weight"] = module.weight
    plain.load_state_dict(weights, assign=True)
    return plain.eval()
