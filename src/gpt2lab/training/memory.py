"""The memory of a training step, computed from shapes alone, tensor by tensor.

`gpt2lab plan` prints it, and the automatic micro-batch goes by it. With N parameters (4 bytes each, as their gradients
and each of AdamW's two moments), a vocabulary of V rows of C in the embedding, and A bytes of activations, a step
passes through five phases; its peak is the highest of them:

    phase                    bytes
    always                   4 N weights + 8 N optimizer state
    in the loss              + A + the loss's chunk of logits + 4 V C, the gradient of the head
    after the loss           + A + 8 V C, while the head's gradient is multiplied by the incoming one
    in the last block        + A + 4 V C + what its backward pass allocates: the gradient of the inner layer or, once
                             the activations of the feed-forward layer are freed, that of attention. With activation
                             checkpointing, A is the input of every block, and one block's activations are added
    in the first block       + the activations of one block + 4 V C + the same + the gradients of all other blocks
    after the first block    + 4 N gradients + 4 V C, the embedding's own gradient before it is added to the head's

From the second micro-step on, the 4 N gradients exist from the start. Under autocast, bf16 copies of the weights (2
bytes each) live as long as the activations.

A block keeps for its backward pass, in bytes per token (s per number, m in dropout's mask, r in the input of a norm):

    two branches        2 (C (r + s + m) + 8)                       norm: input, output, mean, deviation; dropout's mask
    feed-forward        2 inner s                                   outputs of c_fc and of GELU; gated 4 inner s: c_fc's
                                                                    two halves, the function of the gate, the product
    attention           C s + one of these, with E = (n_head + 2 n_kv_head) head_dim numbers in q, k, v:
      fused kernels     E s + 4 n_head                              the log of each row's sum; with rope, q and k again
      plain products    E s + n_head T (softmax, mask, product)     the weights are (B, H, T, T)
      banded            E s + n_head (positions read) m             the weights are recomputed

All blocks share one mask, (T, T), and with ALiBi the biases of the heads, (n_head, T, T), in its place; the banded
kernel keeps either for the positions that are read. Within documents, each row of the batch has its own.

This is the method of Korthikanti et al. 2022 (section 4.1), whose 34 BTC + 5 BHTT bytes per block hold for GPT-2 in 16
bits with unfused attention and masks of one byte. What each kernel keeps was read from autograd's saved tensors.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass, replace

import torch

from gpt2lab.model.attention import choose_kernel
from gpt2lab.model.banded import cut
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.model.language_model import profile
from gpt2lab.model.loss import CHUNK_ROWS, SOFTMAX_NUMBERS, WEIGHT_ROWS, chunk_rows
from gpt2lab.model.masks import Mask
from gpt2lab.model.parts import matrix_shapes
from gpt2lab.runtime import DTYPES

FP32 = 4
FRAGMENTATION = 1.18
"""Resident memory of a CPU process over its live tensors: glibc keeps freed blocks and does not refill every hole
(benchmarks/plan.py measures it). On a GPU, torch's allocator rounds less, and the peak is that of live tensors."""
LIBRARY_BYTES = 30 * 2**20
"""What the matrix libraries allocate for themselves on a CPU."""


@dataclass(frozen=True)
class Shape:
    """Everything that the memory of a training step depends on."""

    model: GPTConfig
    T: int
    """Tokens per sequence."""
    B: int
    """Sequences per micro-step of one rank."""
    precision: str = "bf16"
    device: str = "cuda"
    activation_checkpointing: bool = False
    micro_steps: int = 1
    optimizer: str = "adamw"
    shards: int = 1
    """Ranks that weights, gradients and optimizer state are sharded over: 1 without FSDP."""
    documents: bool = False
    """Whether attention stays within documents, so that every row has a mask and positions of its own."""
    buckets: bool = False
    """Whether gradients are views of buckets that persist between steps, as under DDP."""

    @property
    def rows(self) -> int:
        """Tokens per micro-step of one rank."""
        return self.B * self.T

    @property
    def masks(self) -> int:
        """Masks and lists of positions of a micro-step: one for all rows, or one for each."""
        return self.B if self.documents else 1

    @property
    def size(self) -> int:
        """Bytes of an activation."""
        return DTYPES[self.precision].itemsize

    @property
    def mask_size(self) -> int:
        """Bytes of dropout's mask per number: a factor of its dtype on a CPU, a boolean on a GPU."""
        return 0 if not self.model.dropout else self.size if self.device == "cpu" else 1


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Of all blocks, kept between forward and backward pass, with autocast's copies of the weights."""
    peak: int


