"""The next-token loss without the logits: output head and cross-entropy in one, a few hundred rows at a time.

For N positions and a vocabulary V the logits are an (N, V) matrix, by far the largest tensor of a small GPT-2 (1,024 x
50,304 in fp32 are 206 MB, and its gradient as much again). The loss needs one number of each row:

    loss_i = log sum_v exp(x_i . w_v) - x_i . w_{t_i}           d loss_i / d logits_i = softmax(logits_i) - onehot(t_i)

Since the gradient of the mean loss is known as soon as the row is, the forward pass computes both for a chunk of rows
and drops the chunk. The matrix products run in the inputs' dtype; softmax, loss and the sum of the weight's gradient
are fp32 whatever the inputs are. The backward pass divides by N: done before, a probability of 1/V vanishes in fp16
before the scaler can save it. Rows of the weight beyond the vocabulary are padding: no probability, no gradient. As in
``torch.nn.functional.cross_entropy``, a target of -100 is ignored: N counts the others. The loss is 0 without any.

On a GPU the passes over the logits and over the weight's gradient cost more time than the three products. What a row
moves, in bf16, in bytes per entry of the vocabulary (C = 768), besides what the products read and write:

    fp32 copy 2 + 4, log-softmax 4 + 4, exp 4 + 4, back to bf16 4 + 2        28; compiled 6: read, then read and write
    product to the weight's gradient and its sum, 12 C a chunk               18 with 512 rows, 4 with 2,560

GPT-2's vocabulary makes that 2.3 MB a token, 0.7 us at an H100's 3.35 TB/s, where the products take 0.23 us; compiled
and in larger chunks 0.5 MB, 0.15 us.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from gpt2lab.runtime import key_compiled_code

CHUNK_ROWS = 512
"""Rows of logits held at once: enough to keep the matrix unit busy, 51 MB at GPT-2's vocabulary in bf16."""
CUDA_LOGITS = 1 << 27
"""Logits held at once on a GPU, 268 MB in bf16: each chunk passes over the whole gradient of the weight."""
IGNORE_INDEX = -100
"""A target that takes no part in the loss."""
SOFTMAX_NUMBERS = 1 << 21
"""Logits turned into fp32 at once on a CPU: 8 MB, 40 rows of GPT-2's vocabulary, stay in the cache."""
WEIGHT_ROWS = 8192
"""Rows of the weight's gradient added at once on a CPU: all at once take its size again twice over in bf16."""


def plain_loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """The reference: logits, then cross-entropy.

    Args:
        x: The final stream (N, C).
        weight: The output head (padded V, C).
        targets: Ids (N,).
        vocab_size: V; further rows of the weight are padding.
        softcap: Logits are c tanh(logits / c) for this c (Gemma Team 2024, section 2); None leaves them.
        z_loss: Weight of (log sum_v exp logits_v)^2, which keeps the sum near 1 (Chowdhery et al. 2022, section 5).

    Returns:
        The mean loss in nats, fp32, shape ().
    """
    logits = soft_capped(F.linear(x, weight.to(x.dtype))[:, :vocab_size].float(), softcap)
    loss = F.cross_entropy(logits, targets)
    return loss + z_loss * logits[targets != IGNORE_INDEX].logsumexp(-1).square().mean() if z_loss else loss


def fused_loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    softcap: float | None = None,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """The same number as `plain_loss` in a fraction of its memory; 0, not NaN, if every target is ignored."""
    return fused_losses(x, weight, targets, vocab_size, softcap, z_loss)[0]


