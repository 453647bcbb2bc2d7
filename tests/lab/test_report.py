"""The report: one HTML file that says what a run directory holds, and loads nothing."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpt2lab.errors import InputError
from gpt2lab.files import write_json
from gpt2lab.lab import figures, words
from gpt2lab.lab.content import Series
from gpt2lab.lab.gather import gather
from gpt2lab.lab.report import write_report
from gpt2lab.runs import METRICS, Run

VOID = {"meta", "br", "hr", "img", "input", "link", "mspace", "path", "use", "circle", "rect"}
CONFIG = {
    "data": "work/stories-data",
    "preset": "tiny",
    "steps": 300,
    "seq_len": None,
    "batch_tokens": 4096,
    "micro_batch": 8,
    "model": {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_ctx": 256, "vocab_size": 1000, "n_inner": None, "bias": True},
    "optim": {"lr": 3e-3, "min_lr": None, "warmup_steps": None, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8},
    "device": "cpu",
    "precision": "bf16",
    "eval_tokens": 65536,
}
ENVIRONMENT = {"gpt2lab": "0.1.0", "torch": "2.13.0", "processor": "a processor", "gpus": "none"}
PROTOCOL = "context 256, stride 128, 51,200 tokens & 203,113 bytes"
FIGURES = {
    "loss": 0.9123,
    "perplexity": math.exp(0.9123),
    "bits_per_byte": 0.33178,
    "entropy_floor": 0.30162,
    "gap_percent": 9.9993,
}


def log_steps(run: Run, steps: int) -> None:
    for step in range(10, steps + 1, 10):
        loss = 0.9 + 6 * math.exp(-step / 60)
        row = {
            "step": step,
            "tokens": step * 4096,
            "epoch": step / 200,
            "train_loss": loss,
            "val_loss": loss + 0.05 if step % 100 == 0 else None,
            "lr": 3e-3 * (1 - step / steps / 2),
            "grad_norm": 1 + 1 / step,
            "tokens_per_s": 40_000 + step,
            "mfu": 0.3,
            "peak_memory_mb": 700.0,
            "seconds": step / 2,
        }
        run.add_metrics({name: row[name] for name in METRICS})


def save_checkpoint(run: Run, step: int, finished: str | None) -> Path:
    """Write what the report reads of a checkpoint: 1,000 entries padded to 1,024 rows, 32 wide, and 256 positions."""
    folder = run.checkpoints / f"step_{step:08d}"
    folder.mkdir()
    weights = {"wte.weight": np.zeros((1024, 32), np.float32), "wpe.weight": np.zeros((256, 32), np.float32)}
    save_file(weights, folder / "model.safetensors")
    fingerprints = {"data": "d" * 64, "tokenizer": "e" * 64}
    write_json(folder / "state.json", {"step": step, "finished": finished, "fingerprints": fingerprints})
    write_json(folder / "manifest.json", {"step": step})
    return folder


def make_run(path: Path, steps: int = 300, finished: str | None = "300 steps done") -> Run:
    run = Run.create(path, {**CONFIG, "out": str(path)}, ENVIRONMENT)
    log_steps(run, steps)
    for metric, value in FIGURES.items():
        run.add_eval(300, "perplexity", "test", PROTOCOL, metric, value)
    run.add_eval(300, "stories", "samples", "100 stories at nucleus 0.9", "grammatical", 0.93)
    run.add_sample(100, "nucleus 0.9", "One day", "One day the the cat")
    for strategy in ("greedy", "temperature 0.8", "top-k 50", "nucleus 0.9"):
        run.add_sample(
            300, strategy, "One day", f"One day Lily saw a boat.\nShe & Tom <b>{strategy}</b>", verdict="consistent"
        )
    save_checkpoint(run, 300, finished)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "stories-tiny")


class Page(HTMLParser):
    """Reads a page, checking that every element is closed where it should be."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len({name for name, _ in attrs}), f"an attribute of <{tag}> stands twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    @property
    def text(self) -> str:
        shown = "".join(data for above, data in self.texts if not {"style", "svg", "title"} & set(above))
        return re.sub(r"[ \n]+", " ", shown.replace("\u00a0", " "))

    def within(self, tag: str) -> list[str]:
        return [data for above, data in self.texts if tag in above]


def page_of(runs: list[Run], out: Path) -> Page:
    return Page(write_report(runs, out).read_text(encoding="utf-8"))


