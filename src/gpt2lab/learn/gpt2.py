"""GPT-2 in one file: tokenizer, model, loss, optimizer, sampling and evaluation, in the plainest PyTorch.

Read it from top to bottom. It has ten chapters, and each builds on those before it. Nothing here is fast; the rest of
gpt2lab computes the same numbers, faster.

    text  --1-->  ids  --2-->  vectors  --3, 4, 5, 6-->  logits  --7-->  loss  --8-->  better weights
                                                             |
                                                             +--9--> new text          10: how good is it?

Every part is a function of tensors, so that it can be tried alone. The weights of a part are a dictionary with the
names of the published GPT-2: "c_attn.weight", or "h.0.attn.c_attn.weight" seen from the whole model. The parts of
chapters 4 to 6 are also classes, thin over the functions: `GPT` is the model that one trains. Shapes use these letters:

    B  texts in a batch        T  tokens of each text that are read now        S  tokens so far, at least T
    C  width of the model      H  heads of attention        D = C / H  width of a head        V  size of the vocabulary
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import regex
import torch
from torch import Tensor, nn

# Chapter 1: bytes and byte-pair encoding ------------------------------------------------------------------------------
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's words: a contraction, or a run of letters, digits or other signs with one space before it, or white space."""


def byte_order() -> list[int]:
    """Return the 256 bytes in the order of GPT-2's ids: the byte at index i has id i.

    First the visible characters of Latin-1, "!" to "~", "¡" to "¬" and "®" to "ÿ", then all others (encoder.py)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return visible + hidden


def pretokenize(text: str) -> list[str]:
    """Split a text into words by PATTERN. The words join to the text; no merge crosses the border of a word."""
    return regex.findall(PATTERN, text)


def merge(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """Return ids with every non-overlapping occurrence of a pair replaced by new_id, from left to right."""
    merged = []
    for i in ids:
        if merged and (merged[-1], i) == pair:
            merged[-1] = new_id
        else:
            merged.append(i)
    return merged


def train_bpe(texts: list[str], vocab_size: int) -> list[tuple[int, int]]:
    """Return the merges of byte-pair encoding: merge the most frequent pair of neighbors, again and again.

    Merge i, a pair of ids, makes the token 256 + i. Of equally frequent pairs the smallest (left, right) is merged. It
    stops at vocab_size tokens, the bytes included, or when no pair is left (Sennrich et al. 2016, algorithm 1)."""
    id_of_byte = {byte: i for i, byte in enumerate(byte_order())}
    counts = Counter(word for text in texts for word in pretokenize(text))
    words = [[id_of_byte[byte] for byte in word.encode("utf-8")] for word in counts]
    merges = []
    while 256 + len(merges) < vocab_size:
        pairs = Counter()
        for ids, count in zip(words, counts.values(), strict=True):
            for pair in pairwise(ids):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        words = [merge(ids, best, 256 + len(merges)) for ids in words]
        merges.append(best)
    return merges


def encode(text: str, merges: list[tuple[int, int]], special: dict[str, int] | None = None) -> list[int]:
    """Return the ids of a text. Within each word the pair that was learned first is merged first, until none is left.

    Texts in `special` become the ids given there and are never split; where several fit, the longest does."""
    special = special or {}
    id_of_byte = {byte: i for i, byte in enumerate(byte_order())}
    rank = {pair: i for i, pair in enumerate(merges)}
    names = sorted(special, key=len, reverse=True)
    parts = regex.split("(" + "|".join(regex.escape(name) for name in names) + ")", text) if names else [text]
    encoded = []
    for part in parts:
        if part in special:
            encoded.append(special[part])
            continue
        for word in pretokenize(part):
            ids = [id_of_byte[byte] for byte in word.encode("utf-8")]
            while len(ids) > 1:
                first = min(pairwise(ids), key=lambda pair: rank.get(pair, math.inf))
                if first not in rank:
                    break
                ids = merge(ids, first, 256 + rank[first])
            encoded += ids
    return encoded


def decode(ids: list[int], merges: list[tuple[int, int]], special: dict[str, int] | None = None) -> str:
    """Return the text of ids. Bytes that are not UTF-8, such as half of a character, become U+FFFD."""
    token = {i: bytes([byte]) for i, byte in enumerate(byte_order())}
    for i, (left, right) in enumerate(merges):
        token[256 + i] = token[left] + token[right]
    for name, i in (special or {}).items():
        token[i] = name.encode("utf-8")
    return b"".join(token[i] for i in ids).decode("utf-8", errors="replace")


# Chapter 2: embeddings and positions ----------------------------------------------------------------------------------
@dataclass
class Config:
    """The sizes of a model; by default the smallest GPT-2's, with 124 million parameters."""

    vocab_size: int = 50257
    n_ctx: int = 1024  # the most tokens that the model reads at once
    n_embd: int = 768
    n_head: int = 12
    n_layer: int = 12


