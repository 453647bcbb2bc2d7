"""A trained model is fine-tuned with a tokenizer that has more special tokens: its embedding and its head grow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2lab import Tokenizer
from gpt2lab.cli.main import main
from gpt2lab.data.dataset import TokenDataset
from gpt2lab.runs import Run
from gpt2lab.training.checkpoint import load_model

Output = Callable[..., str]
LINES = "<|user|>Where is the cat? <|end|>On the mat, as ever, and asleep in the sun.<|endoftext|>\n"


@pytest.fixture
def dialogs(work: Path, tmp_path: Path, output: Output) -> Path:
    """Data with two tokens that the run of `work` does not know."""
    (tmp_path / "dialogs.txt").write_text(LINES * 60, encoding="utf-8")
    output("tokenizer", "add-special", work / "run", "--token", "<|user|>", "<|end|>", "--out", tmp_path / "tok")
    prepare = ("data", "prepare", tmp_path / "dialogs.txt", "--tokenizer", tmp_path / "tok", "--special-tokens")
    output(*prepare, "--out", tmp_path / "data", "--val-fraction", 0.2, "--test-fraction", 0.2)
    return tmp_path / "data"


def test_prepared_text_holds_the_special_tokens_but_ends_no_document(dialogs: Path) -> None:
    dataset = TokenDataset(dialogs)
    tokenizer = dataset.tokenizer()
    ids = np.concatenate([*dataset.stream("train").blocks()]).tolist()
    assert 30 < ids.count(tokenizer.special_tokens["<|user|>"]) <= ids.count(tokenizer.special_tokens["<|end|>"]) + 1
    assert ids.count(tokenizer.eot) == dataset.manifest.splits["train"].documents
    assert "<|endoftext|>\n<|user|>Where is" in tokenizer.decode(ids)


@pytest.mark.parametrize("options", [[], ["--model.no-tied-head", "--model.z-loss", "1e-4"]], ids=["tied", "untied"])
def test_new_rows_start_as_the_mean_of_the_others(
    options: list[str],
    work: Path,
    small: list[str],
    dialogs: Path,
    tmp_path: Path,
    output: Output,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = work / "run"
    if options:
        old = tmp_path / "old"
        output("train", "--data", work / "data", "--out", old, *small, "--steps", 20, *options)
    command = ["train", "--init", old, "--data", dialogs, "--steps", 1, "--batch-tokens", 32, "--eval-tokens", 64]
    still = ["--optim.lr", 1e-9, "--optim.min-lr", 0, "--optim.warmup-steps", 0, "--optim.weight-decay", 0]
    said = output(*command, *still, "--out", tmp_path / "tuned")
    assert "the embedding has 2 new rows: each starts as the mean of the others" in said
    before, after = (load_model(Run(run))[0] for run in (old, tmp_path / "tuned"))
    V = before.config.vocab_size
    assert after.config.vocab_size == V + 2 == Tokenizer.load(tmp_path / "tuned").n_vocab
    for name, weight in before.state_dict().items():
        new = after.state_dict()[name]
        if name in ("wte.weight", "lm_head.weight"):
            mean = weight[:V].mean(dim=0).expand(2, -1)
            torch.testing.assert_close(new[V : V + 2], mean, atol=1e-7, rtol=0)
            assert not new[V + 2 :].any()
            new, weight = new[:V], weight[:V]
        torch.testing.assert_close(new, weight, atol=1e-7, rtol=0)
    tokens = torch.tensor([Tokenizer.load(old).encode("The cat sat on the mat.")])
    logits = after(tokens).logits
    assert logits is not None and bool((logits.softmax(-1)[..., V:] <= 1 / V).all())
    if options:
        old.rename(tmp_path / "gone")
    output("train", "--out", tmp_path / "tuned", "--resume", "--steps", 2)
    prompt = ["sample", str(tmp_path / "tuned"), "--max-new-tokens", "4", "--prompt", "<|user|>" * 9]
    for more, exceeds in ([], True), (["--special-tokens"], False):  # nine tokens of a context of 32, or many more
        assert main([*prompt, *more]) == 0
        assert ("exceeded the 32-token context" in capsys.readouterr().err) == exceeds


def test_what_is_not_an_extension_is_refused(
    work: Path, dialogs: Path, tmp_path: Path, output: Output, refused: Output
) -> None:
    output(
        "tokenizer",
        "train",
        "--input",
        dialogs.parent / "dialogs.txt",
        "--vocab-size",
        270,
        "--out",
        tmp_path / "other",
    )
    prepare = ("data", "prepare", dialogs.parent / "dialogs.txt", "--tokenizer", tmp_path / "other")
    output(*prepare, "--out", tmp_path / "others")
    train = ("train", "--init", work / "run", "--steps", 1, "--batch-tokens", 32, "--out", tmp_path / "new")
    assert "or with what gpt2lab tokenizer add-special makes of it" in refused(*train, "--data", tmp_path / "others")
    said = refused(*prepare, "--special-tokens", "--out", tmp_path / "none")
    assert "--special-tokens, but the tokenizer has none besides <|endoftext|>" in said
    said = refused(*train, "--data", dialogs, "--model.vocab-size", 300)
    assert "model.vocab_size is 300, but the data's tokenizer has" in said
