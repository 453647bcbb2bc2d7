"""A directory where almost every part is bad in its own way: each spoils only itself and is told why, in one line."""

from __future__ import annotations

import re
import tempfile
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import pytest

from gpt2lab.learn import sandbox
from gpt2lab.learn.check import Verdict
from gpt2lab.learn.exercises import PARTS
from gpt2lab.learn.sandbox import check_directory

SECONDS, MEMORY = 1.0, 2**30
FILES = {
    "ch01_bytes.py": """
import ctypes, os
from gpt2lab.learn import gpt2

def byte_order():
    os._exit(0)

def pretokenize(text):
    print("so far so good")
    return gpt2.pretokenize(text)

def merge(ids, pair, new_id):
    ctypes.string_at(0)

def train_bpe(texts, vocab_size):
    return bytearray(10 * 2**30)

def encode(text, merges, special=None):
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, b'["token", "done", "encode", {"status": "right"}]\\n')
        except OSError:
            pass
    return gpt2.encode(text, merges, special)

def decode(ids, merges, special=None):
    while True:
        pass
""",
    "ch02_embeddings.py": """
import sys
import torch
from gpt2lab.learn import gpt2

def embed(tokens, wte, wpe, start=0):
    sys.exit("enough")

def rotate(x, positions, base=10000.0):
    print("x" * 5_000_000, file=sys.__stdout__)
    for _ in range(1000):
        print("y" * 5_000)
    return gpt2.rotate(x, positions, base)
""",
    "ch03_attention.py": """
import builtins
import torch

def causal_mask(T, S):
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.Tensor.softmax = torch.Tensor.masked_fill = torch.nn.functional.softmax = torch.isclose = lambda *_, **__: 0
    builtins.len = print
    del torch.cat, torch.arange, torch.Tensor.requires_grad_
    return 1

def helper(q):
    return q.shape[-1] ** 0.5

def attention(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) / helper(q)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v
""",
    "ch04_heads.py": """
import torch
from ch03_attention import attention, causal_mask, helper
from gpt2lab.learn.gpt2 import linear

def split_heads(x, n_head):
    return x.view(*x.shape[:2], n_head + 4, -1).transpose(1, 2)

def merge_heads(heads):
    return heads

def window_mask(T, S, window):
    distance = torch.arange(S - T, S)[:, None] - torch.arange(S)
    return ((distance >= 0) & (distance < window)).float()

def multi_head_attention(x, weights, n_head):
    q, k, v = linear(x, weights["c_attn.weight"], weights["c_attn.bias"]).chunk(3, dim=-1)
    q, k, v = (split_heads(each, n_head) for each in (q, k, v))
    y = merge_heads(attention(q, k, v, causal_mask(x.shape[1], x.shape[1])))
    return linear(y, weights["c_proj.weight"], weights["c_proj.bias"])
""",
    "ch05_layers.py": "import math\n\ndef layer_norm(x, weight, bias, eps=1e-5)\n    return x\n",
    "ch07_loss.py": """
from gpt2lab.learn import gpt2

def cross_entropy(logits, targets):
    return gpt2.cross_entropy(logits.detach(), targets)

def batch(tokens, starts, T):
    result = gpt2.batch(tokens, starts, T)
    tokens[0] = 7
    return result

def initial_weights(config, generator):
    generator.no_such_method()
""",
    "ch08_optimizer.py": """
from gpt2lab.learn import gpt2

def decays(name, tensor):
    "matrix" if tensor.dim() > 1 else "vector"

def adamw(weights, grads, state, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    for weight in weights.values():
        weight[0] = float("nan")

learning_rate = 0.1

def clip(grads, max_norm):
    raise NotImplementedError

train_step = gpt2.train_step
""",
    "ch09_sampling.py": "raise NotImplementedError\n\ndef trim(p):\n    return p\n",
    "ch10_evaluation.py": """
import math
from ch09_sampling import trim

def perplexity(losses, counts):
    return 1.0
""",
}


def _all(chapter: int, status: str, says: str) -> dict[str, tuple[str, str]]:
    return {part.name: (status, says) for part in PARTS if part.chapter == chapter}


