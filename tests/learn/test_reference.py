"""GPT-2 in one file equals the product, and what nobody here wrote: PyTorch, Hugging Face, its `tokenizers`."""

from __future__ import annotations

import ast
import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab import generation
from gpt2lab.compare.results import half_width
from gpt2lab.evaluation.hellaswag import HellaSwagItem, encode_items, hellaswag
from gpt2lab.evaluation.perplexity import cut_windows
from gpt2lab.learn import gpt2
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training import optim
from gpt2lab.training.config import OptimConfig

SOURCE = Path(gpt2.__file__).read_text(encoding="utf-8")
CONFIG = gpt2.Config(vocab_size=128, n_ctx=16, n_embd=24, n_head=3, n_layer=2)
close = torch.testing.assert_close


@pytest.fixture(scope="module")
def model() -> gpt2.GPT:
    """The model of the reference with weights far from the initial ones, fp64."""
    torch.manual_seed(0)
    model = gpt2.GPT(CONFIG).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def product(model: gpt2.GPT) -> GPT:
    """The product's model with the same weights."""
    product = GPT(GPTConfig(**vars(CONFIG))).double().eval()
    product.load_state_dict(model.state_dict())
    return product


@pytest.fixture(scope="module")
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_it_is_one_short_file_that_needs_nothing_of_ours() -> None:
    assert len(SOURCE.splitlines()) < 600
    imported = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                for node in ast.parse(SOURCE).body if isinstance(node, ast.Import | ast.ImportFrom)}  # fmt: skip
    standard = {"__future__", "math", "collections", "collections.abc", "dataclasses", "itertools"}
    assert imported == standard | {"regex", "torch"}


# The tokenizer --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tinyshakespeare: Path) -> tuple[list[tuple[int, int]], Tokenizer]:
    """Merges of the reference, and the product's tokenizer trained on the same texts."""
    texts = [tinyshakespeare.read_text("utf-8")[:20_000], "naïve 你好 👩\u200d🚀  \n\n 1999 aaaaaaaa" * 3]
    special = ("<|end|>", "<|end|>!")
    return gpt2.train_bpe(texts, 400), Tokenizer.train(texts, 402, special, min_frequency=1)


def test_merges_are_the_product_s(trained: tuple[list[tuple[int, int]], Tokenizer]) -> None:
    merges, tokenizer = trained
    token = {i: bytes([byte]) for i, byte in enumerate(gpt2.byte_order())}
    for i, (left, right) in enumerate(merges):
        token[256 + i] = token[left] + token[right]
    assert [tokenizer.decode_bytes([i]) for i in range(400)] == list(token.values())
    assert gpt2.train_bpe(["ab ab"], 1000) == [(64, 65), (220, 256)]  # until no pair is left


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("the <|end>! é你\n'")
       | st.lists(st.sampled_from(["<|end|>", "!", " the", "x"])).map("".join))  # fmt: skip
def test_ids_and_text_are_the_product_s(trained: tuple[list[tuple[int, int]], Tokenizer], text: str) -> None:
    merges, tokenizer = trained
    special = {"<|end|>": 400, "<|end|>!": 401}
    assert gpt2.encode(text, merges) == tokenizer.encode(text)
    ids = gpt2.encode(text, merges, special)
    assert ids == tokenizer.encode(text, "all")
    assert gpt2.decode(ids, merges, special) == text
    assert gpt2.decode(ids[1:], merges, special) == tokenizer.decode(ids[1:])  # which may cut a character


def test_with_gpt2_s_vocabulary_it_encodes_as_hugging_face_does(gpt2_vocabulary: Path, wikitext2: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    files = gpt2_vocabulary / "encoder.json", gpt2_vocabulary / "vocab.bpe"
    ids = json.loads(files[0].read_text("utf-8"))
    lines = files[1].read_text("utf-8").splitlines()[1:]
    merges = [(ids[left], ids[right]) for left, right in map(str.split, lines)]
    theirs = ByteLevelBPETokenizer(str(files[0]), str(files[1]))
    text = wikitext2.read_text("utf-8")[:3_000] + "It's naïve: 你好 👩\u200d🚀\n\n  x"
    assert gpt2.encode(text, merges) == theirs.encode(text).ids
    assert gpt2.decode(gpt2.encode(text, merges), merges) == text


# The model ------------------------------------------------------------------------------------------------------------


def test_model_function_product_and_hugging_face_agree(
    model: gpt2.GPT, product: GPT, hugging_face_twin: Callable[[GPT], Any]
) -> None:
    tokens, targets = torch.randint(128, (2, 2, 16))
    targets[0, 3:7] = -100
    logits, loss = model(tokens, targets)
    assert loss is not None
    theirs = product(tokens, targets, return_logits=True)
    close(logits, theirs.logits)
    assert loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)  # theirs is fp32
    close(gpt2.gpt(tokens, model.state_dict(), CONFIG.n_head), logits)
    with torch.no_grad():
        close(hugging_face_twin(product)(tokens).logits, logits.float(), rtol=1e-4, atol=1e-5)


