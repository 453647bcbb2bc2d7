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
from loopback_hub import hub_client, loopback_hub

TEXT = "One day, Lily's  naïve cat 🐈 said:\n\n\t“1,234!”   <|endoftext|> x"
Output = Callable[..., str]


@pytest.fixture(scope="module")
def exported(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer and data of ``work``, a copy of its run that was measured, and "out", exported from that."""
    folder = tmp_path_factory.mktemp("exports")
    shutil.copytree(work, folder, dirs_exist_ok=True)
    run, out = str(folder / "run"), str(folder / "out")
    assert main(["eval", "perplexity", run, "--precision", "fp32"]) == 0
    assert main(["export-hf", run, out]) == 0
    return folder


def test_an_exported_model_loads_in_transformers_and_computes_what_the_run_does(exported: Path) -> None:
    ours, _ = load_model(Run.open(exported / "run"))
    theirs: Any = AutoModelForCausalLM.from_pretrained(exported / "out")
    tokens = torch.randint(400, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, theirs(tokens).logits, atol=1e-4, rtol=0)
    prompt = tokens[:, :5]
    found = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=27)
    assert torch.equal(found, generate(ours, prompt, 27, greedy=True)[:, : found.shape[1]])


def test_an_exported_tokenizer_gives_the_ids_of_the_runs(exported: Path) -> None:
    ours, theirs = Tokenizer.load(exported / "tok"), AutoTokenizer.from_pretrained(exported / "out")
    assert theirs.encode(TEXT) == ours.encode(TEXT, allowed_special="all")
    assert theirs.decode(theirs.encode(TEXT)) == TEXT
    assert (theirs.eos_token_id, theirs.bos_token_id) == (ours.eot, ours.eot)
    assert theirs.model_max_length == 32
    assert len(theirs) == ours.n_vocab


def test_a_run_with_llamas_parts_is_exported_as_llama_and_imported_again(
    work: Path, small: list[str], tmp_path: Path, output: Output
) -> None:
    run, out, again = (tmp_path / name for name in ("run", "out", "again"))
    flags = ["--model.norm", "rmsnorm", "--model.position", "rope", "--model.activation", "swiglu"]
    flags += ["--model.n-kv-head", "1", "--model.no-bias", "--model.no-tied-head"]
    output("train", "--data", work / "data", "--out", run, "--steps", 2, *small, *flags)
    output("export-hf", run, out)
    theirs: Any = AutoModelForCausalLM.from_pretrained(out)
    assert theirs.config.architectures == ["LlamaForCausalLM"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.encode(TEXT) == Tokenizer.load(work / "tok").encode(TEXT, allowed_special="all")
    ids = torch.tensor([tokenizer.encode("One day")])
    model, _ = load_model(Run.open(run))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
    written = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9)
    assert torch.equal(written, generate(model, ids, 9, greedy=True)[:, : written.shape[1]])
    output("import-hf", out, again)
    imported, _ = load_model(Run.open(again))
    assert all(torch.equal(weight, imported.state_dict()[name]) for name, weight in model.state_dict().items())
    assert output("sample", again, "--prompt", "One day", "--max-new-tokens", 3).startswith("One day")


def test_special_tokens_that_come_first_keep_their_ids_from_training_to_the_pipeline(
    small: list[str], tmp_path: Path, output: Output
) -> None:
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
    data, run, out = (tmp_path / name for name in ("data", "run", "out"))
    output("data", "prepare", "stories", "--tokenizer", tok, "--out", data, "--max-documents", 30)
    output("train", "--data", data, "--out", run, "--steps", 2, *small)
    output("export-hf", run, out, "--checkpoint", "last")
    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded.encode(TEXT) == theirs.encode(TEXT).ids == Tokenizer.load(tok).encode(TEXT, allowed_special="all")
    assert (loaded.eos_token_id, len(loaded)) == (0, theirs.get_vocab_size())
    (written,) = pipeline("text-generation", model=str(out), device="cpu")("the cat", max_new_tokens=4, do_sample=False)
    model, _ = load_model(Run.open(run), "last")
    ids = generate(model, torch.tensor([theirs.encode("the cat").ids]), 4, greedy=True)[0].tolist()
    assert written["generated_text"] == theirs.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_of_another_pattern_is_exported_too(exported: Path, tmp_path: Path, output: Output) -> None:
    tok, run, out = (tmp_path / name for name in ("tok", "run", "out"))
    train = ("--input", "stories", "--vocab-size", 400, "--max-documents", 20, "--pattern", "cl100k")
    output("tokenizer", "train", *train, "--out", tok)
    output("import-hf", exported / "out", run, "--tokenizer", tok)
    output("export-hf", run, out)
    assert not (out / "merges.txt").exists()
    theirs = AutoTokenizer.from_pretrained(out)
    assert theirs.encode(TEXT) == Tokenizer.load(tok).encode(TEXT, allowed_special="all")


def test_the_model_card_says_what_the_model_is_and_how_it_was_measured(exported: Path) -> None:
    card = (exported / "out" / "README.md").read_text(encoding="utf-8")
    _, metadata, text = card.split("---\n", 2)
    assert "library_name: transformers" in metadata
    assert 'from_pretrained("out")' in text and "trained for 20 steps" in text
    figures = {row["metric"]: float(row["value"]) for row in Run.open(exported / "run").evals()}
    protocol = Run.open(exported / "run").evals()[0]["protocol"]
    assert f"{figures['perplexity']:.1f}" in text and protocol in text
    assert "| Batch | 128 tokens per step |" in text
    assert str(exported) not in text  # nobody's folders


def test_export_then_import_gives_the_same_weights_tokenizer_and_figures(
    exported: Path, tmp_path: Path, output: Output
) -> None:
    run = tmp_path / "again"
    output("import-hf", exported / "out", run)
    before, after = (load_model(Run.open(path))[0] for path in (exported / "run", run))
    assert before.config == after.config
    assert all(torch.equal(weight, after.state_dict()[name]) for name, weight in before.state_dict().items())
    assert Tokenizer.load(run / "tokenizer").fingerprint == Tokenizer.load(exported / "tok").fingerprint
    output("eval", "perplexity", run, "--data", exported / "data", "--precision", "fp32")
    losses = [[row["value"] for row in Run.open(path).evals() if row["metric"] == "loss"]
              for path in (run, exported / "run")]  # fmt: skip
    assert losses[0] == losses[1]
    (state,) = run.rglob("optimizer.safetensors")
    assert state.stat().st_size < 100  # nothing but a header: no step was made


def test_an_imported_run_can_be_sampled_reported_and_exported_but_has_no_data_and_no_training(
    exported: Path, tmp_path: Path, output: Output, refused: Output
) -> None:
    run, out = tmp_path / "again", tmp_path / "out"
    output("import-hf", exported / "out", run)
    assert output("sample", run, "--prompt", "One day", "--max-new-tokens", 5).startswith("One day")
    output("report", run)
    assert "A GPT-2 with 1 layer" in (run / "report.html").read_text(encoding="utf-8")
    output("export-hf", run, out)
    assert f"imported from {exported / 'out'}" in (out / "README.md").read_text(encoding="utf-8")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (out / name).read_bytes() == (exported / "out" / name).read_bytes()
    assert "give --data" in refused("eval", "perplexity", run)
    assert "train it with --init" in refused("train", "--resume", "--out", run, "--data", exported / "data")


def test_what_transformers_saved_with_gpt2s_own_vocabulary_is_imported(
    gpt2_vocabulary: Path, tmp_path: Path, output: Output
) -> None:
    folder = tmp_path / "theirs"
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, n_positions=16)
    theirs: Any = GPT2LMHeadModel(config)
    theirs.save_pretrained(folder)
    shutil.copy(gpt2_vocabulary / "encoder.json", folder / "vocab.json")
    shutil.copy(gpt2_vocabulary / "vocab.bpe", folder / "merges.txt")
    output("import-hf", folder, tmp_path / "pair")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # writes tokenizer.json
    assert (folder / "tokenizer.json").exists()
    (folder / "merges.txt").unlink(missing_ok=True)
    output("import-hf", folder, tmp_path / "json")
    expected = Tokenizer.gpt2(gpt2_vocabulary).encode(TEXT)
    for run in ("pair", "json"):
        assert Tokenizer.load(tmp_path / run / "tokenizer").encode(TEXT) == expected


def test_what_an_import_cannot_use_is_said_in_a_line_and_nothing_is_made(
    exported: Path, tmp_path: Path, output: Output, refused: Output
) -> None:
    bare, tok, run = tmp_path / "bare", tmp_path / "tok", tmp_path / "run"
    GPT.from_hf(exported / "out").save_hf(bare)
    assert "vocab.json" in refused("import-hf", bare, run)
    output("tokenizer", "train", "--input", "stories", "--vocab-size", 300, "--out", tok, "--max-documents", 20)
    said = refused("import-hf", bare, run, "--tokenizer", tok)
    assert "vocabulary of 400, its tokenizer one of 300" in said
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    assert "the architecture is mistral" in refused("import-hf", bare, run)
    assert not run.exists()


def test_models_are_imported_by_their_name_on_the_hub(
    exported: Path, tmp_path: Path, output: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    """`gpt2` in one file; a larger one in shards; one with a pickle only."""
    files = {path.name: path.read_bytes() for path in (exported / "out").iterdir()}
    AutoModelForCausalLM.from_pretrained(exported / "out").save_pretrained(tmp_path / "large", max_shard_size="20KB")
    shards = {path.name: path.read_bytes() for path in (tmp_path / "large").iterdir()}
    pickled = {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x04."}
    models = {"gpt2": files, "owner/large": {**files, **shards}, "owner/old": pickled}
    del models["owner/large"]["model.safetensors"]
    expected = load_model(Run.open(exported / "run"))[0].state_dict()
    with loopback_hub(models) as hub, hub_client(hub.address, tmp_path / "home"):
        for name in ("gpt2", "owner/large"):
            run = tmp_path / name.replace("/", "-")
            output("import-hf", name, run)
            found = load_model(Run.open(run))[0].state_dict()
            assert all(torch.equal(weight, found[key]) for key, weight in expected.items())
        assert main(["import-hf", "owner/old", str(tmp_path / "old")]) == 2
    assert "pytorch_model.bin" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "old").exists()
    assert list((tmp_path / "home").rglob("pytorch_model.bin")) == []  # it was not even fetched
