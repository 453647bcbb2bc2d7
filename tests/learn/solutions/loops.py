# type: ignore
# ruff: noqa: PERF401
"""Right solutions in explicit loops, as one writes them before one knows tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpt2lab.learn.gpt2 import linear, parameter_shapes, pretokenize, within


def train_bpe(texts: list[str], vocab_size: int) -> list[tuple[int, int]]:
    order = byte_order()
    words = []
    for text in texts:
        for word in pretokenize(text):
            words.append([order.index(byte) for byte in word.encode()])
    merges = []
    for new_id in range(256, vocab_size):
        counts = {}
        for word in words:
            for i in range(len(word) - 1):
                pair = (word[i], word[i + 1])
                counts[pair] = counts.get(pair, 0) + 1
        best = None
        for pair in sorted(counts):
            if best is None or counts[pair] > counts[best]:
                best = pair
        if best is None:
            break
        merges.append(best)
        words = [merge(word, best, new_id) for word in words]
    return merges


def byte_order() -> list[int]:
    first, last = [], []
    for byte in range(256):
        character = chr(byte)
        visible = character.isprintable() and character != " "
        (first if visible else last).append(byte)
    return first + last


def merge(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    merged = []
    skip = False
    for i in range(len(ids)):
        if skip:
            skip = False
        elif i + 1 < len(ids) and ids[i] == pair[0] and ids[i + 1] == pair[1]:
            merged.append(new_id)
            skip = True
        else:
            merged.append(ids[i])
    return merged


def encode(text: str, merges: list[tuple[int, int]], special: dict[str, int] | None = None) -> list[int]:
    order = byte_order()
    ids, start, i = [], 0, 0

    def ordinary(piece: str) -> None:
        for word in pretokenize(piece):
            word_ids = [order.index(byte) for byte in word.encode("utf-8")]
            for rank in range(len(merges)):
                word_ids = merge(word_ids, merges[rank], 256 + rank)
            ids.extend(word_ids)

    while i < len(text):
        longest = ""
        for name in special or {}:
            if text.startswith(name, i) and len(name) > len(longest):
                longest = name
        if longest:
            ordinary(text[start:i])
            ids.append((special or {})[longest])
            i += len(longest)
            start = i
        else:
            i += 1
    ordinary(text[start:])
    return ids


def decode(ids: list[int], merges: list[tuple[int, int]], special: dict[str, int] | None = None) -> str:
    tokens = [bytes([byte]) for byte in byte_order()]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    data = b""
    for i in ids:
        found = [name for name in special or {} if (special or {})[name] == i]
        data += found[0].encode() if found else tokens[i]
    return data.decode("utf-8", errors="replace")


def embed(tokens: Tensor, wte: Tensor, wpe: Tensor, start: int = 0) -> Tensor:
    rows = []
    for row in tokens.tolist():
        rows.append(torch.stack([wte[token] + wpe[start + t] for t, token in enumerate(row)]))
    return torch.stack(rows)


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    half = x.shape[-1] // 2
    rotated = torch.empty_like(x)
    for t, position in enumerate(positions.tolist()):
        for i in range(half):
            angle = position / base ** (2 * i / x.shape[-1])
            a, b = x[:, :, t, i], x[:, :, t, i + half]
            rotated[:, :, t, i] = a * math.cos(angle) - b * math.sin(angle)
            rotated[:, :, t, i + half] = a * math.sin(angle) + b * math.cos(angle)
    return rotated


def causal_mask(T: int, S: int) -> Tensor:
    mask = torch.zeros(T, S, dtype=torch.bool)
    for t in range(T):
        mask[t, : S - T + t + 1] = True
    return mask


def window_mask(T: int, S: int, window: int) -> Tensor:
    mask = torch.zeros(T, S, dtype=torch.bool)
    for t in range(T):
        for s in range(S):
            distance = (S - T + t) - s
            mask[t, s] = 0 <= distance < window
    return mask


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    B, H, T, D = q.shape
    out = []
    for b in range(B):
        for h in range(H):
            for t in range(T):
                allowed = [s for s in range(k.shape[2]) if mask is None or bool(mask[t, s])]
                scores = torch.stack([(q[b, h, t] * k[b, h, s]).sum() for s in allowed]) / D**0.5
                powers = torch.exp(scores - scores.max())
                out.append(sum(p / powers.sum() * v[b, h, s] for p, s in zip(powers, allowed, strict=True)))
    return torch.stack(out).view(B, H, T, v.shape[-1])


def split_heads(x: Tensor, n_head: int) -> Tensor:
    D = x.shape[-1] // n_head
    return torch.stack([x[:, :, h * D : (h + 1) * D] for h in range(n_head)], dim=1)


def merge_heads(x: Tensor) -> Tensor:
    return torch.cat([x[:, h] for h in range(x.shape[1])], dim=-1)


def multi_head_attention(x: Tensor, weights: dict[str, Tensor], n_head: int) -> Tensor:
    C = x.shape[-1]
    D = C // n_head
    heads = []
    for h in range(n_head):
        made = []
        for which in range(3):
            rows = slice(which * C + h * D, which * C + (h + 1) * D)
            made.append(linear(x, weights["c_attn.weight"][rows], weights["c_attn.bias"][rows])[:, None])
        heads.append(attention(made[0], made[1], made[2], causal_mask(x.shape[1], x.shape[1]))[:, 0])
    return linear(torch.cat(heads, dim=-1), weights["c_proj.weight"], weights["c_proj.bias"])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        mean = sum(row) / len(row)
        variance = sum((number - mean) ** 2 for number in row) / len(row)
        rows.append((row - mean) / (variance + eps) ** 0.5 * weight + bias)
    return torch.stack(rows).view(x.shape)


def gelu(x: Tensor) -> Tensor:
    cubed = x * x * x
    return x / 2 + x / 2 * torch.tanh((2 / math.pi) ** 0.5 * x + (2 / math.pi) ** 0.5 * 0.044715 * cubed)


def feed_forward(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    rows = []
    for row in x:
        steps = []
        for vector in row:
            hidden = gelu(weights["c_fc.weight"] @ vector + weights["c_fc.bias"])
            steps.append(weights["c_proj.weight"] @ hidden + weights["c_proj.bias"])
        rows.append(torch.stack(steps))
    return torch.stack(rows)


def gpt(tokens: Tensor, weights: dict[str, Tensor], n_head: int) -> Tensor:
    x = embed(tokens, weights["wte.weight"], weights["wpe.weight"])
    layer = 0
    while f"h.{layer}.ln_1.weight" in weights:
        x = block(x, within(weights, f"h.{layer}."), n_head)
        layer += 1
    x = layer_norm(x, weights["ln_f.weight"], weights["ln_f.bias"])
    return torch.stack([(x * row).sum(dim=-1) for row in weights["wte.weight"]], dim=-1)


def block(x: Tensor, weights: dict[str, Tensor], n_head: int) -> Tensor:
    read = layer_norm(x, weights["ln_1.weight"], weights["ln_1.bias"])
    attended = multi_head_attention(read, within(weights, "attn."), n_head)
    read = layer_norm(x + attended, weights["ln_2.weight"], weights["ln_2.bias"])
    return x + attended + feed_forward(read, within(weights, "mlp."))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    nats = []
    for row, target in zip(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).tolist(), strict=True):
        if target != -100:
            highest = max(row.tolist())
            nats.append(torch.log(sum(torch.exp(logit - highest) for logit in row)) + highest - row[target])
    return sum(nats) / len(nats)


def batch(tokens: Tensor, starts: list[int], T: int) -> tuple[Tensor, Tensor]:
    inputs = torch.zeros(len(starts), T, dtype=tokens.dtype)
    targets = torch.zeros(len(starts), T, dtype=tokens.dtype)
    for b, start in enumerate(starts):
        for t in range(T):
            inputs[b, t] = tokens[start + t]
            targets[b, t] = tokens[start + t + 1]
    return inputs, targets


def initial_weights(config, generator: torch.Generator) -> dict[str, Tensor]:
    weights = {}
    for name, shape in parameter_shapes(config).items():
        if name.endswith(".bias"):
            weights[name] = torch.zeros(*shape)
        elif "ln_" in name:
            weights[name] = torch.ones(*shape)
        else:
            residual = "attn.c_proj" in name or "mlp.c_proj" in name
            std = 0.02 / math.sqrt(config.n_layer * 2) if residual else 0.02
            rows = [torch.normal(0.0, std, shape[1:], generator=generator) for _ in range(shape[0])]
            weights[name] = torch.stack(rows)
    return weights


@torch.no_grad()
def adamw(weights, grads, state, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1) -> None:
    t = state["t"] = state.get("t", 0) + 1
    for name in weights:
        weight, grad = weights[name].view(-1), grads[name].reshape(-1)
        if name not in state:
            state[name] = ([0.0] * len(weight), [0.0] * len(weight))
        m, v = state[name]
        for i in range(len(weight)):
            g = float(grad[i])
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g
            v[i] = betas[1] * v[i] + (1 - betas[1]) * g * g
            step = m[i] / (1 - betas[0] ** t) / (math.sqrt(v[i] / (1 - betas[1] ** t)) + eps)
            decay = weight_decay if decays(name, weights[name]) else 0.0
            weight[i] -= lr * (step + decay * float(weight[i]))


def decays(name: str, tensor: Tensor) -> bool:
    return not (name.endswith("bias") or "ln_" in name)


def learning_rate(step: int, steps: int, warmup: int, max_lr: float, min_lr: float) -> float:
    rate = max_lr
    if step < warmup:
        rate = (step + 1) * max_lr / warmup
    elif steps - 1 > warmup:
        share = (step - warmup) / (steps - 1 - warmup)
        rate = (max_lr + min_lr) / 2 + (max_lr - min_lr) / 2 * math.cos(share * math.pi)
    return rate


def clip(grads: dict[str, Tensor], max_norm: float) -> float:
    squares = 0.0
    for name in grads:
        for number in grads[name].reshape(-1).tolist():
            squares += number * number
    norm = squares**0.5
    if norm > max_norm:
        for name in grads:
            grads[name] *= max_norm / norm
    return norm


def train_step(weights, batches, loss_of, state, lr, max_norm=1.0):
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    losses = []
    for inputs, targets in batches:
        for weight in weights.values():
            weight.requires_grad = True
            weight.grad = None
        loss = loss_of(weights, inputs, targets)
        loss.backward()
        losses.append(loss.item())
        for name, weight in weights.items():
            sums[name] += weight.grad
    for name in sums:
        sums[name] /= len(batches)
    norm = clip(sums, max_norm)
    adamw(weights, sums, state, lr)
    return sum(losses) / len(losses), norm


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    scaled = [number / temperature for number in logits.tolist()]
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    if top_k is not None:
        order = order[:top_k]
    powers = {i: math.exp(scaled[i] - scaled[order[0]]) for i in order}
    total = sum(powers.values())
    if top_p is not None:
        kept, mass = [], 0.0
        for i in order:
            kept.append(i)
            mass += powers[i] / total
            if mass >= top_p:
                break
        order = kept
    total = sum(powers[i] for i in order)
    p = torch.zeros_like(logits)
    for i in order:
        p[i] = powers[i] / total
    return p


def sample(probabilities: Tensor, generator: torch.Generator) -> int:
    u = float(torch.rand(1, dtype=torch.float64, generator=generator))
    reached = 0.0
    for i, p in enumerate(probabilities.tolist()):
        reached += p
        if u < reached:
            return i
    return int(probabilities.argmax())


def extend_cache(
    cache: dict[str, Tensor], k: Tensor, v: Tensor, rope_base: float | None = None
) -> tuple[Tensor, Tensor]:
    for t in range(k.shape[2]):
        new = k[:, :, t : t + 1]
        position = cache["k"].shape[2] if "k" in cache else 0
        if rope_base is not None:
            new = rotate(new, torch.tensor([position]), rope_base)
        cache["k"] = torch.cat([cache["k"], new], dim=2) if "k" in cache else new
        cache["v"] = torch.cat([cache["v"], v[:, :, t : t + 1]], dim=2) if "v" in cache else v[:, :, t : t + 1]
    return cache["k"], cache["v"]


def cached_attention(x: Tensor, weights: dict[str, Tensor], n_head: int, cache: dict[str, Tensor]) -> Tensor:
    out = []
    for t in range(x.shape[1]):
        q, k, v = linear(x[:, t : t + 1], weights["c_attn.weight"], weights["c_attn.bias"]).chunk(3, dim=-1)
        k, v = extend_cache(cache, split_heads(k, n_head), split_heads(v, n_head))
        y = attention(split_heads(q, n_head), k, v)
        out.append(linear(merge_heads(y), weights["c_proj.weight"], weights["c_proj.bias"]))
    return torch.cat(out, dim=1)


def next_logits(tokens: Tensor, weights: dict[str, Tensor], n_head: int, caches: list[dict[str, Tensor]]) -> Tensor:
    logits = torch.empty(0)
    for t in range(tokens.shape[1]):
        start = caches[0]["k"].shape[2] if "k" in caches[0] else 0
        x = embed(tokens[:, t : t + 1], weights["wte.weight"], weights["wpe.weight"], start)
        for layer, cache in enumerate(caches):
            own = within(weights, f"h.{layer}.")
            read = layer_norm(x, own["ln_1.weight"], own["ln_1.bias"])
            x = x + cached_attention(read, within(own, "attn."), n_head, cache)
            x = x + feed_forward(layer_norm(x, own["ln_2.weight"], own["ln_2.bias"]), within(own, "mlp."))
        x = layer_norm(x, weights["ln_f.weight"], weights["ln_f.bias"])
        logits = x[:, 0] @ weights["wte.weight"].T
    return logits


@torch.no_grad()
def generate(
    tokens, weights, n_head: int, max_new_tokens: int, generator, temperature=1.0, top_k=None, top_p=None
) -> list[int]:
    caches, written = [], list(tokens)
    while f"h.{len(caches)}.ln_1.weight" in weights:
        caches.append({})
    if len(tokens) + max_new_tokens > weights["wpe.weight"].shape[0]:
        raise ValueError("longer than the context")
    for i in range(len(tokens) - 1):
        next_logits(torch.tensor([[tokens[i]]]), weights, n_head, caches)
    for _ in range(max_new_tokens):
        logits = next_logits(torch.tensor([[written[-1]]]), weights, n_head, caches)[0]
        written.append(sample(probabilities(logits, temperature, top_k, top_p), generator))
    return written


def perplexity(losses: list[float], counts: list[int]) -> float:
    total, n = 0.0, 0
    for i in range(len(losses)):
        total += losses[i] * counts[i]
        n += counts[i]
    return math.e ** (total / n)


def windows(n: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    context = min(context, n - 1)
    found = [(0, context, 0)] if n > 1 else []
    while found and found[-1][1] < n - 1:
        scored = found[-1][1]
        end = min(scored + stride, n - 1)
        found.append((end - context, end, scored - (end - context)))
    return found


def hellaswag_choice(logits: Tensor, tokens: Tensor, is_ending: Tensor) -> int:
    best, highest = 0, -math.inf
    for row in range(4):
        values = []
        for t in range(1, tokens.shape[1]):
            if is_ending[row, t]:
                values.append(float(logits[row, t - 1].log_softmax(-1)[tokens[row, t]]))
        mean = sum(values) / len(values)
        if mean > highest:
            best, highest = row, mean
    return best
