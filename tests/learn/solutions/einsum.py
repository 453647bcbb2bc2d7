"""Right solutions in the manner of einsum and whole-tensor operations."""

from __future__ import annotations

import math
import statistics

import regex
import torch
import torch.nn.functional as F
from torch import Tensor, einsum

from gpt2lab.learn.gpt2 import PATTERN, byte_order, decays, parameter_shapes


def pretokenize(text: str) -> list[str]:
    return [match.group() for match in regex.compile(PATTERN).finditer(text)]


def merge(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    merged = list(ids)
    i = 0
    while i < len(merged) - 1:
        if merged[i] == pair[0] and merged[i + 1] == pair[1]:
            merged[i : i + 2] = [new_id]
        i += 1
    return merged


def decode(ids: list[int], merges: list[tuple[int, int]], special: dict[str, int] | None = None) -> str:
    names = {i: name for name, i in (special or {}).items()}
    data = bytearray()

    def add(i: int) -> None:
        if i in names:
            data.extend(names[i].encode())
        elif i < 256:
            data.append(byte_order()[i])
        else:
            for part in merges[i - 256]:
                add(part)

    for i in ids:
        add(i)
    return data.decode("utf-8", "replace")


def embed(tokens: Tensor, wte: Tensor, wpe: Tensor, start: int = 0) -> Tensor:
    one_hot = F.one_hot(tokens, len(wte)).to(wte.dtype)
    return einsum("btv,vc->btc", one_hot, wte) + wpe[start : start + tokens.shape[1]][None]


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    theta = torch.exp(-math.log(base) * torch.arange(0, x.shape[-1], 2, dtype=x.dtype) / x.shape[-1])
    angles = einsum("t,i->ti", positions.to(x.dtype), theta).repeat(1, 2)
    turned = torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), dim=-1)
    return x * angles.cos() + turned * angles.sin()


def causal_mask(T: int, S: int) -> Tensor:
    return torch.ones(T, S, dtype=torch.bool).tril(S - T)


