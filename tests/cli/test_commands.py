"""The command line as a user meets it: every command, on one small run."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gpt2lab.cli.arguments import Command
from gpt2lab.cli.main import COMMANDS, main
from gpt2lab.cli.train import Train
from gpt2lab.runs import Run
from gpt2lab.training.config import RECIPES

Output = Callable[..., str]


def every_command() -> list[tuple[str, str]]:
    """Name and ``module:class`` of each command."""
    groups = {name: each if isinstance(each, Mapping) else {"": each} for name, each in COMMANDS.items()}
    return [(f"{name} {sub}".strip(), place) for name, group in groups.items() for sub, (place, _) in group.items()]


def test_help_lists_every_command_with_its_purpose(output: Output) -> None:
    said = output("--help")
    for name, _ in every_command():
        assert re.search(rf"^  {name} +\w", said, re.MULTILINE)


@pytest.mark.parametrize(("name", "place"), every_command())
def test_each_command_is_a_documented_dataclass_with_help(
    name: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, kind = place.partition(":")
    command = getattr(importlib.import_module(f"gpt2lab.cli.{module}"), kind)
    assert issubclass(command, Command) and dataclasses.is_dataclass(command)
    assert command.__doc__ and not command.__doc__.startswith(f"{kind}("), name
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    sources = [inspect.getsource(each) for each in command.__mro__ if dataclasses.is_dataclass(each)]
    broken = re.findall(r'^    (\w+): [^\n]*\n    """(?:(?!""").)*\n', "".join(sources), re.MULTILINE | re.DOTALL)
    assert broken == [], "the help of an option is one line in the source, or it is broken there"
    if options := [field.default for field in dataclasses.fields(command)]:
        assert re.search(r"\b(INT|PATH)\b", said)
        assert ("default: " in said) == any(default is not dataclasses.MISSING for default in options)


def test_help_of_train_shows_the_presets_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--preset", "gpt2", "--help"])
    said = capsys.readouterr().out
    assert re.search(r"--model.n-layer INT.*?default: 12\)", said, re.DOTALL)
    assert re.search(r"--batch-tokens.*?default: 524288\)", said, re.DOTALL)


def test_a_recipe_sets_defaults_that_options_replace(
    work: Path, tmp_path: Path, output: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--preset", "gpt2", "--recipe", "fast", "--help"])
    said = capsys.readouterr().out
    assert re.search(r"--optim.name \{adamw,muon\}.*?default:\s+muon\)", said, re.DOTALL)
    assert re.search(r"--model.n-layer INT.*?default: 12\)", said, re.DOTALL)
    words = ["--recipe", "fast", "--optim.lr", 1e-3, "--steps", 2, "--model.n-ctx", 32, "--batch-tokens", 64]
    output("train", "--data", work / "data", "--out", tmp_path / "run", *words)
    run = Run.open(tmp_path / "run")
    optim, fast = run.config["optim"], RECIPES["fast"].optim
    assert run.config["recipe"] == "fast" and optim["lr"] == 1e-3
    assert {name: optim[name] for name in fast} == {**fast, "lr": 1e-3}
    assert "nano, recipe fast: " in (run.path / "train.log").read_text(encoding="utf-8")
    output("report", run.path, "--out", tmp_path / "report.html")
    assert re.search(r"Recipe.{1,60}fast", (tmp_path / "report.html").read_text(encoding="utf-8"), re.DOTALL)


def test_encode_and_decode_are_filters_that_undo_each_other(
    work: Path, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Lily said, “naïve 🐈”\n\n  two spaces\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    ids = output("tokenizer", "encode", work / "tok")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ids.encode())))
    assert output("tokenizer", "decode", work / "run") == text


def test_a_run_holds_all_its_files(work: Path) -> None:
    run = Run.open(work / "run")
    assert [row["step"] for row in run.metrics()] == [5, 10, 15, 20]
    assert run.metrics()[-1]["val_loss"] is not None
    assert run.samples()[-1]["step"] == 20
    for name in ("config.json", "environment.json", "train.log", "curves.png", "tokenizer/tokenizer.json"):
        assert (run.path / name).is_file()
    assert run.config["model"]["vocab_size"] == 400
    assert run.config["device"] == "cpu" and run.config["compile"] == "off"


def test_a_finished_run_resumes_to_nothing_and_a_longer_one_goes_on(run: Path, output: Output) -> None:
    assert "nothing to do" in output("train", "--out", run, "--resume")
    output("train", "--out", run, "--resume", "--steps", 30)
    assert [row["step"] for row in Run.open(run).metrics()] == [5, 10, 15, 20, 25, 30]


def test_training_starts_again_from_a_saved_config_with_flags_on_top(
    work: Path, tmp_path: Path, output: Output
) -> None:
    saved = ["--config", str(work / "run" / "config.json")]
    output("train", *saved, "--out", tmp_path / "again", "--steps", 10)
    first, second = Run.open(work / "run").config, Run.open(tmp_path / "again").config
    assert second["steps"] == 10 and second["model"] == first["model"]
    # A sequence length that was the context follows a smaller one.
    assert Train.parse([*saved, "--model.n-ctx", "16"], "gpt2lab train").train_config.seq_len is None


def test_sampling_is_the_same_for_the_same_seed(work: Path, output: Output) -> None:
    sample = ("sample", work / "run", "--prompt", "One day", "--max-new-tokens", 30, "--seed")
    texts = [output(*sample, seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("One day")


@pytest.mark.parametrize(("new", "slid"), [(5, False), (60, True)])
def test_a_text_longer_than_the_context_is_said_to_have_slid(
    work: Path, new: int, slid: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run, seed = str(work / "run"), "3"  # one that does not end before
    assert main(["sample", run, "--prompt", "One day", "--max-new-tokens", str(new), "--seed", seed]) == 0
    assert ("exceeded the 32-token context; older tokens were dropped" in capsys.readouterr().err) == slid


def test_several_samples_are_numbered(work: Path, output: Output) -> None:
    said = output("sample", work / "run", "--samples", 3, "--top-k", 5, "--max-new-tokens", 5)
    assert [f"sample {n} of 3, top-k 5, cut off" in said for n in (1, 2, 3)] == [True] * 3


def test_perplexity_is_printed_with_its_protocol_and_kept(run: Path, output: Output) -> None:
    said = output("eval", "perplexity", run, "--split", "val")
    kept = {row["metric"]: float(row["value"]) for row in Run.open(run).evals() if row["split"] == "val"}
    assert f"{kept['bits_per_byte']:.4f}" in said and "protocol: Each of" in said
    assert kept["entropy_floor"] < kept["bits_per_byte"]


def test_a_text_file_is_measured_with_its_protocol(run: Path, tmp_path: Path, output: Output) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" Lily , the cat 's friend , had a well @-@ made boat . \n" * 30, encoding="utf-8")
    argv = ("eval", "perplexity", run, "--text", text)
    output(*argv)
    said = output(*argv, "--detokenize", "wikitext", "--by-document")
    assert "The tokenization of wikitext is undone first" in said
    rows = [row for row in Run.open(run).evals() if row["split"].startswith("text.txt (")]
    plain, undone = ({row["metric"]: row["value"] for row in rows if ("undone" in row["protocol"]) is is_undone}
                     for is_undone in (False, True))  # fmt: skip
    assert plain.keys() == undone.keys() >= {"word_perplexity", "bits_per_byte"}
    assert all("over its 420 whitespace-separated words" in row["protocol"] for row in rows)


def test_the_loss_by_position_is_kept_with_its_picture(run: Path, output: Output) -> None:
    said = output("eval", "positions", run)
    folder = run / "evaluations" / "step_00000020"
    kept = json.loads((folder / "positions.json").read_text(encoding="utf-8"))
    assert len(kept["losses"]) == len(kept["tokens"]) == 32
    assert (folder / "positions.png").read_bytes().startswith(b"\x89PNG")
    assert f"{kept['losses'][31]:.4f}" in said
    Run.open(run).truncate(10)
    assert not folder.exists()


def hellaswag_file(folder: Path, *labels: int) -> Path:
    item = {"ind": 1, "activity_label": "Boats", "ctx": "Lily saw a", "endings": ["boat.", "tree.", "cat.", "hat."]}
    lines = [json.dumps({**item, "label": label}) for label in labels]
    (folder / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "items.jsonl"


def test_hellaswag_is_measured_after_and_during_training(
    work: Path, small: list[str], tmp_path: Path, output: Output
) -> None:
    items, run = hellaswag_file(tmp_path, 0, 2), tmp_path / "run"
    train = ("train", "--data", work / "data", "--out", run, "--steps", 10, *small)
    said = output(*train, "--hellaswag", items, "--hellaswag-every", 4)
    assert [(row["step"], row["metric"]) for row in Run.open(run).evals()] == [
        (str(step), metric) for step in (4, 8, 10) for metric in ("acc", "acc_norm")
    ]
    assert "hellaswag at step 8: acc " in said
    for style in ("completion", "harness"):
        output("eval", "hellaswag", run, "--items", items, "--style", style)
    rows = Run.open(run).evals()[-4:]
    assert {row["task"] for row in rows} == {"hellaswag"} and len({row["protocol"] for row in rows}) == 2


def test_hellaswag_leaves_out_an_ending_longer_than_the_context(
    work: Path, run: Path, small: list[str], tmp_path: Path, output: Output
) -> None:
    items = hellaswag_file(tmp_path, 0, 2)
    long = json.loads(items.read_text(encoding="utf-8").splitlines()[0]) | {"ind": 580, "endings": ["z" * 40, *"bcd"]}
    items.write_text(items.read_text(encoding="utf-8") + "\n" + json.dumps(long), encoding="utf-8")
    said = output("eval", "hellaswag", run, "--items", items)
    assert "2 items of 4 endings" in said and "longer than the model's context: 1 item (580)." in said
    train = ("train", "--data", work / "data", "--out", tmp_path / "new", "--steps", 2, *small)
    assert "longer than the model's context: 1 item (580)." in output(*train, "--hellaswag", items)


def test_the_quality_of_texts_is_printed_and_kept(run: Path, output: Output) -> None:
    said = output("eval", "text", run, "--samples", 3)
    assert all(part in said for part in ("held-out text", "nucleus 0.95", "repetition", "protocol: 3 prompts"))
    assert "relevance" in said and "…" not in said, "nothing is cut off, however narrow the terminal"
    folder = run / "evaluations" / "step_00000020"
    assert {path.name for path in folder.iterdir()} == {"text.json", "text.md", "text.png"}


def test_figures_of_other_data_do_not_pass_for_the_runs_own(
    work: Path, run: Path, tmp_path: Path, output: Output
) -> None:
    other = tmp_path / "other"
    options = ("--tokenizer", work / "tok", "--out", other, "--max-documents", 150, "--seed", 7)
    output("data", "prepare", "stories", *options)
    output("eval", "perplexity", run, "--data", other)
    splits = {row["split"] for row in Run.open(run).evals()}
    assert any(str(other) in split for split in splits) and "test" not in splits


def test_a_run_works_from_any_directory(
    work: Path, small: list[str], tmp_path: Path, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(work / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    output("train", "--data", "data", "--out", "run", "--steps", 5, *small)
    monkeypatch.chdir(tmp_path.parent)
    output("eval", "perplexity", tmp_path / "run")


def test_report_is_one_file(work: Path, tmp_path: Path, output: Output) -> None:
    assert output("report", work / "run", "--out", tmp_path / "r.html").strip() == str(tmp_path / "r.html")
    assert "<svg" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_errors_replace_goes_on_in_training_and_preparing(tmp_path: Path, output: Output, refused: Output) -> None:
    file, tok, data = tmp_path / "latin.txt", tmp_path / "tok", tmp_path / "data"
    file.write_bytes(b"caf\xe9 au lait " * 200)
    train = ["tokenizer", "train", "--input", file, "--vocab-size", "270", "--out", tok]
    assert "0xe9 at offset 3; save it as UTF-8, or use --errors replace" in refused(*train)
    output(*train, "--errors", "replace")
    prepare = ["data", "prepare", file, "--tokenizer", tok, "--out", data]
    assert "0xe9 at offset 3" in refused(*prepare)
    output(*prepare, "--errors", "replace")
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["source"]["errors"] == "replace"
    assert manifest["splits"]["train"]["bytes"] == 180 * len("caf\ufffd au lait ".encode())


@pytest.mark.skipif(sys.platform == "win32", reason="there a pipe without a reader is another error")
@pytest.mark.parametrize("command", ["tokenizer show TOK", "data list"])  # by rich's console and by print
def test_a_reader_that_goes_ends_the_output_quietly(command: str, work: Path) -> None:
    program = "import sys; from gpt2lab.cli.main import main; sys.exit(main(sys.argv[1:]))"
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [sys.executable, "-u", "-c", program, *command.replace("TOK", str(work / "tok")).split()]
    done = subprocess.run(arguments, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
