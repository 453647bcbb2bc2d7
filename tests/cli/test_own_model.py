"""A model of one's own, ``--model FILE:CLASS``: every command works with it, or says in one line why it cannot."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from users import ITEM, new_process, other_user

from gpt2lab.cli.main import main
from gpt2lab.compare.run import in_this_process
from gpt2lab.evaluation.measure import RunData
from gpt2lab.files import sha256_of
from gpt2lab.generation import generate, pad_left
from gpt2lab.imports import import_from, import_model
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT, make_model
from gpt2lab.model.language_model import OwnModel, profile
from gpt2lab.model.parts import make_part
from gpt2lab.report.facts import model_facts, sources
from gpt2lab.runs import Run
from gpt2lab.training.checkpoint import load_model
from gpt2lab.training.config import saved_model
from ranks import launch, needs_fork

pytestmark = pytest.mark.usefixtures("one_user")
Output = Callable[..., str]
ATTENTION = """
import torch


def attention(q, k, v):
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    return (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).masked_fill(later, -torch.inf).softmax(dim=3) @ v
"""
MODEL = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        C, self.n_head = config.n_embd, config.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.c_attn, self.c_proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(approximate="tanh"), nn.Linear(4 * C, C))

    def forward(self, x):
        from chapter import attention

        B, T, C = x.shape
        q, k, v = (h.view(B, T, self.n_head, -1).transpose(1, 2) for h in self.c_attn(self.ln_1(x)).split(C, dim=2))
        x = x + self.c_proj(attention(q, k, v).transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte, self.wpe = nn.Embedding(config.vocab_size, config.n_embd), nn.Embedding(config.n_ctx, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head.weight = self.wte.weight  # tied
        self.register_buffer("scale", torch.ones(2))
        nn.init.normal_(self.wte.weight, std=0.02)

    def forward(self, tokens, targets=None):
        x = self.drop(self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device)))
        for block in self.h:
            x = block(x)
        x = self.ln_f(x) * self.scale[0]
        logits = self.head(x)
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class LastOnly(GPT):
    def forward(self, tokens, targets=None):
        logits, loss = super().forward(tokens, targets)
        return logits if targets is not None else logits[:, -1:], loss
"""
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_ctx": 8, "vocab_size": 70, "dropout": 0.0}


def written(folder: Path, model: str = MODEL, chapter: str = ATTENTION) -> str:
    """Write a model with the module that it imports; return what --model takes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_gpt2.py").write_text(model, encoding="utf-8")
    (folder / "chapter.py").write_text(chapter, encoding="utf-8")
    return f"{folder}/my_gpt2.py:GPT"


@pytest.fixture(scope="module")
def finished(work: Path, small: list[str], home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a model whose files are gone; not to be changed."""
    folder = tmp_path_factory.mktemp("own")
    model = written(folder / "files")
    where = ["--data", str(work / "data"), "--out", str(folder / "run"), "--steps", "20"]
    with pytest.MonkeyPatch.context() as patch:
        other_user(patch, home)
        assert main(["train", "--model", model, *where, *small, "--model.dropout", "0.1", "--eval-every", "10"]) == 0
        new_process()
    shutil.rmtree(folder / "files")
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def train(work: Path, small: list[str]) -> list[str]:
    """The beginning of a command that trains."""
    return ["train", "--data", str(work / "data"), "--steps", "20", *small]


def own(spec: str, **options: object) -> OwnModel:
    """A model of one's own, in evaluation mode."""
    torch.manual_seed(0)
    model = make_model(GPTConfig(**{**SMALL, **options}, **import_model(spec)))  # pyright: ignore[reportArgumentType]
    assert isinstance(model, OwnModel)
    return model.eval()


