"""The pages of ``gpt2lab play``, and the JSON behind them.

    GET  /                              the page; its scripts and styles are below /static
    GET  /api/runs                      every run with its curves
    GET  /api/runs/NAME/info            the model; it is loaded when somebody asks
    POST /api/runs/NAME/tokenize        text to tokens
    POST /api/runs/NAME/generate        tokens with their candidates, as server-sent events
    POST /api/runs/NAME/inspect         attention, logit lens, losses, residual stream, next token
    POST /api/runs/NAME/patch           activation patching
    GET  /api/runs/NAME/watch           the run's files as they grow, as server-sent events

What a page asks for is a dataclass here. torch is imported with the first model, not before the page is painted.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from gpt2lab.errors import InputError, require
from gpt2lab.files import from_json
from gpt2lab.runs import Follower, MetricsRow, Run
from gpt2lab.server.http import APIError, json_response, unless_gone
from gpt2lab.server.models import Models, ServedModel

if TYPE_CHECKING:
    import torch

    from gpt2lab.evaluation.measure import LoadedRun
    from gpt2lab.server.batching import Generation

T = TypeVar("T")
STATIC = Path(__file__).parent / "static"
DEPTH = 3
"""Levels of folders below a given one in which runs are looked for: a comparison's are at COMPARISON/ARM/SEED."""
LOADED = 3
"""Models that are kept in memory."""
CANDIDATES, LENS = 20, 5
"""Tokens listed for each generated token and the next one, and in a cell of the logit lens."""
CURVE_POINTS = 120
MOST_TOKENS, MOST_WEIGHTS, MOST_PATCHED = 100_000, 8_000_000, 2_000_000
"""Longest text to tokenize or generate, most attention weights in an answer, and most tokens of all patched prompts."""
SEEDS = 2**63
POLL, HEARTBEAT, STALE = 0.5, 15.0, 60.0
"""Seconds between looks at a run's files, between signs of life, and until a silent run counts as stopped."""
DAMAGED = "the model gives NaN for this text; its weights are damaged, load another checkpoint"
log = logging.getLogger(__name__)


# Runs and models ------------------------------------------------------------------------------------------------------


class Runs:
    """The runs that the pages show: those that are given, and those in the folders that are given.

    Args:
        given: Runs, and folders that hold some.
        load: Loads a run's model.
        checkpoint: Which one it loads.
    """

    def __init__(self, given: Sequence[Path], load: Callable[[Path], LoadedRun], checkpoint: str = "best") -> None:
        self.given, self._load, self._checkpoint, self._lock = given, load, checkpoint, Lock()
        self._loaded: dict[Path, tuple[Path, LoadedRun]] = {}
        """By run: the checkpoint, and the model; the latest loaded last."""

    def paths(self) -> dict[str, Path]:
        """Return the directory of each run by its name, the latest first. Runs that began since are found, too."""
        found: dict[str, Path] = {}
        for folder in self.given:
            is_run = (folder / "config.json").is_file()
            for path in [folder] if is_run else _runs_below(folder, DEPTH):
                name = folder.resolve().name if is_run else path.relative_to(folder).as_posix()
                found[name if name not in found else str(path)] = path
        return found

    def ready(self) -> dict[str, Path]:
        """Return those of `paths` that have a checkpoint."""
        return {name: path for name, path in self.paths().items() if _has_checkpoint(Run(path))}

    def run(self, name: str) -> Run:
        """Return a run by its name. Raises `InputError` if there is no such run."""
        paths = self.paths()
        if name not in paths:
            raise InputError(f'there is no run "{name}"; the runs are {", ".join(paths) or "none yet"}')
        return Run(paths[name])

    def load(self, path: Path) -> LoadedRun:
        """Return a run with its model, loaded anew for another checkpoint. Raises `InputError` if it fails."""
        from gpt2lab.training.checkpoint import find

        checkpoint = find(Run(path), self._checkpoint).path
        known, run = self._loaded.get(path, (None, None))
        if run is None or known != checkpoint:
            run = self._load(path)
        with self._lock:
            self._loaded.pop(path, None)
            self._loaded[path] = checkpoint, run
            for oldest in list(self._loaded)[:-LOADED]:
                del self._loaded[oldest]
        return run


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    folders = [path for path in folder.glob("[!.]*") if path.is_dir()] if depth else []
    for path in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        if (path / "config.json").is_file():
            yield path
        else:
            yield from _runs_below(path, depth - 1)


