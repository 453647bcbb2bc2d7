"""Inspection, ablation and patching agree with Hugging Face's GPT-2, and for variants with what the model computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpt2lab.errors import InputError
from gpt2lab.generation import DecodingStrategy, generate, stream
from gpt2lab.inspection import inspect_tokens, logit_lens, patch_residual, residual_stream, switched_off
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.model.parts import BLOCKS

SHAPE: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_ctx": 12, "vocab_size": 96}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "post-norm": {"norm_placement": "post", "position": "sinusoidal"},
    "sandwich": {"norm_placement": "sandwich", "attention_gate": True},
    "parallel, grouped, mask by layer": {
        "parallel_blocks": True, "n_kv_head": 2, "position": "alibi", "mask": "window,causal", "window": 3,
    },
    "llama with nope, softcaps, muP": {
        "norm": "rmsnorm", "position": "rope", "nope_every": 2, "activation": "swiglu", "bias": False,
        "tied_head": False, "qk_norm": True, "attention_softcap": 5.0, "logit_softcap": 4.0, "mup_base_width": 16,
    },
    "sinks, embedding norm": {"attention_sinks": True, "position": "none", "embedding_norm": True},
    "value residual": {"value_residual": True, "n_kv_head": 2},
    "differential": {"differential_attention": True, "position": "rope"},
    "latent": {"latent_dim": 12, "position": "rope"},
    "prefix": {"mask": "prefix", "prefix": 4},
}  # fmt: skip
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def model_of(**options: Any) -> GPT:
    """A random model; left in training mode with dropout, which inspection must not apply."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SHAPE, "dropout": 0.5, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def ids_of(T: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randint(96, (T,), generator=torch.Generator().manual_seed(seed))


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4, check_dtype=False)


def test_what_is_shown_is_what_hugging_face_shows(hugging_face_twin: Callable[[GPT], Any]) -> None:
    model, ids = model_of(), ids_of()
    twin = hugging_face_twin(model)
    with torch.no_grad():
        out = twin(ids[None], output_attentions=True, output_hidden_states=True, labels=ids[None])
        # Hugging Face's last hidden state is normalized already, the others are the stream
        lens = [twin.lm_head(twin.transformer.ln_f(x[0])).softmax(-1) for x in out.hidden_states[:-1]]
    found = inspect_tokens(model, ids.tolist(), top=3)
    close(found.attention, torch.stack(out.attentions)[:, 0])
    close(found.residual[:-1], torch.stack(out.hidden_states)[:-1, 0].pow(2).mean(-1).sqrt())
    close(found.lens.probabilities, torch.stack([*lens, out.logits[0].softmax(-1)]).topk(3).values)
    assert found.lens.ids[:-1].equal(torch.stack(lens).topk(3).indices)
    close(found.losses.mean(), out.loss)
    close(found.probabilities, out.logits[0, -1].softmax(-1))
    assert model.training and not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("parts", "zeroed"),
    [
        (["head:1.2"], [(1, "attn.c_proj.weight", slice(16, 24))]),
        (["head:0.0", "head:0.3"], [(0, "attn.c_proj.weight", slice(0, 8)), (0, "attn.c_proj.weight", slice(24, 32))]),
        (["attention:2"], [(2, "attn.c_proj.weight", ...), (2, "attn.c_proj.bias", ...)]),
        (["mlp:0"], [(0, "mlp.c_proj.weight", ...), (0, "mlp.c_proj.bias", ...)]),
        (["layer:1"], [(1, f"{at}.c_proj.{name}", ...) for at in ("attn", "mlp") for name in ("weight", "bias")]),
    ],
)  # fmt: skip
def test_switching_off_is_zeroing_the_rows_of_hugging_faces_projections(
    parts: list[str], zeroed: list[tuple[int, str, Any]], hugging_face_twin: Callable[[GPT], Any]
) -> None:
    model, ids = model_of(), ids_of()
    twin = hugging_face_twin(model)
    with torch.no_grad():
        for layer, name, rows in zeroed:  # Hugging Face's matrices are (in, out)
            twin.transformer.h[layer].get_parameter(name)[rows] = 0.0
        out = twin(ids[None], output_attentions=True)
    ablated = switched_off(model, parts)
    found = inspect_tokens(ablated, ids)
    close(found.attention, torch.stack(out.attentions)[:, 0])
    close(found.losses, torch.nn.functional.cross_entropy(out.logits[0, :-1], ids[1:], reduction="none"))
    tokens = generate(ablated, ids[None, :4], 6, greedy=True)  # with the cache
    expected = twin.generate(ids[None, :4], attention_mask=torch.ones(1, 4), max_new_tokens=6, do_sample=False)
    assert tokens.equal(expected)
    close(inspect_tokens(model, ids).losses, model.eval().token_losses(ids[None, :-1], ids[None, 1:])[0])