def test_the_run_holds_the_files_and_their_hashes(finished: Path) -> None:
    assert sorted(path.name for path in (finished / "imports").iterdir()) == ["SHA256SUMS", "chapter.py", "my_gpt2.py"]
    names = ("my_gpt2.py", "chapter.py")
    sums = [f"{sha256_of(finished / 'imports' / name)}  {name}" for name in names]  # as the program sha256sum has them
    assert (finished / "imports/SHA256SUMS").read_text(encoding="utf-8").splitlines() == sums
    assert saved_model(Run(finished)).import_sha256 == sha256_of(finished / "imports/SHA256SUMS")
    log = (finished / "train.log").read_text(encoding="utf-8")
    assert "model GPT reads n_layer, n_head, n_embd, n_ctx, dropout\n" in log
    assert "weight decay applies to the 6 of 16 parameters" in log


def test_the_weights_have_the_names_of_the_class_and_are_saved_once(finished: Path) -> None:
    names = load_file(max(finished.glob("checkpoints/*/model.safetensors"))).keys()
    assert {"wte.weight", "h.0.c_attn.bias", "scale"} <= names and "head.weight" not in names
    parameters = RunData(Run(finished)).parameters
    model, _ = load_model(Run(finished))
    assert parameters == model.n_params == sum(p.numel() for p in model.parameters())


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
""".strip().splitlines()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_works_with_it(
    command: str, run: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.jsonl").write_text(json.dumps(ITEM) + "\n", encoding="utf-8")
    for name, path in (("RUN", run), ("DATA", work / "data"), ("ITEMS", tmp_path / "items.jsonl")):
        command = command.replace(name, path.as_posix())
    assert output(*shlex.split(command)) != ""
    for made in ("tuned", "again"):
        if (tmp_path / made).exists():
            assert (tmp_path / made / "imports" / "SHA256SUMS").read_bytes() == (
                run / "imports/SHA256SUMS"
            ).read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(
    train: list[str], tmp_path: Path, output: Output, optimizer: str
) -> None:
    options = [*train, "--model", written(tmp_path), "--model.dropout", "0.2", "--optim.name", optimizer]
    options += ["--micro-batch", "1", "--precision", "bf16"]
    output(*options, "--out", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken/checkpoints/step_00000020")
    new_process()
    output("train", "--out", tmp_path / "broken", "--resume")
    for name in ("model", "optimizer"):
        whole, broken = (
            tmp_path / one / f"checkpoints/step_00000020/{name}.safetensors" for one in ("whole", "broken")
        )
        assert whole.read_bytes() == broken.read_bytes()


def test_a_class_equal_to_ours_trains_to_the_same_losses(train: list[str], tmp_path: Path, output: Output) -> None:
    same = "import gpt2lab.model.gpt\n\nclass GPT(gpt2lab.model.gpt.GPT):\n    pass\n"
    output(*train, "--precision", "fp32", "--out", tmp_path / "ours")
    output(*train, "--precision", "fp32", "--out", tmp_path / "own", "--model", written(tmp_path, same))
    ours, theirs = (Run(tmp_path / name).metrics() for name in ("ours", "own"))
    for a, b in zip(ours, theirs, strict=True):
        assert a["train_loss"] == b["train_loss"] and a["grad_norm"] == b["grad_norm"]
    assert theirs[-1]["val_loss"] == pytest.approx(ours[-1]["val_loss"], rel=1e-6)


def test_logits_losses_and_texts_are_those_of_the_class(tmp_path: Path) -> None:
    written(tmp_path)
    full, last = own(f"{tmp_path}/my_gpt2.py:GPT"), own(f"{tmp_path}/my_gpt2.py:LastOnly")
    assert (full.last_only, last.last_only) == (False, True)
    tokens = torch.randint(70, (3, 8), generator=torch.Generator().manual_seed(1))
    logits, loss = full.network(tokens[:, :-1], tokens[:, 1:])
    for model in (full, last):
        assert torch.equal(model(tokens[:, :-1]).logits, logits)
        assert torch.equal(model(tokens[:, :-1], tokens[:, 1:]).loss, loss)
        losses = model.token_losses(tokens[:, :-1], tokens[:, 1:])
        torch.testing.assert_close(losses.mean(), loss)
        torch.testing.assert_close(model.token_losses(tokens[:, :-1], tokens[:, 5:]), losses[:, 4:])
        masked = tokens[:, 1:].clone()
        masked[:, 0] = -100
        assert model.token_losses(tokens[:, :-1], masked)[:, 0].tolist() == [0, 0, 0]
        written_on = generate(model, tokens[:1, :3], 4, greedy=True)
        for length in range(3, 7):
            assert int(written_on[0, length]) == int(full.network(written_on[:, :length])[0][0, -1].argmax())


def test_rows_of_different_lengths_continue_as_they_would_alone(tmp_path: Path) -> None:
    model = own(written(tmp_path))
    prompts = [[5, 6, 7, 8], [9], [10, 11]]
    rows, padding = pad_left(prompts)
    together = generate(model, rows, 4, greedy=True, padding=padding)[:, 4:]
    for prompt, row in zip(prompts, together, strict=True):
        assert torch.equal(generate(model, torch.tensor([prompt]), 4, greedy=True)[0, len(prompt) :], row)


def test_two_students_with_modules_of_the_same_names_do_not_mix(tmp_path: Path) -> None:
    doubled = ATTENTION.replace("softmax(dim=3) @ v", "softmax(dim=3) @ (2 * v)")
    specs = [written(tmp_path / "a"), written(tmp_path / "b", chapter=doubled)]
    a, b = map(own, specs)
    tokens = torch.arange(8)[None]
    first = a(tokens).logits
    assert not torch.allclose(first, b(tokens).logits)
    assert torch.equal(a(tokens).logits, first)
    assert a.config.import_sha256 != b.config.import_sha256


@needs_fork
def test_two_ranks_train_as_one_process_and_resume(train: list[str], tmp_path: Path, output: Output) -> None:
    words = [*train, "--model", written(tmp_path), "--precision", "fp32", "--micro-batch", "2"]
    output(*words, "--out", tmp_path / "one")
    assert launch(2, succeed, *words, "--out", tmp_path / "two") == ["", ""]
    one, two = (Run(tmp_path / name).metrics()[-1] for name in ("one", "two"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-4)
    assert launch(2, succeed, "train", "--out", tmp_path / "two", "--resume", "--steps", 22) == ["", ""]
    load_model(Run(tmp_path / "two"))


def succeed(*words: object) -> None:
    """Run a command on a rank."""
    assert main([str(word) for word in words]) == 0


def test_a_comparison_with_ours_and_its_report(
    train: list[str], tmp_path: Path, output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2lab.compare.run.in_own_process", in_this_process)
    out, spec = tmp_path / "out", written(tmp_path)
    words = ["compare", *train[1:], "--out", out, "--seeds", "1", "--eval-every", "4"]
    said = output(*words, "--arm", "ours:", "--arm", f"mine: model={spec}")
    assert "failed" not in said and "Parameters" in said
    assert f"--model {spec}" in output(*words, "--arm", "ours:", "--arm", f"mine: model={spec}", "--dry-run")
    new_process()
    assert output("report", out) != ""
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "The model is the author's own: class <code>GPT</code>" in html and "def attention(q, k, v)" in html


def test_the_report_says_whose_the_model_is(run: Path, output: Output) -> None:
    output("report", run)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "The model is the author's own: class <code>GPT</code>" in html
    assert "def attention(q, k, v)" in html and "There are no biases" not in html
    facts = {fact.name: fact for fact in model_facts(RunData(Run(run)))}
    assert facts["Class"].value == "GPT" and facts["imports/chapter.py"].note.startswith("SHA-256 ")
    assert facts["Dropout"].value == "0.1" and "Mask" not in facts
    for not_ours in ("softmax", "GELU", "layer norm"):
        assert not_ours not in html.partition('id="run-1-model"')[2].partition("<details>")[0]


def test_somebody_elses_files_are_asked_about_together(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Output, refused: Output
) -> None:
    other_user(monkeypatch, tmp_path / "other")
    assert "is code that is not trusted here, so it was not run" in refused("sample", run)
    assert output("trust", run).count("trusted, SHA-256") == 2
    output("sample", run, "--max-new-tokens", 2)
    new_process()
    with (run / "imports/chapter.py").open("a", encoding="utf-8") as file:
        file.write("# altered\n")
    assert "it was altered or removed" in refused("sample", run)


def test_the_report_shows_only_the_files_that_the_model_ran_with(run: Path, output: Output) -> None:
    (run / "imports/stray.py").write_text("STRAY = 1", encoding="utf-8")
    assert [source.name for source in sources(RunData(Run(run)))] == ["imports/my_gpt2.py", "imports/chapter.py"]
    with (run / "imports/chapter.py").open("a", encoding="utf-8") as file:
        file.write("ALTERED = 1\n")
    output("report", run)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "defined in a file that is missing or was altered" in html and "ALTERED" not in html and "STRAY" not in html


@pytest.mark.parametrize(
    "begin",
    [
        "from parts_pkg import SCALE\n",
        "import importlib; importlib.import_module('c_base')\n",
        "def later():\n    import parts_pkg.more\n",
    ],
)
def test_code_that_cannot_travel_is_refused(
    begin: str, tmp_path: Path, train: list[str], monkeypatch: pytest.MonkeyPatch, refused: Output
) -> None:
    spec = written(tmp_path, begin + MODEL)
    (tmp_path / "parts_pkg").mkdir()
    for name in ("parts_pkg/__init__.py", "parts_pkg/more.py", "c_base.py"):
        (tmp_path / name).write_text("SCALE = 1", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = refused(*train, "--model", spec, "--out", tmp_path / "run")
    assert f"imports {tmp_path}/" in said and "which cannot travel with the run" in said
    for name in ("parts_pkg", "parts_pkg.more", "c_base"):
        sys.modules.pop(name, None)


def test_every_random_number_of_a_class_follows_the_seed(train: list[str], tmp_path: Path, output: Output) -> None:
    scale = "torch.ones(2) * (random.random() + numpy.random.rand())"
    drawn = MODEL.replace("torch.ones(2)", scale).replace("import torch\n", "import numpy, random, torch\n")
    passed = drawn.replace(
        "* self.scale[0]", "* (self.scale[0] + self.training * (random.random() + numpy.random.rand()))"
    )
    for name in ("a", "b"):
        output(*train, "--model", written(tmp_path, passed), "--out", tmp_path / name)
    a, b = ([row["train_loss"] for row in Run(tmp_path / name).metrics()] for name in ("a", "b"))
    assert a == b


def test_an_error_of_generated_code_names_the_line_of_the_file(
    train: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Output
) -> None:
    written(tmp_path, MODEL.replace("self.config = config", "config.n_embd = 8"))
    monkeypatch.chdir(tmp_path)
    said = refused(*train, "--model", "my_gpt2.py:GPT", "--out", "run")
    assert "my_gpt2.py, line 27: AttributeError: config.n_embd cannot be set; take dataclasses.replace(config" in said


def test_a_module_put_beside_the_files_is_not_imported(run: Path, refused: Output) -> None:
    (run / "imports/torch.py").write_text("raise SystemExit", encoding="utf-8")
    assert "it was altered or removed" in refused("sample", run)


@pytest.mark.parametrize(
    "command", ["export-hf RUN OUT", "export-html RUN OUT", "export-gguf RUN OUT.gguf", "serve RUN"]
)
def test_what_needs_the_inside_of_our_model_says_so(command: str, run: Path, tmp_path: Path, refused: Output) -> None:
    words = command.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out"))
    assert "the model is GPT, a class that --model gave; this works with gpt2lab's own GPT only" in refused(
        *words.split()
    )


FORWARD = "return logits, None if"
BAD = [
    ("--model FOLDER/none.py:GPT", "", "", "none.py: cannot be read (No such file or directory)"),
    (
        "--model FOLDER/my_gpt2.py:GTP",
        "",
        "",
        'no class GTP (did you mean "GPT"?); its classes are Block, GPT, LastOnly',
    ),
    ("--model FOLDER/my_gpt2.py:torch", "", "", "torch is no class of torch.nn.Module"),
    ("--model FOLDER/my_gpt2.py", "", "", "it must be FILE:CLASS, such as my_gpt2.py:GPT"),
    ("--model gpt2", "", "", "a size of GPT-2 is given by --preset"),
    ("", "from chapter", "import nothing_like_it\n        from chapter", "No module named 'nothing_like_it'"),
    ("", "class Block", "class Block(", "my_gpt2.py, line 7: SyntaxError"),
    ("", "config.n_head", "config.block_size", "my_gpt2.py, line 10: AttributeError: config has no block_size"),
    ("", FORWARD, "return logits; None if", "returns shape (2, 4, 400) from forward(tokens); it must return (logits"),
    ("", FORWARD, "return logits[:, :-1], None if", "returns logits of shape (2, 3, 400) for tokens of shape (2, 4)"),
    ("", "self.ln_f(x)", "self.ln_g(x)", "line 41: AttributeError: 'GPT' object has no attribute 'ln_g'"),
    ("", "self.head(x)", "self.head(x)[..., :399]", "returns 399 logits for each position, fewer than the 400"),
    ("", "targets.flatten())", "targets.flatten(), reduction='none')", "returns a loss of shape (8,); it must be a s"),
    ("", "None if targets is None else", "None and", "returns a loss of None; it must be a scalar"),
    ("", "self.scale[0]", "float('nan')", "returns NaN or infinity before it is trained"),
    ("", "self.ln_f(x)", "x", "does not use ln_f.weight: the loss has no gradient there"),
    ("", "self.scale[0]", "self.scale[0] + x.mean(dim=1, keepdim=True)", "lets a position depend on later ones"),
    (
        "",
        "self.scale[0]",
        "self.scale[0] + x.mean(dim=0, keepdim=True)",
        "lets a row of the batch depend on the others",
    ),
    ("--model.position rope", "", "", "model.position rope with model GPT, which does not read config.position (it re"),
    ("--preset gpt2-modern --seq-len 32", "", "", "with model GPT, which does not read config."),
    ("--mask-documents", "", "", "mask_documents with model GPT"),
    ("--activation-checkpointing", "", "", "call torch.utils.checkpoint in your class"),
    ("--optim.name muon", "nn.ModuleList([", "Stack([", "optim.name muon with model GPT: its blocks are not known"),
    ("--compile on", "nn.ModuleList([", "Stack([", "compile on with model GPT: its blocks are not known"),
]
STACK = """
class Stack(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        for number, block in enumerate(blocks):
            self.add_module(f"layer{number}", block)

    def __iter__(self):
        return iter(self.children())
"""


@pytest.mark.parametrize(("options", "old", "new", "said"), BAD, ids=[said[:40] for *_, said in BAD])
def test_bad_input_is_refused_in_one_line(
    options: str, old: str, new: str, said: str, train: list[str], tmp_path: Path, refused: Output
) -> None:
    assert old in MODEL
    spec = written(tmp_path, MODEL.replace(old, new, 1) + STACK)
    words = options.replace("FOLDER", str(tmp_path)).split()
    words += [] if "--model" in words else ["--model", spec]
    small = [word for word in train if "gpt2-modern" not in options or not word.startswith("--model.")]
    assert said in refused(*small, *words, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_error_in_a_module_beside_the_file_names_that_file(
    train: list[str], tmp_path: Path, refused: Output
) -> None:
    spec = written(tmp_path, chapter=ATTENTION.replace("q.shape[3]", "q.shape[4]"))
    assert f"{tmp_path}/chapter.py, line 7: IndexError" in refused(*train, "--model", spec)


def test_a_class_that_reads_values_while_it_is_made_is_measured_on_the_cpu(tmp_path: Path) -> None:
    reads = MODEL.replace("std=0.02)", "std=torch.tensor(0.02).item())")
    model = own(written(tmp_path, reads))
    found = profile(model.config)
    assert found.n_params == model.n_params and found.blocks == 2
    assert found == profile(own(written(tmp_path / "plain")).config)


def test_what_a_pass_keeps_is_counted_on_the_meta_device(tmp_path: Path) -> None:
    model = own(written(tmp_path))
    kept = dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8, dtype=torch.long)).loss
    assert loss is not None
    measured = sum(size for storage, size in kept.items() if storage not in weights)
    assert profile(model.config).saved == pytest.approx(measured, rel=0.05)


def test_the_example_of_the_document_trains(train: list[str], tmp_path: Path, output: Output) -> None:
    document = (Path(__file__).parents[2] / "docs/own-model.md").read_text(encoding="utf-8")
    example, nanogpt, *_ = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    written(tmp_path, example, nanogpt)
    few = [word for word in train if "n-head" not in word]
    output(*few, "--model", f"{tmp_path}/my_gpt2.py:GRU", "--out", tmp_path / "run")
    assert Run(tmp_path / "run").metrics()[-1]["val_loss"]
    compile(nanogpt, "nanogpt", "exec")


def test_layers_that_only_hold_weights_are_muons_and_nothing_else(tmp_path: Path) -> None:
    holder = """
import torch
from torch import nn
from torch.nn import functional as F

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte, self.h = nn.Embedding(config.vocab_size, config.n_embd), nn.Module()
        for layer in range(config.n_layer):
            self.h.add_module(str(layer), holder := nn.Module())
            holder.register_parameter("weight", nn.Parameter(torch.randn(config.n_embd, config.n_embd)))

    def forward(self, tokens, targets=None):
        x, weights = self.wte(tokens), dict(self.named_parameters())
        for layer in range(2):
            x = x @ weights[f"h.{layer}.weight"]
        logits = x @ self.wte.weight.T
        return logits, None if targets is None else F.cross_entropy(logits.view(-1, 70), targets.view(-1))
"""
    model = own(written(tmp_path, holder))
    assert [tuple(p.shape) for p in model.hidden_matrices()] == [(16, 16)] * 2 and model.blocks == []
    tokens = torch.randint(70, (2, 9))
    assert model(tokens[:, :-1], tokens[:, 1:]).loss is not None  # which are not contiguous


def test_ours_is_a_gpt_and_not_an_own_model() -> None:
    assert type(make_model(GPTConfig(**SMALL))) is GPT  # pyright: ignore[reportArgumentType]


def test_a_corpus_with_masks_needs_a_loss_that_leaves_targets_out(tmp_path: Path) -> None:
    own(written(tmp_path)).require_ignored_targets()
    counting = MODEL.replace("targets.flatten())", "targets.flatten().clamp(min=0))")
    failing = MODEL.replace("targets.flatten())", "targets.flatten(), ignore_index=-1)")
    for source in (counting, failing):
        with pytest.raises(ValueError, match="counts targets of -100 in its loss, or fails on them"):
            own(written(tmp_path, source)).require_ignored_targets()


def test_the_parts_of_a_run_are_known_after_its_import(run: Path) -> None:
    import_from(Run(run))
    model, _ = load_model(Run(run))
    assert isinstance(model, OwnModel) and type(model.network).__name__ == "GPT"


PRINTED = "self.config = (repr(config), dataclasses.asdict(config), config == config, copy.deepcopy(config))[3]"


def test_what_reads_every_option_is_no_reading(train: list[str], tmp_path: Path, refused: Output) -> None:
    printed = MODEL.replace("self.config = config", PRINTED).replace(
        "import torch\n", "import copy, dataclasses, torch\n"
    )
    spec = written(tmp_path, printed)
    said = refused(*train, "--model", spec, "--model.position", "rope", "--out", tmp_path / "run")
    assert "which does not read config.position" in said


def test_a_class_can_replace_values_of_its_configuration(tmp_path: Path) -> None:
    begin = "super().__init__()\n        config = dataclasses.replace(config, n_embd=32)\n        self.config"
    wider = MODEL.replace("super().__init__()\n        self.config", begin).replace(
        "import torch\n", "import dataclasses, torch\n"
    )
    model = own(written(tmp_path, wider))
    assert model.network.wte.weight.shape == (70, 32)  # pyright: ignore[reportAttributeAccessIssue]
    assert {"n_embd", "n_head"} <= model.asked.read and not {"position", "kernel"} & model.asked.read
    for copied in (copy.copy(model.asked), copy.deepcopy(model.asked), pickle.loads(pickle.dumps(model.asked))):
        assert vars(copied) == vars(model.asked)


COUNTING = """x = self.ln_f(x) * self.scale[0]
        self.scale = self.scale + 1e-6
        self.count, _ = getattr(self, "count", 0) + 1, (random.random(), numpy.random.rand())"""


def test_the_checks_leave_the_model_as_it_was_made(tmp_path: Path) -> None:
    counting = MODEL.replace("x = self.ln_f(x) * self.scale[0]", COUNTING)
    spec = written(tmp_path, counting.replace("import torch\n", "import numpy, random, torch\n"))
    random.seed(0)
    numpy.random.seed(0)
    network = own(spec).network
    assert network.scale.tolist() == [1, 1] and not hasattr(network, "count")  # pyright: ignore[reportCallIssue]
    drawn = random.random(), numpy.random.rand(), torch.rand(())
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    import_model(spec)
    made = make_part("network", GPTConfig(**SMALL, **import_model(spec)))  # pyright: ignore[reportArgumentType]
    assert drawn == (random.random(), numpy.random.rand(), torch.rand(()))
    assert torch.equal(made.wte.weight, network.wte.weight)  # pyright: ignore


@pytest.mark.parametrize("position", [3, 20])
def test_a_leak_beyond_the_first_positions_is_found(tmp_path: Path, position: int) -> None:
    leaking = f"""x = self.ln_f(x)
        later = x[:, {position} + 1 :].mean(1, keepdim=True) if x.shape[1] > {position} + 1 else 0
        x = torch.cat([x[:, : {position}], x[:, {position} :] + later], dim=1)"""
    model = MODEL.replace("x = self.ln_f(x) * self.scale[0]", leaking)
    with pytest.raises(ValueError, match="lets a position depend on later ones"):
        own(written(tmp_path, model), n_ctx=64)


@pytest.mark.parametrize(
    ("layers", "blocks"),
    [
        ("nn.Sequential(nn.Linear(16, 16), nn.GELU())", []),
        ("nn.ModuleList([nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(4)])", []),
        ("nn.ModuleDict({'a': nn.Linear(16, 16), 'h': nn.ModuleList([nn.Linear(16, 16), nn.GELU()])})", ["h.0", "h.1"]),
        ("nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))", ["0", "1"]),
    ],
)
def test_blocks_are_the_outermost_list_of_n_layer_entries(tmp_path: Path, layers: str, blocks: list[str]) -> None:
    source = f"""
from torch import nn
from torch.nn import functional as F

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        config.n_layer
        self.wte, self.layers = nn.Embedding(config.vocab_size, 16), {layers}

    def forward(self, tokens, targets=None):
        x = self.wte(tokens)
        for layer in self.layers.modules():
            x = layer(x) if isinstance(layer, nn.Linear) else x
        logits = x @ self.wte.weight.T
        return logits, None if targets is None else F.cross_entropy(logits.view(-1, 70), targets.view(-1))
"""
    model = own(written(tmp_path, source))
    names = {module: name for name, module in model.network.layers.named_modules()}  # pyright: ignore
    assert [names[block] for block in model.blocks] == blocks
