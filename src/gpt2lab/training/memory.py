"""What training holds in memory, from the shapes alone: what `plan` prints and the automatic micro-batch goes by.

With N parameters (4 bytes each, as their gradients and each of AdamW's two moments), V rows of C in the embedding and
A bytes of activations, a step passes five moments, and the highest of them is its peak:

    always there           4 N weights + 8 N moments
    in the loss            + A + the loss's chunk of logits + 4 V C, the head's gradient
    after the loss         + A + 8 V C, while the head's gradient is scaled by the one that comes in
    in the last block      + A + 4 V C + what its backward pass makes on top: the gradient of its inner layer, or, once
                           the feed-forward's activations are freed, attention's; with activation checkpointing, A is
                           the inputs of every block, and one block's activations come on top
    in the first block     + one block's activations + 4 V C + the same + the gradients of all other blocks
    after the first block  + 4 N gradients + 4 V C, the embedding's own gradient before it joins the head's

Micro-steps after the first have the 4 N gradients there from the beginning. Under autocast bf16 copies of the weights
(2 bytes each) last as long as the activations. Activations are counted tensor by tensor as this model keeps them; the
method is Korthikanti et al. 2022 (section 4.1), whose 34 BTC + 5 BHTT bytes a block are GPT-2's in 16 bits with
attention that is not fused and masks of one byte. What each kernel keeps was read from autograd's saved tensors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch

from gpt2lab.model.attention import choose_kernel
from gpt2lab.model.banded import cut
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.model.loss import CHUNK_ROWS, SOFTMAX_NUMBERS, WEIGHT_ROWS
from gpt2lab.runtime import DTYPES

FP32 = 4
FRAGMENTATION = 1.18
"""What a process on a CPU holds over its live tensors: glibc keeps freed blocks, and not every hole is filled again
(benchmarks/plan.py measures it). torch's allocator on a GPU rounds less and is asked about what is live."""
LIBRARY_BYTES = 30 * 2**20
"""What the matrix libraries take for themselves on a CPU once they have run."""


@dataclass(frozen=True)
class Shape:
    """Everything about a training pass that its memory depends on."""

    model: GPTConfig
    T: int
    """Tokens a sequence."""
    B: int
    """Sequences a micro-step of one rank."""
    precision: str = "bf16"
    device: str = "cuda"
    activation_checkpointing: bool = False
    micro_steps: int = 1
    optimiser: str = "adamw"
    shards: int = 1
    """Ranks that the weights, gradients and moments are shared out over: 1 without FSDP."""
    buckets: bool = False
    """Whether gradients are views of buckets that stay from step to step, as DDP's are."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    weights: int
    gradients: int
    optimiser: int
    activations: int
    """Of every block, kept between forward and backward pass, with the weights' copies in the precision's dtype."""
    peak: int


@functools.cache
def parameter_shapes(model: GPTConfig) -> dict[str, torch.Size]:
    """Return the shapes of a model's parameters by name, the vocabulary padded, without making them."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in GPT(model).named_parameters()}


def n_params(model: GPTConfig) -> int:
    """Return the number of parameters, without the padding of the vocabulary."""
    padding = (model.padded_vocab - model.vocab_size) * model.n_embd
    return sum(size.numel() for size in parameter_shapes(model).values()) - padding