def test_layers_are_pytorch_s(generator: torch.Generator) -> None:
    x, weight, bias = (torch.randn(n, generator=generator, dtype=torch.float64) for n in ((3, 5, 24), (24,), (24,)))
    close(gpt2.layer_norm(x, weight, bias), F.layer_norm(x, (24,), weight, bias))
    close(gpt2.gelu(3 * x), F.gelu(3 * x, approximate="tanh"))
    q = torch.randn((2, 3, 4, 8), generator=generator, dtype=torch.float64)
    k, v = torch.randn((2, 2, 3, 7, 8), generator=generator, dtype=torch.float64)
    for mask in (None, gpt2.causal_mask(4, 7), gpt2.window_mask(4, 7, 2)):
        close(gpt2.attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask))
    assert gpt2.causal_mask(2, 3).tolist() == [[True, True, False], [True, True, True]]
    assert gpt2.window_mask(3, 3, 2).tolist() == [[True, False, False], [True, True, False], [False, True, True]]


def test_attention_is_pytorch_s_multihead_attention(generator: torch.Generator) -> None:
    theirs = torch.nn.MultiheadAttention(24, 3, batch_first=True, dtype=torch.float64)
    ours = gpt2.CausalSelfAttention(CONFIG).double()
    ours.c_attn.weight, ours.c_attn.bias = theirs.in_proj_weight, theirs.in_proj_bias  # type: ignore[assignment]
    ours.c_proj = theirs.out_proj
    x = torch.randn((2, 7, 24), generator=generator, dtype=torch.float64)
    close(ours(x), theirs(x, x, x, attn_mask=~gpt2.causal_mask(7, 7))[0])


def test_rotation_is_hugging_face_s_llama(generator: torch.Generator) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    rotary = LlamaRotaryEmbedding(LlamaConfig(hidden_size=24, num_attention_heads=3))
    x = torch.randn((2, 3, 9, 8), generator=generator)
    cos, sin = rotary(x, torch.arange(4, 13)[None])
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)  # type: ignore[no-untyped-call]
    close(gpt2.rotate(x, torch.arange(4, 13)), expected)


# Training -------------------------------------------------------------------------------------------------------------


def test_loss_is_pytorch_s_even_for_huge_logits(generator: torch.Generator) -> None:
    logits = 1e4 * torch.randn((2, 5, 9), generator=generator, dtype=torch.float64)
    targets = torch.randint(9, (2, 5), generator=generator)
    targets[0, 2] = -100
    close(gpt2.cross_entropy(logits, targets), F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


@pytest.mark.parametrize("max_norm", [0.05, 1e9])
def test_training_is_that_of_pytorch_s_optimizer(model: gpt2.GPT, max_norm: float) -> None:
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    groups = optim.parameter_groups(list(theirs.parameters()), 0.1)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    config, text, state = OptimConfig(lr=1e-2, warmup_steps=2, grad_clip=max_norm), torch.randint(128, (200,)), {}
    for step in range(5):
        batches = [gpt2.batch(text, [step, 90], 16), gpt2.batch(text, [40 + step, 7], 16)]
        optim.set_learning_rate(optimizer, rate := optim.learning_rate(config, step, 5, 64))
        assert rate == pytest.approx(gpt2.learning_rate(step, 5, 2, config.lr, config.final_lr))
        optimizer.zero_grad()
        mean = torch.stack([theirs(*batch)[1] for batch in batches]).mean()
        mean.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        optimizer.step()
        found = gpt2.train_step(
            dict(ours.named_parameters()), batches, lambda _, *batch: ours(*batch)[1], state, rate, max_norm
        )
        assert found == pytest.approx((mean.item(), norm.item()))
    for name, parameter in ours.named_parameters():
        close(parameter, theirs.get_parameter(name), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (7, 0), (7, 3), (7, 7), (100, 5)])
def test_schedule_is_the_product_s(steps: int, warmup: int) -> None:
    config = OptimConfig(lr=3e-3, min_lr=1e-4, warmup_steps=warmup)
    for step in range(steps + 2):
        expected = optim.learning_rate(config, step, steps, 1)
        assert gpt2.learning_rate(step, steps, warmup, 3e-3, 1e-4) == pytest.approx(expected, rel=1e-12)


def test_initial_weights_are_spread_as_the_product_s(generator: torch.Generator) -> None:
    config = gpt2.Config(vocab_size=512, n_ctx=64, n_embd=64, n_head=2, n_layer=3)
    ours, theirs = gpt2.initial_weights(config, generator), GPT(GPTConfig(**vars(config))).state_dict()
    assert {name: w.shape for name, w in ours.items()} == {name: w.shape for name, w in theirs.items()}
    for name, weight in ours.items():
        assert weight.mean().item() == pytest.approx(theirs[name].mean().item(), abs=2e-3)
        assert weight.std().item() == pytest.approx(theirs[name].std().item(), rel=0.1)
    torch.manual_seed(3)
    first = gpt2.GPT(config).state_dict()
    torch.manual_seed(3)
    close(gpt2.GPT(config).state_dict(), first, rtol=0, atol=0)