def summary(name: str, run: Run) -> dict[str, Any]:
    """Return what the list of runs shows: the model's shape, how far it is, and thinned curves."""
    shown: dict[str, Any] = {"name": name, "shape": "", "step": 0, "steps": None, "seconds": None, "error": None}
    shown |= {"state": "damaged", "train_loss": [], "val_loss": [], "ready": _has_checkpoint(run)}
    try:
        rows, config = run.metrics(), run.config
    except (InputError, OSError) as error:
        return shown | {"error": str(error)}
    model, steps = config.get("model") or {}, config.get("steps")
    shape = (("layers", "n_layer"), ("heads", "n_head"), ("width", "n_embd"), ("context", "n_ctx"))
    shown["shape"] = " · ".join(f"{label} {model[key]:,}" for label, key in shape if isinstance(model.get(key), int))
    if rows:
        shown |= {"step": rows[-1]["step"], "seconds": rows[-1]["seconds"]}
    curves = {name: _curve(rows, name) for name in ("train_loss", "val_loss")}
    return shown | curves | {"steps": steps, "state": _state(run, shown["step"], steps, _between(rows))}


def _between(rows: Sequence[MetricsRow]) -> float:
    """Return the seconds between the last two rows, 0 if there is none."""
    seconds = [row["seconds"] or 0.0 for row in rows[-2:]]
    return seconds[-1] - seconds[0] if seconds else 0.0


def _has_checkpoint(run: Run) -> bool:
    return any(run.checkpoints.glob("step_*"))


def _state(run: Run, step: float, steps: int | None, between: float) -> str:
    """Say whether a run is being trained: it has steps left and writes its files, ``between`` seconds apart."""
    if steps is None:
        return "imported"
    if step >= steps:
        return "finished"
    written = max((run.path / name).stat().st_mtime for name in ("metrics.csv", "config.json"))
    return "training" if time.time() - written < max(STALE, 3 * between) else "stopped"


def _finite(row: MetricsRow) -> MetricsRow:
    """Return a row for JSON, which has no NaN and no infinity: a training that diverges is watched as well."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in row.items()}


def _curve(rows: Sequence[MetricsRow], column: str) -> list[tuple[float, float]]:
    points = [
        (step, value)
        for row in map(_finite, rows)
        if (step := row["step"]) is not None and (value := row[column]) is not None
    ]
    every = max(1, len(points) // CURVE_POINTS)
    return points[:-1:every] + points[-1:]


# What a page asks for -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokenize:
    """Text to tokens."""

    text: str

    def reply(self, run: ServedModel) -> dict[str, Any]:
        """Return the ids and each token's text; a part of a character reads U+FFFD."""
        require(len(self.text) <= MOST_TOKENS, "the length of the text", len(self.text), f"at most {MOST_TOKENS:,}")
        ids = run.tokenizer.encode(self.text)
        return {"ids": ids, "texts": _texts(run, ids)}


@dataclass(frozen=True)
class Inspect:
    """What the model does inside for a text, with parts switched off."""

    ids: tuple[int, ...]
    off: tuple[str, ...] = ()

    def steps(self, run: ServedModel) -> Iterator[dict[str, Any] | None]:
        """Yield what `inspect_tokens` finds; the weights of attention are base64 of little-endian float32."""
        from gpt2lab.inspection import inspect_tokens, switched_off

        T, most = len(self.ids), most_inspected(run)
        if most < T:
            raise InputError(f"the text has {T} tokens; the attention of this model can be sent for {most} at most")
        found = inspect_tokens(switched_off(run.model, self.off), self.ids, LENS)
        if not bool(found.probabilities.isfinite().all()):
            raise InputError(DAMAGED)
        tops = zip(found.lens.ids.tolist(), found.lens.probabilities.tolist(), strict=True)
        lens = [[{"top": _listed(run, *cell)} for cell in zip(*layer, strict=True)] for layer in tops]
        weights = found.attention.cpu().numpy().astype("<f4")
        yield {
            "texts": _texts(run, self.ids),
            "losses": found.losses.tolist(),
            "residual": found.residual.tolist(),
            "lens": lens,
            "attention": {"shape": list(weights.shape), "data": base64.b64encode(weights.tobytes()).decode("ascii")},
            "next": _most_probable(run, found.probabilities, CANDIDATES),
        }


