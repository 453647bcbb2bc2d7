"""The models of a server by name: each is loaded when it is asked for, and has an engine of its own."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from gpt2lab.errors import did_you_mean
from gpt2lab.server.http import APIError

if TYPE_CHECKING:  # torch is imported with the first model, so that the pages need not wait for it
    from gpt2lab.model.gpt import GPT
    from gpt2lab.model.language_model import LanguageModel
    from gpt2lab.runtime import Runtime
    from gpt2lab.server.batching import Engine
    from gpt2lab.tokenizer.tokenizer import Tokenizer


S = TypeVar("S")


class Loaded(Protocol):
    """What a server needs of a model; `evaluation.measure.LoadedRun` is one."""

    model: LanguageModel
    tokenizer: Tokenizer
    runtime: Runtime


@dataclass(frozen=True)
class ServedModel:
    """A model that answers."""

    name: str
    model: GPT
    tokenizer: Tokenizer
    engine: Engine


class Models(Generic[S]):
    """The models of a server.

    Args:
        names: Returns what can be asked for by name, and from what it is loaded.
        load: Returns the model that is loaded from there; the same one again if nothing has changed.
        keep: Number of engines that are kept; the one that was not asked for the longest ends its texts and goes.
    """

    def __init__(self, names: Callable[[], Mapping[str, S]], load: Callable[[S], Loaded], keep: int) -> None:
        self.names, self._load, self._keep = names, load, keep
        self._served: OrderedDict[str, ServedModel] = OrderedDict()
        self._retired: list[ServedModel] = []
        self._lock, self._loading = Lock(), defaultdict[str, Lock](Lock)

    def require(self, name: str) -> S:
        """Return from what a model is loaded. Raises `APIError` if there is no such model."""
        if name not in (names := self.names()):
            hint = did_you_mean(name, names)
            raise APIError(404, f"the model {name!r:.100} does not exist{hint}", "model", "model_not_found")
        return names[name]

    def get(self, name: str) -> ServedModel:
        """Return a model, ready to answer; may block for as long as it takes to load it.

        Raises:
            APIError: There is no such model.
            InputError: It cannot be loaded.
        """
        from gpt2lab.model.gpt import require_gpt
        from gpt2lab.server.batching import Engine

        source = self.require(name)
        with self._loading[name]:  # others need not wait for it
            loaded = self._load(source)
            model = require_gpt(loaded.model)
            with self._lock:
                served = self._served.pop(name, None)
                if served is None or served.model is not model:
                    self._retire(served)
                    served = ServedModel(name, model, loaded.tokenizer, Engine(model, loaded.runtime))
                self._served[name] = served
                while len(self._served) > self._keep:
                    self._retire(self._served.popitem(last=False)[1])
                return served

    def _retire(self, served: ServedModel | None) -> None:
        self._retired = [one for one in self._retired if one.engine.runs()]
        if served is not None:
            served.engine.retire()
            self._retired.append(served)

    def stop(self) -> None:
        """Stop every engine."""
        for served in [*self._served.values(), *self._retired]:
            served.engine.stop()

    def join(self, timeout: float) -> None:
        """Wait until the engines have stopped, for each at most ``timeout`` seconds."""
        for served in [*self._served.values(), *self._retired]:
            served.engine.join(timeout)