@functools.cache
def parameter_shapes(model: GPTConfig) -> dict[str, torch.Size]:
    """Return the shapes of a model's parameters by name, with the vocabulary padded, without allocating them."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in GPT(model).named_parameters()}


def n_params(model: GPTConfig) -> int:
    """Return the number of parameters, without the padding of the vocabulary."""
    if model.network is not None:
        return profile(model).n_params
    return sum(size.numel() for size in parameter_shapes(model).values()) - model.padding_params


def estimate(shape: Shape) -> Memory:
    """Return what a rank holds, and its peak over the phases of a step."""
    if shape.model.network is not None:
        return _estimate_own(shape)
    model, shapes = shape.model, parameter_shapes(shape.model)
    total = sum(size.numel() for size in shapes.values())
    blocks = {name: size.numel() for name, size in shapes.items() if name.startswith("h.")}
    block = sum(blocks.values()) // (model.n_layer + model.mtp_depth)
    matrices = sum(number for name, number in blocks.items() if len(shapes[name]) == 2)
    embedding = model.padded_vocab * model.n_embd
    shard = -(-total // shape.shards)
    weights = FP32 * shard
    optimizer = FP32 * (2 * shard - (matrices // shape.shards if shape.optimizer == "muon" else 0))  # Muon keeps one
    # FSDP accumulates full gradients over the micro-steps and shards them in the last one. It gathers weights in the
    # dtype of the products: the embedding, and two blocks, since the next one is prefetched.
    gradients = FP32 * (total if shape.micro_steps > 1 else shard)
    embeddings = embedding if model.tied_head else 2 * embedding
    gathered = 0 if shape.shards == 1 else shape.size * (embeddings + 2 * block)
    attention = {mask: _attention(shape, mask) for mask in model.masks}
    blocks_keep = {mask: block_activations(shape, mask) for mask in attention}
    one = max(blocks_keep.values())
    width = shape.rows * model.n_embd
    angles = shape.masks * shape.T * model.rotary_dim * shape.size if model.position == "rope" else 0
    activations = width * (2 * shape.size + shape.mask_size) + angles  # embeddings' dropout, last norm
    activations += sum(found.shared for found in attention.values())
    ran = (*model.masks, *model.masks[-1:] * model.mtp_depth)
    activations += sum(width * shape.size if shape.activation_checkpointing else blocks_keep[mask] for mask in ran)
    activations += model.mtp_depth * width * shape.size  # last norms and their gradient, but one input for all heads
    if shape.shards == 1 and shape.size < FP32:
        activations += shape.size * matrices  # autocast's copies of the weights
    head = FP32 * embedding * (2 if model.mtp_depth else 1)
    earlier = gradients if shape.micro_steps > 1 or shape.buckets else 0
    others = FP32 * (sum(blocks.values()) - block) // shape.shards  # gradients by the time of the first block
    recomputed = one if shape.activation_checkpointing else 0
    # The backward pass of a block reaches the feed-forward layer first, and has freed it when it reaches attention.
    attention_backward = max(found.backward for found in attention.values())
    backward = max(shape.rows * model.inner * shape.size, attention_backward - _feed_forward(shape))
    phases = (
        earlier + activations + head + _loss(shape, embedding),
        earlier + activations + 2 * head,
        earlier + activations + recomputed + backward + head,
        max(earlier, others) + one + backward + head,
        gradients + (2 if shape.micro_steps > 1 else 1) * head,
    )
    peak = weights + optimizer + gathered + max(phases)
    if shape.device == "cpu":
        peak = int(FRAGMENTATION * peak) + LIBRARY_BYTES
    return Memory(weights, gradients, optimizer, activations, peak)


def _estimate_own(shape: Shape) -> Memory:
    """Return the same for a class of the user's own: what its forward pass keeps was measured, in fp32.

    In the backward pass, the logits and their gradient are assumed to be alive once more.
    """
    found = profile(shape.model)
    shard = -(-found.n_params // shape.shards)
    optimizer = FP32 * (2 * shard - (found.matrices // shape.shards if shape.optimizer == "muon" else 0))
    gradients = FP32 * (found.n_params if shape.micro_steps > 1 else shard)
    activations = found.saved * shape.rows // shape.model.n_ctx
    peak = FP32 * shard + optimizer + gradients + activations + 2 * FP32 * shape.rows * shape.model.vocab_size
    if shape.device == "cpu":
        peak = int(FRAGMENTATION * peak) + LIBRARY_BYTES
    return Memory(FP32 * shard, gradients, optimizer, activations, peak)


def block_activations(shape: Shape, mask: Mask) -> int:
    """Return the bytes that a block keeps for its backward pass: inputs of norms, products, activations and dropout."""
    width = shape.rows * shape.model.n_embd * shape.size
    if shape.model.block is not None:
        return 2 * _branch(shape) + _attention(shape, mask).kept + _own(shape, "block")
    attention = _branch(shape) + _attention(shape, mask).kept + (3 if shape.model.attention_gate else 1) * width
    attention += _latent(shape)
    shared = _norm(shape) + shape.rows * shape.model.n_embd * shape.size if shape.model.parallel_blocks else 0
    return attention + _feed_forward(shape) - shared


def _feed_forward(shape: Shape) -> int:
    """Return the bytes of its branch, and of what the activation and c_proj keep."""
    if shape.model.feed_forward is not None:
        return _branch(shape) + _own(shape, "feed_forward")
    kept = 4 if shape.model.is_gated else 1 if shape.model.activation == "relu" else 2
    return _branch(shape) + kept * shape.rows * shape.model.inner * shape.size


def _own(shape: Shape, kind: str) -> int:
    """Return the bytes of the inputs and outputs of the matrices of a user's own part, which is all that is known.

    Of blocks that differ by layer it is the mean.
    """
    layers: list[tuple[int, ...]] = [(layer,) for layer in range(shape.model.n_layer)] if kind == "block" else [()]
    widths = [sum(sum(matrix[-2:]) for matrix in matrix_shapes(kind, shape.model, *layer)) for layer in layers]
    return shape.rows * shape.size * sum(widths) // len(widths)


def _branch(shape: Shape) -> int:
    """Return the bytes of a branch's norms, of the output of the first, and of its dropout's mask."""
    norms = 2 if shape.model.norm_placement == "sandwich" else 1
    return norms * _norm(shape) + shape.rows * shape.model.n_embd * (shape.size + shape.mask_size)


def _norm(shape: Shape) -> int:
    """Return the bytes of a norm's input, of its statistics, and of the quotient that rmsnorm's weight multiplies."""
    model = shape.model
    read = FP32 if shape.device == "cuda" else shape.size  # autocast on a GPU runs norms in fp32 and keeps that copy
    quotient = shape.size if model.norm == "rmsnorm" and model.norm_affine else 0
    return shape.rows * (model.n_embd * (read + quotient) + 2 * FP32)


@dataclass(frozen=True)
class _Attention:
    """Bytes of a block's attention, besides its output."""

    kept: int
    """For the backward pass."""
    backward: int
    """Allocated on top by the backward pass, at its peak."""
    shared: int
    """Of the mask or ALiBi's biases: one copy for all blocks."""


