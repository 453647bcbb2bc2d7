"""A part of one's own, given by --import, travels with its run; every command finds it, and asks before it runs."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from users import ITEM, new_process, other_user

from gpt2lab import imports
from gpt2lab.cli.main import main
from gpt2lab.errors import InputError
from gpt2lab.evaluation.measure import RunData
from gpt2lab.files import sha256_of, write_checked_json
from gpt2lab.imports import FILES, import_file, trust
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import require_gpt
from gpt2lab.model.masks import MASKS
from gpt2lab.report.facts import commands, model_facts
from gpt2lab.runs import Run
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.config import saved_model
from ranks import FORKED, begin, launch, needs_fork

pytestmark = pytest.mark.usefixtures("one_user")
Output = Callable[..., str]
BEGIN = "from gpt2lab.model.masks import MASKS, Mask, causal\n"
DILATED = """
def dilated(window):
    def allows(b, h, q, k):
        return ((q - k) % {step} == 0) & (q - k < {step} * window)
    return causal() & Mask(allows, reach={step} * window)

MASKS["dilated"] = dilated
"""
EVERY_SECOND, EVERY_THIRD = (BEGIN + DILATED.format(step=step) for step in (2, 3))
OWN = ["--model.mask", "dilated", "--model.window", "4"]


@pytest.fixture(scope="module")
def finished(work: Path, small: list[str], home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the mask of a file that is gone; not to be changed."""
    folder = tmp_path_factory.mktemp("imports")
    file = written(folder / "my_masks.py", EVERY_SECOND)
    where = ["--data", str(work / "data"), "--out", str(folder / "run"), "--steps", "20"]
    with pytest.MonkeyPatch.context() as patch:
        other_user(patch, home)
        assert main(["train", "--import", str(file), *where, *small, *OWN]) == 0
        new_process()
    file.unlink()
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def train(work: Path, small: list[str]) -> list[str]:
    """The beginning of a command that trains."""
    return ["train", "--data", str(work / "data"), "--steps", "20", *small]


def written(path: Path, source: str) -> Path:
    path.write_text(source, encoding="utf-8")
    return path


def allowed(model: GPTConfig, T: int = 12) -> torch.Tensor:
    q, k = torch.arange(T)[:, None], torch.arange(T)
    return model.masks[0].allows(torch.tensor(0), torch.tensor(0), q, k)


def dilated(step: int, window: int, T: int = 12) -> torch.Tensor:
    q, k = torch.arange(T)[:, None], torch.arange(T)
    return (k <= q) & ((q - k) % step == 0) & (q - k < step * window)


def test_the_run_holds_the_file_and_its_hash(finished: Path) -> None:
    model, copy = saved_model(Run(finished)), finished / "imports" / "my_masks.py"
    assert copy.read_text(encoding="utf-8") == EVERY_SECOND
    assert model.import_sha256 == sha256_of(copy)
    assert torch.equal(allowed(model), dilated(2, 4))
    log = (finished / "train.log").read_text(encoding="utf-8")
    assert f"my_masks.py, SHA-256 {model.import_sha256}" in log
    assert "dilated" not in MASKS, "a run does not change what a name means to others"


COMMANDS = """
sample RUN --max-new-tokens 40 --samples 2
eval perplexity RUN
eval positions RUN
eval text RUN --samples 2 --max-new-tokens 4
eval hellaswag RUN --items ITEMS
report RUN --out report.pdf
plan --from RUN
train --out RUN --resume --steps 22
train --init RUN --data DATA --out tuned --steps 2 --batch-tokens 128
train --config RUN/config.json --out again --steps 2
train --config RUN/segments/step_00000000/config.json --out again --steps 2
train --config RUN/config.json --out again --steps 2 --import OTHER --model.mask halves
""".strip().splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_finds_the_mask_in_the_run(
    command: str, run: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "items.jsonl", json.dumps(ITEM) + "\n")
    other = written(tmp_path / "other.py", EVERY_THIRD.replace('"dilated"', '"halves"'))
    used = other if "OTHER" in command else run / "imports" / "my_masks.py"
    for name, path in (("RUN", run), ("DATA", work / "data"), ("ITEMS", tmp_path / "items.jsonl"), ("OTHER", other)):
        command = command.replace(name, path.as_posix())
    assert output(*shlex.split(command)) != ""
    for made in ("tuned", "again"):
        if (tmp_path / made).exists():
            assert saved_model(Run(tmp_path / made)).import_sha256 == sha256_of(used)
            assert (tmp_path / made / "imports" / used.name).exists()


