"""What the command line refuses: one clear line and exit code 2, and nothing is written or changed."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2lab.cli.arguments import OTHER_NAMES
from gpt2lab.cli.main import main

OPTIONS = Path(__file__).parents[2] / "docs" / "options.md"
Output = Callable[..., str]
ITEM = (
    '{"ind": 1, "activity_label": "", "ctx": "Lily saw a", "endings": ["zzzzzz.", "tree.", "cat.", "hat."], "label": 0}'
)
FILES = {
    "empty.txt": b"",
    "blank.txt": b" \n\t\n",
    "binary.txt": b"\x7fELF\x02\x01\x01\x00\x00",
    "latin.txt": b"caf\xe9 au lait" * 9,
    "tiny.txt": b"too short",
    "short.txt": b"One day a fox went to the river. " * 30,
    "bad.jsonl": f"{ITEM}\n{ITEM.replace('0', '9')}".encode(),
    "long.jsonl": ITEM.encode(),
}
HELLASWAG = "train --data DATA --out run SMALL --hellaswag"
REFUSALS = [
    ("trian", 'did you mean "train"'),
    ("tokenizer tran", 'did you mean "train"'),
    ("train --data . --step 5", '--step, 5 (did you mean "--steps"?); see gpt2lab train --help'),
    ("train --data . --lr=3", '--lr=3 (did you mean "--optim.lr"?); see'),
    ("train --data . --learning_rate 3e-4", 'did you mean "--optim.lr"?'),
    ("train --data . --batch_size 4", 'did you mean "--micro-batch" and "--batch-tokens"?'),
    ("train --data . --frobnicate 4", "--frobnicate, 4; see gpt2lab train --help"),
    ("train --data . --config tiny", "there is no file tiny; for the preset, give --preset tiny"),
    ("data prepare stories --num_train_samples 4", 'did you mean "--max-documents"?'),
    ("frobnicate", '"gpt2lab frobnicate" is not a command; choose from quickstart'),
    ("train --data . --preset gtp2", 'did you mean "gpt2"'),
    ("train --data . --model.n-lyer 2", "--model.n-layer"),
    ("train --data . --model.n-embd 10 --model.n-head 3", "not divisible by n_head 3"),
    ("train --data nowhere", "nowhere"),
    ("train --data RUN/train.log --out new", "gpt2lab data prepare"),
    ("train --data . --precision fp8", "fp32"),
    ("train --data . --steps ten", 'train: --steps is "ten"; it must be an integer; see gpt2lab train --help'),
    ("train --data . --optim.lr ten", 'train: --optim.lr is "ten"; it must be a number; see gpt2lab train --help'),
    ("train --data . --micro-batch x", 'train: --micro-batch is "x"; it must be an integer or auto; see'),
    ("plan --gpu", "plan: --gpu needs a value; see"),
    ("train --data . --steps 5 --epochs 1", "given twice"),
    ("train --data . --max_tokens 5000 --epochs 1", "given twice"),
    ("train --data . --steps 5 --config", "--config"),
    ("train --data . --config c.json --preset nano", "--config and --preset"),
    ("train --data . --config c.json --recipe fast", "--config and --recipe"),
    ("train --data . --grow-batch 0.5,0.7", "grow_batch is 0.5,0.7; it must be fractions of the run or steps, such as"),
    ("train --data . --grow-batch 0.5 --optim.warmup-tokens 9", "differ in tokens; give optim.warmup_steps"),
    ("train --data DATA --out new --batch-tokens 384 --grow-batch 0.2:0.5", "3 sequences cannot be halved 2 times"),
    ("train --data DATA --out new --model.n-ctx 10 --batch-tokens 20 --grow-seq-len 2:4", "10 tokens cannot be halved"),
    ("train --data . --recipe fst", 'unknown recipe "fst" (did you mean "fast"?); choose from gpt2, fast'),
    ("train --data . --recipe fast --optim.name adamw", "only muon takes it: leave it out, or set it to None if the"),
    ("train --data . --recipe fast --optim.schedule constant", "no decay: leave it out, or set it to None if the"),
    ("train --data . --recipe fast --init RUN", "a recipe is for training from random weights"),
    ("train --out RUN --resume --recipe fast", "recipe was gpt2 when the run started and cannot be fast"),
    ("train --data DATA --out new --recipe fast --model.mup-base-width 32", "muP's rates are for adamw"),
    ("train --resume --out run --config c.json", "--config and --resume"),
    ("train --resume", "--out"),
    ("train --out nowhere --resume", "nowhere does not exist"),
    ("train --data DATA --out new --device cuda:7", 'no device "cuda:7" here; this machine has cpu'),
    ("train --data DATA --out new --model.n-ctx 32 --batch-tokens 100", "96 or 128"),
    ("train --data DATA --out new --hellaswag-every 5", "hellaswag_every needs --hellaswag FILE"),
    ("train --data DATA --out RUN --steps 5", "exists"),
    *(
        (f"compare --data d --out c --vary seed=1,2 {flags}", f"{flags.split()[0]} cannot be used")
        for flags in ("--preset nano", "--config c.json", "--resume", "--resume 3")
    ),
    ("sample nowhere", "nowhere does not exist"),
    ("sample RUN --greedy --top-p 0.5", "greedy"),
    ("sample RUN --top-p 1.5", "top_p is 1.5"),
    ("sample RUN --top-k 0", "top_k is 0"),
    ("sample RUN --temperature 0", "temperature is 0"),
    ("train --data DATA --out new --sample-prompt \udcff", "text in the encoding of the terminal"),
    ("sample RUN --samples 0", "samples is 0"),
    ("sample RUN --checkpoint 7", "choose best, last or a step: 10, 20"),
    ("eval perplexity RUN --detokenize wikitext", "give --text FILE"),
    ("eval perplexity RUN --text RUN/train.log --split val", "leave out --data"),
    ("eval hellaswag RUN --limit 0", "limit is 0"),
    ("report", "give the directory of at least one run"),
    ("quickstart --text nowhere.txt", "nowhere.txt"),
    ("quickstart --out RUN", "exists"),
    ("quickstart --resume", "does not exist"),
    ("quickstart --resume --out run --seed 7", "leave out --text, --seed, --minutes and --steps"),
    ("quickstart --resume --out run --text x", "leave out --text, --seed, --minutes and --steps"),
    ("quickstart --resume --out run --minutes 5", "leave out --text, --seed, --minutes and --steps"),
    ("quickstart --out new --minutes 5 --steps 9", "minutes 5 and steps 9; give one of them"),
    ("quickstart --out new --minutes 0", "minutes is 0.0; it must be above 0"),
    ("quickstart --out new --minutes nan", "minutes is nan; it must be above 0"),
    ("quickstart --out new --steps 0", "steps is 0; it must be at least 1"),
    ("quickstart --text FILES/empty.txt --out run", "empty"),
    ("quickstart --text FILES/blank.txt --out run", "white space"),
    ("quickstart --text FILES/binary.txt --out run", "zero byte at offset 7"),
    ("quickstart --text FILES/latin.txt --out run", "offset 3"),
    ("quickstart --text FILES/tiny.txt --out run", "text"),
    ("quickstart --text FILES/short.txt --out run", "too short"),
    (f"{HELLASWAG} FILES/bad.jsonl", "bad.jsonl: line 2: field \"label\" is '9'"),
    (f"{HELLASWAG} FILES/long.jsonl --model.n-ctx 4 --batch-tokens 64", "none of the 1 HellaSwag items can be scored"),
    (f"{HELLASWAG} FILES/long.jsonl --model.mask bidirectional", "mask bidirectional lets tokens attend to later ones"),
    ("check --device cuda:9", 'no device "cuda:9"'),
    ("data prepare storys --tokenizer x --out y", "x"),
    ("data prepare stories --tokenizer TOK --out DATA", "exists"),
    ("data show DATA --documents -1", "--documents is -1; it must be 0 or more"),
    ("data show DATA --tokens -1", "--tokens is -1; it must be 0 or more"),
    ("data show DATA --picture RUN/curves.png", "exists; give another --picture"),
    ("tokenizer train --input storys --vocab-size 300 --out y", 'did you mean "stories"'),
    ("tokenizer train --input stories --vocab-size 300 --out TOK", "exists"),
    ("tokenizer show TOK --longest -1", "--longest is -1; it must be 0 or more"),
    ("tokenizer show TOK --max-documents 3", "--max-documents and --column need --input"),
    ("tokenizer show TOK --gpt2 ./nowhere", "./nowhere does not exist"),
    ("tokenizer show TOK --input nowhere.txt", "nowhere.txt"),
    ("import-hf DATA RUN", "exists"),
    ("import-hf . new", "config.json is missing"),
    ("import-hf ./nowhere new", "does not exist"),
    ("export-hf RUN DATA", "exists"),
    ("export-html RUN DATA/manifest.json", "give a name that ends in .html"),
    ("export-html RUN missing/model.html", "there is no folder missing"),
]


@pytest.fixture(scope="module")
def places(work: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the words in capitals above stand for."""
    files = tmp_path_factory.mktemp("files")
    for name, content in FILES.items():
        (files / name).write_bytes(content)
    folders = {name: (work / name.lower()).as_posix() for name in ("TOK", "DATA", "RUN")}
    return {**folders, "FILES": files.as_posix(), "SMALL": shlex.join(small)}


