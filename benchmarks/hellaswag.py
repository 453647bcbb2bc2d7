"""HellaSwag: gpt2lab compared with lm-evaluation-harness on Hugging Face's GPT-2: speed, and agreement per item.

    python benchmarks/hellaswag.py --items hellaswag_val_1000.jsonl --gpt2 DIR [--limit 100] [--rounds 3] [--threads 2]

Requires `pip install "lm-eval[hf]"`. Both sides load the same random fp32 weights with GPT-2's vocabulary and use the
wording of the harness. Each measurement runs in its own process; the sides alternate. Seconds cover tokenization and
scoring, not loading; processor seconds show how much other load on the machine affected them. DIR contains GPT-2's
encoder.json and vocab.bpe. With ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 both are measured as on most laptops.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "hellaswag.json"
SHAPES = {"small": (4, 4, 256), "gpt2": (12, 12, 768)}
"""Layers, heads, width."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=Path, required=True, help="a HellaSwag .jsonl file")
    parser.add_argument("--gpt2", type=Path, required=True, help="directory of encoder.json and vocab.bpe")
    parser.add_argument("--limit", type=int, help="use only the first items; the result is not saved")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each side (default 2)")
    parser.add_argument("--shape", choices=SHAPES, default="small", help="shape of the model (default small)")
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, folder = options.child
        print(json.dumps(SIDES[side](options, Path(folder))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(Path(scratch) / "weights")
        make_weights(options.shape, Path(folder))
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side in SIDES:
                found[side].append(run_child(side, folder, options.threads))
                print(f"{side:8} {found[side][-1]['seconds']:8.1f} s", flush=True)
    report(found, options)


def run_child(side: str, folder: str, threads: int) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--child", side, folder]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def make_weights(shape: str, folder: Path) -> None:
    """Save a random GPT-2 with a spread large enough to avoid ties."""
    import torch

    from gpt2lab.model.config import GPTConfig
    from gpt2lab.model.gpt import GPT

    n_layer, n_head, n_embd = SHAPES[shape]
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.save_hf(folder)


def timed(score: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, processor = time.perf_counter(), time.process_time()
    found = score()
    return found, {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}


def ours(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Score as `gpt2lab eval hellaswag --style harness --precision fp32` does."""
    from gpt2lab import runtime

    runtime.tune_allocator()
    from gpt2lab.evaluation.hellaswag import encode_items, hellaswag, read_hellaswag
    from gpt2lab.model.gpt import GPT
    from gpt2lab.tokenizer.tokenizer import Tokenizer

    model, tokenizer = GPT.from_hf(folder), Tokenizer.gpt2(options.gpt2)
    items = read_hellaswag(options.items)[: options.limit]
    found, times = timed(lambda: hellaswag(model, encode_items(tokenizer, items, model.config.n_ctx, "harness")))
    return times | found.correct


def harness(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Score with the model class, preprocessing and metrics of the harness, on a local task definition."""
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.hellaswag.utils import preprocess
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    def process(documents: Any) -> Any:
        return documents.map(
            lambda d: {
                "query": preprocess(d["activity_label"] + ": " + d["ctx"]),
                "choices": [preprocess(ending) for ending in d["endings"]],
                "gold": int(d["label"]),
            }
        )

    task = ConfigurableTask(
        config={
            "task": "hellaswag_local",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(options.items)}, "cache_dir": str(folder / "cache")},
            "output_type": "multiple_choice",
            "validation_split": "validation",
            "process_docs": process,
            "doc_to_text": "{{query}}",
            "doc_to_target": "{{label}}",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
    )
    raw: Any = ByteLevelBPETokenizer(str(options.gpt2 / "encoder.json"), str(options.gpt2 / "vocab.bpe"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw._tokenizer, eos_token="<|endoftext|>")
    wrap: Any = HFLM  # its decorator hides the signature from type checkers
    model = wrap(GPT2LMHeadModel.from_pretrained(folder), tokenizer=tokenizer, batch_size=16, device="cpu")
    evaluate: Any = lm_eval.evaluate
    found, times = timed(
        lambda: evaluate(model, {"hellaswag_local": task}, limit=options.limit, log_samples=True, bootstrap_iters=0)
    )
    samples = sorted(found["samples"]["hellaswag_local"], key=lambda sample: sample["doc_id"])
    return times | {metric: [bool(sample[metric]) for sample in samples] for metric in ("acc", "acc_norm")}


SIDES: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {"ours": ours, "harness": harness}


def report(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """Print medians and agreement; save them by type of CPU, with machine and versions, if all items were used."""
    from gpt2lab.runtime import environment

    a, b = found["ours"][0], found["harness"][0]
    result = {
        "shape": options.shape,
        "threads": options.threads,
        "items": len(a["acc"]),
        "same_acc": sum(x == y for x, y in zip(a["acc"], b["acc"], strict=True)),
        "same_acc_norm": sum(x == y for x, y in zip(a["acc_norm"], b["acc_norm"], strict=True)),
    }
    for key in ("seconds", "processor_seconds"):
        pairs = [(o[key], h[key]) for o, h in zip(found["ours"], found["harness"], strict=True)]
        result |= {
            f"ours_{key}": round(statistics.median(o for o, _ in pairs), 2),
            f"harness_{key}": round(statistics.median(h for _, h in pairs), 2),
            f"times_faster_{key}": round(statistics.median(h / o for o, h in pairs), 2),
        }
    print(json.dumps(result, indent=2))
    if options.limit is None:
        import torch

        results = json.loads(RESULTS.read_text(encoding="utf-8"))
        results[torch.backends.cpu.get_cpu_capability()] = {"environment": environment(), **result}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
