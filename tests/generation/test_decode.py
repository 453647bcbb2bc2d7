from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpt2lab.errors import InputError
from gpt2lab.generation import (
    STRATEGIES,
    DecodingStrategy,
    generate,
    next_logits,
    pad_left,
    sample_next,
    seeded,
    stream,
)
from gpt2lab.model.cache import KVCache
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.flops import cache_bytes
from gpt2lab.model.gpt import GPT

CPU = torch.device("cpu")
GREEDY = STRATEGIES["greedy"]


def small(n_ctx: int = 16, vocab_size: int = 61, **changes: Any) -> GPT:
    """A model with weights large enough that its distributions are far from uniform."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(n_layer=2, n_head=3, n_embd=24, n_ctx=n_ctx, vocab_size=vocab_size, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=1.0 if name == "wpe.weight" else 0.2)
            elif name != "ln_f.bias":  # it would favour one token everywhere
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def uncached(
    model: GPT, tokens: torch.Tensor, new: int, strategy: DecodingStrategy, generator: torch.Generator
) -> torch.Tensor:
    """The definition: every token from a whole forward pass over the window."""
    model.eval()
    n_ctx = model.config.n_ctx
    window = tokens[:, -n_ctx:]
    for _ in range(new):
        logits = model(window).logits
        column = sample_next(logits[:, -1], strategy, generator)[:, None]
        full = window.shape[1] == n_ctx
        tokens, window = torch.cat([tokens, column], 1), torch.cat([window, column], 1)
        if full:
            window = window[:, -((n_ctx + 1) // 2) :]
    return tokens


@pytest.mark.parametrize("kernel", ["auto", "reference", "matmul", "sdpa"])
def test_cached_logits_equal_uncached(kernel: Any) -> None:
    model = small(kernel=kernel).eval()
    tokens = torch.randint(61, (3, 16), generator=seeded(0, CPU))
    with torch.no_grad():
        expected = model(tokens).logits
    cache = KVCache(model.config, 3, CPU, torch.float32)
    for start, end in [(0, 5), (5, 6), (6, 7), (7, 11), (11, 16)]:  # a prompt, tokens, and chunks behind a cache
        found = next_logits(model, tokens[:, start:end], cache)
        torch.testing.assert_close(found, expected[:, end - 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strategy", [*STRATEGIES.values(), DecodingStrategy(0.9, 20, 0.95)], ids=str)
@pytest.mark.parametrize("prompt", [1, 15, 16, 40])
def test_tokens_are_those_of_whole_forward_passes_also_when_the_window_slides(
    strategy: DecodingStrategy, prompt: int
) -> None:
    model = small()
    tokens = torch.randint(61, (3, prompt), generator=seeded(5, CPU))
    with torch.no_grad():
        expected = uncached(model, tokens, 60, strategy, seeded(7, CPU))
    columns = list(stream(model, tokens, 60, strategy, seeded(7, CPU)))
    assert torch.equal(torch.stack(columns, dim=1), expected[:, prompt:])


@pytest.mark.parametrize("n_ctx", [1, 2, 3])
def test_the_smallest_windows_slide_too(n_ctx: int) -> None:
    model = small(n_ctx=n_ctx)
    tokens = torch.tensor([[4, 5]])
    with torch.no_grad():
        expected = uncached(model, tokens, 9, GREEDY, seeded(0, CPU))
    assert torch.equal(generate(model, tokens, 9, greedy=True), expected)


def test_greedy_equals_hugging_face_for_200_tokens(hugging_face_twin: Callable[[GPT], Any]) -> None:
    ours = small(n_ctx=256, vocab_size=101)
    prompt = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    expected = hugging_face_twin(ours).generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=200, pad_token_id=0
    )
    found = generate(ours, prompt, 200, greedy=True)
    assert torch.equal(found, torch.as_tensor(expected))
    assert len(found[0, 5:].unique()) > 20  # a text, not one token for ever


def test_generate_returns_prompt_and_continuation_and_streams_the_same_columns() -> None:
    model = small()
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    text = generate(model, prompt, 20, top_p=0.9, generator=seeded(2, CPU))
    columns = list(stream(model, prompt, 20, DecodingStrategy(top_p=0.9), seeded(2, CPU)))
    assert text.shape == (2, 23)
    assert torch.equal(text[:, :3], prompt)
    assert torch.equal(text[:, 3:], torch.stack(columns, dim=1))


def test_no_new_tokens_gives_the_prompt() -> None:
    prompt = torch.tensor([[1, 2, 3]])
    assert torch.equal(generate(small(), prompt, 0), prompt)


def test_seeds_decide_the_samples_and_the_global_generator_is_left_alone() -> None:
    model = small()
    prompt = torch.zeros(4, 1, dtype=torch.long)
    before = torch.get_rng_state()
    first, again, other = (generate(model, prompt, 30, generator=seeded(seed, CPU)) for seed in (1, 1, 2))
    unseeded, unseeded_again = (generate(model, prompt, 30) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(unseeded, unseeded_again)
    assert len({tuple(row) for row in first.tolist()}) == 4  # several samples at once differ
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_that_wrote_eot_are_filled_and_the_others_do_not_change() -> None:
    model = small(vocab_size=7)
    prompt = torch.zeros(6, 1, dtype=torch.long)
    free = generate(model, prompt, 40, generator=seeded(4, CPU))[:, 1:]
    ended = generate(model, prompt, 40, generator=seeded(4, CPU), eot=5)[:, 1:]
    first = [row.index(5) if 5 in row else 40 for row in free.tolist()]
    assert len(set(first)) > 2
    assert max(first) < 40  # the seed lets every row end
    assert ended.shape[1] == max(first) + 1  # it stops with the last row's eot
    for row, end in enumerate(first):
        assert torch.equal(ended[row, : end + 1], free[row, : end + 1])
        assert (ended[row, end:] == 5).all()


def test_an_eot_in_the_prompt_ends_nothing() -> None:
    model = small()
    found = generate(model, torch.tensor([[5, 5]]), 10, greedy=True, eot=60)
    assert torch.equal(found, generate(model, torch.tensor([[5, 5]]), 10, greedy=True))
    assert generate(model, torch.tensor([[5, 5]]), 10, greedy=True, eot=5).shape[1] > 2


def test_dropout_is_off_and_every_module_left_as_it_was() -> None:
    model = small(dropout=0.5).train()
    model.h[0].eval()
    modes = [module.training for module in model.modules()]
    prompt = torch.tensor([[1, 2]])
    columns = stream(model, prompt, 12, GREEDY)
    first = next(columns)
    assert [module.training for module in model.modules()] == modes  # between columns too
    assert torch.is_grad_enabled()
    rest = list(columns)
    assert [module.training for module in model.modules()] == modes
    expected = generate(model.eval(), prompt, 12, greedy=True)
    assert torch.equal(torch.stack([first, *rest], dim=1), expected[:, 2:])


def test_a_failing_model_is_left_as_it_was() -> None:
    model = small().train()
    with pytest.raises(InputError, match="more were asked for"):
        next_logits(model, torch.zeros(1, 17, dtype=torch.long), KVCache(model.config, 1, CPU, torch.float32))
    assert model.training


def test_a_model_can_be_trained_on_what_it_wrote() -> None:
    model = small().train()
    text = generate(model, torch.tensor([[1, 2]]), 10, top_k=5)
    model(text[:, :-1], text[:, 1:]).loss.backward()
    assert model.wte.weight.grad is not None


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_the_cache_takes_the_dtype_that_attention_sees(weights: torch.dtype) -> None:
    model = small().to(weights)
    prompt = torch.tensor([[1, 2], [3, 4]])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weights == torch.float32):
        assert generate(model, prompt, 40, greedy=True).shape == (2, 42)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.zeros(1, 0, dtype=torch.long)}, r"prompts have shape \(1, 0\)"),
        ({"tokens": torch.zeros(3, dtype=torch.long)}, r"prompts have shape \(3,\)"),
        ({"tokens": torch.tensor([[0, 61]])}, "the prompt contains id 61; the model's ids are 0 to 60"),
        ({"tokens": torch.tensor([[-1, 2]])}, "the prompt contains id -1"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"strategy": DecodingStrategy(top_k=62)}, "top_k is 62; it must be at most 61"),
        ({"eot": 61}, "eot is 61"),
    ],
)
def test_bad_input_is_refused_at_the_call_in_one_line(changes: dict[str, Any], message: str) -> None:
    values = {"tokens": torch.tensor([[1]]), "max_new_tokens": 3, "strategy": DecodingStrategy(), **changes}
    with pytest.raises(InputError, match=message) as caught:
        stream(small(), **values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_model_that_gives_nan_writes_nothing(strategy: DecodingStrategy) -> None:
    model = small()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="the model gives NaN for the next token; its weights are damaged"):
        next(stream(model, torch.tensor([[1, 2]]), 3, strategy))


def test_a_generator_of_another_device_is_refused() -> None:
    with pytest.raises(InputError, match="the generator is on cpu and the tokens are on meta; use the same device"):
        from_meta = small().to("meta")
        stream(from_meta, torch.zeros(1, 1, dtype=torch.long, device="meta"), 1, GREEDY, seeded(0, CPU))


VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "rotary": {"position": "rope", "n_kv_head": 1},
    "window": {"mask": "window", "window": 5},
    "rotary window": {"position": "rope", "mask": "window", "window": 5},
    "sinusoidal window with global places": {"position": "sinusoidal", "mask": "global", "window": 4, "prefix": 2},
    "prefix": {"position": "none", "mask": "prefix", "prefix": 6},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_prompts_of_different_lengths_continue_as_each_would_alone(name: str) -> None:
    model = small(n_ctx=32, **{"n_kv_head": 3, **VARIANTS[name]})
    prompts = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5]]
    tokens, padding = pad_left(prompts)
    together = generate(model, tokens, 20, greedy=True, padding=padding)
    for row, prompt in enumerate(prompts):
        alone = generate(model, torch.tensor([prompt]), 20, greedy=True)[0]
        assert together[row, int(padding[row]) :].tolist() == alone.tolist()


@pytest.mark.parametrize("name", ["gpt2", "rotary", "window"])
def test_windows_of_different_lengths_slide_with_the_longest(name: str) -> None:
    model = small(n_ctx=8, **VARIANTS[name])
    tokens, padding = pad_left([[3, 1, 4, 1, 5], [6, 2]])
    found = generate(model, tokens, 30, greedy=True, padding=padding)
    full = 8 - tokens.shape[1] + 1  # tokens that the longest row writes before its window slides
    alone = generate(model, torch.tensor([[6, 2]]), full, greedy=True)[0]
    assert found[1, 3 : 5 + full].tolist() == alone.tolist()
    longest = generate(model, torch.tensor([[3, 1, 4, 1, 5]]), 30, greedy=True)
    assert found[0].tolist() == longest[0].tolist()


@pytest.mark.parametrize("prompt", [1, 4, 7, 40])
@pytest.mark.parametrize("name", ["rotary window", "sinusoidal window with global places"])
def test_a_rolling_cache_goes_on_for_ever_as_if_it_had_kept_all(name: str, prompt: int) -> None:
    model = small(n_ctx=16, **VARIANTS[name])
    long = GPT(dataclasses.replace(model.config, n_ctx=400))
    long.load_state_dict(model.state_dict())
    tokens = torch.randint(61, (2, prompt), generator=seeded(3, CPU))
    found = generate(model, tokens, 100, greedy=True)
    with torch.no_grad():
        predicted = long.eval()(found[:, :-1]).logits[:, prompt - 1 :].argmax(-1)
    assert torch.equal(predicted, found[:, prompt:])


def test_the_cache_of_a_window_is_constant_over_ten_thousand_tokens() -> None:
    model = small(n_ctx=64, vocab_size=11, position="rope", mask="window", window=16).eval()
    cache = KVCache(model.config, 1, CPU, torch.float32)
    assert cache.nbytes == 2 * 2 * 16 * 24 * 4  # keys and values, layers, places, width, bytes
    assert cache.nbytes == cache_bytes(model.config, 10_000, torch.float32)
    for start in range(0, 10_000, 100):
        next_logits(model, torch.arange(start, start + 100)[None] % 11, cache)
    found = next_logits(model, torch.tensor([[5]]), cache)
    assert cache.length == 10_001
    assert found.isfinite().all()
    assert all(layer.keys.shape[2] == 16 for layer in cache.layers)


def test_padding_that_leaves_no_token_is_refused() -> None:
    for padding in ([0, 3], [-1, 0], [0]):
        with pytest.raises(
            InputError, match=r"padding is \[.*\]; it must be one number for each of the 2 rows, from 0 to"
        ):
            generate(small(), torch.ones(2, 3, dtype=torch.long), 1, padding=torch.tensor(padding))
