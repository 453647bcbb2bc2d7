"""GPT-2: embeddings, a stack of pre-norm blocks, a final norm, and the embedding again as the output head.

    x_0   = wte[tokens] + wpe[positions]
    x_l'  = x_l + attention(layer_norm(x_l))
    x_l+1 = x_l' + feed_forward(layer_norm(x_l'))
    logits = layer_norm(x_L) wte^T

Radford et al. 2019, section 2.3. With norm ``post``, as in GPT-1 (Radford et al. 2018), x_l' = layer_norm(x_l +
attention(x_l)), likewise the other branch, and no final norm. Other positions and masks: positions.py, masks.py.

Parameters keep the published names. The model knows nothing of devices, ranks or
precision: run it under ``torch.autocast`` and the residual stream is kept in autocast's dtype.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from gpt2lab.errors import InputError
from gpt2lab.files import new_directory
from gpt2lab.hub import find_model
from gpt2lab.model.attention import (
    CAUSAL,
    CausalSelfAttention,
    Rotation,
    View,
    batch_mask,
    make_view,
    rotation,
    sinusoidal,
    tensor_mask,
)
from gpt2lab.model.cache import KVCache, LayerCache
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.huggingface import FILES, read_hf, write_hf
from gpt2lab.model.loss import fused_loss, token_losses
from gpt2lab.model.masks import Mask

INIT_STD = 0.02


class GPTOutput(NamedTuple):
    """What a forward pass gives: the logits, or, where targets were given, the loss alone."""

    logits: torch.Tensor | None
    """(B, T, V), or None where targets were given."""
    loss: torch.Tensor | None
    """Mean next-token loss in nats, fp32, shape (); None without targets."""


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, in its tanh form (Hendrycks & Gimpel 2016), as GPT-2 has it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.inner, bias=config.bias)
        self.c_proj = nn.Linear(config.inner, config.n_embd, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x (B, T, C) to (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then feed-forward, each on the normalised stream and added back to it; or normalised after the sum."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout, self.norm = config.dropout, config.norm
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x: torch.Tensor,
        view: View = CAUSAL,
        rotation: Rotation | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Map the residual stream x (B, T, C) to the next, (B, T, C)."""
        if self.norm == "pre":
            x = x + F.dropout(self.attn(self.ln_1(x), view, rotation, cache), self.dropout, self.training)
            return x + F.dropout(self.mlp(self.ln_2(x)), self.dropout, self.training)
        dtype = x.dtype  # CUDA's autocast makes norms fp32: the stream would be too
        x = self.ln_1(x + F.dropout(self.attn(x, view, rotation, cache), self.dropout, self.training)).to(dtype)
        return self.ln_2(x + F.dropout(self.mlp(x), self.dropout, self.training)).to(dtype)


