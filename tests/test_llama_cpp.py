"""A model as a GGUF file: transformers, which reads such files by itself, must compute what our model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from gpt2lab import GPT, GPTConfig, Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.llama_cpp import write_gguf
from gpt2lab.model.huggingface import config_to_hf

TEXTS = ["the cat sat on the mat\n", "naïve cats 🐈 sat, too"] * 3
SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_ctx": 32}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer of 256 bytes, 20 merges and two special tokens."""
    return Tokenizer.train(TEXTS, 278, special_tokens=("<|endoftext|>", "<|user|>"))


def random_model(tokenizer: Tokenizer, **options: Any) -> GPT:
    """A model whose biases and norms are not those of a new one."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES, vocab_size=tokenizer.n_vocab, **options)).eval()
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return model


def write(model: GPT, tokenizer: Tokenizer, folder: Path, form: Any = "f32") -> Path:
    """Write a model into a folder; return the file."""
    write_gguf(model, tokenizer, "cats", folder / "model.gguf", form)
    return folder / "model.gguf"


@pytest.mark.parametrize(
    ("options", "form", "atol"),
    [
        ({}, "f32", 1e-5),
        ({"bias": False}, "f32", 1e-5),
        ({"n_inner": 96, "norm_eps": 1e-3}, "f32", 1e-5),
        ({}, "f16", 0.02),
        ({}, "bf16", 0.1),
        ({}, "q8_0", 0.1),
        ({}, "q4_0", 1),
    ],
)
def test_transformers_computes_the_same_logits(
    tokenizer: Tokenizer, tmp_path: Path, options: dict[str, Any], form: str, atol: float
) -> None:
    ours = random_model(tokenizer, **options)
    config = GPT2Config(**config_to_hf(ours.config))
    theirs: Any = GPT2LMHeadModel(config).eval()
    read = load_gguf_checkpoint(write(ours, tokenizer, tmp_path, form), return_tensors=True, model_to_load=theirs)
    assert not theirs.load_state_dict(read["tensors"], strict=False).unexpected_keys
    theirs.tie_weights()
    tokens = torch.arange(32)[None] * 7 % tokenizer.n_vocab
    with torch.no_grad():
        expected, found = ours(tokens).logits, theirs(tokens).logits
    torch.testing.assert_close(found, expected, atol=atol * expected.std().item(), rtol=0)


def test_transformers_splits_text_as_the_tokenizer_does(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(random_model(tokenizer), tokenizer, tmp_path)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    text = "the  naïve cats 🐈 sat,\n\n\ttoo: 1,234<|user|> the mat"
    assert theirs.encode(text) == tokenizer.encode(text, allowed_special="all")


def fields(path: Path) -> dict[str, Any]:
    """The keys and values of a file."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_a_file_says_what_the_model_and_the_tokenizer_are(tokenizer: Tokenizer, tmp_path: Path) -> None:
    found = fields(write(random_model(tokenizer, n_kv_head=2), tokenizer, tmp_path))
    assert found["general.architecture"] == "gpt2"
    assert found["general.name"] == "cats"
    assert [found[f"gpt2.{key}"] for key in ("block_count", "embedding_length", "context_length")] == [2, 64, 32]
    assert [found[f"gpt2.attention.head_count{key}"] for key in ("", "_kv")] == [4, 2]
    assert found["gpt2.feed_forward_length"] == 256
    assert (found["tokenizer.ggml.model"], found["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert found["tokenizer.ggml.tokens"][276:] == ["<|endoftext|>", "<|user|>"]
    assert found["tokenizer.ggml.token_type"][275:] == [gguf.TokenType.NORMAL, *[gguf.TokenType.CONTROL] * 2]
    assert found["tokenizer.ggml.tokens"][:2] == ["!", '"']
    assert found["tokenizer.ggml.merges"][0] == "a t"
    assert found["tokenizer.ggml.eos_token_id"] == tokenizer.eot


def test_padding_is_cut_and_an_untied_head_is_there(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(tokenizer, tied_head=False)
    tensors = {one.name: one for one in gguf.GGUFReader(write(model, tokenizer, tmp_path)).tensors}
    assert len(model.state_dict()["lm_head.weight"]) == 320
    np.testing.assert_array_equal(tensors["output.weight"].data, model.state_dict()["lm_head.weight"][:278])


@pytest.mark.parametrize(("form", "kept"), [("q8_0", 0.008), ("q4_0", 0.15)])
def test_quantized_matrices_are_near_and_vectors_exact(
    tokenizer: Tokenizer, tmp_path: Path, form: str, kept: float
) -> None:
    model = random_model(tokenizer)
    tensors = {one.name: one for one in gguf.GGUFReader(write(model, tokenizer, tmp_path, form)).tensors}
    matrix = tensors["blk.1.ffn_up.weight"]
    weight = model.state_dict()["h.1.mlp.c_fc.weight"].numpy()
    error = np.abs(gguf.dequantize(matrix.data, matrix.tensor_type) - weight).max() / np.abs(weight).max()
    assert 0 < error < kept
    np.testing.assert_array_equal(tensors["position_embd.weight"].data, model.state_dict()["wpe.weight"])
    np.testing.assert_array_equal(tensors["blk.1.ffn_up.bias"].data, model.state_dict()["h.1.mlp.c_fc.bias"])


@pytest.mark.parametrize(
    ("options", "form", "said"),
    [
        ({"position": "rope"}, "f16", "llama.cpp's gpt2 does not have position rope, only position learned"),
        ({"mask": "window", "window": 8}, "f16", "does not have mask window, window 8, only mask causal, window none"),
        ({"n_inner": 72}, "q4_0", "q4_0 cuts rows into blocks of 32, and n_inner is 72; use f16 or f32"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, options: dict[str, Any], form: Any, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        write(random_model(tokenizer, **options), tokenizer, tmp_path, form)
    assert not list(tmp_path.iterdir())


def test_other_tokenizers_and_files_that_exist_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(tokenizer)
    with pytest.raises(InputError, match="splits text by GPT-2's pattern, and this tokenizer by 'cl100k'"):
        write(model, Tokenizer.train(TEXTS, 278, pattern="cl100k"), tmp_path)
    with pytest.raises(InputError, match=r"the tokenizer has no <\|endoftext\|>"):
        write(model, Tokenizer.train(TEXTS, 278, special_tokens=()), tmp_path)
    with pytest.raises(InputError, match="the model has 278 tokens and its tokenizer 279"):
        write(model, Tokenizer.train(TEXTS, 279), tmp_path)
    with pytest.raises(InputError, match="missing is not a directory; create it first"):
        write(model, tokenizer, tmp_path / "missing")
    path = write(model, tokenizer, tmp_path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"model\.gguf exists"):
        write(model, tokenizer, tmp_path)
    assert path.read_bytes() == before