@dataclass(frozen=True)
class Patch:
    """Activation patching between two prompts."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answer: int
    wrong: int

    def steps(self, run: ServedModel) -> Iterator[dict[str, Any] | None]:
        """Yield the effect of restoring the clean stream after each layer at each position, (L, T), after many None."""
        from gpt2lab.inspection import patch_steps

        T, most = len(self.clean), int((MOST_PATCHED / run.model.config.n_layer) ** 0.5)
        if most < T:
            raise InputError(f"the prompts have {T} tokens; this model can be patched for {most} at most")
        effect: Any = None
        for found in patch_steps(run.model, self.clean, self.corrupted, self.answer, self.wrong):
            effect = found
            yield None
        if not bool(effect.isfinite().all()):
            raise InputError(DAMAGED)
        yield {"positions": _texts(run, self.clean), "effect": effect.tolist()}


@dataclass(frozen=True)
class Generate:
    """A text to continue, and how; the same settings and seed as ``gpt2lab sample`` give the same tokens."""

    ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    seed: int = 1337
    off: tuple[str, ...] = ()

    def steps(self, run: ServedModel) -> Iterator[dict[str, Any]]:
        """Yield each token with its candidates: their probability, and what is left of it after each cut.

        The text of a token is what can be printed once it is there: "" within a character.
        """
        import torch

        from gpt2lab.generation import DecodingStrategy, probabilities, seeded, stream
        from gpt2lab.inspection import as_row, switched_off

        require(len(self.ids) + self.max_tokens <= MOST_TOKENS, "max_tokens", self.max_tokens, f"below {MOST_TOKENS:,}")
        require(-SEEDS <= self.seed < SEEDS, "seed", self.seed, f"from -{SEEDS} to {SEEDS - 1}")
        strategy = DecodingStrategy(self.temperature, self.top_k, self.top_p, self.greedy)
        cuts = {
            "after_temperature": DecodingStrategy(self.temperature),
            "after_top_k": DecodingStrategy(self.temperature, self.top_k, greedy=self.greedy),
            "kept": strategy,
        }
        prompt, seen = as_row(run.model, self.ids), list[torch.Tensor]()
        model = switched_off(run.model, self.off) if self.off else run.model
        columns = stream(
            model,
            prompt,
            self.max_tokens,
            strategy,
            seeded(self.seed, prompt.device),
            run.tokenizer.eot,
            on_logits=seen.append,
        )
        bytes_of, decoder = run.tokenizer.decode_bytes, codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(bytes_of(self.ids))  # the prompt may end within a character
        for column in columns:
            logits, token = seen.pop(), int(column)
            p = logits.float().softmax(dim=-1)[0]
            after = {name: probabilities(logits, cut)[0] for name, cut in cuts.items()}
            ids = p.topk(min(CANDIDATES, len(p))).indices.tolist()
            ids = ids if token in ids else [*ids[:-1], token]
            candidates = _listed(run, ids, p[ids].tolist())
            for name, left in after.items():
                for row, value in zip(candidates, left[ids].tolist(), strict=True):
                    row[name] = value
            logprob = float(logits.float().log_softmax(dim=-1)[0, token])
            text = _texts(run, [token])[0] if token == run.tokenizer.eot else decoder.decode(bytes_of([token]))
            yield {"id": token, "text": text, "logprob": logprob, "candidates": candidates}


def _texts(run: ServedModel, ids: Iterable[int]) -> list[str]:
    return [run.tokenizer.decode_bytes([token]).decode("utf-8", errors="replace") for token in ids]


def _listed(run: ServedModel, ids: Sequence[int], p: Sequence[float]) -> list[dict[str, Any]]:
    return [{"id": i, "text": text, "p": value} for i, text, value in zip(ids, _texts(run, ids), p, strict=True)]


def _most_probable(run: ServedModel, p: torch.Tensor, number: int) -> list[dict[str, Any]]:
    values, ids = p.topk(min(number, len(p)))
    return _listed(run, ids.tolist(), values.tolist())


def most_inspected(run: ServedModel) -> int:
    """Return the length of the longest text whose attention fits into an answer."""
    config = run.model.config
    return min(config.n_ctx, int((MOST_WEIGHTS / (config.n_layer * config.output_heads)) ** 0.5))


def info(run: ServedModel, trained: bool) -> dict[str, Any]:
    """Return what the pages know of a model."""
    config = run.model.config
    sizes = {key: getattr(config, key) for key in ("n_layer", "n_embd", "n_ctx", "vocab_size")}
    sizes["n_head"] = config.output_heads  # those that can be shown and switched off
    can = {"watch": trained, "compare": True, "patch": True}
    more = {"n_kv_head": config.kv_heads, "parameters": run.model.n_params, "eot": run.tokenizer.eot, "can": can}
    return {"name": run.name, **sizes, **more, "most_inspected": most_inspected(run)}


# Watching -------------------------------------------------------------------------------------------------------------


async def watch(run: Run) -> AsyncIterator[dict[str, Any] | None]:
    """Yield what is new in a run's files, at first all of it; None is a sign of life where nothing is new."""
    follower, told, silent = Follower(run), None, 0.0
    while True:
        seen = await run_in_threadpool(_news, follower)
        status = (seen["state"], seen["error"], len(seen["evals"]))
        if seen["rows"] or seen["samples"] or status != told:
            told, silent = status, 0.0
            yield seen
        elif silent >= HEARTBEAT:
            silent = 0.0
            yield None
        await asyncio.sleep(POLL)
        silent += POLL


