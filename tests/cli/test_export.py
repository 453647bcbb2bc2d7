"""Between run directories and Hugging Face's: both ways, what comes out must compute what went in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers
import tokenizers.trainers
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, pipeline

from gpt2lab import GPT, Tokenizer, generate
from gpt2lab.cli.main import main
from gpt2lab.runs import Run
from gpt2lab.training.checkpoint import load_model
from loopback_hub import gpt2lab_with, loopback_hub

TEXT = "One day, Lily's  naïve cat 🐈 said:\n\n\t“1,234!”   <|endoftext|> x"
SMALL = ["--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "16", "--model.n-ctx", "32"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was measured, its data, and what was exported of it."""
    folder = tmp_path_factory.mktemp("exports")
    tok, data, run, out = (str(folder / name) for name in ("tok", "data", "run", "out"))
    stories = ["--max-documents", "60"]
    assert main(["tokenizer", "train", "--input", "stories", "--vocab-size", "400", "--out", tok, *stories]) == 0
    assert main(["data", "prepare", "stories", "--tokenizer", tok, "--out", data, *stories]) == 0
    train = ["--data", data, "--out", run, "--steps", "10", *SMALL, "--batch-tokens", "128", "--precision", "fp32"]
    assert main(["train", *train]) == 0
    assert main(["eval", "perplexity", run]) == 0
    assert main(["export-hf", run, out]) == 0
    return folder


def test_an_exported_model_loads_in_transformers_and_computes_what_the_run_does(work: Path) -> None:
    ours, _ = load_model(Run.open(work / "run"))
    theirs: Any = AutoModelForCausalLM.from_pretrained(work / "out")
    tokens = torch.randint(400, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, atol=1e-4, rtol=0)
    prompt = tokens[:, :5]
    found = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=27)
    assert torch.equal(found, generate(ours, prompt, 27, greedy=True)[:, : found.shape[1]])


def test_an_exported_tokenizer_gives_the_ids_of_the_runs(work: Path) -> None:
    ours, theirs = Tokenizer.load(work / "tok"), AutoTokenizer.from_pretrained(work / "out")
    assert theirs.encode(TEXT) == ours.encode(TEXT, allowed_special="all")
    assert theirs.decode(theirs.encode(TEXT)) == TEXT
    assert (theirs.eos_token_id, theirs.bos_token_id) == (ours.eot, ours.eot)
    assert theirs.model_max_length == 32
    assert len(theirs) == ours.n_vocab


def test_special_tokens_that_come_first_keep_their_ids_from_training_to_the_pipeline(tmp_path: Path) -> None:
    """Hugging Face's trainer puts them first."""
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|pad|>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet)
    theirs.train_from_iterator(["the cat and the dog ran away with the spoon"] * 9, trainer)
    (tok := tmp_path / "tok").mkdir()
    theirs.save(str(tok / "tokenizer.json"))
    data, run, out = (str(tmp_path / name) for name in ("data", "run", "out"))
    assert main(["data", "prepare", "stories", "--tokenizer", str(tok), "--out", data, "--max-documents", "30"]) == 0
    assert main(["train", "--data", data, "--out", run, "--steps", "2", *SMALL, "--batch-tokens", "128"]) == 0
    assert main(["export-hf", run, out, "--checkpoint", "last"]) == 0
    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded.encode(TEXT) == theirs.encode(TEXT).ids == Tokenizer.load(tok).encode(TEXT, allowed_special="all")
    assert (loaded.eos_token_id, len(loaded)) == (0, theirs.get_vocab_size())
    (written,) = pipeline("text-generation", model=out, device="cpu")("the cat", max_new_tokens=4, do_sample=False)
    model, _ = load_model(Run.open(Path(run)), "last")
    ids = generate(model, torch.tensor([theirs.encode("the cat").ids]), 4, greedy=True)[0].tolist()
    assert written["generated_text"] == theirs.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_of_another_pattern_is_exported_too(work: Path, tmp_path: Path) -> None:
    tok, run, out = (str(tmp_path / name) for name in ("tok", "run", "out"))
    train = ["--input", "stories", "--vocab-size", "400", "--max-documents", "20", "--pattern", "cl100k"]
    assert main(["tokenizer", "train", *train, "--out", tok]) == 0
    assert main(["import-hf", str(work / "out"), run, "--tokenizer", tok]) == 0
    assert main(["export-hf", run, out]) == 0
    assert not (tmp_path / "out" / "merges.txt").exists()
    theirs = AutoTokenizer.from_pretrained(out)
    assert theirs.encode(TEXT) == Tokenizer.load(tok).encode(TEXT, allowed_special="all")


def test_the_model_card_says_what_the_model_is_and_how_it_was_measured(work: Path) -> None:
    card = (work / "out" / "README.md").read_text(encoding="utf-8")
    _, metadata, text = card.split("---\n", 2)
    assert "library_name: transformers" in metadata
    assert 'from_pretrained("out")' in text and "trained for 10 steps" in text
    figures = {row["metric"]: float(row["value"]) for row in Run.open(work / "run").evals()}
    protocol = Run.open(work / "run").evals()[0]["protocol"]
    assert f"{figures['perplexity']:.1f}" in text and protocol in text
    assert "| Batch | 128 tokens per step |" in text
    assert str(work) not in text  # nobody's folders