def embed(tokens: Tensor, wte: Tensor, wpe: Tensor, start: int = 0) -> Tensor:
    """Return the vector of each token plus the vector of its position, (B, T, C).

    tokens (B, T) are ids; wte (V, C) has a row for each token and wpe (n_ctx, C) one for each position. The first token
    stands at position `start`, which is more than 0 if earlier tokens have been read already."""
    positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
    return wte[tokens] + wpe[positions]


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Rotate queries or keys x (B, H, T, D) by their positions (T,), as models after GPT-2 do: (B, H, T, D).

    Numbers i and i + D/2 of a head, as in GPT-NeoX, are a point in the plane. Position p turns it by p * base^(-2i/D),
    so that the product of a query and a key depends only on their distance (RoPE; Su et al. 2021, section 3.2.2)."""
    D = x.shape[-1]
    frequencies = base ** (-2.0 * torch.arange(D // 2, dtype=x.dtype, device=x.device) / D)
    angles = positions[:, None] * frequencies  # (T, D/2)
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


# Chapter 3: scaled dot-product attention ------------------------------------------------------------------------------
def causal_mask(T: int, S: int) -> Tensor:
    """Return bool (T, S), True where the key is not after the query; the queries are the last T of the S positions."""
    queries = torch.arange(S - T, S)[:, None]
    keys = torch.arange(S)[None, :]
    return keys <= queries


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v, for each query a weighted mean of the values, (B, H, T, D).

    Queries q are (B, H, T, D), keys k and values v (B, H, S, D). Where the mask, bool (T, S), is False the weight is 0;
    each row has a True. Without a mask all is allowed (Vaswani et al. 2017, equation 1)."""
    D = q.shape[-1]
    scores = q @ k.transpose(-2, -1)  # (B, H, T, S)
    scores = scores / math.sqrt(D)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    shares = scores.softmax(dim=-1)
    return shares @ v


# Chapter 4: heads and masks -------------------------------------------------------------------------------------------
Weights = dict[str, Tensor]


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Map x (.., in) to (.., out) by a weight (out, in) and a bias (out,), as nn.Linear stores them."""
    return x @ weight.T + bias


def within(weights: Weights, prefix: str) -> Weights:
    """Return the weights whose names begin with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def split_heads(x: Tensor, n_head: int) -> Tensor:
    """Cut each vector of x (B, T, C) into H heads of D = C / H neighboring numbers: (B, H, T, D)."""
    B, T, C = x.shape
    return x.view(B, T, n_head, C // n_head).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Concatenate the heads of x (B, H, T, D) again: (B, T, C), the inverse of split_heads."""
    B, H, T, D = x.shape
    return x.transpose(1, 2).reshape(B, T, H * D)


def window_mask(T: int, S: int, window: int) -> Tensor:
    """Return a causal mask (T, S) of the last `window` keys only, the query's own included (Beltagy et al. 2020)."""
    queries = torch.arange(S - T, S)[:, None]
    keys = torch.arange(S)[None, :]
    return (keys <= queries) & (keys > queries - window)


def multi_head_attention(x: Tensor, weights: Weights, n_head: int) -> Tensor:
    """Let each token of x (B, T, C) attend to itself and those before it, in n_head ways at once: (B, T, C).

    "c_attn.weight" (3C, C) and "c_attn.bias" make queries, keys and values, in this order. Each is split into heads;
    what the heads return is merged, then mixed by "c_proj.weight" (C, C) and "c_proj.bias" (Vaswani et al., 3.2.2)."""
    T = x.shape[1]
    q, k, v = linear(x, weights["c_attn.weight"], weights["c_attn.bias"]).chunk(3, dim=-1)
    q, k, v = split_heads(q, n_head), split_heads(k, n_head), split_heads(v, n_head)
    mask = causal_mask(T, T).to(x.device)
    y = merge_heads(attention(q, k, v, mask))
    return linear(y, weights["c_proj.weight"], weights["c_proj.bias"])


class CausalSelfAttention(nn.Module):
    """Multi-head attention with its weights: c_attn, nn.Linear(C, 3C), and c_proj, nn.Linear(C, C)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Let each token of x (B, T, C) attend to itself and those before it: (B, T, C)."""
        return multi_head_attention(x, dict(self.named_parameters()), self.n_head)


# Chapter 5: layer norm, GELU, feed-forward ----------------------------------------------------------------------------
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Give each vector of x (.., C) mean 0 and variance 1, then scale and shift it by weight and bias, (C,).

    The variance is the mean squared deviation; eps is added to it, under the root (Ba et al. 2016, section 3.1)."""
    mean = x.mean(dim=-1, keepdim=True)
    deviation = x - mean
    variance = deviation.square().mean(dim=-1, keepdim=True)
    return deviation / torch.sqrt(variance + eps) * weight + bias


def gelu(x: Tensor) -> Tensor:
    """Return 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), GPT-2's GELU (Hendrycks & Gimpel 2016, section 2)."""
    inner = x + 0.044715 * x**3
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * inner))


