"""The model in one HTML file computes in a real browser what PyTorch computes with the same 8-bit weights."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from playwright.sync_api import expect

from gpt2lab.cli.main import main
from gpt2lab.errors import InputError
from gpt2lab.evaluation.measure import LoadedRun
from gpt2lab.generation import DecodingStrategy, encode_prompt, generate, probabilities, stream, stream_text
from gpt2lab.inspection import inspect_tokens, patch_residual, switched_off
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.model.layers import FeedForward
from gpt2lab.model.parts import FEED_FORWARDS
from gpt2lab.runtime import resolve
from gpt2lab.server.pages import Generate
from gpt2lab.server.single_file import javascript_pattern, write_single_file
from gpt2lab.tokenizer.tokenizer import Tokenizer

STORIES = Path(__file__).parents[2] / "docs" / "gallery" / "stories"
TEXT = 'One day, "Ünïcode" — 你好, Привет мир! مرحبا 😀👩‍👩‍👧 it\'s 1999\n\n  x'
SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 24, "dropout": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "post-norm, sinusoidal, relu2": {"norm_placement": "post", "position": "sinusoidal", "activation": "relu2"},
    "sandwich, gate, gelu": {"norm_placement": "sandwich", "attention_gate": True, "activation": "gelu"},
    "parallel, grouped, window by layer, alibi": {
        "parallel_blocks": True, "n_kv_head": 2, "position": "alibi", "mask": "window,causal", "window": 5,
    },
    "llama": {
        "norm": "rmsnorm", "position": "rope", "activation": "swiglu", "bias": False, "tied_head": False,
        "qk_norm": True, "n_kv_head": 1, "nope_every": 2, "rope_fraction": 0.5, "mask": "window", "window": 7,
        "value_residual": True,
    },
    "yarn, interleaved, softcaps, muP": {
        "position": "rope", "rope_pairing": "interleaved", "rope_scaling": "yarn", "rope_factor": 4.0,
        "rope_original_ctx": 12, "attention_softcap": 5.0, "logit_softcap": 4.0, "mup_base_width": 16,
        "activation": "geglu",
    },
    "sinks, embedding norm, value residual, no positions": {
        "attention_sinks": True, "value_residual": True, "position": "none", "embedding_norm": True,
        "norm_affine": False, "activation": "silu",
    },
    "glu": {"activation": "glu", "n_inner": 24}, "relu": {"activation": "relu", "n_head": 1, "n_layer": 1},
}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT, "The cat sat on the mat. It's a cat, isn't it?"] * 3, 300, ())


@pytest.fixture
def opened(page: Any, tmp_path: Path) -> Callable[..., Any]:
    """Export a model and open its page, which may load nothing else."""

    def open_page(model: GPT, tokenizer: Tokenizer, name: str = "tiny") -> Any:
        file = tmp_path / "model.html"
        file.unlink(missing_ok=True)
        write_single_file(model, tokenizer, name, file)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
        return page

    return open_page


def model_of(tokenizer: Tokenizer, **options: Any) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SHAPE, "vocab_size": tokenizer.n_vocab, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def dequantized(model: GPT) -> GPT:
    """The model whose matrices are rounded to 127 steps of each row's largest number on either side of 0."""
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in rounded.parameters():
            if parameter.dim() == 2:
                step = parameter.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
                parameter.copy_((parameter / step).round() * step)
    return rounded


def ask(page: Any, what: str, given: Any = None) -> Any:
    """The result of a method of the engine; typed arrays come as lists."""
    plain = "(key, value) => ArrayBuffer.isView(value) ? [...value] : value"
    return json.loads(page.evaluate(f"async (given) => JSON.stringify(await engine.{what}(given), {plain})", given))


def written(page: Any, request: dict[str, Any]) -> list[dict[str, Any]]:
    """What the engine generates."""
    collect = "const found = []; for await (const token of engine.generate(request)) found.push(token); return found;"
    return page.evaluate(f"async (request) => {{ {collect} }}", request)