def _attention(shape: Shape, who: Mask) -> _Attention:
    """Return what the kernel holds that is asked for, or that ``auto`` takes."""
    model, T, dtype = shape.model, shape.T, DTYPES[shape.precision]
    kernel = model.kernel
    if shape.documents and who.leading:
        who = replace(who, reach=None)  # leading positions are then anywhere in a row
    if kernel == "auto":
        kernel, _ = choose_kernel(who, torch.device(shape.device), dtype, T, T, True, model.changes_scores)
    if kernel == "banded":
        return _banded(shape, who)
    pairs = shape.masks * T * T
    biases = model.n_head * pairs if model.position == "alibi" else 0
    if kernel in ("matmul", "reference"):
        mask = (biases or pairs) * shape.size if kernel == "matmul" else FP32 * biases or pairs
        return _products(shape, kernel, mask)
    mask = 0 if biases or (who.is_causal and not shape.documents) else pairs
    shared = 0 if kernel == "flex" else biases * shape.size + mask  # flex has a mask of blocks
    if shape.device == "cpu" and model.dropout:
        return _products(shape, kernel, shared)  # the fused CPU kernel has no dropout
    return _fused(shape, shared, 0 if kernel == "flex" else mask)


def _fused(shape: Shape, shared: int, mask: int) -> _Attention:
    """Count q, k, v and the log of each row's sum; in the backward pass, their gradients and the output's.

    q, k and v are views of c_attn's output; rotated or normalized, q and k are copies, as is v if it is mixed with the
    first layer's, and v keeps all of that output alive. The kernel's output is laid out by head, as q is, and copied
    for c_proj. A boolean mask becomes an additive one in every block.
    """
    model = shape.model
    width = max(model.key_width, model.value_width)  # the narrower are padded
    heads, out = (model.n_head + 2 * model.kv_heads) * width, model.n_head * width
    copied = heads - model.kv_heads * model.head_dim + model.n_embd if model.position == "rope" or model.qk_norm else 0
    copied += model.kv_heads * model.head_dim if model.value_residual else 0
    copied = copied if model.key_width == model.value_width else out
    kept = shape.rows * ((heads + copied) * shape.size + model.n_head * FP32) + mask * shape.size + _qk_norm(shape)
    norms = _differential(shape)
    return _Attention(kept + norms, shape.rows * (heads + out) * shape.size - norms, shared)