def fused_losses(
    x: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    vocab_size: int,
    softcap: float | None = None,
    z_loss: float = 0.0,
    compiled: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `fused_loss` and, without gradient, the part of it that is the z-loss.

    ``compiled`` fuses the passes over the logits, for a GPU.
    """
    return _FusedLoss.apply(x, weight, targets, vocab_size, softcap, z_loss, compiled)  # type: ignore[no-any-return]


def chunk_rows(device: str, padded_vocab: int) -> int:
    """Return the most rows of logits that are held at once on a type of device, a multiple of `CHUNK_ROWS`."""
    return max(1, CUDA_LOGITS // padded_vocab // CHUNK_ROWS if device == "cuda" else 1) * CHUNK_ROWS


def soft_capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Return c tanh(logits / c), or the logits themselves if c is None."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def targets_ahead(targets: torch.Tensor, depth: int, documents: torch.Tensor | None) -> torch.Tensor:
    """Return the targets (depth, B, T) of heads that predict the 2nd, 3rd, .. token after each position.

    Args:
        targets: The next tokens, (B, T).
        depth: Number of heads.
        documents: Document of each position, (B, T), or None. A target that does not follow on a token of the same
            document is ignored, as are those beyond the end of the row.
    """
    later = torch.full((depth, *targets.shape), IGNORE_INDEX, dtype=targets.dtype, device=targets.device)
    for head, row in enumerate(later, start=1):
        row[:, :-head] = targets[:, head:]
        if documents is not None:
            row[:, :-head].masked_fill_(documents[:, head:] != documents[:, :-head], IGNORE_INDEX)
    return later


@torch.no_grad()
def token_losses(
    x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, vocab_size: int, softcap: float | None = None
) -> torch.Tensor:
    """Return the loss of each position in nats, fp32, shape (N,), 0 where the target is ignored.

    Arguments as for `plain_loss`; no gradient.
    """
    ignored = targets == IGNORE_INDEX
    targets = targets.masked_fill(ignored, 0)
    losses = torch.empty(len(x), dtype=torch.float32, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        w = weight.to(x.dtype)
        for rows in _chunks(len(x), CHUNK_ROWS):
            logits = x[rows] @ w.T  # (R, padded V)
            for part in _chunks(len(logits), _softmax_rows(logits)):
                z = soft_capped(logits[part, :vocab_size].float(), softcap)
                chosen = z.gather(1, targets[rows][part, None]).squeeze(1)
                losses[rows][part] = torch.logsumexp(z, dim=1) - chosen
    return losses.masked_fill_(ignored, 0.0)


def _chunks(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def _softmax_rows(logits: torch.Tensor) -> int:
    return max(1, SOFTMAX_NUMBERS // logits.shape[1]) if logits.device.type == "cpu" else CHUNK_ROWS


def _losses_and_gradient_(
    logits: torch.Tensor, targets: torch.Tensor, vocab_size: int, softcap: float | None, z_loss: float
) -> list[torch.Tensor]:
    """Replace logits (R, padded V) by the gradient of each row's loss in place.

    Returns:
        The cross-entropies (R, 1), and the z-losses (R, 1) if there are any.
    """
    z = soft_capped(logits[:, :vocab_size].float(), softcap)  # (R, V)
    chosen = z.gather(1, targets[:, None])
    log_probabilities = torch.log_softmax(z, dim=1)
    losses = [-log_probabilities.gather(1, targets[:, None])]
    gradient = log_probabilities.exp_()
    if z_loss:
        log_sum = losses[0] + chosen  # -log p + z = log sum exp
        losses.append(z_loss * log_sum.square())
        gradient *= 1.0 + 2.0 * z_loss * log_sum
    if torch.compiler.is_compiling():  # a comparison joins the pass, which a scatter would end
        gradient -= (torch.arange(vocab_size, device=z.device) == targets[:, None]).float()
    else:
        gradient.scatter_add_(1, targets[:, None], torch.full_like(chosen, -1.0))
    if softcap is not None:
        gradient.sub_(gradient * z.div_(softcap).square_())  # times 1 - tanh^2, the derivative of c tanh(x / c)
    logits[:, :vocab_size] = gradient
    logits[:, vocab_size:].zero_()
    return losses


@functools.cache
def _compiled() -> Callable[..., list[torch.Tensor]]:
    key_compiled_code()
    return torch.compile(_losses_and_gradient_)


class _FusedLoss(torch.autograd.Function):
    """Mean cross-entropy of x @ weight.T, whose gradients are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        vocab_size: int,
        softcap: float | None,
        z_loss: float,
        compiled: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ignored = (targets == IGNORE_INDEX)[:, None]
        count = (len(x) - ignored.sum()).clamp(min=1)
        if not z_loss and not (ctx.needs_input_grad[0] or ctx.needs_input_grad[1]):
            mean = token_losses(x, weight, targets, vocab_size, softcap).sum() / count
            return mean, torch.zeros_like(mean)
        targets = targets.masked_fill(ignored[:, 0], 0)
        turn_into_gradient_ = _compiled() if compiled else _losses_and_gradient_
        with torch.autocast(x.device.type, enabled=False):
            w = weight.to(x.dtype)
            grad_x = torch.empty_like(x)
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            sums = torch.zeros(2, dtype=torch.float32, device=x.device)  # of cross-entropies and z-losses
            most = chunk_rows(x.device.type, len(w))
            buffer = x.new_empty(min(len(x), most), len(w))  # one for all: fresh ones would leave holes behind
            for rows in _chunks(len(x), most):
                logits = torch.mm(x[rows], w.T, out=buffer[: len(x[rows])])  # (R, padded V)
                for part in _chunks(len(logits), most if compiled else _softmax_rows(logits)):
                    both = turn_into_gradient_(logits[part], targets[rows][part], vocab_size, softcap, z_loss)
                    for total, losses in zip(sums, both, strict=False):
                        total += losses.masked_fill_(ignored[rows][part], 0.0).sum()
                torch.mm(logits, w, out=grad_x[rows])
                kept = x[rows].masked_fill(ignored[rows], 0.0)  # an ignored row has no part in the weight's gradient
                for part in _chunks(len(w), WEIGHT_ROWS if x.device.type == "cpu" else len(w)):
                    grad_weight[part] += logits[:, part].T @ kept
        ctx.save_for_backward(grad_x.masked_fill_(ignored, 0.0), grad_weight, count)
        ctx.weight_dtype = weight.dtype
        of_z = sums[1] / count
        ctx.mark_non_differentiable(of_z)
        return sums.sum() / count, of_z

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_output: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None, None, None, None]:
        grad_x, grad_weight, count = ctx.saved_tensors
        scale = grad_output / count  # (), fp32: multiplies in fp32 whatever grad_x is
        return grad_x * scale, (grad_weight * scale).to(ctx.weight_dtype), None, None, None, None, None