def close(found: Any, expected: torch.Tensor, atol: float = 1e-3) -> None:
    found = torch.tensor(found) if isinstance(found, list) else found
    torch.testing.assert_close(found.double(), expected.detach().double(), atol=atol, rtol=0.0)


def check_inspection(found: dict[str, Any], model: GPT, tokenizer: Tokenizer, ids: list[int]) -> None:
    expected = inspect_tokens(model, ids)
    close(found["losses"], expected.losses)  # log-probabilities are logits up to a constant
    close(found["residual"], expected.residual)
    close(torch.tensor(found["attention"]["data"]).view(found["attention"]["shape"]), expected.attention, 1e-4)
    lens = [[[token["p"] for token in one["top"]] for one in layer] for layer in found["lens"]]
    close(lens, expected.lens.probabilities, 1e-4)
    assert [one["top"][0]["id"] for one in found["lens"][-1]] == expected.lens.ids[-1, :, 0].tolist()
    following = expected.probabilities.topk(20)
    close([token["p"] for token in found["next"]], following.values, 1e-4)
    assert [token["text"] for token in found["next"]] == [tokenizer.decode([token["id"]]) for token in found["next"]]
    assert found["texts"] == [tokenizer.decode([number]) for number in ids]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_computes_what_pytorch_computes(
    options: dict[str, Any], tokenizer: Tokenizer, opened: Callable[..., Any]
) -> None:
    model = model_of(tokenizer, **options)
    page, rounded = opened(model, tokenizer), dequantized(model)
    ids = torch.randint(tokenizer.n_vocab, (12,), generator=torch.Generator().manual_seed(1)).tolist()
    last = model.config.n_layer - 1
    off = [[], [f"head:{last}.0", "mlp:0"], [f"attention:{last}"], ["layer:0"]]
    for parts in off:
        found = ask(page, "inspect", {"ids": ids, "off": parts})
        check_inspection(found, switched_off(rounded, parts), tokenizer, ids)
    for prompt in (ids, ids * 4):  # beyond the context of 24, while it writes or before
        tokens = written(page, {"ids": prompt, "max_tokens": 30, "greedy": True, "off": off[1]})
        expected = generate(switched_off(rounded, off[1]), torch.tensor([prompt]), 30, greedy=True)
        assert [token["id"] for token in tokens] == expected[0, len(prompt) :].tolist()
    request = {"clean": ids, "corrupted": ids[::-1], "answer": 1, "wrong": 2}
    close(ask(page, "patch", request)["effect"], patch_residual(rounded, ids, ids[::-1], 1, 2))


def test_the_stories_model_writes_the_same_story(page: Any, tmp_path: Path) -> None:
    file = tmp_path / "stories.html"
    assert main(["export-html", str(STORIES), str(file)]) == 0
    assert file.stat().st_size < 2e6
    assert main(["export-html", str(STORIES), str(file)]) == 2  # it exists
    page.goto(file.as_uri())
    run = LoadedRun(STORIES, "best", "cpu", "fp32")
    model, tokenizer = dequantized(run.gpt), run.tokenizer
    info = ask(page, "info.constructor.assign", {}) | page.evaluate("engine.info")
    assert info == {
        "name": "stories", "n_layer": 2, "n_head": 4, "n_kv_head": 4, "n_embd": 128, "n_ctx": 256, "vocab_size": 1707,
        "parameters": 648_064, "eot": tokenizer.eot, "can": {"watch": False, "compare": False, "patch": True},
    }  # fmt: skip
    prompt = encode_prompt(tokenizer, "One day, a girl named Anna lost her", 1, torch.device("cpu"))
    tokens = written(page, {"ids": prompt[0].tolist(), "max_tokens": 300, "greedy": True})
    columns = list(stream(model, prompt, 300, DecodingStrategy(greedy=True), eot=tokenizer.eot))
    assert [token["id"] for token in tokens] == [int(column) for column in columns]
    assert tokens[-1]["id"] == tokenizer.eot
    said = "".join(row[0] or "" for row in stream_text(columns, tokenizer, 1))
    assert "".join(token["text"] for token in tokens[:-1]) == said
    ids = prompt[0].tolist() + [token["id"] for token in tokens]
    check_inspection(ask(page, "inspect", {"ids": ids[:60]}), model, tokenizer, ids[:60])

    clean, corrupted = (tokenizer.encode(f"One day, a {child} lost") for child in ("girl named Anna", "boy named Tom"))
    answer, wrong = (tokenizer.encode(word)[0] for word in (" her", " his"))
    request = {"clean": clean, "corrupted": corrupted, "answer": answer, "wrong": wrong}
    found = ask(page, "patch", request)
    close(found["effect"], patch_residual(model, clean, corrupted, answer, wrong))
    assert found["positions"] == [tokenizer.decode([number]) for number in clean]


