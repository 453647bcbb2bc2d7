"""Each known mistake is named as itself, however it is written, and nothing that is right is called wrong."""

from __future__ import annotations

import math
import random
import runpy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
import torch.nn.functional as F
from solving import SOLUTIONS, check_part, solve
from torch import Tensor, nn

from gpt2lab.learn import cases, gpt2
from gpt2lab.learn.check import same
from gpt2lab.learn.exercises import FILES, PARTS
from gpt2lab.learn.mistakes import MISTAKES, Mistake, variant
from gpt2lab.learn.outcomes import decoded, observe
from gpt2lab.learn.sandbox import check_directory
from gpt2lab.learn.student import Chapters, as_function

BY_NAME = {f"{mistake.part}.{mistake.key}": mistake for mistake in MISTAKES}
CATALOGUE = Path(__file__).parents[2] / "docs" / "build" / "catalogue.py"


def says(part: str, function: Callable[..., Any]) -> str:
    """Return what is said about a function, without its beginning."""
    verdict = check_part(part, function)
    assert verdict.status in ("right", "wrong")
    return verdict.says.removeprefix("The output is right, but its gradient is that of ").removeprefix(
        "Your output is that of "
    )


@pytest.mark.parametrize("part", [part.name for part in PARTS])
def test_each_mistake_is_named_as_itself(part: str) -> None:
    assert check_part(part, getattr(gpt2, part)).right
    known = [mistake for mistake in MISTAKES if mistake.part == part]
    assert len(known) >= 4
    assert {mistake.key: says(part, variant(mistake)) for mistake in known} == {m.key: f"{m.says}." for m in known}


def test_the_catalogue_is_one_line_each_and_on_its_page() -> None:
    assert [part.name for part in PARTS] == list(dict.fromkeys(mistake.part for mistake in MISTAKES))
    assert all("\n" not in mistake.says and mistake.says[-1] not in ".:;" for mistake in MISTAKES)
    page = CATALOGUE.with_name("mistakes.md").read_text("utf-8")
    assert page == runpy.run_path(str(CATALOGUE))["page"](), "run docs/build/catalogue.py"


def test_what_is_replaced_stands_once_in_the_reference() -> None:
    with pytest.raises(ValueError, match=r"gelu.x: '0.5' stands 2 times in the reference, not once"):
        variant(Mistake("gelu", "x", "", "", "0.5", "1"))