def check_page(page: Page) -> None:
    """What holds of every report: it loads nothing, its links lead somewhere, its headings leave out no level."""
    tags = [tag for tag, _ in page.elements]
    assert not {"script", "link", "iframe", "img", "object", "base", "form"} & set(tags)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.elements:
        for name, value in attrs.items():
            assert name not in ("src", "srcset", "action", "onclick", "onload")
            if name in ("href", "xlink:href"):
                assert value is not None and value.startswith("#") and value[1:] in ids
            if name == "aria-labelledby":
                assert value in ids
            assert "url(" not in (value or "") or (value or "").startswith("url(#")
    style = "".join(page.within("style"))
    assert "@import" not in style and "url(" not in style and "@font-face" not in style
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))


def test_page_is_well_formed_and_loads_nothing(run: Run) -> None:
    page = page_of([run], run.path / "report.html")
    check_page(page)
    assert ("html", {"lang": "en"}) in page.elements
    assert "default-src 'none'" in str(page.elements)
    assert {"svg", "math", "figure", "table", "details"} <= {tag for tag, _ in page.elements}


def test_file_is_small_however_long_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", steps=30_000)
    run.add_sample(300, "long", "", "word " * 200_000)
    out = write_report([run], tmp_path / "report.html")
    assert out.stat().st_size < 500_000
    assert "[…]" in Page(out.read_text(encoding="utf-8")).text


def test_numbers_of_the_run_are_in_the_page(run: Run) -> None:
    text = page_of([run], run.path / "report.html").text
    assert "A GPT-2 of 2 layers, 4 heads and width 32" in text
    assert "trained for 300 steps on 1.23 M tokens (work/stories-data) in 2 min 30 s on a processor" in text
    assert "perplexity is 2.490 per token, which is 0.3318 bits per byte, 10.0 % above the entropy" in text
    assert PROTOCOL in text
    for figure in ("0.9123", "0.3016", "93.0 %", "700 MiB", "40,155", "every option".capitalize(), "2.13.0"):
        assert figure in text
    assert f"gpt2lab train --config {run.path.as_posix()}/config.json" in text


def test_every_option_is_shown_as_the_configuration_has_it(run: Run) -> None:
    (content,) = gather([run]).runs
    shown = {fact.name: fact.value for fact in content.configuration}
    flat = {name: value for name, value in CONFIG.items() if not isinstance(value, dict)} | {"out": str(run.path)}
    flat |= {f"{group}.{name}": value for group in ("model", "optim") for name, value in CONFIG[group].items()}
    assert shown == {name: json.dumps(value) for name, value in flat.items()}


def test_parameters_are_counted_from_the_weights_without_the_padding(run: Run) -> None:
    facts = {fact.name: fact.value for fact in gather([run]).runs[0].model}
    assert facts["Parameters"] == f"{1000 * 32 + 256 * 32:,}"


def test_best_validation_loss_is_the_lowest_with_its_step(run: Run) -> None:
    (content,) = gather([run]).runs
    best = next(figure for figure in content.key_figures if figure.label == "Best validation loss")
    losses = {row["step"]: row["val_loss"] for row in run.metrics() if row["val_loss"] is not None}
    step = min(losses, key=lambda step: losses[step] or 0.0)
    assert best.value == f"{losses[step]:.4f}"
    assert best.note.endswith(f"step {step:.0f}")


def test_entropy_floor_in_nats_is_the_loss_less_the_gap(run: Run) -> None:
    floor = gather([run]).runs[0].curves.floor
    assert floor == pytest.approx(0.9123 * 0.30162 / 0.33178, rel=1e-4)


def test_figures_of_another_protocol_are_not_mixed(run: Run) -> None:
    run.add_eval(300, "perplexity", "test", "stride 1", "perplexity", 2.25)
    (content,) = gather([run]).runs
    assert content.key_figures[0].value == "2.250"
    assert content.key_figures[1].value is None
    assert [e.protocol for e in content.evaluations[:2]] == [PROTOCOL, "100 stories at nucleus 0.9"]
    assert content.evaluations[2].facts[0].value == "2.250"