def test_the_pages_run_on_the_model_in_the_file(opened: Callable[..., Any]) -> None:
    run = LoadedRun(STORIES, "best", "cpu", "fp32")
    page, model = opened(run.gpt, run.tokenizer, "stories"), dequantized(run.gpt)
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("checkbox", name="Greedy").check()
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.locator(".status")).to_contain_text("greedy")
    columns = stream(
        model,
        encode_prompt(run.tokenizer, "One day", 1, torch.device("cpu")),
        120,
        DecodingStrategy(greedy=True),
        eot=run.tokenizer.eot,
    )
    texts = [run.tokenizer.decode([int(column)]).replace("\n", "↵\n") for column in columns]
    assert page.locator(".tok").all_text_contents() == [text.replace("<|endoftext|>", "⟨end⟩") for text in texts]

    page.get_by_role("link", name="Look inside").click()
    page.get_by_label("Text to look at").fill("One day, Leo lost")
    expect(page.locator(".flow")).to_have_text("⟨start⟩One day, Leo lost")
    page.locator("[data-part='head:0.3']").click()
    ids = encode_prompt(run.tokenizer, "One day, Leo lost", 1, torch.device("cpu"))[0]
    before, after = (inspect_tokens(switched_off(model, off), ids).losses.mean() for off in ([], ["head:0.3"]))
    change = page.get_by_role("region", name="What the switches change")
    expect(change).to_contain_text(f"{before:.4f} → {after:.4f} nats")
    with page.expect_download() as download:
        page.get_by_role("region", name="One head").get_by_role("button", name="PNG", exact=True).first.click()
    assert download.value.path().read_bytes().startswith(b"\x89PNG")

    page.get_by_role("link", name="Patch").click()
    expect(page.get_by_role("region", name="Effect of restoring each state")).to_be_visible()
    assert page.get_by_role("link", name="Watch").count() == 0


def test_tokens_are_drawn_from_the_distribution_of_the_strategy(
    tokenizer: Tokenizer, opened: Callable[..., Any]
) -> None:
    model = model_of(tokenizer)
    page, ids = opened(model, tokenizer), [1, 2, 3]
    logits = dequantized(model)(torch.tensor([ids])).logits[:, -1].detach()
    for strategy in (
        DecodingStrategy(temperature=0.5),
        DecodingStrategy(top_k=3),
        DecodingStrategy(top_p=0.8),
        DecodingStrategy(temperature=1.5, top_k=9, top_p=0.7),
    ):
        expected = probabilities(logits, strategy)[0]
        request = {"ids": ids, "max_tokens": 1, "seed": 5, **dataclasses.asdict(strategy)}
        (token,) = written(page, request)
        shown = [one["id"] for one in token["candidates"]]
        assert token["id"] in shown and len(shown) == 20
        assert token["logprob"] == pytest.approx(float(logits.log_softmax(-1)[0, token["id"]]), abs=1e-3)
        close([one["kept"] for one in token["candidates"]], expected[shown], 1e-4)
        for name, stage in (
            ("after_temperature", DecodingStrategy(strategy.temperature)),
            ("after_top_k", DecodingStrategy(strategy.temperature, strategy.top_k)),
        ):
            close([one[name] for one in token["candidates"]], probabilities(logits, stage)[0][shown], 1e-4)
        close([one["p"] for one in token["candidates"]], logits.softmax(-1)[0, shown], 1e-4)
        assert written(page, {**request, "max_tokens": 9})[0] == token
    settings = {"top_k": 4, "max_tokens": 1, "ids": ids}
    many = """async (settings) => { const ids = []; for (let seed = 0; seed < 3000; seed++)
        for await (const { id } of engine.generate({ ...settings, seed })) ids.push(id); return ids; }"""
    drawn = torch.tensor(page.evaluate(many, settings)).bincount(minlength=tokenizer.n_vocab) / 3000
    expected = probabilities(logits, DecodingStrategy(top_k=4))[0]
    deviation = (expected * (1 - expected) / 3000).sqrt()
    assert bool(((drawn - expected).abs() <= 4 * deviation).all())


