"""GPT-2 models behind the interface of EleutherAI's lm-evaluation-harness: its tasks and metrics, our scoring.

The harness asks for log-probabilities of continuations and of whole texts, and for texts up to a stop string.
`likelihood.py` and `generation.py` provide them. This module needs the extra ``harness``; no other imports it.
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
from gpt2lab.model.language_model import LanguageModel
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer.tokenizer import Tokenizer

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a progress bar with a title; yields a function of (done, total)."""
MAX_NEW_TOKENS = 256
"""Length of a text where the task does not set one; the default of the harness."""


class HarnessModel(TemplateLM):
    """A model with its tokenizer, as the harness calls it."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, where: Runtime, bar: Bar | None = None) -> None:
        """Wrap a model; ``bar`` shows progress. Raises `InputError` if the tokenizer has no end-of-text token."""
        super().__init__()
        if tokenizer.eot is None:
            raise InputError(
                "the harness begins each text with <|endoftext|>, which the tokenizer does not have; train one with it"
            )
        self.model, self.model_tokenizer, self.where, self._eot = model, tokenizer, where, tokenizer.eot
        self.bar = bar or (lambda title: nullcontext(lambda done, total: None))

    @property
    def eot_token_id(self) -> int:
        """Id of the end-of-text token, which also begins texts."""
        return self._eot

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text; special tokens are neither added nor recognized."""
        return self.model_tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether greedy decoding would produce it."""
        continuations = [Continuation(tuple(context), tuple(ids)) for _, context, ids in requests]
        with self.where.autocast(), self.bar("continuations") as progress:
            return [(-s.nats, s.greedy) for s in score(self.model, continuations, progress)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each whole text, in the windows of the harness."""
        n_ctx, windows, owners = self.model.config.n_ctx, [], []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self._eot, max_seq_len=n_ctx, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(index)
        totals = [0.0] * len(requests)
        for owner, (found, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += found
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each context, up to the stop strings of the task."""
        texts = []
        with self.bar("texts") as progress:
            for request in requests:
                texts.append(self._generate(*request.args))
                progress(len(texts), len(requests))
        return texts

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        device = self.where.device
        prompt = torch.tensor([self.tok_encode(context) or [self._eot]], device=device)
        length = int(options.get("max_gen_toks", MAX_NEW_TOKENS))
        columns = stream(self.model, prompt, length, _strategy(options), seeded(0, device), self._eot)
        text = ""
        with self.where.autocast():
            for (piece,) in stream_text(columns, self.model_tokenizer, 1):
                text += piece or ""
                ends = [text.index(stop) for stop in stops if stop in text]
                if ends:
                    return text[: min(ends)]
        return text


def _strategy(options: dict[str, Any]) -> DecodingStrategy:
    """Return the decoding strategy that a task asks for: greedy unless it samples."""
    if not options.get("do_sample", False):
        return DecodingStrategy(greedy=True)
    return DecodingStrategy(float(options.get("temperature", 1.0)), options.get("top_k"), options.get("top_p"))


def run_harness(
    model: HarnessModel, tasks: Sequence[str], tasks_dir: Path | None, limit: int | None, shots: int | None
) -> list[Measurement]:
    """Run tasks of the harness on a model.

    Args:
        model: The model.
        tasks: Names of tasks.
        tasks_dir: Directory of task definitions (YAML) to use instead of the harness's own.
        limit: Number of items of each task to use; None is all.
        shots: Examples before each item; None is the task's own number.

    Raises:
        InputError: The harness does not know a task.
    """
    manager = TaskManager() if tasks_dir is None else TaskManager(include_path=str(tasks_dir), include_defaults=False)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise InputError(f'the harness has no task "{unknown[0]}"; list its tasks with: lm-eval ls tasks')
    evaluate: Any = lm_eval.simple_evaluate  # its decorator hides the signature from type checkers
    found = evaluate(
        model=model, tasks=list(tasks), task_manager=manager, limit=limit, num_fewshot=shots, log_samples=False
    )
    return [_measurement(task, found) for task in found["results"]]


def _measurement(task: str, found: dict[str, Any]) -> Measurement:
    """Return the results of a task; the harness names them ``metric,filter``."""
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