def test_prompt_is_set_apart_and_text_is_escaped_with_its_newlines(run: Run) -> None:
    page = page_of([run], run.path / "report.html")
    assert page.within("mark").count("One day") >= 4
    texts = "".join(page.within("article"))
    assert " Lily saw a boat.\nShe & Tom <b>greedy</b>" in texts
    assert "b" not in [tag for above, _ in page.texts for tag in above if "article" in above]


def test_strategies_stand_beside_each_other_though_training_wrote_a_later_sample(run: Run) -> None:
    run.add_sample(400, "nucleus 0.9", "", "The last.")
    (content,) = gather([run]).runs
    assert [s.name for s in content.strategies] == ["greedy", "temperature 0.8", "top-k 50", "nucleus 0.9"]
    assert [s.step for s in content.other_steps] == ["100", "400"]


def test_strategies_stand_in_the_order_of_the_study_not_of_training(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    for strategy in ("nucleus 0.9", "greedy", "top-k 50", "nucleus 0.9"):
        run.add_sample(300, strategy, "", "text")
    (content,) = gather([run]).runs
    assert [(s.name, s.written) for s in content.strategies] == [("greedy", 1), ("top-k 50", 1), ("nucleus 0.9", 2)]


def test_text_that_html_cannot_hold_is_replaced(run: Run) -> None:
    run.add_sample(300, "odd", "", "null \x00 escape \x1b \x9f end")
    with (run.path / "samples.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 300, "strategy": "half", "prompt": "", "text": "half \\ud83d of \\ud83d\\ude00"}\n')
    page = page_of([run], run.path / "report.html")
    check_page(page)
    assert "null ␀ escape ␛ � end" in page.text
    assert "half � of 😀" in page.text


def test_run_that_goes_on_is_called_unfinished(tmp_path: Path) -> None:
    text = page_of([make_run(tmp_path / "run", finished=None)], tmp_path / "report.html").text
    assert "The run is unfinished: its newest checkpoint is of step 300." in text


def test_empty_run_is_reported_as_not_measured(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG, ENVIRONMENT)
    page = page_of([run], tmp_path / "report.html")
    check_page(page)
    assert "No training step is recorded." in page.text
    assert "no complete checkpoint" in page.text
    assert page.text.count("not measured") >= 8


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "{", "config.json: not JSON at line 1"),
        ("config.json", "[]", "expected named values"),
        ("config.json", '{"model": 3, "optim": []}', "configuration cannot be read"),
        ("environment.json", "\xff", "environment.json"),
        ("metrics.csv", "step\n1\n", "metrics.csv"),
        ("evals.csv", "step,task,split,protocol,metric,value\n1,a,b,c,d,e\n", "d of a has no number"),
        ("samples.jsonl", '{"step": 1}\n', "samples.jsonl"),
        ("samples.jsonl", "3\n", "samples.jsonl"),
        ("checkpoints/step_00000300/state.json", "", "state.json"),
        ("checkpoints/step_00000300/model.safetensors", "short", "model.safetensors"),
    ],
)
def test_damaged_file_is_named_and_the_rest_goes_on(run: Run, name: str, content: str, said: str) -> None:
    (run.path / name).write_text(content, encoding="latin-1")
    (report,) = gather([run]).runs
    assert any(said in text for text in (*report.remarks, report.summary))
    assert len([part for part in (report.configuration, report.environment, report.strategies) if part]) >= 2


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.csv", "evals.csv", "checkpoints"])
def test_missing_part_does_not_stop_the_report(run: Run, name: str) -> None:
    path = run.path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = page_of([run], run.path / "report.html")
    check_page(page)
    assert name in page.text or "no complete checkpoint" in page.text


def test_loss_that_is_not_finite_is_said_and_not_drawn(run: Run) -> None:
    last = {name: (math.nan if name == "train_loss" else 310.0) for name in METRICS}
    run.add_metrics(last)
    page = page_of([run], run.path / "report.html")
    assert "The training loss is not finite at step 310: training diverged." in page.text
    assert "nan" not in "".join(str(attrs.get("d", "")) for _, attrs in page.elements).lower()


def test_several_runs_stand_in_one_table_and_one_picture(tmp_path: Path, run: Run) -> None:
    other = make_run(tmp_path / "other & run", finished=None)
    page = page_of([run, other], tmp_path / "both.html")
    check_page(page)
    assert "2 runs, side by side" in page.text
    drawn = "".join(page.within("svg"))
    assert "stories-tiny" in drawn and other.path.name in drawn
    assert [data for above, data in page.texts if "h2" in above and data in ("stories-tiny", other.path.name)]
    assert len([tag for tag, _ in page.elements if tag == "math"]) < 30, "the equations stand once"