def test_both_engines_behind_the_pages_write_the_same(opened: Callable[..., Any]) -> None:
    tokenizer = Tokenizer.train([TEXT] * 3, 300)
    model = model_of(tokenizer)
    run: Any = SimpleNamespace(model=dequantized(model), tokenizer=tokenizer, runtime=resolve("cpu", "fp32"))
    page = opened(model, tokenizer)
    euro = tokenizer.encode("€")
    for ids in ([tokenizer.eot, *euro[:-1]], tokenizer.encode(TEXT)):  # the first ends within a character
        request = {"ids": ids, "max_tokens": 16, "greedy": True, "off": ["head:0.1"]}
        found, expected = written(page, request), list(Generate(**request).steps(run))
        assert [one["text"] for one in found] == [one["text"] for one in expected]
        assert [one["id"] for one in found] == [one["id"] for one in expected]
        for name in ("id", "text"):
            assert [[row[name] for row in one["candidates"]] for one in found] == [
                [row[name] for row in one["candidates"]] for one in expected
            ]


def random_texts(number: int) -> list[str]:
    """Texts of characters of every kind, words and runs, as old as the Unicode of this Python."""
    chance = random.Random(0)
    kinds = [(0x20, 0x7F), (0, 0x100), (0, 0x3000), (0x3000, 0x10000), (0x10000, 0x20000), (0x1F000, 0x1FB00)]

    def character() -> str:
        while True:
            found = chr(chance.randrange(*chance.choice(kinds)))
            if unicodedata.category(found) not in ("Cn", "Cs"):
                return found

    odd = [
        "'s",
        "'S",
        "'ſ",
        "'ll",
        "'Re",
        "\x85",
        "\ufeff",
        "\u200d",
        "\u0301",
        " ",
        "\n",
        "\r\n",
        "\t",
        "007",
        "ſ",
        "  ",
    ]
    return [
        "".join(chance.choice([character(), chance.choice(odd)]) for _ in range(chance.randrange(40)))
        for _ in range(number)
    ]


@pytest.mark.parametrize(
    "pattern",
    ["gpt2", "cl100k", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{Lu}\d_-]+|\p{Latin}+|\#|\-\s?|\D(?=.\S)|.\n|\s+(?!\S)"],
)
def test_every_text_becomes_the_same_tokens(pattern: str, opened: Callable[..., Any]) -> None:
    texts = [TEXT, "", "\ud800 half a pair \udc00", *random_texts(400)]
    tokenizer = Tokenizer.train(texts[:1] * 3 + random_texts(50), 340, pattern=pattern)
    page = opened(model_of(tokenizer, n_layer=1, n_head=1, n_embd=4), tokenizer)
    found = page.evaluate("async (texts) => Promise.all(texts.map((text) => engine.tokenize(JSON.parse(text))))",
                          [json.dumps(text) for text in texts])  # fmt: skip
    for text, one in zip(texts, found, strict=True):
        assert one["ids"] == tokenizer.encode(text), repr(text)
        assert one["texts"] == [tokenizer.decode([number]) for number in one["ids"]]


def test_a_long_word_becomes_tokens(opened: Callable[..., Any]) -> None:
    tokenizer = Tokenizer.train([TEXT] * 3 + random_texts(50), 340)
    page = opened(model_of(tokenizer, n_layer=1, n_head=1, n_embd=4), tokenizer)
    word = "".join(random.Random(0).choice("aeinrstdy") for _ in range(40_000))
    assert ask(page, "tokenize", word)["ids"] == tokenizer.encode(word)


