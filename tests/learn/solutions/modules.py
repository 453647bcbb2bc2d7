# type: ignore
# ruff: noqa: RET504, RUF007
"""Right solutions in nanoGPT's manner: modules, and what PyTorch has ready."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2lab.learn.gpt2 import byte_order, decays, parameter_shapes, pretokenize


def byte_ids(word: str) -> list[int]:
    return [byte_order().index(byte) for byte in word.encode("utf-8")]


def get_stats(words: list[list[int]]) -> dict[tuple[int, int], int]:
    counts = {}
    for ids in words:
        for pair in zip(ids, ids[1:], strict=False):
            counts[pair] = counts.get(pair, 0) + 1
    return counts


def merge(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    newids = []
    i = 0
    while i < len(ids):
        if ids[i] == pair[0] and i < len(ids) - 1 and ids[i + 1] == pair[1]:
            newids.append(new_id)
            i += 2
        else:
            newids.append(ids[i])
            i += 1
    return newids


def train_bpe(texts: list[str], vocab_size: int) -> list[tuple[int, int]]:
    words = [byte_ids(word) for text in texts for word in pretokenize(text)]
    merges = {}
    for i in range(vocab_size - 256):
        counts = get_stats(words)
        if not counts:
            break
        pair = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[0][0]
        words = [merge(ids, pair, 256 + i) for ids in words]
        merges[pair] = 256 + i
    return list(merges)


def causal_mask(T: int, S: int) -> Tensor:
    return torch.tril(torch.ones(S, S)).bool()[S - T :]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def split_heads(x: Tensor, n_head: int) -> Tensor:
    B, T, C = x.size()
    return x.view(B, T, n_head, C // n_head).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    B, H, T, D = x.size()
    return x.transpose(1, 2).contiguous().view(B, T, H * D)


class CausalSelfAttention(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)
        self.n_head, self.n_embd = config.n_head, config.n_embd

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class LayerNorm(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.n_ctx, config.n_embd),
                "h": nn.ModuleList([Block(config) for _ in range(config.n_layer)]),
                "ln_f": nn.LayerNorm(config.n_embd),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        pos = torch.arange(0, tokens.size(1), dtype=torch.long, device=tokens.device)
        x = self.transformer.wte(tokens) + self.transformer.wpe(pos)
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, logits.size(-1)), targets.reshape(-1), ignore_index=-100)


def batch(tokens: Tensor, starts: list[int], T: int) -> tuple[Tensor, Tensor]:
    rows = torch.stack([tokens[i : i + T + 1] for i in starts])
    return rows[:, :-1], rows[:, 1:]


def initial_weights(config, generator: torch.Generator) -> dict[str, Tensor]:
    weights = {}
    for name, shape in parameter_shapes(config).items():
        weights[name] = torch.zeros(shape)
        if "ln_" in name and name.endswith("weight"):
            nn.init.ones_(weights[name])
        elif name.endswith("c_proj.weight"):
            nn.init.normal_(weights[name], mean=0.0, std=0.02 / math.sqrt(2 * config.n_layer), generator=generator)
        elif name.endswith("weight"):
            nn.init.normal_(weights[name], mean=0.0, std=0.02, generator=generator)
    return weights


def adamw(weights, grads, state, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1) -> None:
    if "optimizer" not in state:
        decay = [weight for name, weight in weights.items() if decays(name, weight)]
        others = [weight for name, weight in weights.items() if not decays(name, weight)]
        groups = [{"params": decay, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        state["optimizer"] = torch.optim.AdamW([group for group in groups if group["params"]], lr, betas, eps)
    for name, weight in weights.items():
        weight.grad = grads[name]
    for group in state["optimizer"].param_groups:
        group["lr"] = lr
    state["optimizer"].step()


def learning_rate(step: int, steps: int, warmup: int, max_lr: float, min_lr: float) -> float:
    if step < warmup:
        return max_lr * (step + 1) / warmup
    if step >= steps - 1:
        return min_lr if steps - 1 > warmup else max_lr
    decay_ratio = (step - warmup) / (steps - 1 - warmup)
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (max_lr - min_lr)


def clip(grads: dict[str, Tensor], max_norm: float) -> float:
    parameters = [nn.Parameter(torch.zeros_like(grad)) for grad in grads.values()]
    for parameter, grad in zip(parameters, grads.values(), strict=True):
        parameter.grad = grad
    return nn.utils.clip_grad_norm_(parameters, max_norm).item()


def train_step(weights, batches, loss_of, state, lr, max_norm=1.0):
    lossf = 0.0
    for weight in weights.values():
        weight.requires_grad_(True)
    for inputs, targets in batches:
        loss = loss_of(weights, inputs, targets) / len(batches)
        loss.backward()
        lossf += loss.item()
    norm = nn.utils.clip_grad_norm_(weights.values(), max_norm)
    adamw(weights, {name: weight.grad for name, weight in weights.items()}, state, lr)
    for weight in weights.values():
        weight.grad = None
    return lossf, float(norm)


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    logits = logits / temperature
    ordered, indices = torch.sort(logits, dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[min(top_k, ordered.size(-1)) :] = -float("Inf")
    if top_p is not None:
        cumulative = F.softmax(ordered, dim=-1).cumsum(dim=-1)
        remove = cumulative >= top_p
        remove[1:] = remove[:-1].clone()
        remove[0] = False
        ordered[remove] = -float("Inf")
    return F.softmax(torch.empty_like(logits).scatter_(-1, indices, ordered), dim=-1)


def perplexity(losses: list[float], counts: list[int]) -> float:
    return float(np.exp(np.average(losses, weights=counts)))


def bits_per_byte(nats: float, n_bytes: int) -> float:
    return float(nats / n_bytes / np.log(2))


def windows(n: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    found, prev_end = [], 0
    for begin in range(0, n, stride):
        if prev_end >= n - 1:
            break
        end = min(begin + context, n - 1)
        begin = max(end - context, 0)
        found.append((begin, end, prev_end - begin))
        prev_end = end
    return found


def hellaswag_choice(logits: Tensor, tokens: Tensor, is_ending: Tensor) -> int:
    shift_logits = logits[..., :-1, :].contiguous()
    shift_tokens = tokens[..., 1:].contiguous()
    losses = F.cross_entropy(shift_logits.view(-1, shift_logits.size(-1)), shift_tokens.view(-1), reduction="none")
    shift_mask = is_ending[..., 1:].contiguous()
    masked = losses.view(tokens.size(0), -1) * shift_mask
    return (masked.sum(dim=1) / shift_mask.sum(dim=1)).argmin().item()
