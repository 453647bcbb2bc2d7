"""Whether llama.cpp computes what our model does: logits, tokens of text, and greedy texts of exported files.

    pip install llama-cpp-python        # compiled from source: some minutes
    python benchmarks/gguf_files.py [--shakespeare FILE]

Models are random (biases and norms differ from new ones), and the gallery's stories model. GELU there goes through a
table of fp16, so a greedy text may part from ours at a near-tie. The margin between the two best logits at the first
difference is recorded, and logits are also compared with those of our model with such a GELU. Writes
results/gguf_files.json.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gpt2lab import GPT, GPTConfig, Tokenizer, generate
from gpt2lab.evaluation.measure import LoadedRun
from gpt2lab.llama_cpp import write_gguf
from gpt2lab.runtime import device_name

llama_cpp: Any = importlib.import_module("llama_cpp")  # not a dependency: compiling it takes minutes
ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "gguf_files.json"
SIZES: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 128, "n_ctx": 128}
VARIANTS: dict[str, dict[str, Any]] = {
    "GPT-2": {},
    "no biases": {"bias": False},
    "two key-value heads": {"n_kv_head": 2},
    "one key-value head": {"n_kv_head": 1},
    "n_inner 160": {"n_inner": 160},
    "untied head": {"tied_head": False},
}
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
NEW_TOKENS = 40


def random_model(tokenizer: Tokenizer, options: dict[str, Any]) -> GPT:
    """Return a model whose biases and norms are not those of a new one."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SIZES, vocab_size=tokenizer.n_vocab, **options)).eval()
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    return model


def load(path: Path, n_ctx: int) -> Any:
    """Load a file to compute the logits of every position, with keys and values in fp32."""
    kinds = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    return llama_cpp.Llama(str(path), n_ctx=n_ctx, logits_all=True, verbose=False, n_threads=1, **kinds)


def with_rounded_gelu(model: GPT) -> GPT:
    """Return a copy of a model whose GELU has arguments and values of fp16, as llama.cpp's table has."""
    model = copy.deepcopy(model)
    for block in model.h:
        block.mlp.activation = lambda x: F.gelu(x.half().float(), approximate="tanh").half().float()  # type: ignore[union-attr]
    return model


@torch.no_grad()
def compare(model: GPT, tokenizer: Tokenizer, ids: list[int], prompts: list[list[int]], form: Any) -> dict[str, Any]:
    """Return the largest difference in logits, and how many greedy texts are the same, of one exported file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(model, tokenizer, "model", path, form)
        theirs = load(path, model.config.n_ctx)
        theirs.eval(ids)
        found = np.array(theirs.scores[: len(ids)])
        expected = model(torch.tensor([ids])).logits[0].numpy()
        result: dict[str, Any] = {"logits": float(np.abs(found - expected).max())}
        rounded = with_rounded_gelu(model)(torch.tensor([ids])).logits[0].numpy()
        result |= {"logits_after_gelu_in_fp16": float(np.abs(found - rounded).max()), "texts": 0, "margins": []}
        for prompt in prompts:
            ours = generate(model, torch.tensor([prompt]), NEW_TOKENS, greedy=True)[0].tolist()
            text = list(prompt)
            theirs.reset()
            theirs.eval(prompt)
            for _ in range(NEW_TOKENS):
                text.append(int(np.argmax(theirs.scores[len(text) - 1])))
                theirs.eval(text[-1:])
            if ours == text:
                result["texts"] += 1
            else:
                at = next(n for n, (a, b) in enumerate(zip(ours, text, strict=True)) if a != b)
                best = model(torch.tensor([ours[:at]])).logits[0, -1].topk(2).values
                result["margins"].append(float(best[0] - best[1]))
        return result


def same_ids(tokenizer: Tokenizer, model: GPT, texts: list[str]) -> int:
    """Return how many texts llama.cpp splits into the same ids."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(model, tokenizer, "model", path)
        theirs = load(path, model.config.n_ctx)
        return sum(
            theirs.tokenize(text.encode(), add_bos=False, special=False) == tokenizer.encode(text) for text in texts
        )


def main() -> None:
    """Compare every variant in fp32, the stories model in every type, and the ids of text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shakespeare", type=Path, help="Tiny Shakespeare, of which lines are split into ids")
    args = parser.parse_args()
    loaded = LoadedRun(ROOT / "docs" / "gallery" / "stories", "best", "cpu", "fp32")
    tokenizer, stories = loaded.tokenizer, loaded.gpt
    text = "One day, Lily and her mother went to the market. The old dog was happy, and they sang songs every day."
    ids = tokenizer.encode(text)
    prompts = [ids[:length] for length in (2, 5, 9, 14, 20)]
    found: dict[str, Any] = {}
    for name, options in VARIANTS.items():
        found[f"random: {name}, f32"] = compare(random_model(tokenizer, options), tokenizer, ids, prompts, "f32")
    for form in TYPES:
        found[f"stories: {form}"] = compare(stories, tokenizer, ids, prompts, form)
    if args.shakespeare:
        lines = [line for line in args.shakespeare.read_text(encoding="utf-8").split("\n\n") if line][:2000]
        lines += [
            "naïve café 🐈 \u4f60\u597d",
            "  two  spaces\t\ttabs\n\n\n",
            "it's 1,234.5%!!",
            "<|endoftext|> is text",
        ]
        found["ids of text"] = {"texts": len(lines), "same": same_ids(tokenizer, stories, lines)}
    machine = {
        "processor": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "llama-cpp-python": llama_cpp.__version__,
        "prompts": len(prompts),
    }
    RESULTS.write_text(json.dumps({**machine, "files": found}, indent=1) + "\n", encoding="utf-8")
    for name, row in found.items():
        print(name, row)


if __name__ == "__main__":
    main()
