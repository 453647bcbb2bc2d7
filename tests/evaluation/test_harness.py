"""lm-evaluation-harness on our models; its own wording and metrics are the oracle for our HellaSwag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2lab import runtime
from gpt2lab.errors import InputError
from gpt2lab.evaluation.hellaswag import hellaswag, read_hellaswag
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # of its dependencies

TASK = """
task: local_hellaswag
dataset_path: json
dataset_kwargs:
  cache_dir: {cache}
  data_files: {{validation: {items}}}
output_type: multiple_choice
validation_split: validation
process_docs: !function local_hellaswag.process_docs
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: choices
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 7}}
"""
WORDING = '''
"""The harness's own preprocessing, over a file without ctx_a and ctx_b."""
from lm_eval.tasks.hellaswag.utils import preprocess


def process_docs(dataset):
    return dataset.map(lambda doc: {
        "query": preprocess(doc["activity_label"] + ": " + doc["ctx"]),
        "choices": [preprocess(ending) for ending in doc["endings"]],
        "gold": int(doc["label"]),
    })
'''


@pytest.fixture(scope="module")
def wrapped(tokenizer: Tokenizer) -> Any:
    from gpt2lab.evaluation.harness import HarnessModel

    torch.manual_seed(0)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=32, n_ctx=96, vocab_size=tokenizer.n_vocab)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return HarnessModel(model, tokenizer, runtime.resolve("cpu", "fp32"))


def local_task(folder: Path, items: Path) -> Path:
    task = TASK.format(cache=folder / "cache", items=items)
    (folder / "local_hellaswag.yaml").write_text(task, encoding="utf-8")
    (folder / "local_hellaswag.py").write_text(WORDING, encoding="utf-8")
    return folder


def make_items(path: Path, count: int) -> Path:
    words = ["a", "man", "roof", "is", "sitting", "on", "holding", "sings", "cube", "[title]", "and", "[sic]", "he", "",
             "rises"]  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def text(longest: int) -> str:
        length = int(torch.randint(2, longest, (1,), generator=generator))
        chosen = torch.randint(len(words), (length,), generator=generator).tolist()
        return "A " + " ".join(words[i] for i in chosen) + "."

    rows = [
        {"activity_label": text(4), "ctx": text(20), "endings": [text(9) for _ in range(4)], "label": n % 4}
        for n in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def test_hellaswag_equals_the_harness_item_by_item(wrapped: Any, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    items = make_items(tmp_path / "items.jsonl", 40)
    manager = TaskManager(include_path=str(local_task(tmp_path, items)), include_defaults=False)
    evaluate: Any = lm_eval.simple_evaluate
    found = evaluate(model=wrapped, tasks=["local_hellaswag"], task_manager=manager, bootstrap_iters=0)
    theirs = sorted(found["samples"]["local_hellaswag"], key=lambda sample: sample["doc_id"])
    ours = hellaswag(wrapped.model, wrapped.model_tokenizer, read_hellaswag(items), "harness")
    assert {metric: [bool(s[metric]) for s in theirs] for metric in ("acc", "acc_norm")} == ours.correct
    assert 0 < ours.figures["acc_norm"] < 1


def test_task_yields_figures_with_their_protocol(wrapped: Any, tmp_path: Path) -> None:
    from gpt2lab.evaluation.harness import run_harness

    folder = local_task(tmp_path, make_items(tmp_path / "items.jsonl", 8))
    (measured,) = run_harness(wrapped, ["local_hellaswag"], folder, limit=5, shots=None)
    assert measured.task == "local_hellaswag"
    assert {"acc", "acc_norm"} <= measured.figures.keys()
    assert "version 7 of the task, 0 examples before each of 5 items" in measured.protocol
    with pytest.raises(InputError, match='the harness has no task "helaswag"'):
        run_harness(wrapped, ["helaswag"], folder, None, None)


@torch.no_grad()
def test_rolling_likelihood_scores_each_token_once(wrapped: Any) -> None:
    from lm_eval.api.instance import Instance

    def request(text: str) -> Any:
        return Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)

    short = "A man is sitting on a roof."
    long = short * 30
    found = wrapped.loglikelihood_rolling([request(short), request(long)])
    ids = [wrapped.eot_token_id, *wrapped.model_tokenizer.encode(short)]
    logits = wrapped.model.eval()(torch.tensor([ids[:-1]])).logits[0]
    expected = float(logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).sum())
    assert found[0] == pytest.approx(expected, abs=1e-3)
    assert len(wrapped.model_tokenizer.encode(long)) > 2 * 96
    assert found[1] < 10 * found[0]


def test_generation_ends_at_a_stop_string(wrapped: Any) -> None:
    from lm_eval.api.instance import Instance

    def write(**options: Any) -> str:
        request = Instance(request_type="generate_until", doc={}, arguments=("A man", options), idx=0)
        return wrapped.generate_until([request])[0]

    whole = write(max_gen_toks=30)
    stop = whole[len(whole) // 2 :][:3]
    assert write(max_gen_toks=30, until=[stop]) == whole[: whole.index(stop)]
    assert write(max_gen_toks=30, until=stop) == whole[: whole.index(stop)]
    sampled = [write(max_gen_toks=30, do_sample=True, temperature=0.9) for _ in range(2)]
    assert sampled[0] == sampled[1]