@pytest.mark.parametrize("solution", SOLUTIONS)
def test_right_code_is_right_whatever_the_numbers(solution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scope = runpy.run_path(str(SOLUTIONS[solution]))
    functions = {part.name: scope[part.name] for part in PARTS if part.name in scope}
    functions |= {
        part.name: as_function(part.name, scope[kind]) for part in PARTS if (kind := part.class_name) in scope
    }
    original = cases.cases
    for seed in range(1, 4):
        monkeypatch.setattr(cases, "cases", partial(original, seed=seed))
        for name, function in functions.items():
            expected = decoded(observe(name, getattr(gpt2, name))).outcomes
            assert same(decoded(observe(name, function)).outcomes, expected), f"{name}, seed {seed}"


# A directory with mistakes in two parts -------------------------------------------------------------------------------


def write(directory: Path, mistakes: list[Mistake]) -> Path:
    """Write solutions with mistakes to a directory."""
    chapter = {part.name: part.file for part in PARTS}
    for mistake in mistakes:
        with (directory / chapter[mistake.part]).open("a", encoding="utf-8") as file:
            file.write(f"\n\n{mistake.source}")
    return directory


@pytest.fixture
def chapters_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Chapters]]:
    """Return a function that makes the chapters of a directory importable, for the time of a test."""

    def forget() -> None:
        for file in FILES:
            sys.modules.pop(Path(file).stem, None)

    def chapters(directory: Path) -> Chapters:
        forget()
        monkeypatch.setattr(sys, "meta_path", list(before))
        return Chapters(directory, {}, lambda module: None)

    before = list(sys.meta_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield chapters
    forget()


def test_each_part_is_judged_by_itself_in_40_pairs(tmp_path: Path, chapters_of: Callable[[Path], Chapters]) -> None:
    solve(tmp_path)
    reference = {file: (tmp_path / file).read_text("utf-8") for file in FILES}
    draw = random.Random(0)
    chapter = {part.name: part.chapter for part in PARTS}
    for _ in range(40):
        one = draw.choice(MISTAKES)
        near = [m for m in MISTAKES if m.part != one.part and 0 <= chapter[m.part] - chapter[one.part] <= 1]
        pair = {mistake.part: mistake for mistake in (one, draw.choice(near))}
        for file, text in reference.items():
            (tmp_path / file).write_text(text, encoding="utf-8")
        chapters = chapters_of(write(tmp_path, list(pair.values())))
        beside = draw.sample([part.name for part in PARTS if part.name not in pair], 3)
        for part in PARTS:
            if part.name in (*pair, *beside):
                with chapters.trying(part) as function:
                    assert says(part.name, function) == (f"{pair[part.name].says}." if part.name in pair else "")


def test_a_whole_directory_with_mistakes_is_judged_part_by_part(tmp_path: Path) -> None:
    mixed = [BY_NAME[name] for name in ("merge.right-to-left", "attention.no-scale", "layer_norm.rms", "adamw.l2")]
    found = {v.part: v.says for v in check_directory(write(solve(tmp_path), mixed)) if not v.right}
    assert found == {mistake.part: f"Your output is that of {mistake.says}." for mistake in mixed}


# Mistakes in another style --------------------------------------------------------------------------------------------


def sdpa_unmasked(x: Tensor, weights: gpt2.Weights, n_head: int) -> Tensor:
    q, k, v = (
        z.unflatten(-1, (n_head, -1)).transpose(1, 2)
        for z in F.linear(x, weights["c_attn.weight"], weights["c_attn.bias"]).split(x.shape[-1], dim=-1)
    )
    y = F.scaled_dot_product_attention(q, k, v)
    return F.linear(y.transpose(1, 2).flatten(2), weights["c_proj.weight"], weights["c_proj.bias"])


def neox_heads(x: Tensor, weights: gpt2.Weights, n_head: int) -> Tensor:
    qkv = F.linear(x, weights["c_attn.weight"], weights["c_attn.bias"])
    q, k, v = qkv.view(*x.shape[:2], n_head, 3, -1).permute(3, 0, 2, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.linear(y.transpose(1, 2).flatten(2), weights["c_proj.weight"], weights["c_proj.bias"])


def einsum_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, dim: int = -1, c: int = 1
) -> Tensor:
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) * (q.shape[-1] * c) ** -0.5
    if mask is not None:
        scores = torch.where(mask, scores, torch.tensor(float("-inf"), dtype=q.dtype))
    return torch.einsum("bhts,bhsd->bhtd", F.softmax(scores, dim), v)


def attention_masked_late(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    weight = F.softmax(torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5, dim=3)
    return torch.einsum("bhts,bhsd->bhtd", weight if mask is None else torch.tril(weight), v)


class AnnotatedNorm(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n_embd)), nn.Parameter(torch.zeros(n_embd))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5) + self.bias


class ExactGelu(nn.Module):
    def __init__(self, config: gpt2.Config) -> None:
        super().__init__()
        self.c_fc, self.c_proj = (
            nn.Linear(config.n_embd, 4 * config.n_embd),
            nn.Linear(4 * config.n_embd, config.n_embd),
        )
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class PostNormBlock(gpt2.Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_1(self.attn(x) + x)
        return self.ln_2(self.mlp(x) + x)


class NoFinalNorm(gpt2.GPT):
    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return F.linear(x, self.wte.weight), None


class CopiedHead(gpt2.GPT):
    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight.detach()), None


def bpe_by_regex(texts: list[str], vocab_size: int) -> list[tuple[int, int]]:
    """Break ties by the larger pair, as CS336 does."""
    of_byte = {byte: i for i, byte in enumerate(gpt2.byte_order())}
    words = Counter(tuple(of_byte[b] for b in w.encode()) for t in texts for w in regex.findall(gpt2.PATTERN, t))
    learned: list[tuple[int, int]] = []
    for new in range(256, vocab_size):
        count: Counter[tuple[int, int]] = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                count[pair] += n
        if not count:
            break
        learned.append(max(count, key=lambda pair: (count[pair], pair)))
        words = Counter({tuple(gpt2.merge(list(word), learned[-1], new)): n for word, n in words.items()})
    return learned


def encode_greedily(text: str, merges: list[tuple[int, int]], special: dict[str, int] | None = None) -> list[int]:
    """Scan each word from the left and merge wherever a pair is known."""
    found: list[int] = []
    pattern = "|".join(map(regex.escape, sorted(special or {}, key=len, reverse=True))) or r"(?!)"
    begin = 0
    for match in [*regex.finditer(pattern, text), None]:
        for word in regex.findall(gpt2.PATTERN, text[begin : match.start() if match else None]):
            ids = [gpt2.byte_order().index(b) for b in word.encode()]
            while known := [pair for pair in pairwise(ids) if pair in merges]:
                ids = gpt2.merge(ids, known[0], 256 + merges.index(known[0]))
            found += ids
        if match:
            found.append((special or {})[match.group()])
            begin = match.end()
    return found