def window_mask(T: int, S: int, window: int) -> Tensor:
    return torch.ones(T, S, dtype=torch.bool).tril(S - T).triu(S - T - window + 1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = einsum("bhtd,bhsd->bhts", q * q.shape[-1] ** -0.5, k)
    if mask is not None:
        scores = torch.where(mask, scores, float("-inf"))
    return einsum("bhts,bhsd->bhtd", torch.softmax(scores, -1), v)


def split_heads(x: Tensor, n_head: int) -> Tensor:
    return x.unflatten(-1, (n_head, -1)).permute(0, 2, 1, 3)


def merge_heads(x: Tensor) -> Tensor:
    return x.permute(0, 2, 1, 3).flatten(2)


def multi_head_attention(x: Tensor, weights: dict[str, Tensor], n_head: int) -> Tensor:
    C, T = x.shape[-1], x.shape[1]
    matrices = weights["c_attn.weight"].view(3, n_head, C // n_head, C)
    biases = weights["c_attn.bias"].view(3, n_head, 1, C // n_head)
    q, k, v = (einsum("btc,hdc->bhtd", x, matrix) + bias for matrix, bias in zip(matrices, biases, strict=True))
    y = attention(q, k, v, causal_mask(T, T))
    out = weights["c_proj.weight"].view(C, n_head, C // n_head)
    return einsum("bhtd,chd->btc", y, out) + weights["c_proj.bias"]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
    return torch.addcmul(bias, (x - mean) * torch.rsqrt(variance + eps), weight)


def gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3)))


def feed_forward(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    hidden = gelu(einsum("btc,fc->btf", x, weights["c_fc.weight"]) + weights["c_fc.bias"])
    return einsum("btf,cf->btc", hidden, weights["c_proj.weight"]) + weights["c_proj.bias"]


def block(x: Tensor, weights: dict[str, Tensor], n_head: int) -> Tensor:
    attn = {name[5:]: tensor for name, tensor in weights.items() if name.startswith("attn.")}
    mlp = {name[4:]: tensor for name, tensor in weights.items() if name.startswith("mlp.")}
    after = x + multi_head_attention(layer_norm(x, weights["ln_1.weight"], weights["ln_1.bias"]), attn, n_head)
    return after + feed_forward(layer_norm(after, weights["ln_2.weight"], weights["ln_2.bias"]), mlp)


def gpt(tokens: Tensor, weights: dict[str, Tensor], n_head: int) -> Tensor:
    x = embed(tokens, weights["wte.weight"], weights["wpe.weight"])
    n_layer = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h."))
    for i in range(n_layer):
        prefix = f"h.{i}."
        x = block(x, {n[len(prefix) :]: w for n, w in weights.items() if n.startswith(prefix)}, n_head)
    return einsum("btc,vc->btv", layer_norm(x, weights["ln_f.weight"], weights["ln_f.bias"]), weights["wte.weight"])


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    counted = (targets != -100).to(logits.dtype)
    nats = logits.logsumexp(-1) - logits.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    return (nats * counted).sum() / counted.sum()


def batch(tokens: Tensor, starts: list[int], T: int) -> tuple[Tensor, Tensor]:
    index = torch.tensor(starts)[:, None] + torch.arange(T)
    return tokens[index], tokens[index + 1]


def initial_weights(config, generator: torch.Generator) -> dict[str, Tensor]:
    weights = {name: torch.empty(shape) for name, shape in parameter_shapes(config).items()}
    for name, tensor in reversed(weights.items()):
        if name.endswith("bias") or tensor.dim() == 1:
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            depth = 2 * config.n_layer if name.endswith("c_proj.weight") else 1
            tensor.normal_(0.0, 0.02 * depth**-0.5, generator=generator)
    return weights


@torch.no_grad()
def adamw(weights, grads, state, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1) -> None:
    if not state:
        state |= {"t": 0, "m": {}, "v": {}}
    state["t"] += 1
    for name, weight in weights.items():
        m = state["m"].setdefault(name, torch.zeros_like(weight))
        v = state["v"].setdefault(name, torch.zeros_like(weight))
        m.lerp_(grads[name], 1 - betas[0])
        v.mul_(betas[1]).addcmul_(grads[name], grads[name], value=1 - betas[1])
        root = (v / (1 - betas[1] ** state["t"])).sqrt_().add_(eps)
        weight.mul_(1 - lr * weight_decay * decays(name, weight))
        weight.addcdiv_(m, root, value=-lr / (1 - betas[0] ** state["t"]))


def clip(grads: dict[str, Tensor], max_norm: float) -> float:
    norm = torch.cat([grad.flatten() for grad in grads.values()]).norm()
    for grad in grads.values():
        grad.mul_((max_norm / (norm + 1e-12)).clamp(max=1.0))
    return norm.item()


def train_step(weights, batches, loss_of, state, lr, max_norm=1.0):
    leaves = [weight.requires_grad_() for weight in weights.values()]
    mean = torch.stack([loss_of(weights, inputs, targets) for inputs, targets in batches]).mean()
    grads = dict(zip(weights, torch.autograd.grad(mean, leaves), strict=True))
    norm = clip(grads, max_norm)
    adamw(weights, grads, state, lr)
    return mean.item(), norm


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    ordered, order = torch.sort(logits / temperature, descending=True, stable=True)
    if top_k is not None:
        ordered = torch.where(torch.arange(len(ordered)) < top_k, ordered, -math.inf)
    p = ordered.softmax(0)
    if top_p is not None:
        before = torch.cat((torch.zeros(1, dtype=p.dtype), p.cumsum(0)[:-1]))
        p = torch.where(before < top_p, p, 0.0)
        p = p / p.sum()
    return torch.zeros_like(p).scatter(0, order, p)


def extend_cache(
    cache: dict[str, Tensor], k: Tensor, v: Tensor, rope_base: float | None = None
) -> tuple[Tensor, Tensor]:
    old_k, old_v = cache.get("k", k[:, :, :0]), cache.get("v", v[:, :, :0])
    if rope_base is not None:
        k = rotate(k, old_k.shape[2] + torch.arange(k.shape[2]), rope_base)
    cache.update(k=torch.cat((old_k, k), 2), v=torch.cat((old_v, v), 2))
    return cache["k"], cache["v"]


def cached_attention(x: Tensor, weights: dict[str, Tensor], n_head: int, cache: dict[str, Tensor]) -> Tensor:
    made = (einsum("btc,kc->btk", x, weights["c_attn.weight"]) + weights["c_attn.bias"]).chunk(3, dim=-1)
    q, k, v = (split_heads(part, n_head) for part in made)
    k, v = extend_cache(cache, k, v)
    y = merge_heads(attention(q, k, v, causal_mask(q.shape[2], k.shape[2])))
    return einsum("btc,kc->btk", y, weights["c_proj.weight"]) + weights["c_proj.bias"]


def perplexity(losses: list[float], counts: list[int]) -> float:
    return float(torch.exp(torch.tensor(losses).double() @ torch.tensor(counts).double() / sum(counts)))


def bits_per_byte(nats: float, n_bytes: int) -> float:
    return nats * math.log2(math.e) / n_bytes


def hellaswag_choice(logits: Tensor, tokens: Tensor, is_ending: Tensor) -> int:
    nats = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(4, -1)
    ending = is_ending[:, 1:].to(nats.dtype)
    return int(torch.argmin(einsum("bt,bt->b", nats, ending) / ending.sum(1)))


def interval(differences: list[float]) -> tuple[float, float]:
    t = [0.0, 12.7062047, 4.3026527, 3.1824463, 2.7764451, 2.5705818, 2.4469119, 2.3646243, 2.3060041, 2.2621572]
    mean = statistics.fmean(differences)
    half = t[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean - half, mean + half
