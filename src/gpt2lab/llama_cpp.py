"""A model as a GGUF file, which llama.cpp and the programs built on it load: its architecture ``gpt2``.

    wte.weight (V, C)                 token_embd.weight       also the head, unless output.weight is there
    wpe.weight (n_ctx, C)             position_embd.weight    always fp32
    h.0.ln_1, ln_2                    blk.0.attn_norm, ffn_norm
    h.0.attn.c_attn (C + 2KD, C)      blk.0.attn_qkv
    h.0.attn.c_proj (C, C)            blk.0.attn_output
    h.0.mlp.c_fc (F, C)               blk.0.ffn_up
    h.0.mlp.c_proj (C, F)             blk.0.ffn_down
    ln_f, lm_head.weight (V, C)       output_norm, output.weight

Matrices have nn.Linear's layout there too. Its gpt2 adds every bias, so a model without biases gets biases of 0, which
compute the same. Rows that pad the vocabulary are left out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from gpt2lab.errors import InputError
from gpt2lab.files import temporary_name
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.model.huggingface import GPT2, named, with_biases
from gpt2lab.tokenizer.bpe import bytes_to_unicode
from gpt2lab.tokenizer.tokenizer import Tokenizer

GGUFType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
"""The types of matrices in a file, by llama.cpp's names."""
BLOCK = 32
"""Numbers of a row that share a scale in q8_0 and q4_0."""
_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "ln_f": "output_norm",
    "lm_head": "output",
}


def write_gguf(model: GPT, tokenizer: Tokenizer, name: str, path: Path, form: GGUFType = "f16") -> None:
    """Write a model and its tokenizer as one GGUF file.

    Args:
        model: The model. Heads of multi-token prediction must have been removed.
        tokenizer: Its tokenizer, which must split by GPT-2's pattern and have ``<|endoftext|>``.
        name: What programs show as the name of the model.
        path: File to write; it must not exist.
        form: Type of the matrices. Vectors and positions are always fp32.

    Raises:
        InputError: The model has a part, or the tokenizer a pattern, that llama.cpp's gpt2 lacks; the rows of a matrix
            cannot be cut into blocks of 32; model and tokenizer differ in the number of tokens; the package ``gguf``
            is missing; ``path`` exists, or its directory does not.
    """
    if path.exists():
        raise InputError(f"{path} exists; give another name, or delete it first")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a directory; create it first")
    require_exportable(model.config, tokenizer, form)
    gguf = _package()
    kind = gguf.GGMLQuantizationType[form.upper()]
    temporary = temporary_name(path)
    writer = gguf.GGUFWriter(temporary, "gpt2", use_temp_file=True)  # not all tensors in memory at once
    try:
        _add_config(writer, model.config, name)
        writer.add_file_type(gguf.LlamaFileType["ALL_F32" if form == "f32" else f"MOSTLY_{form.upper()}"])
        if form.startswith("q"):
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_tokenizer(writer, tokenizer, gguf.TokenType)
        for tensor_name, weight in named_weights(model.config, model.state_dict()):
            is_vector = weight.dim() == 1 or tensor_name.startswith("position_embd.")
            type_ = gguf.GGMLQuantizationType.F32 if is_vector else kind
            writer.add_tensor(tensor_name, gguf.quantize(weight.numpy(), type_), raw_dtype=type_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.rename(path)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)


def require_exportable(config: GPTConfig, tokenizer: Tokenizer, form: GGUFType) -> None:
    """Raise `InputError` unless llama.cpp's gpt2 has every part of a model and its tokenizer.

    It has grouped heads and any width of the feed-forward layer, beside what Hugging Face's GPT-2 has.
    """
    names = GPT2.differences(dataclasses.replace(config, n_kv_head=None))
    if names:
        parts, allowed = named(config, names), named(GPT2.parts, names)
        raise InputError(f"llama.cpp's gpt2 does not have {parts}, only {allowed}; try gpt2lab export-hf")
    if tokenizer.pattern != "gpt2":
        raise InputError(
            f"llama.cpp's gpt2 splits text by GPT-2's pattern, and this tokenizer by {tokenizer.pattern!r:.80}; "
            "train the tokenizer with --pattern gpt2"
        )
    if tokenizer.eot is None:
        raise InputError(
            "the tokenizer has no <|endoftext|>, at which llama.cpp begins and ends a text; add it with gpt2lab "
            "tokenizer add-special before training"
        )
    if config.vocab_size != tokenizer.n_vocab:
        raise InputError(f"the model has {config.vocab_size:,} tokens and its tokenizer {tokenizer.n_vocab:,}")
    for option, width in (("n_embd", config.n_embd), ("n_inner", config.inner)):
        if form.startswith("q") and width % BLOCK:
            raise InputError(f"{form} cuts rows into blocks of {BLOCK}, and {option} is {width}; use f16 or f32")


def named_weights(config: GPTConfig, weights: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a state dictionary by llama.cpp's names, in fp32 on the CPU."""
    for name, weight in with_biases(weights).items():
        layer, module, kind = re.fullmatch(r"(?:h\.(\d+)\.)?(.+)\.(\w+)", name).groups()  # type: ignore[union-attr]
        if module in ("wte", "lm_head"):
            weight = weight[: config.vocab_size]
        where = "" if layer is None else f"blk.{layer}."
        yield f"{where}{_NAMES[module]}.{kind}", weight.detach().float().cpu().contiguous()


def _add_config(writer: Any, config: GPTConfig, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.inner)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, types: Any) -> None:
    """Add the tokens in GPT-2's visible characters, and the merges. Special tokens are written as they read."""
    special = {number: text for text, number in tokenizer.special_tokens.items()}
    tokens = [special.get(number) or bytes_to_unicode(token) for number, token in sorted(tokenizer.vocab.items())]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([types.CONTROL if number in special else types.NORMAL for number in range(len(tokens))])
    writer.add_token_merges([f"{bytes_to_unicode(left)} {bytes_to_unicode(right)}" for left, right in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.eot)
    writer.add_eos_token_id(tokenizer.eot)
    writer.add_add_bos_token(False)


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise InputError(f"export-gguf needs the package gguf ({error}): pip install 'gpt2lab[gguf]'") from error
    return gguf
