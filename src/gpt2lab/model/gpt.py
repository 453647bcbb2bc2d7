"""GPT-2: embeddings, a stack of pre-norm blocks, a final norm, and the embedding again as the output head.

    x_0   = wte[tokens] + wpe[positions]
    x_l'  = x_l + attention(layer_norm(x_l))
    x_l+1 = x_l' + feed_forward(layer_norm(x_l'))
    logits = layer_norm(x_L) wte^T

Radford et al. 2019, section 2.3. Parameters keep the published names. The model knows nothing of devices, ranks or
precision: run it under ``torch.autocast`` and the residual stream is kept in autocast's dtype.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from gpt2lab.errors import InputError
from gpt2lab.files import new_directory
from gpt2lab.model.attention import CausalSelfAttention
from gpt2lab.model.cache import KVCache, LayerCache
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.hub import find_model
from gpt2lab.model.loss import fused_loss, token_losses
from gpt2lab.model.masks import as_mask
from gpt2lab.model.weights import read_hf, write_hf

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
    """Attention, then feed-forward, each on the normalised stream and added back to it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = FeedForward(config)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, cache: LayerCache | None = None
    ) -> torch.Tensor:
        """Map the residual stream x (B, T, C) to the next, (B, T, C)."""
        x = x + F.dropout(self.attn(self.ln_1(x), mask, cache), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.ln_2(x)), self.dropout, self.training)


class GPT(nn.Module):
    """A GPT-2 language model.

    >>> model = GPT(GPTConfig.preset("nano"))
    >>> model.n_params
    3274752
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab, config.n_embd)
        self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self._initialise()

    @classmethod
    def from_hf(cls, source: Path | str) -> GPT:
        """Return a GPT-2 of Hugging Face's, in fp32 and evaluation mode.

        Args:
            source: A directory that save_pretrained wrote, or a name on the hub such as ``gpt2`` or ``distilgpt2``.

        Raises:
            InputError: There is no such thing, it is not GPT-2's architecture, or its weights do not fit it (listed).
        """
        config, weights = read_hf(find_model(source))
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
        """N(0, 0.02), biases 0; projections that end a residual branch scaled by 1/sqrt(2 n_layer) (section 2.3)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * self.config.n_layer))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=INIT_STD)
        self.wte.weight[self.config.vocab_size :] = 0.0

    @property
    def n_params(self) -> int:
        """Parameters of the unpadded model, the tied head counted once."""
        padding = (self.config.padded_vocab - self.config.vocab_size) * self.config.n_embd
        return sum(p.numel() for p in self.parameters()) - padding

    def embed(self, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """Return token plus position embeddings (B, T, C) of tokens (B, T) that stand at positions start and on."""
        T = tokens.shape[1]
        if start + T > self.config.n_ctx:
            raise InputError(f"{start + T} tokens are more than the model's context of {self.config.n_ctx}")
        x = self.wte(tokens) + self.wpe.weight[start : start + T]
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        return F.dropout(x, self.config.dropout, self.training)

    def hidden(
        self, tokens: torch.Tensor, mask: torch.Tensor | None = None, cache: KVCache | None = None
    ) -> torch.Tensor:
        """Return the final, normalised stream (B, T, C) of tokens (B, T), which follow what the cache holds."""
        B, T = tokens.shape
        start = 0
        if cache is not None:
            cache.require_room(T)
            start = cache.length
        if mask is not None:
            mask = as_mask(mask, B, self.config.n_head, T, start + T)
        x = self.embed(tokens, start)
        for index, block in enumerate(self.h):
            x = block(x, mask, cache.layers[index] if cache is not None else None)
        return self.ln_f(x).to(x.dtype)  # CUDA's autocast makes it fp32: the head would be too

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (.., V) of the final stream x (.., C)."""
        return F.linear(x, self.wte.weight)[..., : self.config.vocab_size]

    def token_losses(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss in nats, fp32, (B, L), of the last L positions of tokens (B, T); no gradient.

        ``targets`` (B, L), L at most T, are the tokens that follow those positions; of the others no logits are made.
        """
        with torch.no_grad():
            x = self.hidden(tokens)[:, tokens.shape[1] - targets.shape[1] :]
            losses = token_losses(x.flatten(0, 1), self.wte.weight, targets.flatten(), self.config.vocab_size)
            return losses.view(targets.shape)

    def forward(
        self, tokens: torch.Tensor, targets: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> GPTOutput:
        """Return logits, or the mean loss where targets are given.

        Args:
            tokens: Ids, shape (B, T), T at most n_ctx.
            targets: The token that follows each, shape (B, T).
            mask: Boolean or 0/1, True where query q may read key k, in place of the causal mask;
                shape (T, T), (B, T, T) or (B, H, T, T).

        Raises:
            InputError: More tokens than the context, or a mask of another shape or with other values.
        """
        x = self.hidden(tokens, mask)
        if targets is None:
            return GPTOutput(self.head(x), None)
        return GPTOutput(None, fused_loss(x.flatten(0, 1), self.wte.weight, targets.flatten(), self.config.vocab_size))