def test_gpt2s_own_vocabulary_gives_the_same_tokens(gpt2_vocabulary: Path, opened: Callable[..., Any]) -> None:
    tokenizer = Tokenizer.gpt2(gpt2_vocabulary)
    page = opened(model_of(tokenizer, n_layer=1, n_head=1, n_embd=2), tokenizer)
    assert ask(page, "tokenize", TEXT)["ids"] == tokenizer.encode(TEXT)


def test_names_and_vocabulary_cannot_break_out_of_their_script(opened: Callable[..., Any]) -> None:
    attack = "</script><script>window.hacked = 1</script><!--<img src=x onerror='window.hacked = 1'>"
    tokenizer = Tokenizer.train([f"{attack} {attack[1:]}"] * 3, 320, [attack, "<|endoftext|>"])
    page = opened(model_of(tokenizer), tokenizer, f"{attack}\ud800\x00")
    assert page.evaluate("window.hacked") is None
    assert page.title().startswith(attack)
    assert page.evaluate("engine.info.name").startswith(attack)
    assert ask(page, "tokenize", attack)["ids"] == tokenizer.encode(attack)
    found = ask(page, "inspect", {"ids": [tokenizer.special_tokens[attack]]})
    assert found["texts"] == [attack] and found["losses"] == []


REFUSED = (
    ("inspect({ ids: [] })", "there are no tokens"),
    ("inspect({ ids: Array(25).fill(0) })", "25 tokens exceed the model's context of 24"),
    ("inspect({ ids: [300] })", "300 is not an id of the model; ids are 0 to 299"),
    ("inspect({ ids: [1], off: ['head:2.0'] })", 'cannot switch off "head:2.0"'),
    ("inspect({ ids: [1], off: ['mlp:0.1'] })", 'cannot switch off "mlp:0.1"'),
    ("patch({ clean: [1], corrupted: [1, 2], answer: 1, wrong: 2 })", "has 1 tokens and the corrupted one 2"),
    ("patch({ clean: [1], corrupted: [1], answer: 1, wrong: 2 })", "nothing to restore"),
    ("generate({ ids: [1], max_tokens: 1, temperature: 0 }).next()", "temperature is 0"),
    ("generate({ ids: [1], max_tokens: 1, top_p: 2 }).next()", "top_p is 2"),
    ("generate({ ids: [1], max_tokens: 1, top_k: 0 }).next()", "top_k is 0"),
    ("generate({ ids: [1], max_tokens: 1 }, AbortSignal.abort()).next()", "aborted"),
)


def test_what_the_engine_cannot_do_is_said(tokenizer: Tokenizer, opened: Callable[..., Any]) -> None:
    page = opened(model_of(tokenizer), tokenizer)
    for call, said in REFUSED:
        assert said in page.evaluate(f"engine.{call}.then(() => 'done', (error) => error.message)"), call


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mask": "prefix", "prefix": 4}, "export-html does not support mask prefix"),
        ({"mask": "window,strided", "window": 4}, "mask strided"),
        ({"feed_forward": "own"}, "feed_forward own, which the engine in the page does not compute; use gpt2lab play"),
    ],
)
def test_parts_that_the_engine_lacks_are_refused(
    options: dict[str, Any], said: str, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FEED_FORWARDS, "own", FeedForward)
    with pytest.raises(InputError, match=said):
        write_single_file(model_of(tokenizer, **options), tokenizer, "tiny", tmp_path / "model.html")
    assert not list(tmp_path.iterdir())


def test_a_model_that_no_browser_holds_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with torch.device("meta"):
        large = GPT(GPTConfig.preset("gpt2-large"))
    with pytest.raises(InputError, match="774030080; it must be at most 380,000,000"):
        write_single_file(large, tokenizer, "large", tmp_path / "model.html")


@pytest.mark.parametrize("pattern", [r"(?>\p{L}+)| ", r"\p{L}++|.", r"(?i:x)|."])
def test_a_pattern_that_javascript_lacks_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="JavaScript has no such syntax"):
        javascript_pattern(pattern)