def test_entropy_gap_is_left_out_where_the_text_has_no_known_entropy(tmp_path: Path) -> None:
    plain = Run.create(tmp_path / "plain", CONFIG, ENVIRONMENT)
    log_steps(plain, 100)
    text = page_of([plain], tmp_path / "report.html").text
    assert "Above the entropy floor" not in text
    assert re.search("Tokens seen *410 k *0.500 epochs", text)


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = []
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        runs.append(make_run(tmp_path / parent / "run"))
    assert [content.name for content in gather(runs).runs] == [str(run.path) for run in runs]


def test_own_report_is_replaced_and_no_other_file(run: Run, tmp_path: Path) -> None:
    out = write_report([run], tmp_path / "report.html")
    first = out.read_bytes()
    assert write_report([run], out).read_bytes() == first
    out.write_text("<html>mine</html>", encoding="utf-8")
    with pytest.raises(InputError, match="exists and is not a report"):
        write_report([run], out)
    assert out.read_text(encoding="utf-8") == "<html>mine</html>"


@pytest.mark.parametrize(
    ("name", "said"),
    [("report.pdf", "ends in .html"), ("missing/report.html", "there is no folder"), ("folder.html", "is a folder")],
)
def test_place_that_cannot_be_written_is_refused(run: Run, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match=said):
        write_report([run], tmp_path / name)


def test_report_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one run"):
        write_report([], tmp_path / "report.html")


def test_thinned_curve_keeps_its_mean_and_ends() -> None:
    x = tuple(float(n) for n in range(1, 4001))
    thinned = figures.thin(Series(x, tuple(math.sin(n) for n in x)))
    assert len(thinned.x) == figures.POINTS
    assert sum(thinned.x) / len(thinned.x) == pytest.approx(sum(x) / len(x))
    assert figures.thin(Series(x[:5], x[:5])) == Series(x[:5], x[:5])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(scheme: str) -> None:
    """WCAG 2.2, success criterion 1.4.3: 4.5 to 1 for text; 1.4.11: 3 to 1 for lines."""
    css = (Path(figures.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[:2]
    hues = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0] + (blocks[1] if scheme == "dark" else "")))
    for paper in (hues["paper"], hues["card"]):
        for name in ("ink", "soft", "accent", "figure-ink"):
            assert contrast(hues[name], paper) >= 4.5, name
        for name in (f"line-{n}" for n in range(1, 7)):
            assert contrast(hues[name], paper) >= 3, name
    assert contrast(hues["warn"], hues["warn-tint"]) >= 4.5
    assert contrast(hues["ink"], hues["tint"]) >= 4.5


def contrast(first: str, second: str) -> float:
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(hue: str) -> float:
    parts = [int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.count(12345.0), "12,345"),
        (words.short(950272), "950 k"),
        (words.short(12_288_000), "12.3 M"),
        (words.short(999_999), "1.00 M"),
        (words.short(999), "999"),
        (words.number(2.0141), "2.014"),
        (words.number(27_390.4), "27,390"),
        (words.number(0.25461), "0.2546"),
        (words.number(0.00003), "3 × 10⁻⁵"),
        (words.number(9.99996), "10.00"),
        (words.number(0), "0"),
        (words.number(-1.5), "-1.500"),
        (words.number(math.inf), "not finite"),
        (words.setting(1e-8), "10⁻⁸"),
        (words.setting(0.003), "0.003"),
        (words.setting(1.0), "1"),
        (words.setting(None), "not set"),
        (words.setting(False), "no"),
        (words.setting(50257), "50,257"),
        (words.duration(9.04), "9.0 s"),
        (words.duration(151), "2 min 31 s"),
        (words.duration(59.7), "1 min 00 s"),
        (words.duration(11_100), "3 h 05 min"),
        (words.memory(437.2), "437 MiB"),
        (words.memory(1351.7), "1.32 GiB"),
        (words.percent(11.84), "11.8 %"),
        (words.plural(1, "layer"), "1 layer"),
        (words.plural(12, "layer"), "12 layers"),
    ],
)
def test_numbers_are_said_with_their_unit(said: str, expected: str) -> None:
    assert said.replace("\u00a0", " ") == expected