def test_lm_evaluation_harness_finds_it_too(run: Path, tmp_path: Path, output: Output) -> None:
    pytest.importorskip("lm_eval")
    written(tmp_path / "items.jsonl", json.dumps({"q": "The cat", "a": " sat"}) + "\n")
    task = f"task: own\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/items.jsonl}}}}\n"
    task += 'test_split: test\noutput_type: loglikelihood\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\n'
    written(tmp_path / "own.yaml", task + "metric_list: [{metric: acc}]\n")
    assert "acc" in output("eval", "harness", run, "--tasks", "own", "--tasks-dir", tmp_path)


def test_hugging_face_cannot_hold_it(run: Path, tmp_path: Path, refused: Output) -> None:
    said = refused("export-hf", run, tmp_path / "hf")
    assert said == (
        "gpt2lab: no architecture of Hugging Face has all parts of this model: the nearest is GPT2LMHeadModel, but the "
        "model has mask dilated, window 4; what can be exported has mask causal, window none\n"
    )


def fresh(*words: object, home: Path, torchrun: tuple[str, ...] = ()) -> str:
    """Run a command in a new process, or under torchrun, without a terminal; return what it printed."""
    start = [sys.executable, "-m", *torchrun, "gpt2lab", *map(str, words)]
    environment = {**os.environ, "GPT2LAB_HOME": str(home)}
    return subprocess.check_output(start, env=environment, stdin=subprocess.DEVNULL, text=True)


def test_a_new_process_samples_as_the_old_one_did(run: Path, home: Path, output: Output) -> None:
    words = ("sample", run, "--greedy", "--max-new-tokens", 40)
    assert fresh(*words, home=home) == output(*words)


def succeed(*words: object) -> None:
    """Run a command on a rank."""
    assert main([str(word) for word in words]) == 0


@needs_fork
@pytest.mark.parametrize("torchrun", [False, pytest.param(True, marks=pytest.mark.fault)])
def test_every_rank_imports_the_file_to_start_and_to_resume(
    train: list[str], home: Path, tmp_path: Path, torchrun: bool
) -> None:
    file, run = written(tmp_path / "my_masks.py", EVERY_SECOND), tmp_path / "run"
    words = (*train, *OWN, "--micro-batch=2", "--import", file, "--out", run)
    if torchrun:
        fresh(*words, home=home, torchrun=("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"))
    else:
        assert launch(2, succeed, *words) == ["", ""]
    file.unlink()
    assert launch(2, succeed, "train", "--out", run, "--resume", "--steps", 22) == ["", ""]
    assert Run(run).metrics()[-1]["step"] == 22