def _products(shape: Shape, kernel: str, shared: int) -> _Attention:
    """Count q, k, v and the weights (B, H, T, T) of unfused attention.

    It keeps the softmax, dropout's mask, and the input of the product with v if dropout or a cast made a copy. At the
    peak of the backward pass, the softmax, the mask, and the gradients before and after either are alive.
    """
    model, size = shape.model, shape.size
    matmul = FP32 if shape.device == "cuda" else size  # autocast on a GPU runs softmax in fp32
    softmax, product = {"matmul": (matmul, size), "reference": (FP32, size), "sdpa": (FP32, FP32)}[kernel]
    mask = (softmax if shape.device == "cpu" else 1) if model.dropout else 0
    kept = softmax + mask + (product if model.dropout or softmax != product else 0)
    weights = shape.B * model.n_head * shape.T**2
    groups = model.kv_heads if kernel == "matmul" else model.n_head  # the others repeat keys and values
    heads = shape.rows * _taken(model, groups)
    c_attn = shape.rows * (model.n_head + 2 * model.kv_heads) * model.head_dim * size
    c_attn = c_attn if model.qk_norm or model.value_residual else 0  # read by the norms, or by the sum of values
    kept += 0 if model.attention_softcap is None else softmax  # tanh
    others, later = heads * product + c_attn + _qk_norm(shape), _differential(shape, maps=2)
    return _Attention(others + later + weights * kept, weights * (3 * softmax + mask - kept) - later, shared)