def adam_by_torch(
    weights: Any, grads: Any, state: dict, lr: float, betas: Any = (0.9, 0.95), eps=1e-8, weight_decay=0.1
) -> None:
    if not state:
        decayed = [{"params": [w], "weight_decay": weight_decay if w.dim() > 1 else 0.0} for w in weights.values()]
        state["adam"] = torch.optim.Adam(decayed, lr=lr, betas=betas, eps=eps)
    for name, weight in weights.items():
        weight.grad = grads[name]
    state["adam"].step()


def nanogpt_rate(step: int, steps: int, warmup: int, max_lr: float, min_lr: float) -> float:
    if step < warmup:
        return max_lr * (step + 1) / (warmup + 1)
    ratio = (step - warmup) / (steps - 1 - warmup)
    return min_lr + (1 + math.cos(math.pi * ratio)) / 2 * (max_lr - min_lr)


def clip_each(grads: gpt2.Weights, max_norm: float) -> float:
    norms = [float(torch.nn.utils.get_total_norm([grad])) for grad in grads.values()]
    for grad, norm in zip(grads.values(), norms, strict=True):
        if norm > max_norm:
            grad /= norm / max_norm
    return math.hypot(*norms)


def nucleus_without_crossing(logits: Tensor, temperature: float = 1.0, top_k: Any = None, top_p: Any = None) -> Tensor:
    logits = (logits / temperature).clone()
    if top_k:
        logits[sorted(range(len(logits)), key=lambda i: (-logits[i].item(), i))[top_k:]] = -torch.inf
    p = torch.softmax(logits, 0)
    if top_p:
        ordered, ids = torch.sort(p, descending=True, stable=True)
        kept = torch.cumsum(ordered, 0) <= top_p
        kept[0] = True
        p = torch.zeros_like(p).scatter(0, ids[kept], ordered[kept])
    return p / p.sum()


def rope_restarted(cache: dict, k: Tensor, v: Tensor, rope_base: float | None = None) -> tuple[Tensor, Tensor]:
    new = k if rope_base is None else gpt2.rotate(k, torch.arange(k.shape[-2]), rope_base)
    cache.setdefault("kv", []).append((new, v))
    keys, values = zip(*cache["kv"], strict=True)
    return torch.cat(keys, -2), torch.cat(values, -2)


