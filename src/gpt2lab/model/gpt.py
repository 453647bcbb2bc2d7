"""GPT-2: embeddings, a stack of pre-norm blocks, a final norm, and the embedding again as the output head.

    x_0   = wte[tokens] + wpe[positions]
    x_l'  = x_l + attention(layer_norm(x_l))
    x_l+1 = x_l' + feed_forward(layer_norm(x_l'))
    logits = layer_norm(x_L) wte^T

Radford et al. 2019, section 2.3. Norms and feed-forward layers, GPT-2's and later ones: layers.py; attention and
positions: attention.py; who may attend to whom: masks.py. With post-norm, as in GPT-1, there is no final norm.

Parameters keep the published names. The model knows nothing of devices, ranks or precision: run it under
``torch.autocast``, and the residual stream is kept in autocast's dtype.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gpt2lab.errors import InputError
from gpt2lab.files import new_directory
from gpt2lab.hub import find_model
from gpt2lab.model.attention import AttentionPattern, CausalSelfAttention, FirstValues
from gpt2lab.model.cache import BatchCache, KVCache
from gpt2lab.model.config import GPTConfig, divisors
from gpt2lab.model.huggingface import FILES, read_config, read_weights, write_hf
from gpt2lab.model.language_model import GPTOutput, LanguageModel, OwnModel, evaluating
from gpt2lab.model.later_attention import make_attention
from gpt2lab.model.layers import make_feed_forward, make_norm
from gpt2lab.model.loss import IGNORE_INDEX, fused_loss, fused_losses, soft_capped, targets_ahead, token_losses
from gpt2lab.model.masks import Mask
from gpt2lab.model.parts import check_gradients, check_parts, make_part
from gpt2lab.model.positions import alibi, sinusoidal

INIT_STD = 0.02


class Block(nn.Module):
    """Attention, then feed-forward, each on the normalized stream and added to it. This is GPT-2's; others follow."""

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.ln_1 = make_norm(config)
        self.attn = make_attention(config, layer)
        self.ln_2 = make_norm(config)
        self.mlp = make_feed_forward(config)

    def forward(self, x: torch.Tensor, *attending: Any) -> torch.Tensor:
        """Map the residual stream x (B, T, C) to the next, (B, T, C); ``attending`` is for attention's forward."""
        x = x + self.drop(self.attn(self.ln_1(x), *attending))
        return x + self.drop(self.mlp(self.ln_2(x)))

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """Apply dropout to what a branch adds."""
        return F.dropout(x, self.dropout) if self.training else x


class PostNormBlock(Block):
    """Each sum is normalized: layer_norm(x + attention(x)), the same for the feed-forward (GPT-1, Vaswani et al.)."""

    def forward(self, x: torch.Tensor, *attending: Any) -> torch.Tensor:
        """Map the residual stream x (B, T, C) to the next, (B, T, C)."""
        dtype = x.dtype  # CUDA's autocast computes norms in fp32, which the stream would take on
        x = self.ln_1(x + self.drop(self.attn(x, *attending))).to(dtype)
        return self.ln_2(x + self.drop(self.mlp(x))).to(dtype)


class SandwichBlock(Block):
    """A norm before and after each branch: x + norm(attention(norm(x))) (Ding et al. 2021; Gemma 2)."""

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        self.ln_1_post, self.ln_2_post = make_norm(config), make_norm(config)

    def forward(self, x: torch.Tensor, *attending: Any) -> torch.Tensor:
        """Map the residual stream x (B, T, C) to the next, (B, T, C)."""
        dtype = x.dtype
        x = x + self.drop(self.ln_1_post(self.attn(self.ln_1(x), *attending)).to(dtype))
        return x + self.drop(self.ln_2_post(self.mlp(self.ln_2(x))).to(dtype))


class ParallelBlock(Block):
    """Both branches read one normalized input: x + attention(norm(x)) + mlp(norm(x)) (Wang & Komatsuzaki 2021)."""

    def __init__(self, config: GPTConfig, layer: int = 0) -> None:
        super().__init__(config, layer)
        del self.ln_2

    def forward(self, x: torch.Tensor, *attending: Any) -> torch.Tensor:
        """Map the residual stream x (B, T, C) to the next, (B, T, C)."""
        normalized = self.ln_1(x)
        return x + self.drop(self.attn(normalized, *attending)) + self.drop(self.mlp(normalized))