@pytest.fixture
def forked_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the process of each run of a comparison; `tests/compare` starts real ones."""
    environment = dict(os.environ)

    def pool(workers: int, context: object) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, FORKED, initializer=begin, initargs=(environment,))

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", pool)


@pytest.mark.usefixtures("forked_runs")
def test_a_comparison_trains_both_and_knows_them_later(
    train: list[str], tmp_path: Path, output: Output, refused: Output
) -> None:
    file, out = written(tmp_path / "my_masks.py", EVERY_SECOND), tmp_path / "out"
    arms = ["--arm", "causal:", "--arm", "dilated: model.mask=dilated model.window=4"]
    compare = ["compare", *train[1:], "--out", str(out), "--seeds", "1", "--eval-every", "4", *arms]
    assert "unknown mask" in refused(*compare)
    assert "--import" in (planned := output(*compare, "--import", file, "--dry-run")).splitlines()[1]
    assert "import" not in planned.splitlines()[0]
    output(*compare, "--import", file)
    found = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert [run["status"] for run in found["runs"]] == ["finished", "finished"]
    assert all("cache_bytes" in run["figures"] for run in found["runs"])
    new_process()
    said = output(*compare, "--import", file)
    assert said.count("already done") == 2
    new_process()
    output("report", out, "--out", tmp_path / "report.html")
    assert "not trusted" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    written(file, EVERY_THIRD)
    new_process()
    assert "was run with model.import_sha256" in refused(*compare, "--import", file)
    unused = ["--arm", "causal:", "--arm", "window: model.mask=window model.window=4"]
    assert "is not used" in refused(*compare[:-4], *unused, "--import", file)


def test_the_report_names_the_file_and_its_commands_train_the_run_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "run")
    found = RunData(Run(Path("run")))
    mask = next(fact for fact in model_facts(found) if fact.name == "Attention mask")
    sha256 = sha256_of(Path("run/imports/my_masks.py"))
    assert (mask.value, mask.note) == ("dilated", f"defined in imports/my_masks.py, SHA-256 {sha256[:16]}")
    (again,) = [fact.value for fact in commands(found) if fact.value.startswith("gpt2lab train")]
    other_user(monkeypatch, tmp_path / "stranger")
    assert main(shlex.split(again)[1:]) == 2, "a command from a report trusts nothing"
    trust(Run(Path("run")))
    assert main(shlex.split(again)[1:]) == 0
    weights = "checkpoints/step_00000020/model.safetensors"
    assert sha256_of(Path("run-again") / weights) == sha256_of(Path("run") / weights)


def test_runs_of_two_versions_of_a_file_keep_their_own_masks(
    finished: Path, train: list[str], tmp_path: Path, output: Output
) -> None:
    output(*train, *OWN, "--import", written(tmp_path / "my_masks.py", EVERY_THIRD), "--out", tmp_path / "run")
    new_process()
    models = [require_gpt(load_model(Run(path))[0]) for path in (finished, tmp_path / "run")]
    for model, step in zip(models, (2, 3), strict=True):
        assert torch.equal(allowed(model.config), dilated(step, 4))
        assert model.config.masks[0] is model.masks[0]
    output("report", finished, tmp_path / "run", "--out", tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"model.mask=dilated ({sha256[:8]})" in html for sha256 in FILES)


PARTS = Path(__file__).parents[2] / "docs" / "parts.md"
OWN_MODULES = ["--model.feed-forward", "reglu", "--model.block", "macaron"]


@pytest.fixture(scope="module")
def modules(work: Path, small: list[str], home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with the feed-forward layer and the block of the documentation."""
    folder = tmp_path_factory.mktemp("modules")
    (source,) = [text for text in PARTS.read_text(encoding="utf-8").split("```python\n")[1:] if "BLOCKS[" in text]
    file = written(folder / "my_parts.py", source.partition("```")[0])
    where = ["--data", str(work / "data"), "--out", str(folder / "run"), "--steps", "20"]
    with pytest.MonkeyPatch.context() as patch:
        other_user(patch, home)
        assert main(["train", "--import", str(file), *where, *small, *OWN_MODULES]) == 0
        new_process()
    file.unlink()
    return folder / "run"