def test_export_then_import_gives_the_same_weights_tokenizer_and_figures(work: Path, tmp_path: Path) -> None:
    run = tmp_path / "again"
    assert main(["import-hf", str(work / "out"), str(run)]) == 0
    before, after = (load_model(Run.open(path))[0] for path in (work / "run", run))
    assert before.config == after.config
    assert all(torch.equal(weight, after.state_dict()[name]) for name, weight in before.state_dict().items())
    assert Tokenizer.load(run / "tokenizer").fingerprint == Tokenizer.load(work / "tok").fingerprint
    assert main(["eval", "perplexity", str(run), "--data", str(work / "data"), "--precision", "fp32"]) == 0
    assert main(["eval", "perplexity", str(work / "run"), "--precision", "fp32"]) == 0
    losses = [
        [row["value"] for row in Run.open(path).evals() if row["metric"] == "loss"] for path in (run, work / "run")
    ]
    assert losses[0][-1] == losses[1][-1]


def test_an_imported_run_can_be_sampled_reported_and_exported(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "again")
    assert main(["import-hf", str(work / "out"), run]) == 0
    capsys.readouterr()
    assert main(["sample", run, "--prompt", "One day", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("One day")
    assert main(["report", run]) == 0
    page = (tmp_path / "again" / "report.html").read_text(encoding="utf-8")
    assert "A GPT-2 with 2 layers" in page
    assert main(["export-hf", run, str(tmp_path / "out")]) == 0
    assert f"imported from {work / 'out'}" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (work / "out" / name).read_bytes()


def test_what_transformers_saved_with_gpt2s_own_vocabulary_is_imported(gpt2_vocabulary: Path, tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16)
    theirs: Any = GPT2LMHeadModel(config)
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(gpt2_vocabulary / "encoder.json", tmp_path / "theirs" / "vocab.json")
    shutil.copy(gpt2_vocabulary / "vocab.bpe", tmp_path / "theirs" / "merges.txt")
    assert main(["import-hf", str(tmp_path / "theirs"), str(tmp_path / "pair")]) == 0
    AutoTokenizer.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "theirs")  # writes tokenizer.json
    assert (tmp_path / "theirs" / "tokenizer.json").exists()
    (tmp_path / "theirs" / "merges.txt").unlink(missing_ok=True)
    assert main(["import-hf", str(tmp_path / "theirs"), str(tmp_path / "json")]) == 0
    expected = Tokenizer.gpt2(gpt2_vocabulary).encode(TEXT)
    for run in ("pair", "json"):
        assert Tokenizer.load(tmp_path / run / "tokenizer").encode(TEXT) == expected


def test_what_an_import_cannot_use_is_said_in_a_line_and_nothing_is_made(
    work: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    def import_of(folder: Path, *more: str | Path) -> str:
        said = refused("import-hf", folder, tmp_path / "run", *more)
        assert not (tmp_path / "run").exists()
        return said

    bare = tmp_path / "bare"
    GPT.from_hf(work / "out").save_hf(bare)
    assert "vocab.json" in import_of(bare)
    assert main(["tokenizer", "train", "--input", "stories", "--vocab-size", "300", "--out", str(tmp_path / "tok"),
                 "--max-documents", "20"]) == 0  # fmt: skip
    assert "vocabulary of 400, its tokenizer one of 300" in import_of(bare, "--tokenizer", tmp_path / "tok")
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    assert "the architecture is llama" in import_of(bare)
    assert "config.json is missing" in import_of(tmp_path)
    assert "does not exist" in import_of(tmp_path / "nowhere")


def test_what_exists_is_not_overwritten(work: Path, refused: Callable[..., str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    assert "exists" in refused("import-hf", work / "out", work / "run")
    assert "exists" in refused("export-hf", work / "run", work / "out")
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


def test_an_imported_run_has_no_data_and_no_training_to_go_on_with(
    work: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = tmp_path / "again"
    assert main(["import-hf", str(work / "out"), str(run)]) == 0
    assert "give --data" in refused("eval", "perplexity", run)
    assert "train it with --init" in refused("train", "--resume", "--out", run, "--data", work / "data")


def test_models_are_imported_by_their_name_on_the_hub(work: Path, tmp_path: Path) -> None:
    """`gpt2` in one file; a larger one in shards; one with a pickle only."""
    files = {path.name: path.read_bytes() for path in (work / "out").iterdir()}
    AutoModelForCausalLM.from_pretrained(work / "out").save_pretrained(tmp_path / "large", max_shard_size="20KB")
    shards = {path.name: path.read_bytes() for path in (tmp_path / "large").iterdir()}
    pickled = {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x04."}
    models = {"gpt2": files, "owner/large": {**files, **shards}, "owner/old": pickled}
    del models["owner/large"]["model.safetensors"]
    names = {name: tmp_path / name.replace("/", "-") for name in models}
    with loopback_hub(models) as endpoint:
        done = {name: gpt2lab_with(endpoint, tmp_path / "home", "import-hf", name, str(names[name])) for name in names}
    expected = load_model(Run.open(work / "run"))[0].state_dict()
    for name in ("gpt2", "owner-large"):
        found = load_model(Run.open(tmp_path / name))[0].state_dict()
        assert all(torch.equal(weight, found[key]) for key, weight in expected.items())
    assert done["owner/old"].returncode == 2
    assert "pytorch_model.bin" in done["owner/old"].stderr.splitlines()[-1]
    assert not names["owner/old"].exists()
    assert list((tmp_path / "home").rglob("pytorch_model.bin")) == []  # it was not even fetched
