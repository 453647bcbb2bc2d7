"""The pages of ``gpt2lab play`` in a real browser: each view is opened and used, and its numbers are PyTorch's."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Page, Route, expect
from small_server import serving

from gpt2lab.cli.serve import ServerOptions
from gpt2lab.evaluation.measure import LoadedRun
from gpt2lab.files import write_checked_json
from gpt2lab.generation import DecodingStrategy, encode_prompt, generate, generate_texts, probabilities, seeded
from gpt2lab.inspection import inspect_tokens, patch_residual, switched_off
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.runs import METRICS_COLUMNS, Run
from gpt2lab.server.models import Models, ServedModel
from gpt2lab.server.pages import LOADED, STATIC, Generate, Runs, routes
from gpt2lab.tokenizer.tokenizer import Tokenizer
from gpt2lab.training.session import save_imported

STORIES = Path(__file__).parents[2] / "docs" / "gallery" / "stories"
HOSTILE = "<img src=x onerror=alert(1)>"
TEXT = "One day, Mia was sad. She"
ROW = dict.fromkeys(METRICS_COLUMNS) | {"tokens": 1, "lr": 0.1, "tokens_per_s": 1000.0, "seconds": 1.0}
expect.set_options(timeout=10_000)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stories model, a small one with curves as if it had been trained, and a copy of it whose name is HTML."""
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(STORIES, runs / "stories")
    tokenizer = Tokenizer.load(STORIES / "tokenizer")
    torch.manual_seed(0)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 64, "dropout": 0.0, "differential_attention": True}
    model = GPT(GPTConfig(**shape, vocab_size=tokenizer.n_vocab))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    run = save_imported(model, tokenizer, runs / "small", "a test")
    write_checked_json(run.path / "config.json", {**run.config, "steps": 20})
    for step in range(2, 22, 2):
        val = 7 - step / 8 if step % 10 == 0 else None
        run.add_metrics(ROW | {"step": step, "train_loss": 7 - step / 10, "val_loss": val, "lr": 1 / step})
    shutil.copytree(run.path, runs / HOSTILE)
    return runs


@pytest.fixture(scope="session")
def address(folder: Path) -> Iterator[str]:
    """Where the pages of these runs are served; models compute in fp32."""
    runs = Runs([folder], ServerOptions(device="cpu", precision="fp32").load)
    models = Models(runs.ready, runs.load, LOADED)
    yield serving(models, routes=routes(runs, models))
    models.stop()


@pytest.fixture
def page(page: Page, address: str) -> Page:
    """The list of runs, from which `show` goes on."""
    page.set_default_timeout(10_000)
    page.goto(address)
    return page


def show(page: Page, view: str) -> None:
    page.evaluate("view => { location.hash = view }", f"#/{view}")


@pytest.fixture(scope="session")
def stories() -> LoadedRun:
    run = LoadedRun(STORIES, "best", "cpu", "fp32")
    run.model.eval()
    return run


def ids_of(run: LoadedRun, text: str) -> list[int]:
    return encode_prompt(run.tokenizer, text, 1, torch.device("cpu"))[0].tolist()


def write(page: Page, prompt: str, **settings: float) -> None:
    """Open the page that writes, choose the settings and let it write to the end."""
    show(page, "run/stories/write")
    page.get_by_label("Prompt").fill(prompt)
    for name, value in settings.items():
        page.get_by_role("spinbutton", name=f"{name.capitalize().replace('_', '-')}, as a number").fill(str(value))
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.locator(".running")).to_have_count(0)


def candidates(page: Page, number: int) -> dict[str, list[float]]:
    """What is listed for a token when the pointer is on it: text, the model's probability, what each cut leaves."""
    page.locator(".tok").nth(number).hover()
    expect(page.locator(".about")).to_contain_text(f"Token {number + 1}:")
    rows = page.locator(".bars .row").evaluate_all(
        "rows => rows.map(r => [r.querySelector('.token').textContent, ...[...r.querySelectorAll('.number')]"
        ".map(n => Number(n.title.split(': ')[1]))])"
    )
    return {text: values for text, *values in rows}