def test_a_feed_forward_layer_and_a_block_travel_too(modules: Path, tmp_path: Path, output: Output) -> None:
    run, sha256 = Path(shutil.copytree(modules, tmp_path / "run")), sha256_of(modules / "imports" / "my_parts.py")
    log = (run / "train.log").read_text(encoding="utf-8")
    for part in ("feed_forward reglu", "block macaron"):
        assert f"{part}: " in log and f"my_parts.py, SHA-256 {sha256}" in log
        assert f"FLOPs and memory of {part} are estimated from its matrices" in log
    output("sample", run, "--max-new-tokens", 40)
    new_process()
    output("eval", "perplexity", run)
    output("train", "--out", run, "--resume", "--steps", 22)
    new_process()
    output("report", run, "--out", tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count(f"defined in imports/my_parts.py, SHA-256 {sha256[:16]}") == 2
    weights = load_model(Run(run))[0].state_dict()
    assert weights["h.0.mlp.gate.weight"].shape == weights["h.0.first.value.weight"].shape == (64, 16)


def test_plan_says_how_parts_of_ones_own_count(modules: Path, output: Output) -> None:
    said = output("plan", "--from", modules)
    assert "of feed_forward reglu and block macaron, FLOPs and activations are estimated" in " ".join(said.split())


def test_hugging_face_cannot_hold_a_block(modules: Path, tmp_path: Path, refused: Output) -> None:
    said = refused("export-hf", modules, tmp_path / "hf")
    assert "feed_forward reglu, block macaron; what can be exported has feed_forward none, block none" in said


class Terminal(io.StringIO):
    """Standard input or output that is a terminal."""

    def isatty(self) -> bool:
        return True


SAMPLE = ("sample", "--max-new-tokens", "4")


def test_a_strangers_code_runs_only_if_the_user_says_yes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    ran = tmp_path / "ran"
    file = written(run / "imports" / "my_masks.py", f"with open({str(ran)!r}, 'a') as f: f.write('.')\n{EVERY_SECOND}")
    config = Run(run).config
    config["model"]["import_sha256"] = sha256_of(file)  # as whoever sends a run can
    write_checked_json(run / "config.json", config)
    other_user(monkeypatch, tmp_path / "stranger")
    answers = Terminal("n\nyes\n")
    for expected in (2, 0):
        monkeypatch.setattr("sys.stdin", answers)
        monkeypatch.setattr("sys.stderr", said := Terminal())
        assert main([*SAMPLE, str(run)]) == expected
        assert f"{file}\n  SHA-256 {sha256_of(file)}\nRun this code? [y/N] " in said.getvalue()
        assert ran.exists() == (expected == 0)
        new_process()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    output(*SAMPLE, run)
    assert ran.read_text() == ".."


def test_without_a_terminal_a_strangers_code_is_refused_until_it_is_allowed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Output, refused: Output
) -> None:
    other_user(monkeypatch, tmp_path / "stranger")
    written(tmp_path / "trusted", "").write_bytes(b"\xff\n" + b"0" * 64)  # not UTF-8, and without an end of line
    other_user(monkeypatch, tmp_path)
    for command in (
        SAMPLE,
        ("eval", "perplexity"),
        ("plan", "--from"),
        ("train", "--steps", "22", "--resume", "--out"),
    ):
        said = refused(*command, run)
        assert f"{run / 'imports' / 'my_masks.py'} (SHA-256 {sha256_of(run / 'imports' / 'my_masks.py')})" in said
        assert f"allow it with: gpt2lab trust {run}" in said
    report = tmp_path / "report.html"
    output("report", run, "--out", report)
    assert f"gpt2lab trust {run}" in report.read_text(encoding="utf-8"), "a report needs no code, and says so"
    assert "SHA-256" in output("trust", run)
    new_process()
    output(*SAMPLE, run)
    output("report", run, "--out", report)
    assert "gpt2lab trust" not in report.read_text(encoding="utf-8")


def test_a_rank_refuses_and_does_not_ask(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_user(monkeypatch, tmp_path / "stranger")
    for name in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{name}", said := Terminal())
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "--out", str(run), "--resume"]) == 2
    assert f"gpt2lab trust {run}" in said.getvalue() and "[y/N]" not in said.getvalue()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("sys.stderr", said := Terminal())
    assert (main(["train", "--out", str(run), "--resume"]), said.getvalue()) == (2, ""), "rank 0 of the machine says it"


