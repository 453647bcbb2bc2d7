"""Servers on loopback, in a thread, with models that are made in a moment."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from gpt2lab import runtime
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.server.app import create_app, listen, serve
from gpt2lab.server.models import Models
from gpt2lab.tokenizer.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat and the dog ran after the cat, €5 and ünï" * 3, "one two three one two three " * 4]


def loaded(model: GPT, tokenizer: Tokenizer) -> Any:
    """A model as a server wants it."""
    return SimpleNamespace(model=model.eval(), tokenizer=tokenizer, runtime=runtime.resolve("cpu", "fp32"))


def small_tokenizer(vocab_size: int = 300) -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size, processes=1)


def random_texts() -> Any:
    """A model whose texts are random, and look different for each prompt."""
    tokenizer = small_tokenizer()
    torch.manual_seed(5)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, n_ctx=64, vocab_size=tokenizer.n_vocab, dropout=0.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.dim() == 2 else parameter.add_(0.1)
        model.wte.weight[:94] *= 2.0  # printable characters
    return loaded(model, tokenizer)


def one_text(text: str) -> Any:
    """A model that writes this text, byte by byte and then its end; no byte may come twice."""
    tokenizer = Tokenizer.train([], 257, processes=1)
    assert tokenizer.eot is not None
    ids = [tokenizer.eot, *tokenizer.encode(text), tokenizer.eot]
    follows = torch.full((257, 257), -20.0)
    follows[ids[:-1], ids[1:]] = 20.0
    model: Any = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, n_ctx=64, vocab_size=257, dropout=0.0))
    hidden = model.hidden

    def one_hot(tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        hidden(tokens, cache=cache)
        return F.one_hot(tokens, 257).float()

    model.hidden, model.head = one_hot, lambda x: x @ follows
    return loaded(model, tokenizer)


class Server:
    """A running server; it ends with the process."""

    def __init__(self, models: dict[str, Any], token: str | None = None, **options: Any) -> None:
        self.models = Models(lambda: models, lambda model: model, keep=len(models))
        self.address = serving(self.models, token, **options)


def serving(models: Models, token: str | None = None, **options: Any) -> str:
    """Serve in a thread, for as long as the process lives; return the address."""
    socket, started = listen("127.0.0.1", 0), threading.Event()
    app = create_app(models, token, **options)
    threading.Thread(target=serve, args=(app, socket, started.set), daemon=True).start()
    assert started.wait(10)
    return f"http://127.0.0.1:{socket.getsockname()[1]}"


def load_benchmark(name: str) -> ModuleType:
    """Import a script of benchmarks/."""
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
