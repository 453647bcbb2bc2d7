"""HellaSwag against Hugging Face's model and lm-evaluation-harness, which also runs its own tasks on our models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F

from gpt2lab import runtime
from gpt2lab.errors import InputError
from gpt2lab.evaluation.hellaswag import STYLES, HellaSwag, HellaSwagItem, encode_items, hellaswag, read_hellaswag
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness's dependencies, which tests import therefore

ITEM = {
    "ind": 24,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "endings": ["is using wrap.", "is ripping tiles off.", "is holding a cube.", "starts pulling up roofing."],
    "label": 3,
}
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
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, n_ctx=96, vocab_size=tokenizer.n_vocab))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return HarnessModel(model, tokenizer, runtime.resolve("cpu", "fp32"))


def choose(wrapped: Any, items: Path | list[HellaSwagItem], style: str = "completion") -> HellaSwag:
    items = read_hellaswag(items) if isinstance(items, Path) else items
    encoded = encode_items(wrapped.model_tokenizer, items, wrapped.model.config.n_ctx, style)
    return hellaswag(wrapped.model, encoded)


def written(folder: Path, items: list[dict[str, Any]]) -> Path:
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def random_items(count: int) -> list[dict[str, Any]]:
    words = ["a", "man", "roof", "is", "sitting", "on", "holding", "sings", "cube", "[title]", "and", "[sic]", "he", "",
             "rises"]  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def text(longest: int) -> str:
        length = int(torch.randint(2, longest, (1,), generator=generator))
        chosen = torch.randint(len(words), (length,), generator=generator).tolist()
        return "A " + " ".join(words[i] for i in chosen) + "."

    return [
        {"activity_label": text(4), "ctx": text(20), "endings": [text(9) for _ in range(4)], "label": n % 4}
        for n in range(count)
    ]


def local_task(folder: Path, items: Path) -> Path:
    task = TASK.format(cache=folder / "cache", items=items)
    (folder / "local_hellaswag.yaml").write_text(task, encoding="utf-8")
    (folder / "local_hellaswag.py").write_text(WORDING, encoding="utf-8")
    return folder


@torch.no_grad()
def test_completion_style_chooses_the_lowest_loss_of_hugging_faces_model(
    wrapped: Any, tokenizer: Tokenizer, tmp_path: Path, hugging_face_twin: Callable[[GPT], Any]
) -> None:
    """Context and " " + ending are encoded separately; the mean is over tokens."""
    items = read_hellaswag(written(tmp_path, [ITEM, {**ITEM, "ctx": "He is", "label": "1"}]))
    theirs = hugging_face_twin(wrapped.model)
    found = choose(wrapped, items)
    for item, by_sum, by_mean in zip(items, found.by_sum, found.by_mean, strict=True):
        sums, means = [], []
        for ending in item.endings:
            context, ids = tokenizer.encode(item.context), tokenizer.encode(" " + ending)
            logits = theirs(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1]
            losses = F.cross_entropy(logits, torch.tensor(ids), reduction="none")
            sums.append(float(losses.sum()))
            means.append(float(losses.mean()))
        assert (by_sum, by_mean) == (sums.index(min(sums)), means.index(min(means)))
    assert [item.label for item in items] == [3, 1]
    chosen = {"acc": found.by_sum, "acc_norm": found.by_mean}
    assert found.figures == {name: ((a == 3) + (b == 1)) / 2 for name, (a, b) in chosen.items()}


def test_harness_style_capitalizes_the_second_half_of_the_context(tokenizer: Tokenizer) -> None:
    endings = ("is [sic] using  wrap.", "b.", "c.", "d.")
    item = HellaSwagItem(0, "Roof", "A man. [title] sits he", endings, 0, ("A man. [title] sits", "he"))
    encoded, lengths = STYLES["harness"].encode(tokenizer, item)
    assert tokenizer.decode(list(encoded[0].context)) == "Roof: A man.. sits He"
    assert tokenizer.decode(list(encoded[0].ids)) == " is using wrap."
    assert lengths == [len("is using wrap."), 2, 2, 2]


def test_space_before_a_final_marker_belongs_to_the_endings_as_in_the_harness(tokenizer: Tokenizer) -> None:
    from lm_eval.api.model import TemplateLM

    endings = ("[substeps] is holding.", "a roof.", "c.", "d.")
    item = HellaSwagItem(0, "Roof", "A man sits. [step]", endings, 0, ("A man sits. [step]", ""))
    theirs: Any = SimpleNamespace(backend="causal", tok_encode=tokenizer.encode)
    encoded, _ = STYLES["harness"].encode(tokenizer, item)
    for ours, ending in zip(encoded, (" is holding.", *endings[1:]), strict=True):
        pair = TemplateLM._encode_pair(theirs, "Roof: A man sits. ", f" {ending}")
        assert (list(ours.context), list(ours.ids)) == pair


def test_ending_with_nothing_but_markers_is_never_chosen_by_mean(wrapped: Any, tokenizer: Tokenizer) -> None:
    """The harness divides by its 0 characters, which gives -inf."""
    item = HellaSwagItem(0, "Roof", "A man sits", ("[step]", "b.", "c.", "d."), 0)
    assert choose(wrapped, [item], "harness").by_mean[0] > 0


@pytest.mark.parametrize("name", STYLES)
def test_protocol_names_style_and_number_of_items(
    name: str, wrapped: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    found = choose(wrapped, written(tmp_path, [ITEM] * 5), name)
    assert STYLES[name].about in found.protocol and "5 items" in found.protocol


def test_hellaswag_equals_the_harness_item_by_item(wrapped: Any, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    items = written(tmp_path, random_items(40))
    manager = TaskManager(include_path=str(local_task(tmp_path, items)), include_defaults=False)
    evaluate: Any = lm_eval.simple_evaluate
    found = evaluate(model=wrapped, tasks=["local_hellaswag"], task_manager=manager, bootstrap_iters=0)
    theirs = sorted(found["samples"]["local_hellaswag"], key=lambda sample: sample["doc_id"])
    ours = choose(wrapped, items, "harness")
    assert {metric: [bool(s[metric]) for s in theirs] for metric in ("acc", "acc_norm")} == ours.correct
    assert 0 < ours.figures["acc_norm"] < 1


def test_contexts_are_cut_as_by_the_model_class_of_the_harness(
    wrapped: Any, tmp_path: Path, hugging_face_twin: Callable[[GPT], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endings of up to a whole context, scored by lm-evaluation-harness on Hugging Face's model."""
    for name in ("accelerate", "accelerate.utils"):  # imported at the top, and not used for a loaded model
        monkeypatch.setitem(sys.modules, name, MagicMock())
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerFast

    tokenizer, n_ctx = wrapped.model_tokenizer, wrapped.model.config.n_ctx
    found = random_items(12)
    for item in found[:6]:
        item["ctx"] = " ".join([item["ctx"]] * 20)
    found[1]["endings"][2] = "z" * (n_ctx - 1)  # a token for each letter and the space
    items = written(tmp_path, found)
    wrap: Any = HFLM
    tokenizer.save(tmp_path / "tok")
    file = str(tmp_path / "tok" / "tokenizer.json")
    fast = PreTrainedTokenizerFast(tokenizer_file=file, eos_token="<|endoftext|>")
    harness = wrap(hugging_face_twin(wrapped.model), tokenizer=fast, device="cpu", max_length=n_ctx)
    manager = TaskManager(include_path=str(local_task(tmp_path, items)), include_defaults=False)
    evaluate: Any = lm_eval.simple_evaluate
    samples = evaluate(model=harness, tasks=["local_hellaswag"], task_manager=manager, bootstrap_iters=0)["samples"]
    theirs = sorted(samples["local_hellaswag"], key=lambda sample: sample["doc_id"])
    ours = choose(wrapped, items, "harness")
    assert {metric: [bool(s[metric]) for s in theirs] for metric in ("acc", "acc_norm")} == ours.correct
    assert ours.encoded.cut == 6 and "The context of 6 items was cut from the left" in ours.protocol