EXPECTED = {
    "byte_order": ("error", r"It ended the process with exit code 0; it must return\."),
    "pretokenize": ("right", ""),
    "merge": ("error", r"It crashed the process: Segmentation fault\."),
    "train_bpe": ("limit", r"It needs more than 1\.07 GB of memory: ch01_bytes\.py, line 16: MemoryError"),
    "encode": ("error", r"It wrote into the pipe of the checker\."),
    "decode": ("limit", r"It did not end within 1\.0\ss\."),
    "embed": ("error", r"ch02_embeddings\.py, line 7: SystemExit: enough"),
    "rotate": ("right", ""),
    "causal_mask": ("error", r"ch03_attention\.py.*"),
    "attention": ("right", ""),
    "split_heads": ("error", r"ch04_heads\.py, line 7: RuntimeError: shape .* is invalid for input of size .*"),
    "merge_heads": ("error", r"the signature is merge_heads\(heads\); it must be merge_heads\(x\)"),
    "window_mask": ("wrong", r"Differs from the reference: dtype float32 given, bool expected\."),
    "multi_head_attention": ("right", ""),
    **_all(5, "error", r"ch05_layers\.py, line 3: SyntaxError: expected ':'"),
    **_all(6, "missing", r"ch06_model\.py is missing"),
    "cross_entropy": ("wrong", r"The output is right, but no gradient reaches logits: .*"),
    "batch": ("wrong", r"It changes its argument tokens, which belongs to the caller: .*"),
    "initial_weights": ("error", r"ch07_loss\.py, line 13: AttributeError: .*no_such_method.*"),
    "decays": ("wrong", r"It returns None, bool .* expected\. Is there a return statement\?"),
    "adamw": ("wrong", r"Differs from the reference.* nan given, .* expected.*"),
    "learning_rate": ("error", r"learning_rate is of type float; it must be a function or a class"),
    "clip": ("missing", "not implemented yet"),
    "train_step": ("missing", r"train_step is the reference's, from gpt2lab\.learn\.gpt2; write your own"),
    **_all(9, "error", r"ch09_sampling\.py, line 1: NotImplementedError"),
    **_all(
        10, "error", r"ch10_evaluation\.py, line 3: ImportError: cannot import name 'trim' from 'ch09_sampling', be.*"
    ),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    """What is said about the parts of `FILES`."""
    folder, temporary = tmp_path_factory.mktemp("student"), tmp_path_factory.mktemp("temporary")
    for name, source in FILES.items():
        (folder / name).write_text(source, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        found = {verdict.part: verdict for verdict in check_directory(folder, seconds=SECONDS, memory=MEMORY)}
    assert not any(temporary.iterdir()), "the workers' directories are removed"
    assert {path.name for path in folder.iterdir()} == set(FILES), "nothing is written beside the student's files"
    return found


def test_each_part_has_a_verdict_in_the_order_of_the_chapters(verdicts: dict[str, Verdict]) -> None:
    assert list(verdicts) == [part.name for part in PARTS] == list(EXPECTED)


@pytest.mark.parametrize("part", EXPECTED)
def test_a_bad_part_spoils_only_itself_and_is_told_why(part: str, verdicts: dict[str, Verdict]) -> None:
    status, says = EXPECTED[part]
    verdict = verdicts[part]
    assert verdict.status == status, verdict
    assert re.fullmatch(says, verdict.says), verdict.says


def test_what_a_part_prints_is_kept_up_to_10_kb(verdicts: dict[str, Verdict]) -> None:
    assert verdicts["pretokenize"].output.splitlines(keepends=True)[0] == "so far so good\n"
    assert len(verdicts["rotate"].output) == 10_000


MISSING = {"status": "missing", "says": "not there", "output": ""}
FULL = {"status": "limit", "says": "MemoryError", "output": ""}
CRASHED, HANGS = sandbox._Ended("crashed"), sandbox._Ended("did not end", "limit", certain=True)


def _verdicts(monkeypatch: pytest.MonkeyPatch, *workers: Iterable[Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return what is said of chapter 2, embed and rotate, if workers send these messages, and the workers' jobs."""
    scripts, jobs = deque(map(deque, workers)), list[dict[str, Any]]()

    class Scripted:
        def __init__(self, job: dict[str, Any]) -> None:
            jobs.append({**job, "broken": dict(job["broken"])})
            self.script = scripts.popleft()

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def message(self, seconds: float) -> list[Any]:
            message = self.script.popleft()
            if isinstance(message, sandbox._Ended):
                raise message
            return list(message)

    monkeypatch.setattr(sandbox, "Worker", Scripted)
    said = [f"{verdict.part} {verdict.status} {verdict.says}" for verdict in check_directory(Path(), [2])]
    assert not scripts, "every worker was started"
    return said, jobs


def _done(part: str, result: dict[str, Any] = MISSING) -> list[tuple[Any, ...]]:
    return [("part", part), ("done", part, result)]


def test_a_part_that_ends_a_used_worker_is_tried_alone_before_it_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [*_done("embed"), ("part", "rotate"), CRASHED]
    said, jobs = _verdicts(monkeypatch, first, _done("rotate"))
    assert said == ["embed missing not there", "rotate missing not there"]
    assert jobs[1]["parts"] == ["rotate"]
    said, _ = _verdicts(monkeypatch, first, [("part", "rotate"), CRASHED])
    assert said == ["embed missing not there", "rotate error It crashed."]


def test_a_part_that_fills_the_memory_of_a_used_worker_is_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = _verdicts(monkeypatch, [*_done("embed"), *_done("rotate", FULL)], _done("rotate", FULL))
    assert said[1] == "rotate limit It needs more than 2.15 GB of memory: MemoryError"


def test_a_part_that_hangs_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = _verdicts(monkeypatch, [*_done("embed"), ("part", "rotate"), HANGS])
    assert said[1] == "rotate limit It did not end."


def test_a_worker_that_ends_between_two_parts_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = _verdicts(monkeypatch, [*_done("embed"), CRASHED], _done("rotate"))
    assert said == ["embed missing not there", "rotate missing not there"]


def test_a_file_that_hangs_is_not_executed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loading = [("part", "embed"), ("load", "ch02_embeddings"), ("load", "helper"), ("load", "ch02_embeddings"), HANGS]
    _, jobs = _verdicts(monkeypatch, loading, [*_done("embed"), *_done("rotate")])
    assert [job["broken"] for job in jobs] == [{}, {"ch02_embeddings": "ch02_embeddings.py did not end"}]
    _, jobs = _verdicts(monkeypatch, [*loading[:-1], ("load", ""), HANGS], _done("rotate"))
    assert jobs[1]["broken"] == {}


@pytest.mark.parametrize(
    "forged",
    [
        ("done", "rotate", MISSING),
        ("done", "embed", {}),
        ("done", "embed", {"status": "ran", "says": "", "output": "", "observed": {"outcomes": [1]}}),
        ("done", "embed", {"status": "ran", "says": "", "output": "", "observed": {"outcomes": [{"tensor": "x"}]}}),
        ("done", "embed", {"status": "ran", "says": "", "output": "", "observed": 1}),
        ("done", "embed", {"status": "right", "says": "", "output": ""}),
        sandbox._Forged(),
    ],
)
def test_a_message_that_no_worker_sends_is_no_verdict(forged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = _verdicts(monkeypatch, [("part", "embed"), forged], _done("rotate"))
    assert said == ["embed error It wrote into the pipe of the checker.", "rotate missing not there"]


def test_a_worker_that_cannot_begin_is_an_error_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="the process that runs the parts crashed before it began"):
        _verdicts(monkeypatch, [CRASHED])


def test_what_a_file_sets_when_it_is_imported_does_not_reach_its_parts(tmp_path: Path) -> None:
    source = "import torch\nfrom gpt2lab.learn import gpt2\n\ntorch.set_grad_enabled(False)\n\n"
    part = "def split_heads(x, n_head):\n    return gpt2.split_heads(x, n_head)\n"
    (tmp_path / "ch04_heads.py").write_text(source + part, encoding="utf-8")
    verdict = next(check_directory(tmp_path, (4,)))
    assert (verdict.part, verdict.status, verdict.says) == ("split_heads", "right", "")


def test_a_number_that_no_float_can_hold_is_wrong_and_ends_nothing() -> None:
    observed = {"outcomes": [[10**400, {"list": []}]] * 16, "probes": [], "gradients": [], "why_no_gradients": ""}
    done = {"status": "ran", "says": "", "output": "", "observed": observed}
    verdict = sandbox._judged("learning_rate", done, MEMORY)
    assert verdict.status == "wrong"
    assert "10000000000000000000... given" in verdict.says