class GPT(nn.Module):
    """A GPT-2 language model.

    >>> model = GPT(GPTConfig.preset("nano"))
    >>> model.n_params
    3274752
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config, self.mask = config, config.attention_mask
        self.wte = nn.Embedding(config.padded_vocab, config.n_embd)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias) if config.norm == "pre" else nn.Identity()
        self._initialise()

    @classmethod
    def from_hf(cls, source: Path | str) -> GPT:
        """Return a GPT-2 of Hugging Face's, in fp32 and evaluation mode.

        Args:
            source: A directory that save_pretrained wrote, or a name on the hub such as ``gpt2`` or ``distilgpt2``.

        Raises:
            InputError: There is no such thing, it is not GPT-2's architecture, or its weights do not fit it (listed).
        """
        config, weights = read_hf(find_model(source, FILES))
        with torch.device("meta"):  # no random weights that would only be replaced
            model = cls(config)
        model.load_state_dict(weights, assign=True)
        return model.eval()

    def save_hf(self, directory: Path | str) -> None:
        """Write a directory that ``transformers.AutoModelForCausalLM.from_pretrained`` reads.

        Raises:
            InputError: Something of that name exists, or the architecture is more than GPT-2's.
        """
        with new_directory(Path(directory)) as folder:
            write_hf(self.config, self.state_dict(), folder)

    @torch.no_grad()
    def _initialise(self) -> None:
        """N(0, 0.02), biases 0 (Radford et al. 2018, section 4.1).

        With norm ``pre``, projections that end a residual branch are scaled by 1/sqrt(2 n_layer), since nothing keeps
        the stream from growing with depth (Radford et al. 2019, section 2.3). With ``post`` every sum is normalised.
        """
        depth = 2 * self.config.n_layer if self.config.norm == "pre" else 1
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(depth))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=INIT_STD)
        self.wte.weight[self.config.vocab_size :] = 0.0

    @property
    def n_params(self) -> int:
        """Parameters of the unpadded model, the tied head counted once."""
        padding = (self.config.padded_vocab - self.config.vocab_size) * self.config.n_embd
        return sum(p.numel() for p in self.parameters()) - padding

    def embed(self, tokens: torch.Tensor, start: int, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Return the embeddings (B, T, C) of tokens (B, T) at positions (B, T), or from start on."""
        x = self.wte(tokens)
        if self.config.position == "learned":
            end = start + tokens.shape[1]
            x = x + (self.wpe.weight[start:end] if positions is None else self.wpe(positions))
        elif self.config.position == "sinusoidal":
            x = x + sinusoidal(_positions(tokens, start, positions), self.config.n_embd).to(x.dtype)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        return F.dropout(x, self.config.dropout, self.training)

    def hidden(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: KVCache | None = None,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the final, normalised stream (B, T, C) of tokens (B, T), which follow what the cache holds.

        The other arguments are those of `forward`. A cache holds one document a row, and knows its positions.
        """
        check_inputs(self.config, tokens, mask, cache, documents, positions)
        T, start = tokens.shape[1], 0 if cache is None else cache.length
        queries = keys = _positions(tokens, start, None)
        if cache is not None:
            keys = cache.begin(T)
            if cache.padding is not None:
                positions = (queries - cache.padding[:, None]).clamp(min=0)  # (B, T)
        x = self.embed(tokens, start, positions)
        view = self._view(x, queries, keys, mask, documents, positions, None if cache is None else cache.padding)
        turn = None
        if self.config.position == "rope":
            places = _positions(tokens, start, positions)
            turn = rotation(places, self.config.head_dim, self.config.rope_base, x.dtype)
        for index, block in enumerate(self.h):
            x = block(x, view, turn, cache.layers[index] if cache is not None else None)
        if cache is not None:
            cache.end(T)
        return self.ln_f(x).to(x.dtype)  # CUDA's autocast makes it fp32: the head would be too

    def _view(
        self,
        x: torch.Tensor,
        queries: torch.Tensor,
        keys: torch.Tensor,
        mask: torch.Tensor | None,
        documents: torch.Tensor | None,
        positions: torch.Tensor | None,
        padding: torch.Tensor | None,
    ) -> View:
        """Return what the queries of a pass whose embeddings are x (B, T, C) may read."""
        B, H, c = len(x), self.config.n_head, self.config
        if mask is None:
            allowed = batch_mask(self.mask, documents, positions, padding)
        else:
            allowed = tensor_mask(mask, documents, padding, B, H, queries, keys)
        return make_view(c.kernel, allowed, B, H, queries, keys, x.dtype, torch.is_grad_enabled() and x.requires_grad)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (.., V) of the final stream x (.., C)."""
        return F.linear(x, self.wte.weight)[..., : self.config.vocab_size]

    def new_cache(self, batch: int, padding: torch.Tensor | None = None, room: int | None = None) -> KVCache:
        """Return an empty cache for ``batch`` rows, on the model's device, in the dtype that keys and values have."""
        weight = self.wte.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        return KVCache(self.config, batch, weight.device, dtype, padding, room)

    def token_losses(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss in nats, fp32, (B, L), of the last L positions of tokens (B, T); no gradient.

        ``targets`` (B, L), L at most T, are the tokens that follow those positions; of the others no logits are made.
        ``documents`` and ``positions`` are those of `forward`.
        """
        with torch.no_grad():
            x = self.hidden(tokens, documents=documents, positions=positions)[:, tokens.shape[1] - targets.shape[1] :]
            losses = token_losses(x.flatten(0, 1), self.wte.weight, targets.flatten(), self.config.vocab_size)
            return losses.view(targets.shape)

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> GPTOutput:
        """Return logits, or the mean loss where targets are given.

        Args:
            tokens: Ids, shape (B, T), T at most n_ctx.
            targets: The token that follows each, shape (B, T).
            mask: Boolean or 0/1, True where query q may read key k, in place of the configuration's mask;
                shape (T, T), (B, T, T) or (B, H, T, T). A query that may read nothing gives zeros.
            documents: The number of the document in which each token stands, (B, T), integers: attention stays within
                documents, besides what the mask says.
            positions: The position of each token, (B, T), integers, such as one that begins at 0 in each document; None
                counts from the beginning of the row. The mask of the configuration counts by it within documents.

        Raises:
            InputError: More tokens than the context, or targets, a mask, documents or positions of another shape or
                with other values.

        Warns:
            UserWarning: In training, where the mask lets a token read what it is to predict.
        """
        if targets is not None:
            check_targets(tokens, targets)
        x = self.hidden(tokens, mask, None, documents, positions)
        if targets is None:
            return GPTOutput(self.head(x), None)
        if self.training:
            warn_of_leaks(self.mask if mask is None else mask)
        return GPTOutput(None, fused_loss(x.flatten(0, 1), self.wte.weight, targets.flatten(), self.config.vocab_size))


def _positions(tokens: torch.Tensor, start: int, positions: torch.Tensor | None) -> torch.Tensor:
    """Return the positions (B, T) where they are given, else (T,) from start on."""
    if positions is not None:
        return positions
    return torch.arange(start, start + tokens.shape[1], device=tokens.device)


def check_inputs(
    config: GPTConfig,
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
    cache: KVCache | None,
    documents: torch.Tensor | None,
    positions: torch.Tensor | None,
) -> None:
    """Raise `InputError` where the arguments of a pass do not fit one another or the model."""
    if tokens.dim() != 2:
        raise InputError(f"the tokens have shape {tuple(tokens.shape)}; give (B, T): rows of ids")
    n_ctx, T = config.n_ctx, tokens.shape[1]
    if cache is None and n_ctx < T:
        raise InputError(f"{T} tokens are more than the model's context of {n_ctx}")
    for name, given in (("documents", documents), ("positions", positions)):
        if given is not None and cache is not None:
            raise InputError(f"{name} are for whole passes: a cache holds one document a row; leave them out")
        if given is not None and (given.shape != tokens.shape or given.is_floating_point()):
            raise InputError(f"{name} has shape {tuple(given.shape)}, {given.dtype}; give integers like the tokens'")
    if positions is not None and positions.device.type == "cpu":  # elsewhere the question would wait for the device
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= n_ctx:
            reached = f"down to {low}" if low < 0 else f"up to {high}"
            raise InputError(f"positions go {reached}; the model's context is {n_ctx}")
    if cache is not None and mask is not None and cache.rolling:
        raise InputError(f"the cache of mask {config.mask} forgets keys that a tensor may name; leave one out")
    if cache is not None and cache.length and cache.looks_ahead and mask is None:
        raise InputError(
            f"mask {config.mask} reads ahead: what is cached would change with each new token; "
            "read the whole sequence again"
        )


def check_targets(tokens: torch.Tensor, targets: torch.Tensor) -> None:
    """Raise `InputError` unless there is a target for each token: one too many would move all that follow."""
    if targets.shape != tokens.shape:
        raise InputError(f"targets has shape {tuple(targets.shape)}; give one for each token, {tuple(tokens.shape)}")


def warn_of_leaks(mask: Mask | torch.Tensor) -> None:
    """Warn where a mask lets a token read what it is to predict."""
    if mask.looks_ahead if isinstance(mask, Mask) else bool(mask.triu(1).any()):
        warnings.warn(
            "the mask lets tokens read what follows them, which is what they are to predict: the loss leaks and says "
            "nothing of the model",
            stacklevel=3,
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode inside the block; modules that were in it already stay in it afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
