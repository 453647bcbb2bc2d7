"""Right solutions in three styles do in a whole program what the reference does."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from solving import SOLUTIONS, solve

from gpt2lab.learn import gpt2
from gpt2lab.learn.exercises import FILES, OWN_MODEL, PARTS

TEXT = "It's 1999, isn't it?  naïve 你好 🚀 the the end.\n\n\tThen the very end of it all. "
SPECIAL = {"<|end|>": 268, "<|end|>!": 269}
CONFIG = gpt2.Config(vocab_size=270, n_ctx=12, n_embd=6, n_head=3, n_layer=2)


def program(parts: dict[str, Any], gpt: Any) -> list[Any]:
    """Run every part on small inputs, and most of them together; ``gpt`` is logits of (tokens, weights, n_head)."""

    def part(name: str) -> Any:
        return parts[name]

    merges = part("train_bpe")([TEXT, "other"], 268)
    ids = part("encode")(TEXT + "<|end|>!x<|end|>", merges, SPECIAL)
    results = [part("byte_order")(), merges, ids, part("decode")([*ids, 1, 130, 269], merges, SPECIAL)]
    generator = torch.Generator().manual_seed(0)
    weights = {name: 3 * w.double() for name, w in gpt2.initial_weights(CONFIG, generator).items()}
    assert part("initial_weights")(CONFIG, generator).keys() == weights.keys()

    def loss_of(weights: Any, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return part("cross_entropy")(gpt(inputs, weights, 3), targets)

    state: dict[str, Any] = {}
    for step in range(2):
        rate = part("learning_rate")(step, 2, 1, 1e-2, 1e-3)
        batches = [part("batch")(torch.tensor(ids), [step], 5), part("batch")(torch.tensor(ids), [20], 5)]
        results += [rate, *part("train_step")(weights, batches, loss_of, state, rate, 0.5)]
    weights = {name: weight.detach() for name, weight in weights.items()}
    results.append(weights)
    for options in ({"top_k": 1}, {"temperature": 0.7, "top_p": 1e-9}):  # `sample` may draw in its own way
        generator.manual_seed(1)
        results.append(part("generate")(ids[:3], weights, 3, 9, generator, **options))
    tokens = torch.tensor([ids[:8], ids[1:9], ids[2:10], ids[3:11]])
    logits, ending = gpt(tokens, weights, 3), torch.arange(8).expand(4, 8) > torch.tensor([[3], [4], [5], [2]])
    results += [logits, part("hellaswag_choice")(logits, tokens, ending)]
    x, cache = torch.randn(2, 3, 7, 4, generator=generator.manual_seed(2), dtype=torch.float64), {}
    for piece in x.split(3, dim=2):
        results.append(part("extend_cache")(cache, piece, piece, 100.0))
    results += [part("attention")(x, x, x, part("window_mask")(7, 7, 3)), part("rotate")(x, torch.arange(2, 9))]
    results += [part("windows")(n, 4, stride) for n in (2, 4, 5, 11, 12) for stride in (1, 3, 4)]
    return [
        *results,
        part("perplexity")([2.0, 3.0], [5, 1]),
        part("bits_per_byte")(9.0, 4),
        part("interval")([1, 2, 4.5]),
    ]


@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_solution_does_what_the_reference_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    style = "modules" if name == "modules" else "functions"
    monkeypatch.syspath_prepend(solve(tmp_path, SOLUTIONS[name], style))
    for file in (*FILES, OWN_MODEL):
        monkeypatch.delitem(sys.modules, Path(file).stem, raising=False)
    parts = {part.name: getattr(importlib.import_module(Path(part.file).stem), part.name, None) for part in PARTS}
    gpt: Any
    if style == "functions":
        gpt = parts["gpt"]
    else:
        model = importlib.import_module(Path(OWN_MODEL).stem).GPT(CONFIG).double()
        prefix = {name.removeprefix("transformer."): name for name, _ in model.named_parameters()}

        def gpt_of(tokens: torch.Tensor, weights: Any, n_head: int) -> torch.Tensor:
            named = {prefix[name]: weight for name, weight in weights.items()}
            return torch.func.functional_call(model, named, (tokens,))[0]

        gpt = gpt_of

    reference = {part.name: getattr(gpt2, part.name) for part in PARTS}
    for got, expected in zip(program(parts, gpt), program(reference, gpt2.gpt), strict=True):
        if isinstance(got, str):
            assert got == expected
        else:
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