def saved(page: Page, card: str, form: str = "JSON") -> bytes:
    """What a button of a card saves."""
    with page.expect_download() as download:
        page.get_by_role("region", name=card).get_by_role("button", name=form, exact=True).first.click()
    return download.value.path().read_bytes()


def pictured(page: Page, group: str) -> str:
    """The text of the SVG that the buttons of this group save, without its spaces; they save a PNG as well."""
    files: list[bytes] = []
    for form in ("PNG", "SVG"):
        with page.expect_download() as download:
            page.get_by_role("group", name=f"Save: {group}", exact=True).get_by_role("button", name=form).click()
        files.append(download.value.path().read_bytes())
    assert files[0].startswith(b"\x89PNG")
    return "".join("".join(ElementTree.fromstring(files[1]).itertext()).split())


def visible(text: str) -> str:
    return text.replace(" ", "␣").replace("\n", "↵")


# Runs -----------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_with_their_curves(page: Page, folder: Path) -> None:
    expect(page.locator(".run h2")).to_have_count(3)
    small = page.locator(".run").filter(has=page.get_by_role("heading", name="small", exact=True))
    last = [row["val_loss"] for row in Run(folder / "small").metrics() if row["val_loss"] is not None][-1]
    expect(small.locator("dd").first).to_have_text(f"{last:.3f}")
    expect(small.locator("path.train")).to_have_count(1)
    expect(small).to_contain_text("20 of 20")
    assert "trainingvalidation" in pictured(page, "curves of small")
    small.get_by_role("link", name="Write").click()
    expect(page).to_have_url(page.url.split("#")[0] + "#/run/small/write")
    expect(page.locator(".tok").first).to_be_visible()


def test_a_name_and_a_text_never_become_html(page: Page) -> None:
    expect(page.get_by_role("heading", name=HOSTILE)).to_be_visible()
    page.get_by_role("link", name=f"Write: {HOSTILE}").click()
    expect(page.locator(".status")).to_contain_text("tokens in")
    page.get_by_label("Prompt").fill(f"{HOSTILE}<script>alert(1)</script>")
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.locator(".prompt")).to_have_text(f"{HOSTILE}<script>alert(1)</script>")
    assert page.locator("main img, main script, header img").count() == 0


# Write ----------------------------------------------------------------------------------------------------------------


def test_it_writes_the_text_of_gpt2lab_sample(page: Page, stories: LoadedRun) -> None:
    write(page, "One day", temperature=0.9, top_k=50, top_p=0.95, length=40, seed=5)
    strategy = DecodingStrategy(0.9, 50, 0.95)
    (text,) = generate_texts(stories.model, stories.tokenizer, "One day", 1, 40, strategy, 5, stories.runtime)
    assert page.locator(".text").text_content() == text.replace("\n", "↵\n")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_candidates_are_the_probabilities_before_and_after_each_cut(
    temperature: float, page: Page, stories: LoadedRun
) -> None:
    write(page, "One day", temperature=temperature, top_k=6, length=12, seed=3)
    tokens = torch.tensor([ids_of(stories, "One day")])
    stages = (
        None,
        DecodingStrategy(temperature),
        DecodingStrategy(temperature, 6),
        DecodingStrategy(temperature, 6, 0.9),
    )
    written = generate(stories.model, tokens, 12, temperature, 6, 0.9, generator=seeded(3, torch.device("cpu")))
    for number in (0, 7):
        with torch.no_grad():
            logits = stories.model(written[:, : tokens.shape[1] + number])[0][:, -1]
        each = [probabilities(logits, stage)[0] if stage else logits.softmax(-1)[0] for stage in stages]
        shown = candidates(page, number)
        assert len(shown) == 20
        ids = each[0].topk(20).indices.tolist()
        for token in ids:
            text = visible(stories.tokenizer.decode([token]))
            for n, stage in enumerate(each):
                assert shown[text][n] == pytest.approx(float(stage[token]), abs=1e-4), (text, n)
        assert sum(values[-1] for values in shown.values()) == pytest.approx(1, abs=1e-4)


