"""What a model does inside: its attention, its stream, what each layer would predict, and which part does what.

    look         `inspect_tokens`     attention weights, logit lens, losses and the size of the residual stream
                 `residual_stream`    x_0 .. x_L; `logit_lens` turns any of them into logits
    switch off   `switched_off`       the model without some heads, branches or layers, to sample from and inspect
    patch        `patch_residual`     which positions of which layers carry what distinguishes two prompts

The model that is given never changes: hooks are registered on a copy that shares its weights, so that another thread
can keep generating with it. What is shown is what the layers compute: grouped heads, masks by layer, sinks, gates.

    >>> model, tokenizer = GPT.from_hf("gpt2"), Tokenizer.load("gpt2")
    >>> ids = tokenizer.encode("The Eiffel Tower is in")
    >>> inspect_tokens(switched_off(model, ["head:9.6", "mlp:3"]), ids).probabilities.argmax()
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from gpt2lab.errors import InputError, require
from gpt2lab.model.attention import FirstValues
from gpt2lab.model.gpt import GPT, SandwichBlock, attention_weights, sharing_weights

PATCHED_TOKENS = 2048
"""Tokens of a batch of patched prompts."""

# Look -----------------------------------------------------------------------------------------------------------------


class TopTokens(NamedTuple):
    """The most probable tokens, most probable first."""

    ids: torch.Tensor
    """(L + 1, T, K)."""
    probabilities: torch.Tensor
    """(L + 1, T, K), fp32."""


@dataclass(frozen=True)
class Inspection:
    """What a model of L layers does inside for T tokens. Where there are L + 1, the first is that of the embeddings."""

    tokens: torch.Tensor
    """(T,)."""
    attention: torch.Tensor
    """(L, H, T, T), fp32: how much the query (third) attends to the key (fourth), as `attention_weights` returns it."""
    residual: torch.Tensor
    """(L + 1, T), fp32: root mean square of the residual stream."""
    lens: TopTokens
    """What each layer would predict, if its stream were the last (logit lens). That of layer L is the model's own."""
    losses: torch.Tensor
    """(T - 1,), fp32: -ln p of each token after the first, in nats."""
    probabilities: torch.Tensor
    """(V,), fp32: distribution of the token after the last."""


@torch.no_grad()
def inspect_tokens(model: GPT, tokens: Sequence[int] | torch.Tensor, top: int = 5) -> Inspection:
    """Run the model in evaluation mode over one text and return what it did.

    Args:
        model: The model, or what `switched_off` made of it. The caller's autocast applies.
        tokens: Ids, (T,), T from 1 to the context.
        top: Number of tokens K that the logit lens lists.

    Raises:
        InputError: There is no token, an id is outside the vocabulary, or there are more tokens than the context.
    """
    row = as_row(model, tokens)
    stream = residual_stream(model, row)[:, 0]  # (L + 1, T, C)
    tops, log_p = [], torch.empty(0)
    for x in stream:  # one layer at a time: the logits of all would be the largest tensor by far
        log_p = logit_lens(model, x).float().log_softmax(dim=-1)  # (T, V)
        tops.append(log_p.topk(min(top, log_p.shape[-1])))
    return Inspection(
        tokens=row[0],
        attention=attention_weights(model, row)[:, 0].float(),
        residual=stream.float().square().mean(dim=-1).sqrt(),
        lens=TopTokens(torch.stack([ids for _, ids in tops]), torch.stack([p for p, _ in tops]).exp()),
        losses=-log_p[:-1].gather(1, row[0, 1:, None])[:, 0],
        probabilities=log_p[-1].exp(),
    )