def test_item_with_an_ending_longer_than_the_context_is_left_out_and_named(
    wrapped: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The harness's own model class stops there: "assert len(continuation_enc) <= self.max_length"."""
    n_ctx = wrapped.model.config.n_ctx
    longest, longer = (
        {**ITEM, "ind": ind, "endings": ["z" * n, "b", "c", "d"]} for ind, n in ((7, n_ctx - 1), (8, n_ctx))
    )
    without = choose(wrapped, written(tmp_path, [ITEM, longest]))
    found = choose(wrapped, written(tmp_path, [ITEM, longer, longest]))
    assert (found.correct, found.encoded.left_out, without.encoded.left_out) == (without.correct, (8,), ())
    assert "2 items of 4 endings" in found.protocol
    assert found.protocol.endswith("Left out, with an ending longer than the model's context: 1 item (8).")


def test_task_yields_figures_with_their_protocol(wrapped: Any, tmp_path: Path) -> None:
    from gpt2lab.evaluation.harness import run_harness

    folder = local_task(tmp_path, written(tmp_path, random_items(8)))
    (measured,) = run_harness(wrapped, ["local_hellaswag"], folder, limit=5, shots=None)
    assert measured.task == "local_hellaswag"
    assert {"acc", "acc_norm"} <= measured.figures.keys()
    assert "version 7 of the task, 0 examples before each of 5 items" in measured.protocol
    with pytest.raises(InputError, match='the harness has no task "helaswag"'):
        run_harness(wrapped, ["helaswag"], folder, None, None)


def request(kind: Any, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@torch.no_grad()
def test_rolling_likelihood_scores_each_token_once(wrapped: Any) -> None:
    short = "A man is sitting on a roof."
    found = wrapped.loglikelihood_rolling([request("loglikelihood_rolling", text) for text in (short, short * 30)])
    ids = [wrapped.eot_token_id, *wrapped.model_tokenizer.encode(short)]
    logits = wrapped.model.eval()(torch.tensor([ids[:-1]])).logits[0]
    expected = float(logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None]).sum())
    assert found[0] == pytest.approx(expected, abs=1e-3)
    assert len(wrapped.model_tokenizer.encode(short * 30)) > 2 * 96
    assert found[1] < 10 * found[0]


def test_generation_ends_at_a_stop_string(wrapped: Any) -> None:
    def write(**options: Any) -> str:
        return wrapped.generate_until([request("generate_until", "A man", {"max_gen_toks": 30, **options})])[0]

    whole = write()
    stop = whole[len(whole) // 2 :][:3]
    assert write(until=[stop]) == write(until=stop) == whole[: whole.index(stop)]
    assert write(do_sample=True, temperature=0.9) == write(do_sample=True, temperature=0.9)