def estimate(shape: Shape) -> Memory:
    """Return what a rank holds, and the most it holds at any moment of a step."""
    shapes = parameter_shapes(shape.model)
    total = sum(size.numel() for size in shapes.values())
    blocks = {name: size.numel() for name, size in shapes.items() if name.startswith("h.")}
    embedding = shape.model.padded_vocab * shape.model.n_embd
    matrices = sum(number for name, number in blocks.items() if len(shapes[name]) == 2)
    kept = -(-total // shape.shards)
    moments = 2 * kept - (matrices // shape.shards if shape.optimiser == "muon" else 0)  # Muon keeps one
    # FSDP adds up whole gradients over the micro-steps and shares them out in the last; weights travel in the
    # products' dtype: the embedding, and a block while the next one comes.
    weights, optimiser = FP32 * kept, FP32 * moments
    gradients = FP32 * (total if shape.micro_steps > 1 else kept)
    a_block = sum(blocks.values()) // shape.model.n_layer
    gathered = 0 if shape.shards == 1 else DTYPES[shape.precision].itemsize * (embedding + 2 * a_block)
    activations = _kept(shape) + (_copies(shape, matrices) if shape.shards == 1 else 0)
    head = FP32 * embedding
    earlier = gradients if shape.micro_steps > 1 or shape.buckets else 0
    others = FP32 * (sum(blocks.values()) - a_block) // shape.shards  # gradients when the first block's turn comes
    one = block_activations(shape)
    again = one if shape.activation_checkpointing else 0
    widest = shape.B * shape.T * shape.model.inner * DTYPES[shape.precision].itemsize
    made = max(widest, _attention(shape).backward - _feed_forward(shape))  # the feed-forward's turn comes before
    moments_of_a_step = (
        earlier + activations + head + _loss(shape, embedding),
        earlier + activations + 2 * head,
        earlier + activations + again + made + head,
        max(earlier, others) + one + made + head,
        gradients + (2 if shape.micro_steps > 1 else 1) * head,
    )
    peak = weights + optimiser + gathered + max(moments_of_a_step)
    if shape.device == "cpu":
        peak = int(FRAGMENTATION * peak) + LIBRARY_BYTES
    return Memory(weights, gradients, optimiser, activations, peak)


def _kept(shape: Shape) -> int:
    """Return the bytes of activations that live when the forward pass of all blocks is done."""
    model, rows = shape.model, shape.B * shape.T
    size = DTYPES[shape.precision].itemsize
    ends = rows * model.n_embd * (2 * size + (_mask(shape) if model.dropout else 0))  # embedding's dropout, last norm
    ends += _attention(shape).shared
    if shape.activation_checkpointing:
        return ends + model.n_layer * rows * model.n_embd * size
    return ends + model.n_layer * block_activations(shape)


def block_activations(shape: Shape) -> int:
    """Return the bytes that a block keeps for its backward pass: inputs of norms, products, GELU and dropout."""
    attention = _branch(shape) + _attention(shape).kept
    return attention + shape.B * shape.T * shape.model.n_embd * DTYPES[shape.precision].itemsize + _feed_forward(shape)


def _feed_forward(shape: Shape) -> int:
    """Return the bytes that a block's second half keeps: besides its norm, c_fc's output and GELU's."""
    return _branch(shape) + 2 * shape.B * shape.T * shape.model.inner * DTYPES[shape.precision].itemsize


def _branch(shape: Shape) -> int:
    """Return the bytes of a branch's norm, its input, output, mean and deviation, and of its dropout's mask."""
    model, size = shape.model, DTYPES[shape.precision].itemsize
    # Autocast on a GPU runs norms in fp32 and keeps that copy of the input.
    read = FP32 if shape.device == "cuda" else size
    masked = _mask(shape) if model.dropout else 0
    return shape.B * shape.T * (model.n_embd * (read + size + masked) + 2 * FP32)


@dataclass(frozen=True)
class _Bytes:
    """Bytes of a block's attention, besides its output."""

    kept: int
    """For the backward pass."""
    backward: int
    """That the backward pass makes on top, at its height."""
    shared: int
    """Of the mask, and of rope's angles: one for all blocks."""


def _attention(shape: Shape) -> _Bytes:
    """Count what the kernel that is used, or that ``auto`` takes, holds."""
    model, T, device, dtype = shape.model, shape.T, torch.device(shape.device), DTYPES[shape.precision]
    kernel = model.kernel
    if kernel == "auto":
        kernel, _ = choose_kernel(model.attention_mask, device, dtype, T, T, training=True)
    angles = T * model.head_dim * dtype.itemsize if model.position == "rope" else 0
    if kernel == "banded":
        return _banded(shape, angles)
    if kernel in ("matmul", "reference"):
        mask = T * T * (dtype.itemsize if kernel == "matmul" else 1)
        return _products(shape, kernel, angles + mask)
    mask = T * T if kernel == "sdpa" and not model.attention_mask.is_causal else 0  # flex has one of blocks
    if shape.device == "cpu" and model.dropout:
        return _products(shape, kernel, angles + mask)  # the fused kernel has no dropout there
    return _fused(shape, angles, mask)


def _fused(shape: Shape, angles: int, mask: int) -> _Bytes:
    """Count q, k, v and the logarithm of each row's sum; then their gradients and the output's.

    They are read where they lie: under rope that is the turned q and k, and v within all that c_attn gave. What comes
    out lies head by head as q does, and is copied for c_proj. An explicit mask becomes one to add, in every block.
    """
    model, size = shape.model, DTYPES[shape.precision].itemsize
    heads = (model.n_head + 2 * model.kv_heads) * model.head_dim
    turned = heads - model.kv_heads * model.head_dim + model.n_embd if model.position == "rope" else 0
    rows = shape.B * shape.T
    kept = rows * ((heads + turned) * size + model.n_head * FP32) + mask * size
    return _Bytes(kept, rows * (heads + model.n_embd) * size, angles + mask)


def _products(shape: Shape, kernel: str, shared: int) -> _Bytes:
    """Count q, k, v and the weights (B, H, T, T) of attention that is not fused.

    Kept are the softmax, dropout's mask, and what the product with v reads where dropout or a cast made it anew. At the
    backward pass's height there are the softmax and the mask still, and the gradient before and after either.
    """
    model, size = shape.model, DTYPES[shape.precision].itemsize
    softmax, product = {"matmul": (size, size), "reference": (FP32, size), "sdpa": (FP32, FP32)}[kernel]
    mask = (softmax if shape.device == "cpu" else 1) if model.dropout else 0
    kept = softmax + mask + (product if model.dropout or softmax != product else 0)
    weights = shape.B * model.n_head * shape.T**2
    groups = model.kv_heads if kernel == "matmul" else model.n_head  # the others repeat keys and values
    heads = shape.B * shape.T * (model.n_head + 2 * groups) * model.head_dim
    return _Bytes(heads * product + weights * kept, weights * (3 * softmax + mask - kept), shared)


def _banded(shape: Shape, shared: int) -> _Bytes:
    """Count q, k, v and which weights dropout keeps; then the gradients of q, k, v and the output, and one band's work.

    Of a band there are at once its weights, their gradient, and the scores' gradient; with dropout the dropped weights,
    and the gradient's product with the mask before and after it is scaled.
    """
    model, size = shape.model, DTYPES[shape.precision].itemsize
    places = [
        (end - start) * (leading + end - first) for start, end, leading, first in cut(model.attention_mask, shape.T)
    ]
    weights = shape.B * model.n_head
    heads = (model.n_head + 2 * model.kv_heads) * model.head_dim
    rows = shape.B * shape.T
    kept = rows * heads * size + (weights * sum(places) if model.dropout else 0)
    work = (5 if model.dropout else 3) * weights * max(places) * size
    return _Bytes(kept, rows * (heads + model.n_embd) * size + work, shared + sum(places) * size)


def _mask(shape: Shape) -> int:
    """Bytes of dropout's mask for one number: what it was multiplied with on a CPU, a boolean on a GPU."""
    return DTYPES[shape.precision].itemsize if shape.device == "cpu" else 1


def _copies(shape: Shape, matrices: int) -> int:
    """Return the bytes of the weights' copies that autocast makes."""
    size = DTYPES[shape.precision].itemsize
    return 0 if size == FP32 else size * matrices


def _loss(shape: Shape, embedding: int) -> int:
    """Return the bytes that the fused loss holds at its height, less the head's gradient (model/loss.py)."""
    model, size = shape.model, DTYPES[shape.precision].itemsize
    rows = min(CHUNK_ROWS, shape.B * shape.T)
    cpu = shape.device == "cpu"
    at_once = rows * model.vocab_size
    softmax = 2 * FP32 * (min(SOFTMAX_NUMBERS, at_once) if cpu else at_once)  # logits and log-probabilities in fp32
    part = min(WEIGHT_ROWS, model.padded_vocab) * model.n_embd if cpu else embedding
    product = part * (size + FP32 * (size < FP32))
    weight = 0 if size == FP32 else size * embedding
    return weight + rows * model.padded_vocab * size + max(softmax, product)


def largest_micro_batch(shape: Shape, room: int) -> int:
    """Return the most sequences a micro-step whose peak fits in so many bytes; 0 where not even one does."""
    fits, too_many = 0, 1
    while estimate(replace(shape, B=too_many)).peak <= room:
        fits, too_many = too_many, 2 * too_many
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if estimate(replace(shape, B=middle)).peak <= room:
            fits = middle
        else:
            too_many = middle
    return fits