# Sampling -------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(-4, 4), min_size=2, max_size=12),
    st.floats(0.1, 3.0),
    st.none() | st.integers(1, 12),
    st.none() | st.floats(0.01, 0.99),
)
def test_probabilities_are_the_product_s(
    logits: list[int], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    top_k = None if top_k is None else min(top_k, len(logits))
    strategy = generation.DecodingStrategy(temperature, top_k, top_p)
    exact = torch.tensor(logits).float()
    expected = generation.probabilities(exact[None], strategy)[0]
    close(gpt2.probabilities(exact, temperature, top_k, top_p), expected)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 9}, {"top_p": 0.8}])
def test_generated_tokens_are_the_product_s(model: gpt2.GPT, product: GPT, options: dict[str, Any]) -> None:
    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    expected = generation.generate(product, torch.tensor([[3, 1, 4]]), 13, generator=theirs, **options)[0].tolist()
    assert gpt2.generate([3, 1, 4], model.state_dict(), 3, 13, ours, **options) == expected
    with pytest.raises(ValueError, match="3 tokens and 14 new ones are more than the context"):
        gpt2.generate([3, 1, 4], model.state_dict(), 3, 14, ours, **options)


def test_cache_changes_nothing(model: gpt2.GPT, generator: torch.Generator) -> None:
    weights, tokens = model.state_dict(), torch.randint(128, (2, 16), generator=generator)
    caches = [{} for _ in range(CONFIG.n_layer)]
    expected = gpt2.gpt(tokens, weights, 3)
    for start, end in ((0, 5), (5, 6), (6, 16)):
        close(gpt2.next_logits(tokens[:, start:end], weights, 3, caches), expected[:, end - 1])
    k, v = torch.randn((2, 2, 3, 7, 8), generator=generator, dtype=torch.float64)
    cache: dict[str, torch.Tensor] = {}
    for start, end in ((0, 4), (4, 5), (5, 7)):
        keys, values = gpt2.extend_cache(cache, k[:, :, start:end], v[:, :, start:end], 100.0)
        close(keys, gpt2.rotate(k, torch.arange(7), 100.0)[:, :, :end])
        close(values, v[:, :, :end])


# Evaluation -----------------------------------------------------------------------------------------------------------


@given(st.integers(2, 40), st.data())
def test_windows_are_the_product_s(n: int, data: st.DataObject) -> None:
    context = data.draw(st.integers(1, 12))
    stride = data.draw(st.integers(1, context))
    stream: Any = range(n)
    cut = cut_windows(stream, context, stride)
    expected = list(zip(cut.starts, cut.starts + cut.lengths, cut.firsts, strict=True))
    assert gpt2.windows(n, context, stride) == expected


def test_measures_by_hand() -> None:
    assert gpt2.perplexity([1.0, 4.0], [3, 1]) == pytest.approx(math.exp(7 / 4))
    assert gpt2.bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)
    for n in range(2, 11):
        values = [float(i**2 % 7) for i in range(n)]
        low, high = gpt2.interval(values)
        assert (low + high) / 2 == pytest.approx(sum(values) / n)
        assert (high - low) / 2 == pytest.approx(half_width(values), rel=1e-7)


def test_chosen_endings_are_the_product_s() -> None:
    words = ["a", "man", "sits", "on", "the", "roof", "of", "his", "house", "and", "sings", "all", "day"]
    items = [
        HellaSwagItem(n, "", " ".join(words[: n + 1]), tuple(" ".join(words[e : n * e + 4]) for e in range(4)), 0)
        for n in range(12)
    ]
    tokenizer = Tokenizer.train(["no merges"], 257, ("<|endoftext|>",))
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=512, vocab_size=257)).eval()
    encoded = encode_items(tokenizer, items, 512)
    chosen = []
    for item in encoded.items:
        rows = [[*ending.context, *ending.ids] for ending in item.endings]
        tokens, ending = torch.zeros((2, 4, max(map(len, rows))), dtype=torch.long)
        for row, (ids, each) in enumerate(zip(rows, item.endings, strict=True)):
            tokens[row, : len(ids)] = torch.tensor(ids)
            ending[row, len(each.context) : len(ids)] = 1
        with torch.no_grad():
            logits = model(tokens).logits
        chosen.append(gpt2.hellaswag_choice(logits, tokens, ending.bool()))
    assert len(set(chosen)) > 1
    assert tuple(chosen) == hellaswag(model, encoded).by_mean