def test_a_candidate_begins_a_branch_and_the_first_text_stays(page: Page) -> None:
    write(page, "One day", length=20, seed=1)
    first = page.locator(".text").text_content() or ""
    page.locator(".tok").nth(3).click()
    other = page.locator(".bars button.row:not(.chosen)").first
    word = other.locator(".token").text_content() or ""
    other.click()
    expect(page.locator(".running")).to_have_count(0)
    texts = page.locator(".tok").all_text_contents()
    assert visible(texts[3]) == word and len(texts) == 20
    assert first.startswith("One day" + "".join(texts[:3]))
    expect(page.get_by_role("button", name=f"{word} instead of")).to_have_attribute("aria-current", "true")
    page.locator(".branch").nth(-2).click()
    assert page.locator(".text").text_content() == first


def test_two_strategies_write_side_by_side(page: Page, stories: LoadedRun) -> None:
    show(page, "run/stories/write")
    page.get_by_role("spinbutton", name="Length, as a number").fill("40")
    page.get_by_label("Two strategies side by side").check()
    page.get_by_role("group", name="Strategy B").get_by_label("Greedy").check()
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.get_by_role("heading", name="Strategy B")).to_be_visible()
    expect(page.locator(".status").nth(1)).to_contain_text("greedy")
    expect(page.locator(".running")).to_have_count(0)
    (text,) = generate_texts(
        stories.model, stories.tokenizer, "One day", 1, 40, DecodingStrategy(greedy=True), 1, stories.runtime
    )
    assert (page.locator(".text").nth(1).text_content() or "").removesuffix("⟨end⟩") == text.replace("\n", "↵\n")
    assert "".join(text.split()) in pictured(page, "texts")
    word = (page.locator(".tok").first.text_content() or "").strip()
    page.locator(".tok").first.hover()
    assert word in pictured(page, "candidates of Strategy A").split("top-p")[1]


def test_writing_can_be_stopped(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Generate.steps

    def slowly(asked: Generate, run: ServedModel) -> Iterator[dict[str, Any]]:
        for found in steps(asked, run):
            time.sleep(0.05)
            yield found

    show(page, "run/stories/write")
    expect(page.locator(".status")).to_contain_text("tokens in")
    monkeypatch.setattr(Generate, "steps", slowly)
    page.get_by_label("Length, as a number").fill("256")
    page.get_by_role("button", name="Write", exact=True).click()
    page.locator(".tok").nth(3).wait_for()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".status")).to_contain_text("stopped")
    assert page.locator(".tok").count() < 100


def test_stopping_before_the_first_token_is_said(page: Page) -> None:
    show(page, "run/small/write")
    expect(page.locator(".status")).to_contain_text("tokens in")
    page.route("**/tokenize", lambda route: None)  # it is never answered
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.locator(".status")).to_have_text("writing …")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".status")).to_have_text("stopped")


# Look inside ----------------------------------------------------------------------------------------------------------


def look(page: Page, text: str) -> None:
    show(page, "run/stories/inside")
    expect(page.locator(".status")).to_contain_text("mean loss")
    page.get_by_label("Text to look at").fill(text)
    expect(page.locator(".flow")).to_have_text("⟨start⟩" + text)


def test_what_is_inside_is_what_pytorch_computes(page: Page, stories: LoadedRun) -> None:
    look(page, TEXT)
    ids = ids_of(stories, TEXT)
    found = inspect_tokens(stories.gpt, ids)
    losses = json.loads(saved(page, "Loss of each token"))
    with torch.no_grad():
        logits = stories.model(torch.tensor([ids]))[0][0]
    reference = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    assert losses["losses"] == pytest.approx(reference.tolist(), abs=1e-4)
    expect(page.locator(".status")).to_contain_text(f"mean loss {reference.mean():.3f} nats")
    attention = json.loads(saved(page, "Attention of every head"))
    assert torch.tensor(attention["attention"]).view(*attention["shape"]) == pytest.approx(found.attention, abs=1e-5)
    assert torch.tensor(json.loads(saved(page, "How large the residual stream is"))["rms"]) == pytest.approx(
        found.residual, abs=1e-4
    )
    lens = json.loads(saved(page, "What each layer would say"))["lens"]
    tops = [[[top["id"] for top in cell["top"]] for cell in row] for row in lens]
    assert tops == found.lens.ids.tolist()
    shown = page.get_by_role("region", name="What the switches change").locator(".row .number").first
    assert shown.text_content() == f"{100 * found.probabilities.max():.1f} %"