@torch.no_grad()
def residual_stream(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    """Return the stream (L + 1, B, T, C) of tokens (B, T): the embeddings, then the output of each block."""
    view = sharing_weights(model).eval()
    found: list[torch.Tensor] = []

    def record(block: nn.Module, inputs: tuple[Any, ...], x: torch.Tensor) -> None:
        found.extend((x,) if found else (inputs[0], x))

    for block in view.h:
        block.register_forward_hook(record)
    view.hidden(tokens)
    return torch.stack(found)


def logit_lens(model: GPT, x: torch.Tensor) -> torch.Tensor:
    """Return the logits (.., V) of a stream x (.., C) by the final norm and the head (nostalgebraist 2020)."""
    return model.head(model.ln_f(x).to(x.dtype))


def as_row(model: GPT, tokens: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Return one text (T,) as the only row of a batch (1, T), on the model's device.

    The ids are checked before they are there: a wrong one would end every later use of a GPU by this process.
    """
    V, ids = model.config.vocab_size, tokens.tolist() if isinstance(tokens, torch.Tensor) else tokens
    shape = tuple(tokens.shape) if isinstance(tokens, torch.Tensor) else (len(tokens),)
    require(len(shape) == 1 and shape[0] > 0, "the shape of the tokens", shape, "(T,), at least one token")
    for token in (min(ids), max(ids)):
        require(0 <= token < V, "a token", token, f"an id of the model, 0 to {V - 1}")
    return torch.tensor([ids], device=model.wte.weight.device)


# Switch off -----------------------------------------------------------------------------------------------------------

ENDS = {"head": "attn.c_proj", "attention": "attn", "mlp": "mlp"}
"""The module whose output is added to the stream; of a head, the one that takes it beside the others."""
SANDWICH_ENDS = {**ENDS, "attention": "ln_1_post", "mlp": "ln_2_post"}
_PART = re.compile(r"(attention|mlp|layer):([0-9]{1,4})|(head):([0-9]{1,4})\.([0-9]{1,4})")


def switched_off(model: GPT, parts: Iterable[str]) -> GPT:
    """Return the model without some of its parts: they add nothing to the residual stream (zero ablation).

    It shares the weights of ``model``, which stays as it is, and can be sampled from, inspected and evaluated.

    Args:
        model: The model.
        parts: ``head:L.H`` for head H of layer L (its output is zeroed before ``c_proj``), ``attention:L`` and
            ``mlp:L`` for a branch, ``layer:L`` for both; all are counted from 0.

    Raises:
        InputError: A part has another form, or the model does not have it.
    """
    view = sharing_weights(model)
    for part in parts:
        _switch_off(view, part)
    return view


def _switch_off(model: GPT, part: str) -> None:
    found = _PART.fullmatch(part)
    if found is None:
        raise InputError(
            f'cannot switch off "{part:.60}"; give head:LAYER.HEAD, attention:LAYER, mlp:LAYER or layer:LAYER'
        )
    config = model.config
    kind, layer, head = found[1] or found[3], int(found[2] or found[4]), int(found[5] or 0)
    if layer >= config.n_layer or head >= config.output_heads:
        raise InputError(
            f"cannot switch off {part}: the model has layers 0 to {config.n_layer - 1} and heads 0 to "
            f"{config.output_heads - 1}"
        )
    block = model.h[layer]
    if kind == "layer" and config.block is not None:  # whatever it does
        block.register_forward_hook(lambda module, inputs, y: inputs[0])
        return
    ends = SANDWICH_ENDS if isinstance(block, SandwichBlock) else ENDS
    for name in (ends["attention"], ends["mlp"]) if kind == "layer" else (ends[kind],):
        try:
            end = block.get_submodule(name)
        except AttributeError:
            raise InputError(
                f"cannot switch off {part}: block {config.block} has no {name}; switch off layer:{layer}"
            ) from None
        if kind == "head":
            end.register_forward_pre_hook(_without_head(head, config.n_embd // config.output_heads))
        else:
            end.register_forward_hook(_nothing)


def _nothing(module: nn.Module, inputs: tuple[Any, ...], y: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(y)


def _without_head(head: int, D: int) -> Callable[[nn.Module, tuple[torch.Tensor]], torch.Tensor]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        heads = inputs[0].clone()  # (B, T, H * D)
        heads[..., head * D : (head + 1) * D] = 0.0
        return heads

    return hook


# Patch ----------------------------------------------------------------------------------------------------------------


class _Given(nn.Module):
    """In the place of the first blocks: their result is known."""

    stream: torch.Tensor
    first: FirstValues
    """The values of the first layer, which later ones may take (`ValueResidual`)."""

    def forward(self, *inputs: object) -> torch.Tensor:
        vars(inputs[-1]).update(vars(self.first))
        return self.stream


def patch_residual(
    model: GPT,
    clean: Sequence[int] | torch.Tensor,
    corrupted: Sequence[int] | torch.Tensor,
    answer: int,
    wrong: int,
) -> torch.Tensor:
    """Return how far each place of the clean run restores its answer in the corrupted run (activation patching).

    The model reads the corrupted prompt, but after block l the stream at position t is the clean prompt's. With the
    logit difference d = logit(answer) - logit(wrong) of the next token, the effect is

        (d_patched - d_corrupted) / (d_clean - d_corrupted)

    which is 0 where nothing is restored and 1 where everything is (Meng et al. 2022, section 2, who restore the
    probability of the answer; the difference of logits is that of Wang et al. 2022).

    Args:
        model: The model, or what `switched_off` made of it.
        clean: Ids of the prompt that leads to ``answer``, (T,).
        corrupted: Ids of the prompt that leads to ``wrong``, (T,).
        answer: Id of the token that should follow the clean prompt.
        wrong: Id of the token that should follow the corrupted prompt.

    Returns:
        The effect, (L, T), fp32.

    Raises:
        InputError: The prompts differ in length, an id is outside the vocabulary, or both prompts give the same
            difference, so that nothing can be restored.
    """
    *_, effect = patch_steps(model, clean, corrupted, answer, wrong)
    return effect


@torch.no_grad()
def patch_steps(
    model: GPT,
    clean: Sequence[int] | torch.Tensor,
    corrupted: Sequence[int] | torch.Tensor,
    answer: int,
    wrong: int,
) -> Iterator[torch.Tensor]:
    """Yield the effect of `patch_residual` as it is known after each batch of prompts; it is 0 where it is not yet."""
    V = model.config.vocab_size
    for name, token in (("answer", answer), ("wrong", wrong)):
        require(0 <= token < V, name, token, f"an id of the model, 0 to {V - 1}")
    pair = [as_row(model, tokens) for tokens in (clean, corrupted)]
    T, other = (row.shape[1] for row in pair)
    if other != T:
        raise InputError(f"the clean prompt has {T} tokens and the corrupted one {other}; give prompts of one length")
    view, given = sharing_weights(model).eval(), _Given()
    view.h[0].register_forward_pre_hook(lambda block, inputs: setattr(given, "first", inputs[-1]))

    def difference(x: torch.Tensor) -> torch.Tensor:
        logits = view.head(x[:, -1]).float()  # x (B, T, C)
        return logits[:, answer] - logits[:, wrong]

    d_clean, d_corrupted = (difference(view.hidden(row)) for row in pair)
    if bool(d_clean == d_corrupted):
        raise InputError(
            "both prompts give the same logit difference, so there is nothing to restore; change a prompt or the tokens"
        )
    clean_stream, corrupted_stream = (residual_stream(view, row)[1:, 0] for row in pair)  # (L, T, C)
    patched = d_corrupted.repeat(model.config.n_layer, T)
    for layer in range(model.config.n_layer):
        view.h[layer] = given
        differ = (clean_stream[layer] != corrupted_stream[layer]).any(dim=-1).nonzero()[:, 0]  # elsewhere no effect
        for positions in differ.split(max(1, PATCHED_TOKENS // T)):
            given.stream = corrupted_stream[layer].repeat(len(positions), 1, 1)  # (B, T, C)
            given.stream[torch.arange(len(positions)), positions] = clean_stream[layer, positions]
            patched[layer, positions] = difference(view.hidden(pair[1].expand(len(positions), T)))
            yield (patched - d_corrupted) / (d_clean - d_corrupted)
    yield (patched - d_corrupted) / (d_clean - d_corrupted)