def test_python_trusts_by_a_call_and_the_same_content_by_import(
    run: Path, train: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_user(monkeypatch, tmp_path / "stranger")
    with pytest.raises(InputError, match="is not trusted here"):
        load_model(Run(run))
    assert trust(Run(run)).path == run / "imports" / "my_masks.py"
    assert load_model(Run(run))[0].config.mask == "dilated"
    other_user(monkeypatch, tmp_path / "third")
    sha256 = import_file(written(tmp_path / "same.py", EVERY_SECOND))
    assert load_model(Run(run))[0].config == saved_model(Run(run))
    assert GPTConfig(mask="dilated", window=4).with_import().import_sha256 == sha256


def test_training_works_where_trust_cannot_be_remembered(
    train: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Output, refused: Output
) -> None:
    file, run = written(tmp_path / "my_masks.py", EVERY_SECOND), tmp_path / "run"
    other_user(monkeypatch, file / "home")
    output(*train, *OWN, "--import", file, "--out", run)
    new_process()
    assert "set GPT2LAB_HOME to a directory that can be written" in refused("trust", run)
    output("train", "--import", file, "--out", run, "--resume", "--steps", 22)


def test_an_altered_copy_is_refused(run: Path, refused: Output) -> None:
    written(run / "imports" / "my_masks.py", EVERY_THIRD)
    assert "imports holds no readable file with the SHA-256 in config.json" in refused(*SAMPLE, run)
    assert "imports holds no readable file" in refused("trust", run)
    written(run / "imports" / "my\x1b[2K.py", EVERY_SECOND)
    assert "my\\x1b[2K.py' begins with a dot or has a character that cannot be printed" in refused("trust", run)
    shutil.rmtree(run / "imports")
    assert "imports holds no readable file" in refused(*SAMPLE, run)


@pytest.mark.parametrize("name", [".masks.py", "my\u00a0masks.py"])
def test_a_file_that_its_run_could_not_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rename it"):
        import_file(written(tmp_path / name, EVERY_SECOND))


def test_other_files_beside_the_copy_do_not_matter(run: Path, output: Output) -> None:
    (run / "imports" / "__pycache__").mkdir()
    written(run / "imports" / "a.py", "1 / 0")
    output(*SAMPLE, run)


def test_a_configuration_keeps_the_file_of_its_own_mask_only(tmp_path: Path) -> None:
    first = import_file(written(tmp_path / "a.py", EVERY_SECOND))
    second = import_file(written(tmp_path / "b.py", EVERY_THIRD.replace('"dilated"', '"halves"')))
    model = GPTConfig(mask="dilated", window=4).with_import()
    other = dataclasses.replace(model, mask="halves").with_import()
    assert (model.import_sha256, other.import_sha256) == (first, second)


def test_a_file_that_names_a_built_in_function_can_be_edited_and_imported_again(tmp_path: Path) -> None:
    source = "from gpt2lab.model.masks import MASKS, sliding_window\nMASKS['w2'] = sliding_window\n"
    for text in (source, f"{source}# edited\n", source):
        sha256 = import_file(written(tmp_path / "w2.py", text))
        assert GPTConfig(mask="w2", window=4).with_import().import_sha256 == sha256


def test_a_model_has_parts_of_one_file_only(tmp_path: Path, refused: Output, train: list[str]) -> None:
    import_file(written(tmp_path / "a.py", EVERY_SECOND))
    source = (
        "from torch import nn\nfrom gpt2lab.model.parts import FEED_FORWARDS\nFEED_FORWARDS['none'] = nn.Identity\n"
    )
    file = written(tmp_path / "b.py", source)
    said = refused(*train, *OWN, "--model.feed-forward", "none", "--import", file, "--out", tmp_path / "run")
    assert "mask dilated and feed_forward none are from different files; define them in one" in said


@pytest.mark.parametrize("content", ["[]", '{"model": []}'])
def test_a_configuration_of_another_form_is_refused(content: str, tmp_path: Path, refused: Output) -> None:
    assert "config.json" in refused("train", "--config", written(tmp_path / "config.json", content))


def test_a_run_without_code_needs_no_trust(work: Path, refused: Output) -> None:
    assert "contains no custom code" in refused("trust", work / "run")


ADD = 'MASKS["{0}"] = {0}\n'
BAD_FILES = [
    (None, "my_masks.py: cannot be read (No such file or directory)"),
    ("def dilated(:\n", "my_masks.py, line 1: SyntaxError: "),
    ("\x00", "my_masks.py: SyntaxError: source code"),
    (f"{BEGIN}\nMASKS['dilated'] = 1 / 0\n", "my_masks.py, line 3: ZeroDivisionError: division by zero"),
    ("import helpers\n", "my_masks.py, line 1: ModuleNotFoundError: No module named 'helpers'"),
    ("raise SystemExit(0)", "my_masks.py, line 1: SystemExit: 0"),
    (BEGIN, 'my_masks.py adds no part; end it with MASKS["NAME"] = FUNCTION or the like (docs/parts.md)'),
    (
        EVERY_SECOND.replace('"dilated"', '"dilatd"'),
        'unknown mask "dilated" (did you mean "dilatd"?); choose from caus',
    ),
    (f"{EVERY_SECOND}MASKS['causal'] = dilated\n", "my_masks.py replaces mask causal, which is built in; give yours"),
    (f"{EVERY_SECOND}del MASKS['causal']\n", "my_masks.py replaces mask causal, which is built in; give yours"),
    (f"{BEGIN}MASKS['dilated'] = causal()\n", "a mask must be a function that returns a Mask"),
    (
        EVERY_SECOND.replace("causal() & ", ""),
        'mask "dilated" lets head 0 at position 0 attend to position 2, which is',
    ),
    (EVERY_SECOND.replace("reach=2 * window", "reach=window"), "beyond its reach of 4; correct the reach"),
    (
        f"{BEGIN}def dilated(window):\n  return 3\n{ADD.format('dilated')}",
        'mask "dilated": FILE: TypeError: 3 is not a Mask',
    ),
    (
        f"{BEGIN}def dilated(window):\n  return Mask(lambda b, h, q, k: q if q > k else k)\n{ADD.format('dilated')}",
        'mask "dilated": FILE, line 3: RuntimeError: Boolean value of Tensor with more than one value is ambiguous',
    ),
    (
        f"{BEGIN}def dilated(window):\n  return Mask(lambda b, h, q, k: (q >= k) * 1)\n{ADD.format('dilated')}",
        'mask "dilated": FILE: TypeError: the predicate returns torch.int64, not torch.bool',
    ),
    (
        EVERY_SECOND.replace("dilated(window)", "dilated(stride)"),
        "mask dilated takes stride; its options can be window",
    ),
]


@pytest.mark.parametrize(("source", "said"), BAD_FILES, ids=[said[:40] for _, said in BAD_FILES])
def test_a_file_that_is_not_what_it_should_be_is_refused(
    source: str | None, said: str, train: list[str], tmp_path: Path, refused: Output
) -> None:
    file, masks = tmp_path / "my_masks.py", dict(MASKS)
    if source is not None:
        written(file, source)
    assert said.replace("FILE", str(file)) in refused(*train, *OWN, "--import", file, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    new_process()
    assert masks == MASKS


def test_a_file_that_is_not_used_is_refused(train: list[str], run: Path, tmp_path: Path, refused: Output) -> None:
    file = written(tmp_path / "my_masks.py", EVERY_THIRD)
    new = ["--out", tmp_path / "new"]
    init = ["train", "--data", train[2], "--init", run, "--steps", 20, "--device", "cpu", *new]
    for command in ([*train, *new], ["train", "--out", run, "--resume", "--steps", 22], init):
        said = refused(*command, "--import", file)
        assert f"--import {file} is not used: " in said
        assert (f"{run} was made with another version of this file, and keeps it" in said) == (run in command)
        new_process()
    assert "model options are not those of" in refused(
        *train,
        *OWN,
        "--init",
        run,
        "--import",
        file,
        "--out",
        tmp_path / "new",
        "--model.import-sha256",
        sha256_of(file),
    )


def test_a_mask_of_the_process_alone_is_warned_of_and_can_be_given_its_file_later(
    train: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Output, refused: Output
) -> None:
    file, run = written(tmp_path / "my_masks.py", EVERY_SECOND), tmp_path / "run"
    exec(EVERY_SECOND, {})
    pickled = pickle.dumps(GPTConfig(mask="dilated", window=4))
    assert "known to this process only" in output(*train, *OWN, "--out", run)
    new_process()
    with pytest.raises(InputError, match="unknown mask"):
        _ = pickle.loads(pickled).masks[0]
    assert "give its file to gpt2lab train --import FILE (with --resume" in refused(*SAMPLE, run)
    output("train", "--out", run, "--resume", "--steps", 22, "--import", file)
    new_process()
    output(*SAMPLE, run)


def test_the_state_directory_is_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GPT2LAB_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name, folder in (("XDG_STATE_HOME", "xdg"), ("LOCALAPPDATA", "local")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    places = {"linux": "xdg", "darwin": "Library/Application Support", "win32": "local"}
    for platform, place in places.items():
        monkeypatch.setattr(imports.sys, "platform", platform)
        assert imports.state_directory() == tmp_path / place / "gpt2lab"