def _banded(shape: Shape, mask: Mask) -> _Attention:
    """Count q, k, v and dropout's mask; in the backward pass, the gradients of q, k, v and the output, and one band.

    A band holds its weights, their gradient, and the gradient of the scores at once; with dropout also the dropped
    weights, and the gradient times the mask before and after scaling.
    """
    model, size = shape.model, shape.size
    bands = [(end - start) * (leading + end - first) for start, end, leading, first in cut(mask, shape.T)]
    weights = shape.B * model.n_head
    heads = _taken(model, model.kv_heads)
    copied = heads if model.value_residual else heads - model.kv_heads * model.head_dim if model.qk_norm else 0
    kept = shape.rows * (heads + copied) * size + _qk_norm(shape) + (weights * sum(bands) if model.dropout else 0)
    later = _differential(shape, maps=2)
    work = (5 if model.dropout else 3) * weights * max(bands) * size
    biases = shape.masks * sum(bands) * (model.n_head if model.position == "alibi" else 1)
    gradients = shape.rows * (heads + model.n_head * model.value_width) * size
    return _Attention(kept + later, gradients + work - later, biases * size)


def _taken(model: GPTConfig, groups: int) -> int:
    """Return the numbers of q, k and v per token as the kernel takes them, with ``groups`` heads of k and v."""
    return model.n_head * model.key_width + groups * (model.key_width + model.value_width)


def _latent(shape: Shape) -> int:
    """Return the bytes that latent attention keeps before the kernel: c_attn's output, a quotient, the cache's part."""
    model = shape.model
    if model.latent_dim is None:
        return 0
    quotient = model.latent_dim if model.norm_affine else 0
    numbers = model.c_attn_rows + quotient + model.latent_rotary + model.latent_dim
    return shape.rows * (numbers * shape.size + 2 * FP32)


def _differential(shape: Shape, maps: int = 0) -> int:
    """Return what differential heads keep until the kernel's backward pass: inputs, statistics and quotients of norms.

    ``maps`` is 2 where the kernel does not keep the outputs of both maps itself.
    """
    model = shape.model
    numbers = (maps + (2 if model.norm_affine else 1)) * model.n_embd * shape.size + 2 * FP32 * model.output_heads
    return shape.rows * numbers if model.differential_attention else 0


def _qk_norm(shape: Shape) -> int:
    """Return the bytes that the norms of q and k keep, besides their inputs and outputs."""
    model = shape.model
    quotient = model.head_dim * shape.size if model.norm == "rmsnorm" and model.norm_affine else 0
    return shape.rows * (model.n_head + model.kv_heads) * (quotient + 2 * FP32) if model.qk_norm else 0


def _loss(shape: Shape, embedding: int) -> int:
    """Return the peak of the fused loss (model/loss.py) in bytes, without the head's gradient."""
    model, size = shape.model, shape.size
    rows = min(chunk_rows(shape.device, model.padded_vocab), shape.rows)
    cpu = shape.device == "cpu"
    at_once = min(CHUNK_ROWS, rows) * model.vocab_size
    softmax = 2 * FP32 * (min(SOFTMAX_NUMBERS, at_once) if cpu else at_once)  # logits and log-probabilities in fp32
    part = min(WEIGHT_ROWS, model.padded_vocab) * model.n_embd if cpu else embedding
    product = part * (size + FP32 * (size < FP32))
    weight = 0 if size == FP32 else size * embedding
    return weight + rows * model.padded_vocab * size + max(softmax, product)


def largest_micro_batch(shape: Shape, room: int) -> int:
    """Return the most sequences per micro-step whose peak fits into ``room`` bytes; 0 if not even one does."""
    return bisect.bisect_right(range(1, 2**24), room, key=lambda B: estimate(replace(shape, B=B)).peak)