def test_a_head_and_a_layer_are_switched_off_and_on_again(page: Page, stories: LoadedRun) -> None:
    look(page, TEXT)
    ids = ids_of(stories, TEXT)
    before = inspect_tokens(stories.gpt, ids)
    page.get_by_role("button", name="head 2").last.click()
    page.get_by_role("group", name="Layer 0").get_by_role("button", name="feed-forward").click()
    change = page.get_by_role("region", name="What the switches change")
    expect(change.locator(".readout")).to_contain_text("Off: head:1.2, mlp:0")
    after = inspect_tokens(switched_off(stories.gpt, ["head:1.2", "mlp:0"]), ids)
    expect(change.locator(".readout")).to_contain_text(f"{before.losses.mean():.4f} → {after.losses.mean():.4f} nats")
    next_ones = json.loads(saved(page, "What the switches change"))
    for key, found in (("next", after), ("next_with_everything_on", before)):
        assert {top["id"]: top["p"] for top in next_ones[key]} == pytest.approx(
            {token: float(found.probabilities[token]) for token in found.probabilities.topk(20).indices.tolist()},
            abs=1e-4,
        )
    assert visible(stories.tokenizer.decode([int(after.probabilities.argmax())])) in pictured(
        page, "what the switches change"
    )
    page.get_by_role("button", name="Everything on").click()
    expect(change.locator(".readout")).to_contain_text("Everything is on")


def test_one_head_is_shown_large_and_saved(page: Page, stories: LoadedRun) -> None:
    look(page, TEXT)
    page.get_by_role("button", name="Show head 3 of layer 1").click()
    card = page.get_by_role("region", name="One head")
    expect(card.get_by_role("heading", name="Layer 1, head 3")).to_be_visible()
    page.locator(".flow .tok").nth(4).click()
    weights = inspect_tokens(stories.gpt, ids_of(stories, TEXT)).attention[1, 3, 4]
    expect(card.locator(".row .number").first).to_have_text(f"{100 * weights.max():.1f} %")
    assert saved(page, "One head", "PNG").startswith(b"\x89PNG") and b"<svg" in saved(page, "One head", "SVG")


def test_keyboard_and_touch_choose_a_layer_and_a_position(page: Page) -> None:
    look(page, TEXT)
    for card, image in (
        ("What each layer would say", "Logit lens, layer by position"),
        ("How large the residual stream is", "Root mean square of the residual stream, layer by position"),
    ):
        grid, readout = page.get_by_label(image), page.get_by_role("region", name=card).locator(".readout")
        grid.focus()
        for key, said in (("ArrowUp", "After layer 0"), ("ArrowUp", "Embedding"), ("ArrowLeft", "Embedding")):
            page.keyboard.press(key)
            expect(grid).to_be_focused()
            expect(readout).to_contain_text(said)
        grid.click(position={"x": 120, "y": 40})
        expect(readout).to_contain_text("Embedding")
        expect(page.locator(".flow .tok").first).to_have_attribute("aria-pressed", "true")
    tokens = page.locator(".flow .tok")
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(tokens.nth(1)).to_be_focused()
    expect(page.locator(".flow .tok[tabindex='0']")).to_have_count(1)
    page.get_by_role("link", name="Patch").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main", name="Patch")).to_be_focused()


def test_a_text_is_cut_where_its_attention_would_be_too_large(page: Page) -> None:
    def limited(route: Route) -> None:
        route.fulfill(json={**route.fetch().json(), "most_inspected": 4})

    page.route("**/info", limited)
    show(page, "run/small/inside")
    page.get_by_label("Text to look at").fill(TEXT)
    expect(page.locator(".status")).to_contain_text("4 tokens · the first 4 of 9")