PLACEMENTS = {"pre": Block, "post": PostNormBlock, "sandwich": SandwichBlock}
"""Blocks by ``norm_placement``."""


def make_block(config: GPTConfig, layer: int) -> nn.Module:
    """Return the block of a layer, from 0 on: a user's own if the configuration names one."""
    if config.block is not None:
        return make_part("block", config, layer)
    return (ParallelBlock if config.parallel_blocks else PLACEMENTS[config.norm_placement])(config, layer)


class TokenEmbedding(nn.Embedding):
    """The matrix (padded V, C) of the tokens, which is GPT-2's output head as well."""

    def unembed(self, x: torch.Tensor) -> torch.Tensor:
        """Return the products (.., padded V) of x (.., C) with every row."""
        return F.linear(x, self.weight)


class GPT(LanguageModel):
    """A GPT-2 language model.

    >>> model = GPT(GPTConfig.preset("nano"))
    >>> model.n_params
    3274752
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        config = config.with_import()
        self.config, self.masks = config, config.masks
        self.compiles_loss = False
        self.wte = TokenEmbedding(config.padded_vocab, config.n_embd)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.ln_0 = make_norm(config) if config.embedding_norm else nn.Identity()
        # A head of multi-token prediction stands beside the last block.
        depths = [*range(config.n_layer), *[config.n_layer - 1] * config.mtp_depth]
        self.h = nn.ModuleList(make_block(config, layer) for layer in depths)
        self.ln_f = nn.Identity() if config.norm_placement == "post" else make_norm(config)
        if not config.tied_head:
            self.lm_head = nn.Linear(config.n_embd, config.padded_vocab, bias=False)
        if config.mup_base_width is not None:  # muP: logits / m
            self.ln_f.register_forward_hook(self._divide_by_mup_scale)
        self._initialize()
        with evaluating(self):
            check_parts(self)
        check_gradients(self)

    def forward(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_logits: bool = False,
    ) -> GPTOutput:
        """Return the logits, or the mean loss if targets are given.

        Args:
            tokens: Ids, shape (B, T), T at most n_ctx.
            targets: The token that follows each, shape (B, T). Positions with target -100 are left out of the mean.
            mask: Boolean or 0/1, True where query q may attend to key k, in place of the configuration's mask; shape
                (T, T), (B, T, T) or (B, H, T, T). A query that may attend to nothing gives zeros.
            documents: Number of the document that each token belongs to, (B, T), integers: attention stays within
                documents, in addition to the mask.
            positions: Position of each token, (B, T), integers, for example counted from the start of its document;
                None counts from the start of the row. With documents, the configuration's mask counts by it too.
            attention_mask: Hugging Face's padding mask, (B, T), 1 for tokens and 0 for padding, in place of documents:
                no token attends to padding. As there, positions count from the start of the row.
            return_logits: Return the logits beside the loss. They are the largest tensor of the pass, and the loss
                does not need them.

        Raises:
            InputError: There are more tokens than the context, or an argument has a wrong shape or wrong values. Values
                are checked on a CPU only, since a GPU would have to wait for the check.

        Warns:
            UserWarning: In training, if the mask lets a token attend to the one that it is to predict.
        """
        if targets is not None:
            check_targets(tokens, targets, self.config.vocab_size)
        if attention_mask is not None:
            documents = as_documents(attention_mask, documents, tokens)
        heads = self.config.mtp_depth if self.training and targets is not None else 0
        x, *ahead = self._streams(tokens, mask, None, documents, positions, heads)
        if targets is None:
            return GPTOutput(self.head(x), None)
        if self.training:
            warn_of_leaks(self.masks if mask is None else mask)
        config, z_loss = self.config, self.config.z_loss if self.training else 0.0
        output = x.flatten(0, 1), self.head_weight, targets.flatten()
        loss, self.added_loss = fused_losses(
            *output, config.vocab_size, config.logit_softcap, z_loss, self.compiles_loss
        )
        if ahead:
            later = config.mtp_weight * self._loss_ahead(ahead, targets, documents)
            loss, self.added_loss = loss + later, self.added_loss + later.detach()
        return GPTOutput(self.head(x) if return_logits else None, loss)

    def hidden(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: KVCache | BatchCache | None = None,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the final, normalized stream (B, T, C) of tokens (B, T), which continue what the cache holds.

        The other arguments are those of `forward`. With a cache, each row is one document with its own positions.
        """
        return self._streams(tokens, mask, cache, documents, positions)[0]

    def _streams(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None,
        cache: KVCache | BatchCache | None,
        documents: torch.Tensor | None,
        positions: torch.Tensor | None,
        heads: int = 0,
    ) -> list[torch.Tensor]:
        """Return the final stream of `hidden`, then those of the first ``heads`` heads of multi-token prediction.

        A head is a block that reads what the last block reads (Gloeckle et al. 2024, section 2): h.L, h.L+1, ..
        """
        check_inputs(self.config, tokens, mask, cache, documents, positions)
        patterns = self._attention_patterns(tokens, mask, cache, documents, positions)
        pattern = patterns[self.masks[0]]
        x = self.embed(tokens, 0 if cache is None else cache.length, pattern.positions)
        training = torch.is_grad_enabled() and x.requires_grad
        dtype = x.dtype if cache is None else cache.dtype
        biases = {mask: pattern.bias(self.config.kernel, dtype, training) for mask, pattern in patterns.items()}
        rotations = pattern.rotations(self.config, x.dtype)
        caches = [None] * len(self.masks) if cache is None else cache.layers
        first = FirstValues()
        attending = [(biases[own], *rest, first) for own, *rest in zip(self.masks, rotations, caches, strict=True)]
        before = x
        for block, arguments in zip(self.h, attending, strict=False):  # the heads come after the L blocks
            before, x = x, block(x, *arguments)
        ahead = itertools.islice(self.h, len(attending), len(attending) + heads)
        streams = [x, *(head(before, *attending[-1]) for head in ahead)]
        if cache is not None:
            cache.end(tokens.shape[1])
        # CUDA's autocast makes norms fp32, which the head would take on.
        return [self.ln_f(x).to(x.dtype) for x in streams]

    def _loss_ahead(
        self, streams: list[torch.Tensor], targets: torch.Tensor, documents: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the losses of the heads of multi-token prediction, summed and divided by the number of next tokens."""
        config, later = self.config, targets_ahead(targets, len(streams), documents)
        output = torch.stack(streams).flatten(0, 2), self.head_weight, later.flatten()
        counted, next_counted = ((ids != IGNORE_INDEX).sum() for ids in (later, targets))
        return fused_loss(*output, config.vocab_size, config.logit_softcap) * counted / next_counted.clamp(min=1)

    def embed(self, tokens: torch.Tensor, start: int, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Return the embeddings (B, T, C) of tokens (B, T) at ``positions`` (B, T), or from ``start`` on."""
        x = self.wte(tokens)
        if self.config.position == "learned":
            end = start + tokens.shape[1]
            x = x + (self.wpe.weight[start:end] if positions is None else self.wpe(positions))
        elif self.config.position == "sinusoidal":
            positions = _from(start, tokens) if positions is None else positions
            x = x + sinusoidal(positions, self.config.n_embd).to(x.dtype)
        x = self.ln_0(x)
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        return F.dropout(x, self.config.dropout, self.training)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (.., V) of the final stream x (.., C)."""
        logits = self.wte.unembed(x) if self.config.tied_head else self.lm_head(x)
        return soft_capped(logits[..., : self.config.vocab_size], self.config.logit_softcap)

    @property
    def head_weight(self) -> torch.Tensor:
        """The matrix (padded V, C) of the output head: the token embedding, or that of an untied head."""
        return self.wte.weight if self.config.tied_head else self.lm_head.weight

    def token_losses(
        self,
        tokens: torch.Tensor,
        targets: torch.Tensor,
        documents: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss in nats, fp32, (B, L), of the last L positions of tokens (B, T), without gradients.

        ``targets`` (B, L), L at most T, are the tokens that follow those positions; no logits are computed for others.
        ``documents`` and ``positions`` are those of `forward`.
        """
        with torch.no_grad():
            x = self.hidden(tokens, documents=documents, positions=positions)[:, tokens.shape[1] - targets.shape[1] :]
            output = x.flatten(0, 1), self.head_weight, targets.flatten()
            return token_losses(*output, self.config.vocab_size, self.config.logit_softcap).view(targets.shape)

    def compile_parts(self, dynamic: bool | None = None) -> None:
        """Compile each block by itself and, on a GPU, the loss, whose passes a CPU has in its cache anyway."""
        super().compile_parts(dynamic)
        self.compiles_loss = self.device.type == "cuda"

    def new_cache(self, batch: int, padding: torch.Tensor | None = None, room: int | None = None) -> KVCache:
        """Return an empty cache for ``batch`` rows, on the model's device, in the dtype of keys and values.

        On a CPU that is at least fp32: a single query reads bf16 several times more slowly there.
        """
        device, dtype = self.device, next(self.parameters()).dtype
        if device.type == "cpu":
            dtype = torch.promote_types(dtype, torch.float32)
        elif torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        return KVCache(self.config, batch, device, dtype, padding, room)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks, followed by the heads of multi-token prediction."""
        return [*self.h]

    @property
    def n_params(self) -> int:
        """Parameters of the unpadded model, a tied head counted once."""
        return sum(p.numel() for p in self.parameters()) - self.config.padding_params

    @classmethod
    def from_hf(cls, source: Path | str) -> GPT:
        """Load a GPT-2, Llama or Qwen3 in Hugging Face's format, in fp32 and evaluation mode.

        Args:
            source: A directory that save_pretrained wrote, or a name on the Hub such as ``gpt2`` or ``distilgpt2``.

        Raises:
            InputError: It does not exist, is another architecture, or its weights do not fit it (listed).
        """
        folder = find_model(source, FILES)
        config = read_config(folder)
        with torch.device("meta"):  # no random weights that would only be replaced
            model = cls(config)
        model.load_state_dict(read_weights(folder, config, model.state_dict()), assign=True)
        return model.eval()

    def save_hf(self, directory: Path | str) -> None:
        """Write a directory that ``transformers.AutoModelForCausalLM.from_pretrained`` reads; see `without_mtp`.

        Raises:
            InputError: The directory exists and is not empty, or no architecture there has the model's parts.
        """
        with new_directory(Path(directory)) as folder:
            model = without_mtp(self)
            write_hf(model.config, model.state_dict(), folder)

    @torch.no_grad()
    def _initialize(self) -> None:
        """Set weights of linear layers and embeddings to N(0, 0.02), biases to 0 (Radford et al. 2018, section 4.1).

        Other parameters, and those that need no gradient, stay as their module made them.

        Projections that end a residual branch are scaled by 1/sqrt(2 n_layer), since nothing keeps the stream from
        growing with depth (Radford et al. 2019, section 2.3), except where norms follow: post and sandwich. With muP,
        the deviation of the blocks' matrices is divided by sqrt(m) (Yang et al. 2022, table 8).
        """
        depth = 2 * self.config.n_layer if self.config.norm_placement == "pre" else 1
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear | nn.Embedding):
                continue
            scale = (depth if name.endswith("c_proj") else 1) * (self.config.mup_scale if name.startswith("h.") else 1)
            for kind, parameter in module.named_parameters(recurse=False):
                if kind == "weight" and parameter.requires_grad:
                    nn.init.normal_(parameter, std=INIT_STD / math.sqrt(scale))
                elif kind == "bias" and parameter.requires_grad:
                    nn.init.zeros_(parameter)
        for embedding in {self.wte.weight, self.head_weight}:
            embedding[self.config.vocab_size :] = 0.0

    def _divide_by_mup_scale(self, norm: nn.Module, inputs: tuple[Any, ...], x: torch.Tensor) -> torch.Tensor:
        return x / self.config.mup_scale

    def _attention_patterns(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None,
        cache: KVCache | BatchCache | None,
        documents: torch.Tensor | None,
        positions: torch.Tensor | None,
    ) -> dict[Mask, AttentionPattern]:
        """Return who may attend to whom in the layers of each mask."""
        (B, T), H, padding = tokens.shape, self.config.n_head, None
        changes = self.config.changes_scores
        queries = _from(0 if cache is None else cache.length, tokens)
        score_bias = alibi(H, positions, tokens.device) if self.config.position == "alibi" else None
        keys = dict.fromkeys(self.masks, queries) if cache is None else cache.begin(T)
        if cache is not None and cache.padding is not None:
            padding = cache.padding
            positions = (queries - padding[:, None]).clamp(min=0)  # (B, T)
        if isinstance(cache, BatchCache):
            positions = queries = cache.positions  # (B, T = 1)
        return {
            own: AttentionPattern(
                own if mask is None else mask, B, H, queries, read, documents, positions, padding, score_bias, changes
            )
            for own, read in keys.items()
        }


def _from(start: int, tokens: torch.Tensor) -> torch.Tensor:
    """Return the positions (T,) of tokens (B, T) from ``start`` on."""
    return torch.arange(start, start + tokens.shape[1], device=tokens.device)


def check_inputs(
    config: GPTConfig,
    tokens: torch.Tensor,
    mask: torch.Tensor | None,
    cache: KVCache | BatchCache | None,
    documents: torch.Tensor | None,
    positions: torch.Tensor | None,
) -> None:
    """Raise `InputError` if the arguments of a pass do not fit together or do not fit the model."""
    if tokens.dim() != 2:
        raise InputError(f"tokens has shape {tuple(tokens.shape)}; it must be (B, T), rows of ids")
    check_ids("tokens", tokens, config.vocab_size)
    n_ctx, T = config.n_ctx, tokens.shape[1]
    if cache is None and n_ctx < T:
        raise InputError(f"{T} tokens exceed the model's context of {n_ctx}")
    for name, given in (("documents", documents), ("positions", positions)):
        if given is not None and cache is not None:
            raise InputError(f"{name} cannot be used with a cache, which holds one document per row; leave them out")
        if given is not None and (given.shape != tokens.shape or given.is_floating_point()):
            raise InputError(
                f"{name} has shape {tuple(given.shape)} and dtype {given.dtype}; it must be integers like tokens"
            )
    if positions is not None and positions.device.type == "cpu":  # elsewhere the check would wait for the device
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= n_ctx:
            raise InputError(
                f"positions range from {low} to {high}; they must be from 0 to {n_ctx - 1}, the model's context"
            )
    if cache is not None and mask is not None and cache.rolling:
        raise InputError(
            f"the cache of mask {config.mask} drops keys that a mask tensor may need; use only one of them"
        )
    if cache is not None and cache.length and cache.looks_ahead and mask is None:
        raise InputError(
            f"mask {config.mask} attends to later tokens, so cached keys would change with each new token; "
            "run the model on the whole sequence"
        )


def check_targets(tokens: torch.Tensor, targets: torch.Tensor, vocab_size: int) -> None:
    """Raise `InputError` unless there is one target per token, an id or -100; one more would shift all that follow."""
    if targets.shape != tokens.shape:
        raise InputError(f"targets has shape {tuple(targets.shape)}; it must be that of tokens, {tuple(tokens.shape)}")
    check_ids("targets", targets, vocab_size, IGNORE_INDEX)


def check_ids(name: str, ids: torch.Tensor, vocab_size: int, ignored: int | None = None) -> None:
    """Raise `InputError` if an id is not of the vocabulary: the padding of the embedding would take it silently."""
    if ids.device.type != "cpu":  # the check would wait for the device
        return
    wrong = (ids < 0) | (ids >= vocab_size)
    if ignored is not None:
        wrong &= ids != ignored
    if bool(wrong.any()):
        row, position = wrong.nonzero()[0].tolist()
        also = "" if ignored is None else f", and {ignored} is ignored"
        raise InputError(
            f"{name} holds {ids[row, position].item()} at row {row}, position {position}; ids are 0 to "
            f"{vocab_size - 1}{also}"
        )


def as_documents(attention_mask: torch.Tensor, documents: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
    """Return a padding mask (B, T) as documents: tokens are one, padding another.

    Raises:
        InputError: Documents are given as well, or the mask is of another shape.
    """
    if documents is not None:
        raise InputError("attention_mask and documents are both given; give documents alone, with padding as one")
    if attention_mask.shape != tokens.shape:
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; it must be that of tokens, "
            f"{tuple(tokens.shape)}: 1 for tokens, 0 for padding. A mask over pairs (T, T) is the argument mask"
        )
    return attention_mask.long()


def warn_of_leaks(mask: Sequence[Mask] | torch.Tensor) -> None:
    """Warn if the masks of the layers, or the tensor in their place, let a token attend to the one it is to predict."""
    leaks = mask.triu(1).any() if isinstance(mask, torch.Tensor) else any(own.looks_ahead for own in mask)
    if bool(leaks):
        warnings.warn(
            "the mask lets tokens attend to later ones, which they are to predict: the loss leaks and says nothing "
            "about the model",
            stacklevel=3,
        )


def make_model(config: GPTConfig) -> LanguageModel:
    """Return the model of a configuration: a GPT, or the class of the user's own that it names."""
    return GPT(config) if config.network is None else OwnModel(config)


def require_gpt(model: LanguageModel) -> GPT:
    """Return a model whose inside must be known.

    Raises:
        InputError: It is a class of the user's own.
    """
    if isinstance(model, GPT):
        return model
    raise InputError(
        f"the model is {model.config.network}, a class that --model gave; this works with gpt2lab's own GPT only, "
        "whose inside is known"
    )


# Tools for trained models --------------------------------------------------------------------------------------------


def sharing_weights(model: GPT) -> GPT:
    """Return a copy of a model that shares its weights: hooks and modules of the copy can change, the model stays."""
    shared = {id(weight): weight for weight in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def without_mtp(model: GPT) -> GPT:
    """Return the model without heads of multi-token prediction, which serve training only. It shares the weights."""
    plain, config = sharing_weights(model), dataclasses.replace(model.config, mtp_depth=0, mtp_weight=1.0)
    plain.config, plain.h = config, plain.h[: config.n_layer]
    return plain


@torch.no_grad()
def attention_weights(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    """Return the attention weights (L, B, H, T, T) of tokens (B, T): how much each query attends to each key.

    They are softmax(Q K^T / sqrt(D) + M), whatever kernel the model uses, of soft-capped scores if the model caps them.
    With attention sinks they sum to less than 1. Those of differential attention are the differences of H / 2 pairs of
    maps, and can be negative.

    Raises:
        InputError: More tokens than the context.
    """
    plain = sharing_weights(model)
    plain.config = dataclasses.replace(model.config, kernel="reference")
    found: list[torch.Tensor] = []

    def record(module: CausalSelfAttention, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = inspect.signature(module.forward).bind(*args, **options)
        given.apply_defaults()
        x, bias, rotation = itertools.islice(given.arguments.values(), 3)
        q, k, _ = module.project(x, rotation)
        found.append(module.weights(q, k, bias))

    for module in plain.modules():
        if isinstance(module, CausalSelfAttention):
            module.register_forward_pre_hook(record, with_kwargs=True)
    with evaluating(plain):
        plain.hidden(tokens)
    if not found:  # blocks of a user's own need not have attention
        (B, T), H = tokens.shape, model.config.output_heads
        return torch.zeros(0, B, H, T, T, device=tokens.device)
    return torch.stack(found)


@torch.no_grad()
def pool_heads(model: GPT, n_kv_head: int) -> GPT:
    """Return a copy of a model with ``n_kv_head`` key and value heads, each the mean of its group.

    Raises:
        InputError: ``n_kv_head`` does not divide the number of key and value heads.
    """
    old = model.config
    if n_kv_head < 1 or old.kv_heads % n_kv_head:
        fits = divisors(old.kv_heads)
        raise InputError(f"n_kv_head {n_kv_head} does not divide the present {old.kv_heads}; choose from {fits}")
    pooled = GPT(dataclasses.replace(old, n_kv_head=n_kv_head)).to(model.wte.weight)
    weights = {
        name: _pooled(weight, old.n_head, n_kv_head, old.head_dim) if ".c_attn." in name else weight
        for name, weight in model.state_dict().items()
    }
    pooled.load_state_dict(weights)
    return pooled.train(model.training)


def _pooled(c_attn: torch.Tensor, n_head: int, n_kv_head: int, head_dim: int) -> torch.Tensor:
    """Pool the rows of a c_attn: its weight ((H + 2 K) D, C) or its bias ((H + 2 K) D,)."""
    q, kv = c_attn[: n_head * head_dim], c_attn[n_head * head_dim :]
    groups = kv.view(2, n_kv_head, -1, head_dim, *kv.shape[1:])  # k or v, group, head of the group, D, ..
    return torch.cat([q, groups.mean(dim=2).reshape(-1, *kv.shape[1:])])
