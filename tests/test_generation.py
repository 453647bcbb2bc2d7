"""From logits to tokens to text: Hugging Face, formulas by hand and whole forward passes are the oracles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gpt2lab.errors import InputError
from gpt2lab.generation import (
    STRATEGIES,
    DecodingStrategy,
    encode_prompt,
    filter_top_k,
    filter_top_p,
    generate,
    next_logits,
    pad_left,
    probabilities,
    sample_next,
    seeded,
    stream,
    stream_text,
)
from gpt2lab.model.cache import KVCache
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.tokenizer.tokenizer import Tokenizer

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
            elif name != "ln_f.bias":  # it would favor one token everywhere
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def damaged() -> GPT:
    model = small()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    return model


def kept(filtered: torch.Tensor) -> list[list[int]]:
    """The tokens of each row that a filter left in."""
    return [row.isfinite().nonzero().flatten().tolist() for row in filtered]


@pytest.mark.parametrize(
    ("strategy", "given", "expected"),
    [
        (DecodingStrategy(), [[0.5, 0.25, 0.125, 0.125]], [[0.5, 0.25, 0.125, 0.125]]),
        # p^(1/T), normalized: T = 1/2 squares 4:2:1, T = 2 takes roots
        (DecodingStrategy(0.5), [[4 / 7, 2 / 7, 1 / 7]], [[16 / 21, 4 / 21, 1 / 21]]),
        (DecodingStrategy(1.0), [[4 / 7, 2 / 7, 1 / 7]], [[4 / 7, 2 / 7, 1 / 7]]),
        (
            DecodingStrategy(2.0),
            [[4 / 7, 2 / 7, 1 / 7]],
            [[2 / (3 + 2**0.5), 2**0.5 / (3 + 2**0.5), 1 / (3 + 2**0.5)]],
        ),
        (DecodingStrategy(1e-38), [[math.exp(x) for x in (3, 80, -4, 79)]], [[0.0, 1.0, 0.0, 0.0]]),
        (DecodingStrategy(1e30), [[0.01, 0.6, 0.01, 0.38]], [[0.25] * 4]),
        (
            DecodingStrategy(top_k=2),
            [[0.1, 0.4, 0.2, 0.3], [0.7, 0.05, 0.05, 0.2]],
            [[0.0, 4 / 7, 0.0, 3 / 7], [7 / 9, 0.0, 0.0, 2 / 9]],
        ),
        (GREEDY, [[0.1, 0.7, 0.2], [0.9, 0.05, 0.05]], [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
    ],
    ids=lambda value: str(value) if isinstance(value, DecodingStrategy) else "",
)
def test_probabilities_by_hand(
    strategy: DecodingStrategy, given: list[list[float]], expected: list[list[float]]
) -> None:
    logits = torch.tensor(given).log()
    torch.testing.assert_close(probabilities(logits, strategy), torch.tensor(expected))
    if strategy.greedy:
        assert sample_next(logits, strategy).tolist() == torch.tensor(expected).argmax(dim=-1).tolist()


TIED = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0]])
EIGHTHS = torch.tensor([[1.0, 3.0, 1.0, 2.0]]) * math.log(2)  # probabilities 1/8 1/2 1/8 1/4, up to fp32


@pytest.mark.parametrize(
    ("filter", "logits", "setting", "expected"),
    [
        # exactly k tokens, of equals the lower ids
        *((filter_top_k, TIED, k, [1, 2, 4, 0, 3][:k]) for k in range(1, 6)),
        # the fewest tokens that hold the mass
        (filter_top_p, EIGHTHS, 0.01, [1]),
        (filter_top_p, EIGHTHS, 0.5 - 1e-6, [1]),
        (filter_top_p, EIGHTHS, 0.51, [1, 3]),
        (filter_top_p, EIGHTHS, 0.75 - 1e-6, [1, 3]),
        (filter_top_p, EIGHTHS, 0.76, [0, 1, 3]),
        (filter_top_p, EIGHTHS, 0.99, [0, 1, 2, 3]),
        (filter_top_p, EIGHTHS, 1.0, [0, 1, 2, 3]),
        (filter_top_p, torch.zeros(1, 8192), 0.25, list(range(2048))),
        # a sure model keeps one token, never none
        (filter_top_p, torch.tensor([[0.0, 100.0, 0.0]]), 0.9, [1]),
        (filter_top_p, torch.tensor([[0.0, 1.0, 0.0]]), 1e-9, [1]),
        # 1 + 1e-13 is 1 in fp32, and the whole mass keeps all
        (filter_top_p, torch.tensor([[0.0, -30.0, -31.0]]), 1.0, [0, 1, 2]),
    ],
)
def test_filters_keep_the_most_probable_tokens(
    filter: Callable[..., torch.Tensor], logits: torch.Tensor, setting: float, expected: list[int]
) -> None:
    before = logits.clone()
    assert kept(filter(logits, setting)) == [sorted(expected)]
    if setting == 1.0 and filter is filter_top_p:
        torch.testing.assert_close(probabilities(logits, DecodingStrategy(top_p=1.0)), logits.softmax(-1))
    probabilities(logits, DecodingStrategy(0.5, 2, 0.5))
    assert torch.equal(logits, before)


@settings(max_examples=60)
@given(
    st.lists(st.permutations(range(12)), min_size=1, max_size=3),
    st.floats(0.2, 3.0),
    st.integers(1, 12),
    st.floats(0.05, 0.95),
)
def test_settings_together_equal_hugging_face_where_nothing_ties(
    rows: list[list[int]], temperature: float, k: int, p: float
) -> None:
    logits = torch.tensor(rows, dtype=torch.float32) / 3
    expected = logits
    ids: Any = torch.zeros(1, 1, dtype=torch.long)
    for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(k), TopPLogitsWarper(p)):
        expected = warper(ids, expected)
    torch.testing.assert_close(probabilities(logits, DecodingStrategy(temperature, k, p)), expected.softmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_worked_on_in_fp32(dtype: torch.dtype) -> None:
    logits = torch.linspace(-3, 3, 40)[None].to(dtype)
    for strategy in STRATEGIES.values():
        found = probabilities(logits, DecodingStrategy(top_k=30) if strategy.top_k else strategy)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(), torch.tensor(1.0))


@pytest.mark.parametrize(
    "strategy", [DecodingStrategy(temperature=0.7), DecodingStrategy(top_k=3), DecodingStrategy(top_p=0.8)]
)
def test_draws_follow_the_probabilities(strategy: DecodingStrategy) -> None:
    n = 40_000
    logits = torch.tensor([[0.4, 0.05, 0.3, 0.15, 0.1]]).log()
    counts = sample_next(logits.expand(n, -1), strategy, seeded(3, CPU)).bincount(minlength=5)
    p = probabilities(logits, strategy)[0]
    assert counts[p == 0].sum() == 0
    assert bool(((counts - n * p).abs() <= 4 * (n * p * (1 - p)).sqrt()).all()), (counts, n * p)


def test_strategies_say_what_they_are() -> None:
    named = {"greedy": "greedy", "temperature": "temperature 0.8", "top-k": "top-k 50", "nucleus": "nucleus 0.9"}
    assert {name: str(strategy) for name, strategy in STRATEGIES.items()} == named
    assert str(DecodingStrategy()) == "temperature 1.0"
    assert str(DecodingStrategy(0.7, 40, 0.95)) == "temperature 0.7, top-k 40, nucleus 0.95"


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
@pytest.mark.parametrize(("n_ctx", "prompt"), [(16, 1), (16, 15), (16, 16), (16, 40), (1, 2), (2, 2), (3, 2)])
def test_tokens_are_those_of_whole_forward_passes_also_when_the_window_slides(
    strategy: DecodingStrategy, n_ctx: int, prompt: int
) -> None:
    model = small(n_ctx)
    tokens = torch.randint(61, (3, prompt), generator=seeded(5, CPU))
    with torch.no_grad():
        expected = uncached(model, tokens, 40, strategy, seeded(7, CPU))
    columns = list(stream(model, tokens, 40, strategy, seeded(7, CPU)))
    assert torch.equal(torch.stack(columns, dim=1), expected[:, prompt:])


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
    assert torch.equal(text, torch.cat([prompt, torch.stack(columns, dim=1)], dim=1))
    assert text.shape == (2, 23)
    assert torch.equal(generate(model, prompt, 0), prompt)


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
    assert ended.shape[1] == max(first) + 1 < 41  # the seed lets every row end, and it stops with the last
    for row, end in enumerate(first):
        assert torch.equal(ended[row, : end + 1], free[row, : end + 1])
        assert (ended[row, end:] == 5).all()


def test_an_eot_in_the_prompt_ends_nothing() -> None:
    model, prompt = small(), torch.tensor([[5, 5]])
    free, other, same = (generate(model, prompt, 10, greedy=True, eot=eot) for eot in (None, 60, 5))
    assert torch.equal(free, other)
    assert same.shape[1] > 2


def test_the_model_is_left_as_it_was_and_can_be_trained_on_what_it_wrote() -> None:
    model = small(dropout=0.5).train()
    model.h[0].eval()
    modes = [module.training for module in model.modules()]
    prompt = torch.tensor([[1, 2]])
    columns = stream(model, prompt, 12, GREEDY)
    first = next(columns)
    assert [module.training for module in model.modules()] == modes  # between columns too
    assert torch.is_grad_enabled()
    text = torch.stack([first, *columns], dim=1)
    with pytest.raises(InputError, match="more were asked for"):
        next_logits(model, torch.zeros(1, 17, dtype=torch.long), KVCache(model.config, 1, CPU, torch.float32))
    assert [module.training for module in model.modules()] == modes
    model(text[:, :-1], text[:, 1:]).loss.backward()
    assert model.wte.weight.grad is not None
    assert torch.equal(text, generate(model.eval(), prompt, 12, greedy=True)[:, 2:])  # dropout was off


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_the_cache_takes_the_dtype_that_attention_sees(weights: torch.dtype) -> None:
    model = small().to(weights)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=weights == torch.float32):
        assert generate(model, torch.tensor([[1, 2], [3, 4]]), 40, greedy=True).shape == (2, 42)


VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "rotary": {"position": "rope", "n_kv_head": 1},
    "window": {"mask": "window", "window": 5},
    "rotary window": {"position": "rope", "mask": "window", "window": 5},
    "sinusoidal window with global positions": {"position": "sinusoidal", "mask": "global", "window": 4, "prefix": 2},
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
@pytest.mark.parametrize("name", ["rotary window", "sinusoidal window with global positions"])
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
    assert cache.nbytes == 2 * 2 * 16 * 24 * 4  # keys and values, layers, positions, width, bytes
    assert cache.nbytes == model.config.cache_bytes(10_000, torch.float32)
    for start in range(0, 10_000, 100):
        next_logits(model, torch.arange(start, start + 100)[None] % 11, cache)
    assert next_logits(model, torch.tensor([[5]]), cache).isfinite().all()
    assert cache.length == 10_001
    assert all(layer.keys.shape[2] == 16 for layer in cache.layers)


BYTES = Tokenizer.train(["a"], 257)  # a token for each byte, and end-of-text
EOT = BYTES.eot
ID_OF = {token[0]: number for number, token in BYTES.vocab.items() if number != EOT}
WITHOUT_EOT = Tokenizer.train(["a"], 256, special_tokens=())


def ids_of(data: bytes) -> list[int]:
    return [ID_OF[byte] for byte in data]


def streamed(tokenizer: Tokenizer, rows: list[list[int]]) -> list[str]:
    """What a reader of the terminal has seen of each row in the end."""
    columns = (torch.tensor(column) for column in zip(*rows, strict=True))
    pieces = stream_text(columns, tokenizer, len(rows))
    return ["".join(filter(None, row)) for row in zip(*pieces, strict=True)]


def test_bytes_of_an_unfinished_character_are_held_back() -> None:
    columns = torch.tensor([ids_of("a€".encode()), ids_of("éab".encode())]).T
    assert list(stream_text(columns, BYTES, 2)) == [["a", ""], ["", "é"], ["", "a"], ["€", "b"], ["", ""]]


@given(st.binary(min_size=1, max_size=30))
def test_pieces_join_to_what_decoding_at_once_gives(data: bytes) -> None:
    assert streamed(BYTES, [ids_of(data)]) == [BYTES.decode(ids_of(data))] == [data.decode("utf-8", errors="replace")]


@given(st.text(min_size=1))
def test_text_streamed_by_longer_tokens_is_the_text(text: str) -> None:
    tokenizer = Tokenizer.train(["the cat and the hat €€€ 日本日本 " * 9], 275)
    ids = tokenizer.encode("the cat 日本" + text)
    assert streamed(tokenizer, [ids]) == ["the cat 日本" + text]


def test_a_row_ends_at_its_end_of_text_and_the_others_go_on() -> None:
    assert EOT is not None
    ended = [*ids_of(b"a"), EOT, EOT, *ids_of(b"b")]
    cut = [*ids_of(b"\xe2"), EOT, *ids_of(b"aa")]
    assert streamed(BYTES, [ended, ids_of(b"cdef"), cut]) == ["a", "cdef", "\ufffd"]
    assert list(stream_text(torch.tensor([ended]).T, BYTES, 1)) == [["a"], [None], [None], [None], [""]]


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (BYTES, "hi", [EOT, *ids_of(b"hi")]),
        (BYTES, "", [EOT]),
        (BYTES, "<|endoftext|>", [EOT, *ids_of(b"<|endoftext|>")]),  # its name is ordinary text
        (WITHOUT_EOT, "hi", ids_of(b"hi")),
    ],
)
def test_prompts_begin_a_document(tokenizer: Tokenizer, text: str, expected: list[int]) -> None:
    found = encode_prompt(tokenizer, text, 3, CPU)
    assert found.dtype == torch.long and found.tolist() == [expected] * 3
    assert encode_prompt(BYTES, "<|endoftext|>", 1, CPU, special_tokens=True).tolist() == [[EOT, EOT]]
    assert streamed(WITHOUT_EOT, [ids_of(b"hi")]) == ["hi"]


def streaming(model: Callable[[], GPT] = small, **changes: Any) -> Callable[[], object]:
    values = {"tokens": torch.tensor([[1]]), "max_new_tokens": 3, "strategy": DecodingStrategy(), **changes}
    return lambda: stream(model(), **values)


def padded(*padding: int) -> Callable[[], object]:
    return streaming(tokens=torch.ones(2, 3, dtype=torch.long), padding=torch.tensor(padding))


def on_meta() -> object:
    tokens = torch.zeros(1, 1, dtype=torch.long, device="meta")
    return stream(small().to("meta"), tokens, 1, GREEDY, seeded(0, CPU))


def choosing(**values: Any) -> Callable[[], object]:
    return lambda: DecodingStrategy(**values)


PADDING = r"padding is \[.*\]; it must be one number for each of the 2 rows, from 0 to 2"
REFUSALS: list[tuple[Callable[[], object], str]] = [
    (choosing(temperature=0.0), "temperature is 0.0; it must be positive"),
    (choosing(temperature=-1.0), "temperature is -1.0"),
    (choosing(temperature=math.inf), "temperature is inf"),
    (choosing(temperature=math.nan), "temperature is nan"),
    (choosing(top_k=0), "top_k is 0; it must be at least 1"),
    (choosing(top_p=0.0), "top_p is 0.0; it must be above 0 and at most 1"),
    (choosing(top_p=1.5), "top_p is 1.5"),
    (choosing(top_p=math.nan), "top_p is nan"),
    (choosing(greedy=True, top_k=5), "greedy decoding would ignore top-k 5"),
    (choosing(greedy=True, top_p=0.5, temperature=2.0), "would ignore temperature 2.0, nucleus 0.5"),
    (lambda: probabilities(torch.zeros(1, 3), STRATEGIES["top-k"]), "top_k is 50; it must be at most 3"),
    (streaming(tokens=torch.zeros(1, 0, dtype=torch.long)), r"shape of the prompts is \(1, 0\)"),
    (streaming(tokens=torch.zeros(3, dtype=torch.long)), r"shape of the prompts is \(3,\)"),
    (streaming(tokens=torch.tensor([[0, 61]])), "the prompt contains id 61; the model's ids are 0 to 60"),
    (streaming(tokens=torch.tensor([[-1, 2]])), "the prompt contains id -1"),
    (streaming(max_new_tokens=-1), "max_new_tokens is -1"),
    (streaming(strategy=DecodingStrategy(top_k=62)), "top_k is 62; it must be at most 61"),
    (streaming(eot=61), "eot is 61"),
    *((padded(*padding), PADDING) for padding in ((0, 3), (-1, 0), (0,))),
    (on_meta, "the generator is on cpu and the tokens are on meta; use the same device"),
    *(
        (lambda s=s: next(stream(damaged(), torch.tensor([[1, 2]]), 3, s)), "the model gives NaN for the next token")
        for s in STRATEGIES.values()
    ),
    (lambda: encode_prompt(WITHOUT_EOT, "", 1, CPU), "the prompt is empty"),
]


@pytest.mark.parametrize(("action", "message"), REFUSALS)
def test_generation_refuses(action: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)