def test_negative_weights_of_differential_attention_are_shown(page: Page, folder: Path) -> None:
    show(page, "run/small/inside")
    page.get_by_label("Text to look at").fill(TEXT)
    expect(page.locator(".flow")).to_have_text("⟨start⟩" + TEXT)
    run = LoadedRun(folder / "small", "best", "cpu", "fp32")
    weights = inspect_tokens(run.gpt.eval(), ids_of(run, TEXT)).attention[0, 0, -1]
    lowest = float(weights.min())
    card = page.get_by_role("region", name="One head")
    expect(card.locator(".readout")).to_contain_text("negative")
    expect(card.locator(".bar.against")).to_have_count(int((weights < 0).sum()))
    assert lowest < 0 and f"−{-100 * lowest:.1f} %" in (card.text_content() or "")
    assert card.locator("path.heat.against").count() > 0 and card.locator("path.arc.against").count() > 0


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"error": {"message": "the model is gone"}}, "the model is gone"),
        ({"id": 5, "text": "a", "logprob": -1.0, "candidates": []}, "the text ended early"),
    ],
)
def test_a_text_that_cannot_be_written_is_said(event: dict[str, object], said: str, page: Page) -> None:
    body = f"data: {json.dumps(event)}\n\n"
    page.route("**/generate", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    show(page, "run/stories/inside")
    expect(page.locator(".status.wrong")).to_contain_text(said)


def test_a_late_answer_does_not_replace_a_newer_one(page: Page) -> None:
    show(page, "run/stories/patch")
    expect(page.locator(".grid")).to_be_visible()
    held: list[Route] = []
    page.route("**/patch", lambda route: route.continue_() if held else held.append(route))
    page.get_by_label("Wrong answer").fill(" They")
    page.get_by_role("button", name="Patch").click()
    for _ in range(100):
        page.wait_for_timeout(0 if held else 50)
    page.get_by_label("Wrong answer").fill(" It")
    with page.expect_response("**/patch"):
        page.get_by_role("button", name="Patch").click()
    expect(page.locator(".status")).to_contain_text("␣She against ␣It")
    held[0].fulfill(json={"effect": [[9.0]], "positions": [""]})
    page.wait_for_timeout(100)
    expect(page.locator(".status")).to_contain_text("␣She against ␣It, 2 layers")


def test_patching_is_what_pytorch_computes(page: Page, stories: LoadedRun) -> None:
    show(page, "run/stories/patch")
    card = page.get_by_role("region", name="Effect of restoring each state")
    expect(card).to_be_visible()
    clean, corrupted = (ids_of(stories, f"One day, {name} was sad.") for name in ("Mia", "Leo"))
    answer, wrong = (stories.tokenizer.encode(word)[0] for word in (" She", " He"))
    effect = patch_residual(stories.gpt, clean, corrupted, answer, wrong)
    assert torch.tensor(json.loads(saved(page, "Effect of restoring each state"))["effect"]) == pytest.approx(
        effect, abs=1e-3
    )
    page.get_by_label("Corrupted prompt").fill("One day, Leo was very sad.")
    page.get_by_role("button", name="Patch").click()
    expect(page.locator(".status")).to_contain_text("give prompts of one length")


# Compare and watch ----------------------------------------------------------------------------------------------------


def test_two_runs_are_compared_token_by_token(page: Page) -> None:
    for name in ("stories", "small"):
        page.get_by_label(f"Compare {name}", exact=True).check()
    page.get_by_role("button", name="Compare two runs").click()
    expect(page.locator(".parting")).to_contain_text("Both get the same")
    page.get_by_label("Length, as a number").fill("15")
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.locator(".status").last).to_contain_text("tokens in")
    expect(page.locator(".running")).to_have_count(0)
    first, second = (page.locator(".written").nth(n).locator(".tok").all_text_contents() for n in (0, 1))
    parted = next(n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    assert page.locator(".parts").all_text_contents() == [first[parted], second[parted]]
    assert "".join("".join(first).split()) in pictured(page, "texts")
    page.get_by_label("Second run").select_option("stories")
    expect(page.locator(".parting")).to_contain_text("Both get the same")
    page.get_by_role("button", name="Write", exact=True).click()
    expect(page.locator(".parting")).to_contain_text("tokens are the same")
    expect(page.locator(".parts")).to_have_count(0)


def test_only_runs_with_a_checkpoint_are_compared(page: Page, folder: Path) -> None:
    ignored = shutil.ignore_patterns("checkpoints")
    unready = Path(shutil.copytree(folder / "small", folder / "begun", ignore=ignored))
    show(page, "compare/begun/stories")
    expect(page.get_by_label("First run").locator("option")).to_have_count(3)
    shutil.rmtree(unready)


def test_a_training_is_watched_while_it_writes(page: Page, folder: Path) -> None:
    run = Run(Path(shutil.copytree(folder / "small", folder / "live" / "run")))
    run.truncate(10)
    config = {**run.config, "steps": 40}
    write_checked_json(run.path / "config.json", config)
    show(page, "run/live%2Frun/watch")
    facts = page.locator("dl.key")
    expect(facts).to_contain_text("10 of 40")
    expect(facts).to_contain_text("training")
    run.add_metrics(ROW | {"step": 11, "train_loss": math.nan, "grad_norm": math.inf})
    run.add_metrics(ROW | {"step": 12, "train_loss": 2.5, "val_loss": 2.625, "tokens_per_s": 1234.0})
    run.add_sample(12, "nucleus 0.9", "One", "One <b>day</b>")
    run.add_eval(12, "hellaswag", "val", "a protocol", "acc_norm", 0.2875)
    for text in ("12 of 40", "2.500", "2.625", "1,234"):
        expect(facts).to_contain_text(text)
    expect(page.locator(".sample .text").first).to_have_text("One <b>day</b>")
    expect(page.get_by_role("region", name="Evaluations")).to_contain_text("acc norm0.2875")
    with (run.path / "metrics.csv").open("a") as file:
        file.write("14,1,0.1,2.")  # partly written
    page.wait_for_timeout(700)
    expect(page.locator(".status.wrong")).to_have_count(0)
    expect(facts).to_contain_text("12 of 40")
    run.truncate(10)  # resumed from an earlier checkpoint
    expect(facts).to_contain_text("10 of 40")
    shutil.rmtree(folder / "live")


# Everywhere -----------------------------------------------------------------------------------------------------------

VIEWS = ("", "run/stories/write", "run/stories/inside", "run/stories/patch", "run/small/watch", "compare/stories/small")


@pytest.mark.parametrize("view", VIEWS)
def test_every_control_has_a_name_and_nothing_is_wider_than_a_phone(page: Page, view: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    show(page, view)
    expect(page.locator(".view")).to_be_visible()
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, button, svg[tabindex]')].filter(e => !(e.ariaLabel ||"
        " e.getAttribute('aria-label') || e.textContent.trim() || [...(e.labels ?? [])].some(l => l.textContent.trim())"
        " || e.querySelector('[aria-label]'))).map(e => e.outerHTML)"
    )
    assert unnamed == []


def test_the_keyboard_reaches_tokens_and_candidates(page: Page) -> None:
    write(page, "One day", length=6)
    page.locator(".tok").first.focus()
    for key in ("ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    expect(page.locator(".about")).to_contain_text("Token 3:")
    page.keyboard.press("Enter")
    expect(page.locator(".bars button.row").first).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".bars button.row").nth(1)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".tok").nth(2)).to_be_focused()


def test_the_theme_is_chosen_and_kept(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page.get_by_role("button", name="Theme: system").click()
    light = page.evaluate(ground)
    page.get_by_role("button", name="Theme: light").click()
    assert page.evaluate(ground) != light
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()


def test_scripts_and_styles_are_small() -> None:
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < 150_000


def test_the_page_is_painted_before_torch_is_imported() -> None:
    modules = "gpt2lab.server.app, gpt2lab.server.models, gpt2lab.server.pages, gpt2lab.cli.serve"
    script = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "False"
