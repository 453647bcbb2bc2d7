"""A model in one HTML file: tokenizer, weights of 8 bits and the pages of `gpt2lab play`, which run it in the browser.

    file      <style>          style.css
              <script>         the modules of static/ as one script, with the engine of engine-local.js
              <script json>    {config, tokenizer, tensors, weights}: what that engine reads; the weights are base64

Each row of a matrix is stored as integers from -127 to 127 and one scale, the largest absolute value of the row over
127 (absmax quantization; Dettmers et al. 2022, section 2); vectors stay fp32. Nothing is loaded from anywhere: the
file's own Content-Security-Policy allows its one script and its one style sheet, by their hashes.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

import torch

from gpt2lab.errors import InputError, require
from gpt2lab.files import write_atomically
from gpt2lab.formatting import printable
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT, without_mtp
from gpt2lab.model.positions import SINUSOID_SCALE, alibi_slopes, frequencies, rotation
from gpt2lab.tokenizer.pretokenize import find_pattern
from gpt2lab.tokenizer.tokenizer import Tokenizer

STATIC = Path(__file__).parent / "static"
ENTRY = "single.js"
LEVELS = 127
"""Largest absolute value of an 8-bit weight."""
MOST_PARAMETERS = 380_000_000
"""As base64 with a vocabulary they are just below 2^29 characters, the longest string of Chromium."""


def write_single_file(model: GPT, tokenizer: Tokenizer, name: str, out: Path) -> None:
    """Write a page that runs a model in the browser.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        name: What the page calls the model.
        out: The file to write, .html; it must not exist.

    Raises:
        InputError: The file exists or cannot be written there, or the model or its tokenizer has something that the
            page does not support.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out}: the model becomes an HTML file; give a name that ends in .html")
    if out.exists():
        raise InputError(f"{out} exists; give another name, or delete it first")
    if not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; create it first")
    name, model = printable(name), without_mtp(model)
    most = f"at most {MOST_PARAMETERS:,}: a browser takes no longer text than 512 MB; use gpt2lab play"
    require(model.n_params <= MOST_PARAMETERS, "the number of parameters", model.n_params, most)
    content = {
        "name": name,
        "parameters": model.n_params,
        "config": _browser_config(model.config),
        "tokenizer": _browser_tokenizer(tokenizer),
        **_packed(model),
    }
    write_atomically(out, _page(name, json.dumps(content, ensure_ascii=False, separators=(",", ":"))))


# Page -----------------------------------------------------------------------------------------------------------------


def _page(name: str, content: str) -> str:
    """Return the page; ``content`` is JSON, in which no "<" may end the script that holds it."""
    script, style = bundled(ENTRY), (STATIC / "style.css").read_text(encoding="utf-8")
    csp = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    data = content.replace("<", r"\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{csp}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(name)}</title>
<style>{style}</style>
</head>
<body><noscript>This page needs JavaScript.</noscript>
<script type="application/json" id="model">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./([\w-]+\.js)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?function\*?|const|class) (\w+)", re.MULTILINE)


def bundled(entry: str) -> str:
    """Return a module of static/ and those that it imports as one script, since a page on disk may import none.

    Each module becomes a function that returns what it exports. They write ``import { a, b } from "./other.js";``, and
    ``export`` before a function, a class or a const, and nothing else of the syntax of modules.
    """
    parts: dict[str, str] = {}

    def add(module: str) -> None:
        if module in parts:
            return
        source = (STATIC / module).read_text(encoding="utf-8")
        for _, imported in _IMPORT.findall(source):
            add(imported)
        exported = ", ".join(name for _, name in _EXPORT.findall(source))
        body = _EXPORT.sub(r"\1 \2", _IMPORT.sub(r'const \1 = modules["\2"];', source))
        parts[module] = f'modules["{module}"] = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();\n'

    add(entry)
    return f'"use strict";\n(() => {{\nconst modules = {{}};\n{"".join(parts.values())}}})();\n'


# Model ----------------------------------------------------------------------------------------------------------------

_KNOWN = (
    *("n_layer", "n_head", "n_embd", "n_ctx", "vocab_size", "n_inner", "bias", "dropout", "kernel", "mask", "window"),
    *("prefix", "rope_base", "rope_pairing", "rope_fraction", "rope_scaling", "rope_factor", "rope_original_ctx"),
    *("nope_every", "n_kv_head", "norm_eps", "norm_affine", "qk_norm", "attention_softcap", "attention_sinks"),
    *("attention_gate", "value_residual", "parallel_blocks", "tied_head", "logit_softcap", "z_loss", "embedding_norm"),
    *("mtp_depth", "mtp_weight", "mup_base_width", "import_sha256"),
)
"""Options of which the engine computes every value, or that change no forward pass; of others it knows the default."""
_CHOICES = {
    "position": ("learned", "sinusoidal", "rope", "alibi", "none"),
    "norm": ("layernorm", "rmsnorm"),
    "norm_placement": ("pre", "post", "sandwich"),
    "activation": ("gelu_tanh", "gelu", "relu", "relu2", "silu", "glu", "geglu", "swiglu"),
}
"""The choices that it computes."""
_MASKS = ("causal", "window")


def _lacking(config: GPTConfig) -> list[tuple[str, Any]]:
    """Return the options, with their values, that the engine does not compute."""
    lacking = [("mask", mask) for mask in config.mask_names if mask not in _MASKS]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in _KNOWN and value not in _CHOICES.get(field.name, (field.default,)):
            lacking.append((field.name, value))
    return lacking


