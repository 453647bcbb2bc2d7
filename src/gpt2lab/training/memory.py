"""What training holds in memory, from the shapes alone: what `plan` prints and the automatic micro-batch goes by.

With N parameters (4 bytes each, as their gradients and each of AdamW's two moments), V rows of C in the embedding and
A bytes of activations, a step passes four moments, and the highest of them is its peak:

    always there           4 N weights + 8 N moments
    in the loss            + A + the loss's chunk of logits + 4 V C, the head's gradient
    after the loss         + A + 8 V C, while the head's gradient is scaled by the one that comes in
    in the last block      + A + the gradient of its inner layer + 4 V C; with activation checkpointing, A is the
                           inputs of every block, and one block's activations come on top
    after the last block   + 4 N gradients + 4 V C, the embedding's own gradient before it joins the head's

Micro-steps after the first have the 4 N gradients there from the beginning. Under autocast bf16 copies of the weights
(2 bytes each) last as long as the activations. Activations are counted tensor by tensor as this model keeps them; the
method is Korthikanti et al. 2022 (section 4.1), whose 34 BTC + 5 BHTT bytes a block are GPT-2's in 16 bits with
attention that is not fused and masks of one byte.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch

from gpt2lab.model import GPT, GPTConfig
from gpt2lab.model.loss import CHUNK_ROWS, SOFTMAX_NUMBERS, WEIGHT_ROWS
from gpt2lab.model.view import choose_kernel
from gpt2lab.runtime import DTYPES

FP32 = 4
HOLES = 1.18
"""What a process on a CPU holds over its live tensors: glibc keeps freed blocks, and not every hole is filled again
(benchmarks/plan.py measures it). torch's allocator on a GPU rounds less and is asked about what is live."""
LIBRARIES = 30 * 2**20
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
def parameters(model: GPTConfig) -> dict[str, torch.Size]:
    """Return the shapes of a model's parameters by name, the vocabulary padded, without making them."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in GPT(model).named_parameters()}


def estimate(shape: Shape) -> Memory:
    """Return what a rank holds, and the most it holds at any moment of a step."""
    shapes = parameters(shape.model)
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
    again = block_activations(shape) if shape.activation_checkpointing else 0
    widest = shape.B * shape.T * shape.model.inner * DTYPES[shape.precision].itemsize
    moments_of_a_step = (
        earlier + activations + head + _loss(shape, embedding),
        earlier + activations + 2 * head,
        earlier + activations + again + widest + head,
        gradients + (2 if shape.micro_steps > 1 else 1) * head,
    )
    peak = weights + optimiser + gathered + max(moments_of_a_step)
    if shape.device == "cpu":
        peak = int(HOLES * peak) + LIBRARIES
    return Memory(weights, gradients, optimiser, activations, peak)


def _kept(shape: Shape) -> int:
    """Return the bytes of activations that live when the forward pass of all blocks is done."""
    model, rows = shape.model, shape.B * shape.T
    size = DTYPES[shape.precision].itemsize
    ends = rows * model.n_embd * (2 * size + (_mask(shape) if model.dropout else 0))  # embedding's dropout, last norm
    if shape.activation_checkpointing:
        return ends + model.n_layer * rows * model.n_embd * size
    return ends + model.n_layer * block_activations(shape)


def block_activations(shape: Shape) -> int:
    """Return the bytes that a block keeps for its backward pass: inputs of norms, products, GELU and dropout."""
    model, size = shape.model, DTYPES[shape.precision].itemsize
    stream, inner = model.n_embd, model.inner
    norm = stream * (size + size)  # its input and its output
    if shape.device == "cuda" and size < FP32:
        norm = stream * (FP32 + size)  # autocast runs norms in fp32 there and keeps that copy of the input
    per_token = 2 * norm + 16 + stream * size + 2 * inner * size  # two norms, c_proj's input, c_fc's output and GELU's
    if model.dropout:
        per_token += 2 * stream * _mask(shape)
    return shape.B * shape.T * (per_token + _attention(shape))


def _attention(shape: Shape) -> int:
    """Return the bytes a token that attention keeps besides its output: q, k, v, and weights where it is not fused."""
    model, size = shape.model, DTYPES[shape.precision].itemsize
    heads = (model.n_head + 2 * model.kv_heads) * model.head_dim
    weights = (3 if model.dropout else 1) * model.n_head * shape.T  # softmax, dropout's mask, their product
    kernel = model.kernel
    if kernel == "auto":
        device, dtype = torch.device(shape.device), DTYPES[shape.precision]
        kernel, _ = choose_kernel(model.attention_mask, device, dtype, shape.T, shape.T, training=True)
    if kernel in ("matmul", "reference"):
        return (heads + weights) * size
    if kernel == "sdpa" and shape.device == "cpu" and (model.dropout or model.mask != "causal"):
        return (heads + weights) * FP32  # its fused kernel has no dropout there: the plain one, in fp32
    return heads * size + model.n_head * FP32  # fused: the logarithm of each row's sum


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