@pytest.mark.parametrize(("command", "expected"), REFUSALS, ids=[command for command, _ in REFUSALS])
def test_bad_input_is_one_line_and_changes_nothing(
    command: str, expected: str, work: Path, places: dict[str, str], tmp_path: Path, refused: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, place in places.items():
        command = command.replace(name, place)
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    assert expected in refused(*shlex.split(command))
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


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
    given: str, said: str, work: Path, monkeypatch: pytest.MonkeyPatch, refused: Output
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
    assert said in refused("tokenizer", "decode", work / "tok")


def test_a_damaged_shard_is_named_before_training(work: Path, tmp_path: Path, refused: Output) -> None:
    shutil.copytree(work / "data", tmp_path / "data")
    shard = tmp_path / "data" / "train_000000.bin"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    train = ("train", "--data", tmp_path / "data", "--out", tmp_path / "run")
    for damaged, said in ((content, ""), (content[:-3], "truncated")):
        shard.write_bytes(damaged)
        line = refused(*train)
        assert "train_000000.bin" in line and said in line
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named(run: Path, refused: Output) -> None:
    weights = run / "checkpoints" / "step_00000020" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    for damaged, said in ((content, "model.safetensors"), (content[:100], "100 bytes")):
        weights.write_bytes(damaged)
        assert said in refused("sample", run, "--checkpoint", "20")


def test_a_run_whose_tokenizer_was_altered_is_named(run: Path, output: Output, refused: Output) -> None:
    file = run / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = []
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    for words in (["sample", run], ["eval", "text", run], ["train", "--out", run, "--resume", "--steps", 30]):
        assert "but the model was trained with" in refused(*words)
    output("report", run, "--out", run / "report.html")
    assert "it was altered; restore it from a copy" in (run / "report.html").read_text(encoding="utf-8")


def test_another_tokenizers_data_is_refused(work: Path, tmp_path: Path, output: Output, refused: Output) -> None:
    tok, data = tmp_path / "tok", tmp_path / "data"
    output("tokenizer", "train", "--input", "stories", "--vocab-size", 300, "--out", tok, "--max-documents", 50)
    output("data", "prepare", "stories", "--tokenizer", tok, "--out", data, "--max-documents", 120)
    said = refused("eval", "perplexity", work / "run", "--data", data)
    for folder in (work / "data", data):
        assert json.loads((folder / "manifest.json").read_text())["tokenizer"]["fingerprint"][:12] in said


def test_the_names_of_options_elsewhere_are_documented_and_ours_exist(capsys: pytest.CaptureFixture[str]) -> None:
    rows = re.findall(r"^\| (`--.*?) \| (`.*`) \|$", OPTIONS.read_text(encoding="utf-8"), re.MULTILINE)
    documented = {tuple(re.findall(r"`(.*?)`", ours)): tuple(re.findall(r"`(.*?)`", theirs)) for ours, theirs in rows}
    assert documented == {tuple(ours.split()): theirs for ours, theirs in OTHER_NAMES.items()}
    for command in (["train"], ["sample"], ["data", "prepare"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
    known = capsys.readouterr().out
    assert [name for names in documented for name in names if name not in known] == []


@pytest.mark.parametrize("words", [["help"], ["version"], ["help", "train"], ["help", "data"]])
def test_help_and_version_are_understood_without_dashes(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"help": ["--help"], "version": ["--version"]}[words[0]]
    with contextlib.suppress(SystemExit):
        assert main(words) == 0
    found = capsys.readouterr().out
    with contextlib.suppress(SystemExit):
        assert main([*words[1:], *flags]) == 0
    assert found == capsys.readouterr().out != ""
