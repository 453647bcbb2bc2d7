"""The command line as a user meets it: the whole way in small, and one clear line for everything that is wrong."""

from __future__ import annotations

import dataclasses
import importlib
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

SMALL = ["--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "16", "--model.n-ctx", "32"]
TRAIN = [*SMALL, "--batch-tokens", "128", "--log-every", "5", "--eval-tokens", "512", "--checkpoint-every", "10"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, prepared data and a finished run, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("cli")
    tok, data, run = str(folder / "tok"), str(folder / "data"), str(folder / "run")
    stories = ["--max-documents", "120"]
    assert main(["tokenizer", "train", "--input", "stories", "--vocab-size", "400", "--out", tok, *stories]) == 0
    assert main(["data", "prepare", "stories", "--tokenizer", tok, "--out", data, *stories]) == 0
    assert main(["train", "--data", data, "--out", run, "--steps", "20", *TRAIN]) == 0
    return folder


def every_command() -> list[tuple[str, str]]:
    """Name and ``module:class`` of each command."""
    groups = {name: each if isinstance(each, Mapping) else {"": each} for name, each in COMMANDS.items()}
    return [(f"{name} {sub}".strip(), place) for name, group in groups.items() for sub, (place, _) in group.items()]


def test_help_lists_every_command_with_its_purpose(output: Callable[..., str]) -> None:
    said = output("--help")
    for name, _ in every_command():
        assert re.search(rf"^  {name} +\w", said, re.MULTILINE)


@pytest.mark.parametrize(("name", "place"), every_command())
def test_each_command_is_a_documented_dataclass(name: str, place: str) -> None:
    module, _, kind = place.partition(":")
    command = getattr(importlib.import_module(f"gpt2lab.cli.{module}"), kind)
    assert issubclass(command, Command) and dataclasses.is_dataclass(command)
    assert command.__doc__ and not command.__doc__.startswith(f"{kind}("), name


@pytest.mark.parametrize(
    "verb",
    [
        *("quickstart", "tokenizer train", "data prepare", "sample", "train"),
        *("eval perplexity", "eval positions", "eval hellaswag", "eval harness", "eval text"),
    ],
)
def test_each_verb_has_help_with_types_and_defaults(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "default: " in said and re.search(r"\b(INT|PATH)\b", said)


def test_help_of_train_shows_the_presets_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--preset", "gpt2", "--help"])
    said = capsys.readouterr().out
    assert re.search(r"--model.n-layer INT.*?default: 12\)", said, re.DOTALL)
    assert re.search(r"--batch-tokens.*?default: 524288\)", said, re.DOTALL)


def test_encode_and_decode_are_filters_that_undo_each_other(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Lily said, “naïve 🐈”\n\n  two spaces\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["tokenizer", "encode", str(work / "tok")]) == 0
    ids = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ids.encode())))
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdout", out)
    assert main(["tokenizer", "decode", str(work / "run")]) == 0
    out.flush()
    assert out.buffer.getvalue().decode() == text  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("5 6\n7 400\n", "line 2: the id 400 is outside the vocabulary; ids are 0 to 399"),
        ("5 six\n", 'line 1: "six" is not an id; give ids separated by spaces'),
        ("-5\n", 'line 1: "-5" is not an id; give ids separated by spaces'),
        ("5 " + "9" * 5000 + "\n", "is not an id; give ids separated by spaces"),
    ],
)
def test_what_is_no_id_is_refused_with_its_line(
    given: str, said: str, work: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
    assert said in refused("tokenizer", "decode", work / "tok")


def test_a_run_holds_all_its_files(work: Path) -> None:
    run = Run.open(work / "run")
    assert [row["step"] for row in run.metrics()] == [5, 10, 15, 20]
    assert run.metrics()[-1]["val_loss"] is not None
    assert run.samples()[-1]["step"] == 20
    for name in ("config.json", "environment.json", "train.log", "curves.png", "tokenizer/tokenizer.json"):
        assert (run.path / name).is_file()
    assert run.config["model"]["vocab_size"] == 400
    assert run.config["device"] == "cpu" and run.config["compile"] == "off"


def test_a_finished_run_resumes_to_nothing_and_a_longer_one_goes_on(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(work / "run", run)
    assert main(["train", "--out", str(run), "--resume"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["train", "--out", str(run), "--resume", "--steps", "30"]) == 0
    assert [row["step"] for row in Run.open(run).metrics()] == [5, 10, 15, 20, 25, 30]


def test_training_starts_again_from_a_saved_config_with_flags_on_top(work: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    config = work / "run" / "config.json"
    assert main(["train", "--config", str(config), "--out", str(again), "--steps", "10"]) == 0
    first, second = Run.open(work / "run").config, Run.open(again).config
    assert second["steps"] == 10 and second["model"] == first["model"]


def test_a_sequence_length_that_was_the_context_follows_a_smaller_one(work: Path) -> None:
    saved = ["--config", str(work / "run" / "config.json"), "--model.n-ctx", "16"]
    assert Train.parse(saved, "gpt2lab train").train_config.seq_len is None


def test_sampling_is_the_same_for_the_same_seed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        capsys.readouterr()
        main(["sample", str(work / "run"), "--prompt", "One day", "--max-new-tokens", "30", "--seed", seed])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("One day")


@pytest.mark.parametrize(("new", "slid"), [("5", False), ("60", True)])
def test_a_text_longer_than_the_context_is_said_to_have_slid(
    work: Path, new: str, slid: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run, seed = str(work / "run"), "3"  # one that does not end before
    assert main(["sample", run, "--prompt", "One day", "--max-new-tokens", new, "--seed", seed]) == 0
    assert ("exceeded the 32-token context; older tokens were dropped" in capsys.readouterr().err) == slid


def test_several_samples_are_numbered(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "sample",
        str(work / "run"),
        "--samples",
        "3",
        "--top-k",
        "5",
        "--max-new-tokens",
        "5",
    ]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert [f"sample {n} of 3, top-k 5, cut off" in said for n in (1, 2, 3)] == [True] * 3


def test_perplexity_is_printed_with_its_protocol_and_kept(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "perplexity", str(work / "run"), "--split", "val"]) == 0
    said = capsys.readouterr().out
    kept = {row["metric"]: float(row["value"]) for row in Run.open(work / "run").evals() if row["split"] == "val"}
    assert f"{kept['bits_per_byte']:.4f}" in said and "protocol: Each of" in said
    assert kept["entropy_floor"] < kept["bits_per_byte"]


def test_a_text_file_is_measured_with_its_protocol(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    shutil.copytree(work / "run", tmp_path / "run")
    text = tmp_path / "text.txt"
    text.write_text(" Lily , the cat 's friend , had a well @-@ made boat . \n" * 30, encoding="utf-8")
    argv = ["eval", "perplexity", str(tmp_path / "run"), "--text", str(text)]
    assert main(argv) == 0
    assert main([*argv, "--detokenize", "wikitext", "--by-document"]) == 0
    said = capsys.readouterr().out
    assert "The tokenization of wikitext is undone first" in said
    rows = [row for row in Run.open(tmp_path / "run").evals() if row["split"].startswith("text.txt (")]
    plain, undone = ({row["metric"]: row["value"] for row in rows if ("undone" in row["protocol"]) is is_undone}
                     for is_undone in (False, True))  # fmt: skip
    assert plain.keys() == undone.keys() >= {"word_perplexity", "bits_per_byte"}
    assert all("over its 420 whitespace-separated words" in row["protocol"] for row in rows)
    assert "give --text FILE" in refused("eval", "perplexity", work / "run", "--detokenize", "wikitext")
    assert "leave out --data" in refused(*argv, "--split", "val")


def test_the_loss_by_position_is_kept_with_its_picture(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(work / "run", tmp_path / "run")
    assert main(["eval", "positions", str(tmp_path / "run")]) == 0
    folder = tmp_path / "run" / "evaluations" / "step_00000020"
    kept = json.loads((folder / "positions.json").read_text(encoding="utf-8"))
    assert len(kept["losses"]) == len(kept["tokens"]) == 32
    assert (folder / "positions.png").read_bytes().startswith(b"\x89PNG")
    assert f"{kept['losses'][31]:.4f}" in capsys.readouterr().out
    Run.open(tmp_path / "run").truncate(10)
    assert not folder.exists()


def hellaswag_file(folder: Path, *changes: dict[str, object]) -> Path:
    item = {
        "ind": 1,
        "activity_label": "Boats",
        "ctx": "Lily saw a",
        "endings": ["boat.", "tree.", "cat.", "hat."],
        "label": 0,
    }
    lines = [json.dumps({**item, **change}) for change in changes]
    (folder / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "items.jsonl"


def test_hellaswag_is_measured_after_and_during_training(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    items, run = hellaswag_file(tmp_path, {}, {"label": 2}), tmp_path / "run"
    argv = ["train", "--data", str(work / "data"), "--out", str(run), "--steps", "10", *TRAIN]
    assert main([*argv, "--hellaswag", str(items), "--hellaswag-every", "4"]) == 0
    assert [(row["step"], row["metric"]) for row in Run.open(run).evals()] == [
        (str(step), metric) for step in (4, 8, 10) for metric in ("acc", "acc_norm")
    ]
    assert "hellaswag at step 8: acc " in capsys.readouterr().out
    for style in ("completion", "harness"):
        assert main(["eval", "hellaswag", str(run), "--items", str(items), "--style", style]) == 0
    rows = Run.open(run).evals()[-4:]
    assert {row["task"] for row in rows} == {"hellaswag"} and len({row["protocol"] for row in rows}) == 2
    assert "limit is 0" in refused("eval", "hellaswag", run, "--items", items, "--limit", "0")


def test_a_bad_hellaswag_line_stops_before_anything_is_made(
    work: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    items = hellaswag_file(tmp_path, {}, {"label": 9})
    argv = ["train", "--data", work / "data", "--out", tmp_path / "run", *TRAIN, "--hellaswag", items]
    assert "items.jsonl: line 2: field \"label\" is '9'" in refused(*argv)
    assert not (tmp_path / "run").exists()
    every = ["train", "--data", work / "data", "--out", tmp_path / "run", *TRAIN, "--hellaswag-every", "5"]
    assert "hellaswag is None; it must be a file to measure on" in refused(*every)


def test_the_quality_of_texts_is_printed_and_kept(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(work / "run", tmp_path / "run")
    assert main(["eval", "text", str(tmp_path / "run"), "--samples", "3"]) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in ("held-out text", "nucleus 0.95", "repetition", "protocol: 3 prompts"))
    assert "relevance" in said and "…" not in said, "nothing is cut off, however narrow the terminal"
    folder = tmp_path / "run" / "evaluations" / "step_00000020"
    assert {path.name for path in folder.iterdir()} == {"text.json", "text.md", "text.png"}


def test_figures_of_other_data_do_not_pass_for_the_runs_own(work: Path, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    argv = ["--tokenizer", str(work / "tok"), "--out", other, "--max-documents", "150", "--seed", "7"]
    assert main(["data", "prepare", "stories", *argv]) == 0
    shutil.copytree(work / "run", tmp_path / "run")
    assert main(["eval", "perplexity", str(tmp_path / "run"), "--data", other]) == 0
    assert any(other in row["split"] for row in Run.open(tmp_path / "run").evals())
    assert not any(row["split"] == "test" for row in Run.open(tmp_path / "run").evals())


def test_a_run_works_from_any_directory(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(work / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "data", "--out", "run", "--steps", "5", *TRAIN]) == 0
    monkeypatch.chdir(tmp_path.parent)
    assert main(["eval", "perplexity", str(tmp_path / "run")]) == 0


def test_report_is_one_file(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(work / "run"), "--out", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "r.html")
    assert "<svg" in (tmp_path / "r.html").read_text(encoding="utf-8")


BAD = [
    (["trian"], 'did you mean "train"'),
    (["tokenizer", "tran"], 'did you mean "train"'),
    (["train", "--step", "5"], '--step, 5 (did you mean "--steps"?); see gpt2lab train --help'),
    (["train", "--lr=3"], '--lr=3 (did you mean "--optim.lr"?); see'),
    (["train", "--preset", "gtp2"], 'did you mean "gpt2"'),
    (["train", "--model.n-lyer", "2"], "--model.n-layer"),
    (["train", "--model.n-embd", "10", "--model.n-head", "3"], "not divisible by n_head 3"),
    (["train", "--data", "nowhere"], "nowhere"),
    (["train", "--precision", "fp8"], "fp32"),
    (["train", "--steps", "ten"], "--steps"),
    (["train", "--steps", "5", "--epochs", "1"], "given twice"),
    (["train", "--max_tokens", "5000", "--epochs", "1"], "given twice"),
    (["train", "--steps", "5", "--config"], "--config"),
    (["train", "--config", "c.json", "--preset", "nano"], "--config and --preset"),
    (["train", "--resume", "--out", "run", "--config", "c.json"], "--config and --resume"),
    (["train", "--resume"], "--out"),
    *(
        (["compare", "--data", "d", "--out", "c", "--vary", "seed=1,2", *flags], f"{flags[0]} cannot be used")
        for flags in (["--preset", "nano"], ["--config", "c.json"], ["--resume"], ["--resume", "3"])
    ),
    (["train", "--out", "nowhere", "--resume"], "nowhere does not exist"),
    (["sample", "nowhere"], "nowhere does not exist"),
    (["report"], "give the directory of at least one run"),
    (["quickstart", "--text", "nowhere.txt"], "nowhere.txt"),
    (["data", "prepare", "storys", "--tokenizer", "x", "--out", "y"], "x"),
    (["tokenizer", "train", "--input", "storys", "--vocab-size", "300", "--out", "y"], 'did you mean "stories"'),
]


@pytest.mark.parametrize(("argv", "said"), BAD, ids=[" ".join(argv)[:40] for argv, _ in BAD])
def test_bad_input_is_one_line(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if argv[0] == "train" and "--data" not in argv and "--resume" not in argv:
        argv = [*argv, "--data", str(tmp_path)]
    assert said in refused(*argv)
    assert list(tmp_path.iterdir()) == []


def test_an_absent_device_is_named_with_those_that_are_here(work: Path, refused: Callable[..., str]) -> None:
    said = refused("train", "--data", work / "data", "--out", work / "x", "--device", "cuda:7", *TRAIN)
    assert 'no device "cuda:7"' in said and "cpu" in said
    assert not (work / "x").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b" \n\t\n", "white space"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "zero byte at offset 7"),
        (b"caf\xe9 au lait" * 9, "offset 3"),
        (b"too short", "text"),
    ],
)
def test_a_file_that_is_no_text_is_refused_and_leaves_nothing(
    content: bytes, said: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    assert said in refused("quickstart", "--text", file, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_errors_replace_goes_on_in_training_and_preparing(tmp_path: Path, refused: Callable[..., str]) -> None:
    file, tok, data = tmp_path / "latin.txt", tmp_path / "tok", tmp_path / "data"
    file.write_bytes(b"caf\xe9 au lait " * 200)
    train = ["tokenizer", "train", "--input", file, "--vocab-size", "270", "--out", tok]
    assert "0xe9 at offset 3; save it as UTF-8, or go on with --errors replace" in refused(*train)
    assert main([str(word) for word in [*train, "--errors", "replace"]]) == 0
    prepare = ["data", "prepare", file, "--tokenizer", tok, "--out", data]
    assert "0xe9 at offset 3" in refused(*prepare)
    assert main([str(word) for word in [*prepare, "--errors", "replace"]]) == 0
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["source"]["errors"] == "replace"
    assert manifest["splits"]["train"]["bytes"] == 180 * len("caf\ufffd au lait ".encode())


def test_what_exists_is_never_overwritten(work: Path, refused: Callable[..., str]) -> None:
    before = (work / "run" / "metrics.csv").read_bytes()
    assert "exists" in refused("train", "--data", work / "data", "--out", work / "run", "--steps", "5", *TRAIN)
    assert (work / "run" / "metrics.csv").read_bytes() == before
    again = ["--tokenizer", work / "tok", "--out", work / "data"]
    assert "exists" in refused("data", "prepare", "stories", *again)
    train = ["--input", "stories", "--vocab-size", "300", "--out", work / "tok"]
    assert "exists" in refused("tokenizer", "train", *train)


def test_a_batch_that_does_not_divide_names_what_does(work: Path, refused: Callable[..., str]) -> None:
    argv = ["train", "--data", work / "data", "--out", work / "x", *SMALL, "--batch-tokens", "100"]
    assert "96 or 128" in refused(*argv)


def test_a_damaged_shard_is_named_before_training(work: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(work / "data", tmp_path / "data")
    shard = tmp_path / "data" / "train_000000.bin"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    said = refused("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *TRAIN)
    assert "train_000000.bin" in said
    shard.write_bytes(content[:-3])
    said = refused("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *TRAIN)
    assert "train_000000.bin" in said and "truncated" in said
    assert not (tmp_path / "run").exists()


def test_another_tokenizers_data_is_refused(work: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    main(["tokenizer", "train", "--input", "stories", "--vocab-size", "300", "--out", str(tmp_path / "tok"),
          "--max-documents", "50"])  # fmt: skip
    main(["data", "prepare", "stories", "--tokenizer", str(tmp_path / "tok"), "--out", str(tmp_path / "data"),
          "--max-documents", "120"])  # fmt: skip
    said = refused("eval", "perplexity", work / "run", "--data", tmp_path / "data")
    fingerprints = [json.loads((folder / "data" / "manifest.json").read_text())["tokenizer"]["fingerprint"]
                    for folder in (work, tmp_path)]  # fmt: skip
    assert all(fingerprint[:12] in said for fingerprint in fingerprints)


def test_a_damaged_checkpoint_is_named(work: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    shutil.copytree(work / "run", tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step_00000020" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "model.safetensors" in refused("sample", tmp_path / "run", "--checkpoint", "20")
    weights.write_bytes(content[:100])
    assert "100 bytes" in refused("sample", tmp_path / "run", "--checkpoint", "20")
    assert "choose best, last or a step: 10, 20" in refused("sample", tmp_path / "run", "--checkpoint", "7")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--greedy", "--top-p", "0.5"], "greedy"),
        (["--top-p", "1.5"], "top_p is 1.5"),
        (["--top-k", "0"], "top_k is 0"),
        (["--temperature", "0"], "temperature is 0"),
        (["--samples", "0"], "samples is 0"),
    ],
)
def test_sampling_settings_out_of_range(work: Path, flags: list[str], said: str, refused: Callable[..., str]) -> None:
    assert said in refused("sample", work / "run", *flags)


@pytest.mark.skipif(sys.platform == "win32", reason="there a pipe without a reader is another error")
@pytest.mark.parametrize("command", [["plan", "--preset", "gpt2", "--gpu", "H100"], ["data", "list"]], ids=" ".join)
def test_a_reader_that_goes_ends_the_output_quietly(command: list[str]) -> None:
    program = "import sys; from gpt2lab.cli.main import main; sys.exit(main(sys.argv[1:]))"
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [sys.executable, "-u", "-c", program, *command]
    done = subprocess.run(arguments, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_text_in_place_of_prepared_data_is_told_what_to_do(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "a.txt").write_text("text", encoding="utf-8")
    assert "gpt2lab data prepare" in refused("train", "--data", tmp_path / "a.txt", "--out", tmp_path / "run")