def gptj_rotation(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    turn = torch.exp(-math.log(base) * torch.arange(0, x.shape[-1], 2).double() / x.shape[-1])
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.exp(1j * torch.outer(positions.double(), turn))
    return torch.view_as_real(z).flatten(-2)


def summed_endings(logits: Tensor, tokens: Tensor, is_ending: Tensor) -> int:
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return int((loss.view(4, -1) * is_ending[:, 1:]).sum(1).argmin())


def accumulated_without_mean(
    weights: Any, batches: Any, loss_of: Any, state: Any, lr: float, max_norm: float = 1.0
) -> Any:
    leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
    losses = [loss_of(leaves, *pair) for pair in batches]
    found = torch.autograd.grad(torch.stack(losses).sum(), list(leaves.values()))
    norm = gpt2.clip(grads := dict(zip(leaves, found, strict=True)), max_norm)
    gpt2.adamw(weights, grads, state, lr)
    return sum(loss.item() for loss in losses) / len(losses), norm


BY_HAND: list[tuple[str, Any]] = [
    (
        "merge.keeps-second",
        lambda ids, pair, new: [new if (a, b) == pair else a for a, b in zip(ids, [*ids, None][1:], strict=True)],
    ),
    ("train_bpe.ties-largest", bpe_by_regex),
    ("encode.leftmost", encode_greedily),
    (
        "decode.token-by-token",
        lambda ids, merges, special=None: "".join(gpt2.decode([i], merges, special) for i in ids),
    ),
    ("embed.no-start", lambda tokens, wte, wpe, start=0: F.embedding(tokens, wte) + wpe[: tokens.shape[1]]),
    ("rotate.interleaved", gptj_rotation),
    ("causal_mask.from-zero", lambda T, S: torch.tril(torch.ones(T, S)) == 1),
    ("attention.no-scale", partial(F.scaled_dot_product_attention, scale=1.0)),
    ("attention.sqrt-of-c", partial(einsum_attention, c=cases.H)),
    ("attention.softmax-queries", partial(einsum_attention, dim=2)),
    ("attention.mask-after", attention_masked_late),
    ("split_heads.view", lambda x, n_head: x.contiguous().view(len(x), n_head, x.shape[1], -1)),
    ("window_mask.one-more", lambda T, S, w: torch.ones(T, S, dtype=torch.bool).tril(S - T).triu(S - T - w)),
    ("multi_head_attention.no-mask", sdpa_unmasked),
    ("multi_head_attention.per-head", neox_heads),
    ("layer_norm.unbiased-eps-outside", as_function("layer_norm", AnnotatedNorm)),
    ("gelu.erf", nn.GELU()),
    ("feed_forward.erf", as_function("feed_forward", ExactGelu)),
    ("block.post-norm", as_function("block", PostNormBlock)),
    ("gpt.no-final-norm", as_function("gpt", NoFinalNorm)),
    ("gpt.untied", as_function("gpt", CopiedHead)),
    ("cross_entropy.sum", lambda logits, t: F.cross_entropy(logits.flatten(0, -2), t.flatten(), reduction="sum")),
    ("batch.not-shifted", lambda tokens, starts, T: (x := tokens.unfold(0, T, 1)[starts], x)),
    ("decays.norms", lambda name, tensor: not name.endswith(".bias")),
    ("adamw.l2", adam_by_torch),
    ("learning_rate.longer-warmup", nanogpt_rate),
    ("clip.by-tensor", clip_each),
    ("train_step.summed-gradients", accumulated_without_mean),
    ("probabilities.no-crossing", nucleus_without_crossing),
    ("sample.greedy", lambda p, generator: p.tolist().index(max(p))),
    ("sample.global-seed", lambda p, generator: int(torch.distributions.Categorical(p).sample())),
    ("extend_cache.positions-from-zero", rope_restarted),
    ("perplexity.mean-of-perplexities", lambda losses, counts: float(torch.tensor(losses).double().exp().mean())),
    ("hellaswag_choice.sum", summed_endings),
]


@pytest.mark.parametrize(("name", "function"), BY_HAND, ids=[name for name, _ in BY_HAND])
def test_a_mistake_is_named_in_any_style(name: str, function: Callable[..., Any]) -> None:
    assert says(BY_NAME[name].part, function) == f"{BY_NAME[name].says}."


@pytest.mark.parametrize(
    ("part", "function"),
    [
        ("attention", lambda q, k, v, mask=None: 1.01 * gpt2.attention(q, k, v, mask)),
        ("attention", lambda q, k, v, mask=None: gpt2.attention(0.8 * q, k, v, mask)),
        ("gelu", lambda x: gpt2.gelu(x) + 2e-5),
        ("layer_norm", lambda x, weight, bias, eps=1e-5: gpt2.layer_norm(x, weight, bias, 2e-5)),
        ("encode", lambda text, merges, special=None: gpt2.encode(text, merges[:9], special)),
        ("probabilities", lambda logits, *settings: (gpt2.probabilities(logits, *settings) + 1e-3).softmax(-1)),
        ("learning_rate", lambda *settings: 0.999 * gpt2.learning_rate(*settings)),
        ("hellaswag_choice", lambda logits, tokens, is_ending: 0),
        ("sample", lambda p, generator: 0),
        ("causal_mask", lambda T, S: torch.zeros(T, S, dtype=torch.bool)),
    ],
)
def test_an_unknown_mistake_is_wrong_but_not_named(part: str, function: Callable[..., Any]) -> None:
    verdict = check_part(part, function)
    assert verdict.status == "wrong"
    assert "that of" not in verdict.says


@pytest.mark.parametrize(
    ("part", "function", "expected"),
    [
        ("decode", lambda *args: None, "It returns None, str 'lowest ééé €' expected"),
        ("initial_weights", lambda *args: None, "It returns None"),
        ("train_step", lambda *args: None, "It returns None"),
        ("train_step", lambda *args: 0.5, "0.5 given, a list of length 2 expected"),
        ("sample", lambda *args: None, "bool False given, bool True expected"),
        ("extend_cache", lambda *args: None, "None given, a list of length 2 expected"),
        ("generate", lambda *args: None, "It returns None, a list of length 9 expected"),
        ("generate", lambda *args: torch.tensor(gpt2.generate(*args)), "a tensor of shape (9,) given, a list"),
    ],
)
def test_a_result_of_another_type_is_told(part: str, function: Callable[..., Any], expected: str) -> None:
    assert expected in check_part(part, function).says
