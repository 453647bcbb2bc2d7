"""Our models as EleutherAI's lm-evaluation-harness sees them: its tasks, prompts and metrics over our scoring.

The harness asks for log-probabilities of continuations, of whole texts, and for texts up to a stop; what it asks for is
what `evaluation/scoring.py` and `generation/` do. Needs the extra ``harness``; nothing else imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gpt2lab.errors import InputError
from gpt2lab.evaluation.likelihood import Continuation, score
from gpt2lab.evaluation.measure import Measurement
from gpt2lab.generation import DecodingStrategy, seeded, stream, stream_text
from gpt2lab.model.gpt import GPT
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a progress bar; yields ``(done, total)``."""
MAX_NEW_TOKENS = 256
"""Where a task does not say how long a text may be; the harness's own default."""


class HarnessModel(TemplateLM):
    """A model and its tokenizer behind the harness's interface."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, where: Runtime, bar: Bar | None = None) -> None:
        """Wrap a model; ``bar`` shows progress. Raises `InputError` if the tokenizer has no end-of-text token."""
        super().__init__()
        if tokenizer.eot is None:
            raise InputError("the tokenizer has no <|endoftext|>, with which the harness begins a text; train one")
        self.model, self.ours, self.where, self._eot = model, tokenizer, where, tokenizer.eot
        self.bar = bar or (lambda title: nullcontext(lambda done, total: None))

    @property
    def eot_token_id(self) -> int:
        """The id of the end-of-text token, which also begins texts."""
        return self._eot

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text; no special token is added or recognised."""
        return self.ours.encode(string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._score([(tuple(context), tuple(ids)) for _, context, ids in requests])

    def _score(self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[tuple[float, bool]]:
        with self.where.autocast(), self.bar("continuations") as progress:
            scores = score(self.model, [Continuation(*pair) for pair in pairs], progress)
        return [(-s.nats, s.greedy) for s in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each whole text, cut into windows as the harness cuts it."""
        n_ctx, pairs, owners = self.model.config.n_ctx, [], []
        for index, request in enumerate(requests):
            ids = self.ours.encode(request.args[0])
            for window in get_rolling_token_windows(ids, self._eot, max_seq_len=n_ctx, context_len=1):
                context, continuation = make_disjoint_window(window)
                pairs.append((tuple(context), tuple(continuation)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (found, _) in zip(owners, self._score(pairs), strict=True):
            totals[owner] += found
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes behind each context, up to the task's stops."""
        with self.bar("texts") as progress:
            texts = []
            for request in requests:
                texts.append(self._write(*request.args))
                progress(len(texts), len(requests))
        return texts

    def _write(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        ids = self.ours.encode(context) or [self._eot]
        device = self.where.device
        longest = int(options.get("max_gen_toks", MAX_NEW_TOKENS))
        prompt, generator = torch.tensor([ids], device=device), seeded(0, device)
        columns = stream(self.model, prompt, longest, _strategy(options), generator, self._eot)
        text = ""
        with self.where.autocast():
            for (piece,) in stream_text(columns, self.ours, 1):
                text += piece or ""
                ends = [text.index(stop) for stop in stops if stop in text]
                if ends:
                    return text[: min(ends)]
        return text


def run_harness(
    model: HarnessModel, tasks: Sequence[str], tasks_dir: Path | None, limit: int | None, shots: int | None
) -> list[Measurement]:
    """Let the harness run tasks on a model.

    Args:
        model: The model.
        tasks: The harness's names of tasks.
        tasks_dir: A folder of task definitions (YAML) to take in place of its own.
        limit: Take only the first so many items of each.
        shots: Examples before each item; None is the task's own number.

    Raises:
        InputError: The harness does not know a task.
    """
    manager = TaskManager() if tasks_dir is None else TaskManager(include_path=str(tasks_dir), include_defaults=False)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise InputError(f'the harness has no task "{unknown[0]}"; those there are: lm-eval ls tasks')
    evaluate: Any = lm_eval.simple_evaluate  # its decorator hides the signature from type checkers
    found = evaluate(
        model=model, tasks=list(tasks), task_manager=manager, limit=limit, num_fewshot=shots, log_samples=False
    )
    return [_measured(task, found) for task in found["results"]]


def _measured(task: str, found: dict[str, Any]) -> Measurement:
    """Return the figures of a task; the harness names them ``metric,filter``."""
    figures = {
        name.removesuffix(",none").replace(",", " "): float(value)
        for name, value in found["results"][task].items()
        if isinstance(value, float)
    }
    items = found.get("n-samples", {}).get(task, {}).get("effective")
    protocol = (
        f"lm-evaluation-harness {version('lm-eval')}, version {found['versions'].get(task, '?')} of the task, "
        f"{found['n-shot'].get(task, 0)} examples before each of {items} items."
    )
    return Measurement(task, "lm-evaluation-harness", protocol, figures)


def _strategy(options: dict[str, Any]) -> DecodingStrategy:
    """Return the strategy that a task asks for: greedy, unless it samples."""
    if not options.get("do_sample", False):
        return DecodingStrategy(greedy=True)
    return DecodingStrategy(float(options.get("temperature", 1.0)), options.get("top_k"), options.get("top_p"))