def feed_forward(x: Tensor, weights: Weights) -> Tensor:
    """Widen each vector of x (B, T, C) to 4C by "c_fc.weight" (4C, C) and "c_fc.bias", apply GELU, and narrow it again.

    "c_proj.weight" (C, 4C) and "c_proj.bias" make the result, (B, T, C). Each vector is mapped by itself."""
    hidden = gelu(linear(x, weights["c_fc.weight"], weights["c_fc.bias"]))
    return linear(hidden, weights["c_proj.weight"], weights["c_proj.bias"])


class LayerNorm(nn.Module):
    """Layer norm with its weights, weight and bias, (C,): ones and zeros at first."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_embd))
        self.bias = nn.Parameter(torch.zeros(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, scale and shift each vector of x (.., C)."""
        return layer_norm(x, self.weight, self.bias)


class FeedForward(nn.Module):
    """The feed-forward layer with its weights: c_fc, nn.Linear(C, 4C), and c_proj, nn.Linear(4C, C)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, T, C) to (B, T, C)."""
        return feed_forward(x, dict(self.named_parameters()))


# Chapter 6: the block and the whole model -----------------------------------------------------------------------------
def layers(weights: Weights) -> list[Weights]:
    """Return the weights of each block, those below "h.0.", "h.1." and so on."""
    return [within(weights, f"h.{layer}.") for layer in range(sum("ln_1.weight" in name for name in weights))]


def block(x: Tensor, weights: Weights, n_head: int) -> Tensor:
    """Add to x (B, T, C) the attention of its norm, and to that the feed-forward layer of its norm: (B, T, C).

    The residual stream x itself is only added to (Radford et al. 2019, section 2.3). The weights are those of the norms
    below "ln_1." and "ln_2.", of attention below "attn." and of the feed-forward layer below "mlp."."""
    normalized = layer_norm(x, weights["ln_1.weight"], weights["ln_1.bias"])
    x = x + multi_head_attention(normalized, within(weights, "attn."), n_head)
    normalized = layer_norm(x, weights["ln_2.weight"], weights["ln_2.bias"])
    return x + feed_forward(normalized, within(weights, "mlp."))


def gpt(tokens: Tensor, weights: Weights, n_head: int) -> Tensor:
    """Return the logits (B, T, V) of the token that follows each of tokens (B, T).

    Embeddings "wte.weight" (V, C) and "wpe.weight" (n_ctx, C), the blocks below "h.0.", "h.1." .., a final norm below
    "ln_f.". Then each vector is compared with that of every token: the output matrix is "wte.weight" again."""
    x = embed(tokens, weights["wte.weight"], weights["wpe.weight"])
    for layer in layers(weights):
        x = block(x, layer, n_head)
    x = layer_norm(x, weights["ln_f.weight"], weights["ln_f.bias"])
    return x @ weights["wte.weight"].T