def _browser_config(config: GPTConfig) -> dict[str, Any]:
    """Return what the engine computes with, in numbers: it knows no masks, no rotary bases and no muP.

    Raises:
        InputError: The model has a part that the engine does not compute.
    """
    if lacking := _lacking(config):
        name, value = lacking[0]
        raise InputError(
            f"export-html does not support {name} {value}, which the engine in the page does not compute; use gpt2lab "
            "play"
        )
    masks = [config.mask_names[layer % len(config.mask_names)] for layer in range(config.n_layer)]
    copied = (
        *("n_layer", "n_head", "n_embd", "n_ctx", "vocab_size", "position", "norm", "norm_placement", "norm_eps"),
        *("qk_norm", "attention_softcap", "attention_gate", "activation", "parallel_blocks", "logit_softcap"),
        "embedding_norm",
    )
    return {
        **{name: getattr(config, name) for name in copied},
        "n_kv_head": config.kv_heads,
        "windows": [config.window if mask == "window" else None for mask in masks],
        "rotary": _rotary(config) if config.position == "rope" else None,
        "slopes": alibi_slopes(config.n_head, _CPU).tolist() if config.position == "alibi" else None,
        "sinusoid_scale": SINUSOID_SCALE,
        "logit_scale": 1 / config.mup_scale,
    }


_CPU = torch.device("cpu")


def _rotary(config: GPTConfig) -> dict[str, Any]:
    cos, _ = rotation(torch.zeros(1, dtype=torch.long), config, torch.float32)
    return {
        "frequencies": frequencies(config, _CPU).tolist(),
        "length": float(cos[0, 0]),  # of a rotated vector, which YaRN stretches
        "interleaved": config.rope_pairing == "interleaved",
        "layers": [layer not in config.nope_layers for layer in range(config.n_layer)],
    }


def quantized(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix (R, C) as 8-bit integers (R, C) and the scale of each row (R,), fp32."""
    scale = matrix.abs().amax(dim=1) / LEVELS
    return (matrix / scale.clamp(min=1e-38)[:, None]).round().to(torch.int8), scale


def _packed(model: GPT) -> dict[str, Any]:
    """Return the weights as base64 of bytes, first all fp32 numbers, then all 8-bit ones, and where each tensor is."""
    floats: list[torch.Tensor] = []
    integers: list[torch.Tensor] = []
    tensors: dict[str, dict[str, Any]] = {}
    for name, weight in model.state_dict().items():
        weight = weight.float().cpu()
        if not bool(weight.isfinite().all()):
            raise InputError(f"{name} holds NaN or infinity; the checkpoint is damaged, export another one")
        if name in ("wte.weight", "lm_head.weight"):
            weight = weight[: model.config.vocab_size]
        tensors[name] = {"shape": list(weight.shape)}
        place = "offset" if weight.dim() == 1 else "scale"
        tensors[name][place] = 4 * sum(map(len, floats))
        if weight.dim() == 1:
            floats.append(weight)
            continue
        matrix, scale = quantized(weight)
        floats.append(scale)
        tensors[name]["offset"] = sum(one.numel() for one in integers)
        integers.append(matrix.flatten())
    start = 4 * sum(map(len, floats))
    for tensor in tensors.values():
        if "scale" in tensor:
            tensor["offset"] += start
    data = b"".join(part.numpy().tobytes() for part in (*floats, *integers))
    return {"tensors": tensors, "weights": base64.b64encode(data).decode("ascii")}


# Tokenizer ------------------------------------------------------------------------------------------------------------


def _browser_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    vocabulary, special = tokenizer.vocab, set(tokenizer.special_tokens.values())
    ids = {token: number for number, token in vocabulary.items() if number not in special}
    return {
        "tokens": [token.decode("latin-1") for token in vocabulary.values()],
        "merges": [ids[part] for merge in tokenizer.merges for part in merge],
        "special": sorted(special),
        "pattern": javascript_pattern(find_pattern(tokenizer.pattern).published),
        "eot": tokenizer.eot,
    }


_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # of cl100k and later patterns
_IN_JAVASCRIPT = {
    _CONTRACTIONS: "'(?:[sSſtTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])",
    r"\s": r"\p{White_Space}",  # JavaScript counts U+FEFF as well, and not U+0085
    r"\S": r"\P{White_Space}",
    r"\d": r"\p{Nd}",  # ASCII only there
    r"\D": r"\P{Nd}",
    **{rf"\{character}": character for character in "#&~"},
}
_PART = re.compile(
    rf"{re.escape(_CONTRACTIONS)}|\\[pP]\{{\w+\}}|\\.|\[\^?(?:\\.|[^\]\\])*\]|\(\?[>i]|[*+?}}]\+|.", re.DOTALL
)
"""The parts of a pattern that may need translation, each as a whole."""


def javascript_pattern(published: str) -> str:
    """Return a splitting pattern as JavaScript reads it with the flag u.

    Raises:
        InputError: JavaScript does not have its syntax.
    """
    return _PART.sub(lambda part: _translated(part[0], published), published)


def _translated(part: str, published: str) -> str:
    if part in _IN_JAVASCRIPT:
        return _IN_JAVASCRIPT[part]
    if len(part) > 1 and part[0] == "[":  # a class: its parts, but a dot or a hyphen is itself
        inside = re.sub(r"\\[pP]\{\w+\}|\\[^-]", lambda found: _translated(found[0], published), part[1:-1])
        return f"[{inside}]"
    if script := re.fullmatch(r"\\([pP])\{(\w{3,})\}", part):
        return rf"\{script[1]}{{Script={script[2]}}}"
    if part in ("(?>", "(?i", "*+", "++", "?+", "}+"):
        raise InputError(
            f"export-html does not support {part!r} in the splitting pattern {published!r}: JavaScript has no such "
            "syntax; use gpt2lab play"
        )
    return {".": r"[^\n]", r"\-": "-"}.get(part, part)