def test_patching_is_patching_hugging_face_by_hand(hugging_face_twin: Callable[[GPT], Any], monkeypatch: Any) -> None:
    monkeypatch.setattr("gpt2lab.inspection.PATCHED_TOKENS", 25)  # batches of 3, 3 and 1 rows
    model, clean, corrupted = model_of(), ids_of(7, 1), ids_of(7, 2)
    twin = hugging_face_twin(model)
    found = patch_residual(model, clean, corrupted.tolist(), answer=5, wrong=8)
    for layer, block in enumerate(twin.transformer.h):
        for position in range(7):
            streams: list[torch.Tensor] = []

            def patch(
                module: Any, inputs: Any, x: torch.Tensor, t: int = position, keep: Any = streams
            ) -> torch.Tensor:
                keep.append(x.clone())
                if len(keep) == 3:  # the patched run, after clean and corrupted
                    x[:, t] = keep[0][:, t]
                return x

            hook = block.register_forward_hook(patch)
            with torch.no_grad():
                logits = [twin(ids[None]).logits[0, -1] for ids in (clean, corrupted, corrupted)]
            hook.remove()
            d_clean, d_corrupted, d_patched = (one[5] - one[8] for one in logits)
            close(found[layer, position], (d_patched - d_corrupted) / (d_clean - d_corrupted), atol=1e-4)


@every_variant
def test_every_variant_shows_what_it_computes(options: dict[str, Any]) -> None:
    model, ids = model_of(**options), ids_of()
    found = inspect_tokens(model, ids)
    model.eval()
    with torch.no_grad():
        logits = model(ids[None]).logits
    assert logits is not None
    close(found.probabilities, logits[0, -1].softmax(-1))
    close(found.losses, model.token_losses(ids[None, :-1], ids[None, 1:])[0])
    x = residual_stream(model, ids[None])
    close(logit_lens(model, x[-1]), logits)
    sums = found.attention.sum(-1)
    if model.config.differential_attention:
        assert found.attention.shape[1] == 2
        blocks: Any = model.h
        sums += torch.stack([block.attn.second_weight() for block in blocks])[:, None, None]
    assert (sums < 1).all() if model.config.attention_sinks else torch.allclose(sums, torch.ones(()))

    nothing = switched_off(model, [f"layer:{layer}" for layer in range(3)])
    unchanged = residual_stream(nothing, ids[None])
    assert options.get("norm_placement") == "post" or all(x.equal(unchanged[0]) for x in unchanged)
    columns = stream(switched_off(model, ["mlp:1", "head:2.1"]), ids[None, :4], 5, DecodingStrategy(greedy=True))
    written = torch.cat([ids[:4], *columns])
    again = inspect_tokens(switched_off(model, ["mlp:1", "head:2.1"]), written[:-1])  # without a cache
    assert again.probabilities.argmax() == written[-1]

    effect = patch_residual(model, ids, ids_of(seed=3), 1, 2)
    assert effect.shape == (3, 10)
    close(effect[-1], torch.eye(10)[-1])  # after the last block only the last position counts


def test_heads_that_are_off_leave_the_bias_of_the_projection() -> None:
    model, ids = model_of(n_kv_head=2, attention_gate=True), ids_of()
    x = residual_stream(switched_off(model, ["mlp:0", *(f"head:0.{head}" for head in range(4))]), ids[None])
    close(x[1], x[0] + model.h[0].get_parameter("attn.c_proj.bias"))


class Alone(nn.Module):
    """A block of a user's own, without attention."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.own = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: torch.Tensor, *attending: Any) -> torch.Tensor:
        return x + self.own(x)


def test_blocks_of_ones_own_are_inspected_and_switched_off_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BLOCKS, "alone", Alone)
    model, ids = model_of(block="alone"), ids_of()
    found = inspect_tokens(model, ids)
    assert found.attention.shape == (0, 4, 10, 10) and found.residual.shape == (4, 10)
    x = residual_stream(switched_off(model, ["layer:1"]), ids[None])
    assert x[2].equal(x[1]) and not x[3].equal(x[2])
    with pytest.raises(InputError, match=r"switch off head:1.0: block alone has no attn.c_proj; switch off layer:1"):
        switched_off(model, ["head:1.0"])


def test_the_example_of_the_docs_prints_what_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    found = re.search(r"```python\n(.*?)```", (root / "docs" / "play.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    exec(found[1], {})
    said = capsys.readouterr().out
    for text in ("p(red) = 0.88", "[' my', ' red', ' red']", "without head 0: 0.89", "without head 3: 0.17"):
        assert text in said


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: switched_off(m, ["heads:1"]), 'switch off "heads:1"; give head:LAYER.HEAD'),
        (lambda m: switched_off(m, ["head:1"]), "give head:LAYER.HEAD"),
        (lambda m: switched_off(m, ["mlp:3"]), "cannot switch off mlp:3: the model has layers 0 to 2"),
        (lambda m: switched_off(m, ["head:0.4"]), "heads 0 to 3"),
        (lambda m: inspect_tokens(m, []), "at least one token"),
        (lambda m: inspect_tokens(m, torch.tensor([[1]])), "at least one token"),
        (lambda m: inspect_tokens(m, [96]), "a token is 96; it must be an id of the model, 0 to 95"),
        (lambda m: inspect_tokens(m, [0] * 13), "exceed the model's context of 12"),
        (lambda m: patch_residual(m, [1, 2], [1, 2, 3], 1, 2), "the clean prompt has 2 tokens and the corrupted one 3"),
        (lambda m: patch_residual(m, [1, 2], [1, 2], 1, 2), "nothing to restore"),
        (lambda m: patch_residual(m, [1, 2], [1, 3], 96, 2), "answer is 96"),
    ],
)
def test_what_cannot_be_inspected_is_said_in_a_line(call: Callable[[GPT], Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        call(model_of())
    assert "\n" not in str(error.value)