class Block(nn.Module):
    """A block with its layers: ln_1, attn, ln_2 and mlp."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        """Map the residual stream x (B, T, C) to the next, (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The model with its layers: wte and wpe, nn.Embedding; h, nn.ModuleList of n_layer blocks; ln_f."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = LayerNorm(config.n_embd)
        self.load_state_dict(initial_weights(config, torch.default_generator))

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the logits (B, T, V) after tokens (B, T), and the loss, (), if targets (B, T) are given."""
        x = embed(tokens, self.wte.weight, self.wpe.weight)
        for block in self.h:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.T
        return logits, None if targets is None else cross_entropy(logits, targets)


# Chapter 7: loss, batches, initial weights ----------------------------------------------------------------------------
def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of -ln p(target), in nats, (), where p = softmax(logits), of logits (.., V) and targets (..).

    Targets of -100 do not count. Large logits must not overflow: subtracting a number from all does not change p."""
    counted = targets != -100
    logits, targets = logits[counted], targets[counted]  # (N, V), (N,)
    logits = logits - logits.max(dim=-1, keepdim=True).values
    log_probabilities = logits - logits.exp().sum(dim=-1, keepdim=True).log()
    chosen = log_probabilities.gather(-1, targets[:, None])
    return -chosen.mean()


def batch(tokens: Tensor, starts: list[int], T: int) -> tuple[Tensor, Tensor]:
    """Return a row of T tokens of a text (N,) from each start, (B, T), and for each the one after it, its target."""
    inputs = torch.stack([tokens[start : start + T] for start in starts])
    targets = torch.stack([tokens[start + 1 : start + 1 + T] for start in starts])
    return inputs, targets


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter of the model, by its name."""
    C = config.n_embd
    shapes = {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.n_ctx, C)}
    parts = {"ln_1": (C,), "attn.c_attn": (3 * C, C), "attn.c_proj": (C, C)}
    parts |= {"ln_2": (C,), "mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C)}
    for layer in range(config.n_layer):
        for name, shape in parts.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[:1]}
    return shapes | {"ln_f.weight": (C,), "ln_f.bias": (C,)}


def initial_weights(config: Config, generator: torch.Generator) -> Weights:
    """Return weights to start from, by the names and shapes of parameter_shapes, random by the generator alone.

    Matrices are normal with mean 0 and standard deviation 0.02, but 0.02 / sqrt(2 n_layer) if "c_proj": the outputs of
    these 2 n_layer add up (Radford et al. 2019, section 2.3). Biases are 0 and the weights of norms 1."""
    weights = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            weights[name] = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        else:
            std = 0.02 / math.sqrt(2 * config.n_layer) if "c_proj" in name else 0.02
            weights[name] = std * torch.randn(shape, generator=generator)
    return weights


# Chapter 8: AdamW, schedule, clipping ---------------------------------------------------------------------------------
def decays(name: str, tensor: Tensor) -> bool:
    """Return whether weight decay applies: to matrices, not to biases and norms (Radford et al. 2018, section 4.1)."""
    return tensor.dim() >= 2


@torch.no_grad()
def adamw(weights: Weights, grads: Weights, state: dict, lr: float, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    """Update the weights in place by one step of AdamW, from their gradients, which have the same names.

        m = beta1 m + (1 - beta1) g                     v = beta2 v + (1 - beta2) g^2
        w = w - lr weight_decay w                       where `decays` says so
        w = w - lr m_hat / (sqrt(v_hat) + eps)          m_hat = m / (1 - beta1^t), v_hat = v / (1 - beta2^t)

    t counts the steps from 1. `state`, empty at first, is kept from step to step (Loshchilov & Hutter 2019)."""
    beta1, beta2 = betas
    state["step"] = state.get("step", 0) + 1
    for name, grad in grads.items():
        weight = weights[name]
        m, v = state.get(name, (torch.zeros_like(grad), torch.zeros_like(grad)))
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad.square()
        state[name] = m, v
        m_hat = m / (1 - beta1 ** state["step"])
        v_hat = v / (1 - beta2 ** state["step"])
        if decays(name, weight):
            weight.sub_(lr * weight_decay * weight)
        weight.sub_(lr * m_hat / (v_hat.sqrt() + eps))


def learning_rate(step: int, steps: int, warmup: int, max_lr: float, min_lr: float) -> float:
    """Return the learning rate of a step, from 0 to steps - 1: a linear warm-up, then half a wave of the cosine.

    Steps 0 to warmup - 1 rise from max_lr / warmup to max_lr; then the cosine falls from max_lr at step `warmup` to
    min_lr at the last step (Loshchilov & Hutter 2017, equation 5)."""
    if step < warmup:
        return max_lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return min_lr + (max_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def clip(grads: Weights, max_norm: float) -> float:
    """Scale the gradients, as one long vector, in place to a norm of at most max_norm; return the norm before."""
    norm = math.sqrt(sum(grad.square().sum().item() for grad in grads.values()))
    if norm > max_norm:
        for grad in grads.values():
            grad.mul_(max_norm / norm)
    return norm


def train_step(weights: Weights, batches: list, loss_of: Callable, state: dict, lr: float, max_norm: float = 1.0):
    """Update the weights in place by one step on several small batches, as if they were one large batch.

    loss_of(weights, inputs, targets) is the mean loss, (), of a small batch (inputs, targets); all are of one size. The
    gradient of the mean of all is clipped and given to `adamw`. Returns the mean loss and the norm before clipping."""
    for weight in weights.values():
        weight.requires_grad_(True)
        weight.grad = None
    total = 0.0
    for inputs, targets in batches:
        loss = loss_of(weights, inputs, targets) / len(batches)
        loss.backward()
        total += loss.item()
    grads = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
    norm = clip(grads, max_norm)
    adamw(weights, grads, state, lr)
    return total, norm


# Chapter 9: sampling and the cache ------------------------------------------------------------------------------------
def probabilities(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None):
    """Return the probabilities (V,) to draw the next token from, 0 where one is excluded, for logits (V,).

    First the logits are divided by the temperature. Then all but the top_k largest are excluded (Fan et al. 2018). Of
    these only the fewest most probable that together reach top_p stay (Holtzman et al. 2020, section 3.1). What stays
    sums to 1 again. Of equals the one with the smaller id comes first."""
    logits = logits / temperature
    if top_k is not None:
        order = logits.argsort(descending=True, stable=True)
        logits = logits.index_fill(0, order[top_k:], -math.inf)
    p = logits.softmax(dim=-1)
    if top_p is not None:
        order = p.argsort(descending=True, stable=True)
        n_kept = int((p[order].cumsum(dim=-1) < top_p).sum()) + 1  # those below top_p, and the one that reaches it
        p = p.index_fill(0, order[n_kept:], 0.0)
        p = p / p.sum()
    return p


def sample(probabilities: Tensor, generator: torch.Generator) -> int:
    """Draw an id by its probability, from probabilities (V,), random by the generator alone."""
    return int(torch.multinomial(probabilities, 1, generator=generator))


def extend_cache(cache: Weights, k: Tensor, v: Tensor, rope_base: float | None = None) -> tuple[Tensor, Tensor]:
    """Append new keys and values (B, H, T, D) to those in the cache, in place; return all of them, (B, H, S, D).

    The cache is empty at first, then holds "k" and "v". With rope_base the new keys are rotated before they are kept,
    each at its position in the whole text; those in the cache have been rotated already."""
    if rope_base is not None:
        start = cache["k"].shape[2] if "k" in cache else 0
        positions = torch.arange(start, start + k.shape[2], device=k.device)
        k = rotate(k, positions, rope_base)
    if "k" in cache:
        k = torch.cat([cache["k"], k], dim=2)
        v = torch.cat([cache["v"], v], dim=2)
    cache["k"], cache["v"] = k, v
    return k, v


def cached_attention(x: Tensor, weights: Weights, n_head: int, cache: Weights) -> Tensor:
    """Return what multi_head_attention gives for the tokens x (B, T, C) after those in the cache; extend the cache."""
    q, k, v = linear(x, weights["c_attn.weight"], weights["c_attn.bias"]).chunk(3, dim=-1)
    q, k, v = split_heads(q, n_head), split_heads(k, n_head), split_heads(v, n_head)
    k, v = extend_cache(cache, k, v)
    mask = causal_mask(q.shape[2], k.shape[2]).to(x.device)
    y = merge_heads(attention(q, k, v, mask))
    return linear(y, weights["c_proj.weight"], weights["c_proj.bias"])


def next_logits(tokens: Tensor, weights: Weights, n_head: int, caches: list[Weights]) -> Tensor:
    """Return the logits (B, V) of the token that follows, reading only tokens (B, T) that the caches do not hold yet.

    There is a cache for each block, an empty dictionary at first; the new tokens are added. The weights are gpt's."""
    start = caches[0]["k"].shape[2] if "k" in caches[0] else 0
    x = embed(tokens, weights["wte.weight"], weights["wpe.weight"], start)
    for layer, cache in zip(layers(weights), caches, strict=True):
        normalized = layer_norm(x, layer["ln_1.weight"], layer["ln_1.bias"])
        x = x + cached_attention(normalized, within(layer, "attn."), n_head, cache)
        normalized = layer_norm(x, layer["ln_2.weight"], layer["ln_2.bias"])
        x = x + feed_forward(normalized, within(layer, "mlp."))
    last = layer_norm(x[:, -1], weights["ln_f.weight"], weights["ln_f.bias"])
    return last @ weights["wte.weight"].T


@torch.no_grad()
def generate(
    tokens, weights: Weights, n_head: int, max_new_tokens: int, generator, temperature=1.0, top_k=None, top_p=None
) -> list[int]:
    """Continue a text, a list of ids, by max_new_tokens ids, each drawn from its probabilities; return the whole list.

    Each token is read once, with a cache for each block. Raises ValueError if the whole is longer than n_ctx."""
    if len(tokens) + max_new_tokens > len(weights["wpe.weight"]):
        raise ValueError(f"{len(tokens)} tokens and {max_new_tokens} new ones are more than the context")
    caches = [{} for _ in layers(weights)]
    written = list(tokens)
    unread = written
    for _ in range(max_new_tokens):
        logits = next_logits(torch.tensor([unread]), weights, n_head, caches)
        token = sample(probabilities(logits[0], temperature, top_k, top_p), generator)
        written.append(token)
        unread = [token]
    return written


# Chapter 10: evaluation -----------------------------------------------------------------------------------------------
def perplexity(losses: list[float], counts: list[int]) -> float:
    """Return exp of the mean loss per token, given the mean loss of each window and its number of tokens."""
    nats = sum(loss * count for loss, count in zip(losses, counts, strict=True))
    return math.exp(nats / sum(counts))


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Return bits per byte of UTF-8, from the summed loss of all tokens: comparable whatever the tokenizer."""
    return nats / math.log(2) / n_bytes


def windows(n: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """Cut a text of n tokens into windows that together predict each token but the first exactly once.

    A window (start, end, first_scored) reads tokens[start:end] and predicts tokens[start + 1:end + 1]. first_scored is
    the index, in the window, of the first that no earlier window predicts. Windows start `stride` tokens apart and read
    `context` tokens, or all n - 1 of a shorter text; the last one is moved back to end with the text."""
    found = []
    scored = 0
    while scored < n - 1:
        end = min(len(found) * stride + context, n - 1)
        start = max(0, end - context)
        found.append((start, end, scored - start))
        scored = end
    return found


def hellaswag_choice(logits: Tensor, tokens: Tensor, is_ending: Tensor) -> int:
    """Return which of four endings is the most probable: the highest mean of ln p over its tokens; of equals the first.

    Rows of tokens (4, T) hold the context and an ending, is_ending, bool (4, T), is True at the ending's tokens, and
    logits (4, T, V) at a token are for the one after it (Brown et al. 2020, section 2.4)."""
    chosen = logits[:, :-1].log_softmax(dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]  # (4, T - 1)
    means = (chosen * is_ending[:, 1:]).sum(dim=-1) / is_ending[:, 1:].sum(dim=-1)
    return int(means.argmax())


T_QUANTILES = (12.7062047, 4.3026527, 3.1824463, 2.7764451, 2.5705818, 2.4469119, 2.3646243, 2.3060041, 2.2621572)
"""Student's t with 1 to 9 degrees of freedom lies between -q and q with probability 0.95."""


def interval(differences: list[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of 2 to 10 paired differences, by Student's t (Student 1908)."""
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    half = T_QUANTILES[n - 2] * math.sqrt(variance / n)
    return mean - half, mean + half