def _news(follower: Follower) -> dict[str, Any]:
    run, seen = follower.run, {"from_start": False, "rows": [], "samples": [], "evals": [], "steps": None}
    if not (run.path / "config.json").is_file():
        return seen | {"state": "waiting", "error": None}
    try:
        from_start, rows, samples = follower.news()
        steps, evals = run.config.get("steps"), run.evals()
        state = _state(run, follower.step, steps, follower.between)
    except (InputError, OSError) as error:  # a file that is replaced at this very moment is read again
        follower.forget()
        return seen | {"state": "damaged", "error": str(error)}
    seen |= {
        "from_start": from_start,
        "rows": [*map(_finite, rows)],
        "samples": samples,
        "evals": evals,
        "steps": steps,
    }
    return seen | {"state": state, "error": None}


# HTTP -----------------------------------------------------------------------------------------------------------------


def routes(runs: Runs, models: Models[Path]) -> list[BaseRoute]:
    """Return the routes of the pages, for `gpt2lab.server.app`; the models are those of the runs."""

    async def listed(request: Request) -> Response:
        found = await run_in_threadpool(lambda: [summary(name, Run(path)) for name, path in runs.paths().items()])
        return json_response({"runs": found})

    async def of(request: Request) -> ServedModel:
        return await run_in_threadpool(models.get, request.path_params["name"])

    async def about(request: Request) -> Response:
        def found(name: str) -> dict[str, Any]:
            return info(models.get(name), runs.run(name).config.get("steps") is not None)

        return json_response(await run_in_threadpool(found, request.path_params["name"]))

    async def tokenized(request: Request) -> Response:
        question = await read(request, Tokenize)
        return json_response(await run_in_threadpool(question.reply, await of(request)))

    def asking(kind: type[Inspect] | type[Patch]) -> Callable[[Request], Any]:
        async def answered(request: Request) -> Response:
            question, served = await read(request, kind), await of(request)

            async def whole() -> Any:
                (found,) = [found async for found in _answers(question, served)]
                return found

            return json_response(await unless_gone(request, whole()))

        return answered

    async def generated(request: Request) -> Response:
        question, served = await read(request, Generate), await of(request)
        return events(_answers(question, served), {"end": True})

    async def watched(request: Request) -> Response:
        return events(watch(await run_in_threadpool(runs.run, request.path_params["name"])))

    path = "/api/runs/{name:path}/"
    return [
        Route("/", lambda request: FileResponse(STATIC / "index.html")),
        Route("/api/runs", listed),
        Route(path + "info", about),
        Route(path + "watch", watched),
        Route(path + "generate", generated, methods=["POST"]),
        Route(path + "tokenize", tokenized, methods=["POST"]),
        *(Route(path + kind.__name__.lower(), asking(kind), methods=["POST"]) for kind in (Inspect, Patch)),
        Mount("/static", _Static(directory=STATIC)),
    ]


async def _answers(question: Inspect | Patch | Generate, served: ServedModel) -> AsyncIterator[dict[str, Any]]:
    """Let the model's engine answer; to leave early cancels what is left. Raises `InputError` or `APIError`."""
    from gpt2lab.server.batching import Overloaded, Stopped, Work
    from gpt2lab.server.completions import failure

    try:
        answer: Generation = served.engine.call(Work(question.steps(served), fp32=not isinstance(question, Generate)))
    except (Overloaded, Stopped) as error:
        raise failure(error) from error
    with answer:
        async for _, event in answer:
            if isinstance(event, Exception):
                raise event if isinstance(event, InputError) else failure(event)
            if event is not None:
                yield event


class _Static(StaticFiles):
    """Files that a browser asks for again when another version may be installed."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


async def read(request: Request, kind: type[T]) -> T:
    """Return the body of a request as a dataclass. Raises `InputError` if it is not one."""
    try:
        values = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise InputError(f"the request is not JSON ({error})") from error
    return from_json(kind, values, "the request")


def events(items: AsyncIterator[Mapping[str, Any] | None], last: Mapping[str, Any] | None = None) -> Response:
    """Stream items as server-sent events, then ``last``; an error that only now shows is there instead."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for item in items:
                yield ":\n\n" if item is None else f"data: {json.dumps(item)}\n\n"
            if last is not None:
                yield f"data: {json.dumps(last)}\n\n"
        except Exception as error:
            known = isinstance(error, InputError | APIError)
            if not known:
                log.exception("a stream failed")
            message = str(error) if known else "the server failed"
            yield f"data: {json.dumps({'error': {'message': message}})}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
