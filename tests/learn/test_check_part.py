"""What is said about a part that is wrong, for every way in which a result can differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from solving import check_part
from torch import Tensor, nn

from gpt2lab.learn import gpt2, mistakes
from gpt2lab.learn.check import difference, same
from gpt2lab.learn.exercises import CLASSES
from gpt2lab.learn.outcomes import Other, decode, encode
from gpt2lab.learn.student import Unusable, as_function

DOUBLE = torch.float64


@pytest.mark.parametrize(
    ("given", "expected", "says"),
    [
        (None, 1, "None given, int 1 expected"),
        (True, 1, "bool True given, int 1 expected"),
        (1.5, 2, "1.5 given, 2 expected"),
        (float("nan"), 2.0, "nan given, 2 expected"),
        (10**400, 2.0, "10000000000000000000... given, 2 expected"),
        (-(10**400), 2, "-1000000000000000000... given, 2 expected"),
        ("ab", "ac", "str 'ab' given, str 'ac' expected"),
        (Other("Foo"), "ac", "an object of type Foo given, str 'ac' expected"),
        (torch.ones(2), [1.0, 1.0], "a tensor of shape (2,) given, a list of length 2 expected"),
        ([1, (2, 3)], [1, [2, 4]], "[1][1]: 3 given, 4 expected"),
        ([1, 2], [1, 2, 3], "length 2 given, 3 expected"),
        ({"a": 1}, {"b": 1}, "'b' is missing"),
        ({"a": 1, "b": 1}, {"b": 1}, "'a' is one too many"),
        ({"b": 2}, {"b": 1}, "['b']: 2 given, 1 expected"),
        (torch.ones(2, 3), torch.ones(3, 2), "shape (2, 3) given, (3, 2) expected"),
        (torch.ones(2), torch.ones(2, dtype=DOUBLE), "dtype float32 given, float64 expected"),
        (torch.tensor([[1], [3]]), torch.tensor([[1], [0]]), "at [1, 0] 3 given, 0 expected (1 of 2 entries)"),
        (torch.tensor([1.0, 2.0, float("nan")]), torch.ones(3), "at [2] nan given, 1 expected (2 of 3 entries)"),
        (torch.tensor(3.0, dtype=DOUBLE), torch.tensor(1.5, dtype=DOUBLE), "3 given, 1.5 expected"),
        (torch.tensor([2.0, -4.0, 1.0]), torch.tensor([1.0, -2.0, 0.5]), "every entry is 2 times the expected one"),
    ],
)
def test_the_first_difference_is_described(given: Any, expected: Any, says: str) -> None:
    found = difference(decode(encode(given)) if not isinstance(given, Other) else given, expected)
    assert found is not None
    assert says in found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1, 2), [1, 2]),
        (torch.tensor(2), 2),
        (torch.tensor(True), True),
        (2, 2.0),
        (1.0 + 1e-9, 1.0),
        (float("nan"), float("nan")),
        (torch.tensor([float("-inf"), 1.0 + 1e-7], dtype=DOUBLE), torch.tensor([float("-inf"), 1.0], dtype=DOUBLE)),
        (torch.empty(0, 3), torch.empty(0, 3)),
        ({(1, 2): "x"}, {(1, 2): "x"}),
    ],
)
def test_what_is_equal_to_rounding_is_the_same(given: Any, expected: Any) -> None:
    assert same(decode(encode(given)), decode(encode(expected)))


def test_a_result_too_large_to_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1,000,000 values"):
        encode([torch.zeros(999_999), 0, 0])


def test_a_known_mistake_is_named_with_the_call_that_shows_it() -> None:
    mistake = mistakes.MISTAKES[0]
    verdict = check_part(mistake.part, mistakes.variant(mistake))
    assert verdict.status == "wrong"
    assert verdict.says == f"Your output is that of {mistake.says}."
    assert verdict.detail.startswith("case ")
    assert f": {mistake.part}(" in verdict.detail


def test_an_output_that_reads_later_tokens_or_other_rows_is_told_which() -> None:
    def mean(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.zeros_like(q) + v.mean((0, 2), keepdim=True)

    detail = check_part("attention", mean).detail
    assert "The output at row 0 depends on row 1 of v." in detail
    assert "The output at position 0 depends on position " in detail
    assert "of k" not in detail


def test_dropout_is_not_taken_for_a_dependence_on_other_rows() -> None:
    def dropped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return nn.functional.dropout(gpt2.attention(q, k, v, mask), 0.1)

    verdict = check_part("attention", dropped)
    assert verdict.says == "It returns something else each time it is called: is dropout on?"
    assert "depends" not in verdict.detail


def test_a_new_tensor_in_the_dict_is_not_a_change_in_place() -> None:
    def rebinding(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensors: dict[str, Tensor], *rest: Any) -> Any:
            copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            result = function(copies, *rest)
            tensors.update({name: tensor.detach() for name, tensor in copies.items()})
            return result

        return call

    says = {part: check_part(part, rebinding(getattr(gpt2, part))).says for part in ("adamw", "clip", "train_step")}
    assert "AdamW that leaves the weights as they are" in says["adamw"]
    assert "gradients that are not clipped: multiply them in place" in says["clip"]
    assert says["train_step"]


def test_a_cache_may_hold_more_than_keys_and_values() -> None:
    def counting(tokens: Tensor, weights: gpt2.Weights, n_head: int, caches: list[dict[str, Any]]) -> Tensor:
        n = caches[0].get("length", 0)
        caches[0]["length"] = n + tokens.shape[1]
        x = gpt2.embed(tokens, weights["wte.weight"], weights["wpe.weight"], n)
        for layer, cache in zip(gpt2.layers(weights), caches, strict=True):
            normalized = gpt2.layer_norm(x, layer["ln_1.weight"], layer["ln_1.bias"])
            x = x + gpt2.cached_attention(normalized, gpt2.within(layer, "attn."), n_head, cache)
            normalized = gpt2.layer_norm(x, layer["ln_2.weight"], layer["ln_2.bias"])
            x = x + gpt2.feed_forward(normalized, gpt2.within(layer, "mlp."))
        return gpt2.layer_norm(x[:, -1], weights["ln_f.weight"], weights["ln_f.bias"]) @ weights["wte.weight"].T

    assert check_part("next_logits", counting).right


def test_a_text_that_is_returned_as_it_was_is_no_text_of_another_length() -> None:
    says = check_part("generate", lambda tokens, *_, **__: tokens).says
    assert "max_new_tokens tokens, the prompt included" not in says


def test_a_wrong_gradient_is_found_though_the_output_is_right() -> None:
    def detached(x: Tensor) -> Tensor:
        return gpt2.gelu(x.detach())

    def doubled(x: Tensor) -> Tensor:
        y = gpt2.gelu(x)
        return 2 * y - y.detach()

    def converted(x: Tensor) -> Tensor:
        return gpt2.gelu(torch.from_numpy(x.numpy()))

    assert "no gradient reaches x" in check_part("gelu", detached).says
    assert "The output is right, but the gradient of x is not: " in check_part("gelu", doubled).says
    assert "it has no gradient: RuntimeError: Can't call numpy()" in check_part("gelu", converted).says


def test_a_mistake_that_shows_in_the_gradient_only_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def tripled(x: Tensor) -> Tensor:
        return 3 * gpt2.gelu(x) - 2 * gpt2.gelu(x).detach()

    mistake = replace(mistakes.MISTAKES[0], part="gelu")
    monkeypatch.setattr(mistakes, "MISTAKES", (mistake,))
    monkeypatch.setattr(mistakes, "variant", lambda _: tripled)
    says = f"The output is right, but its gradient is that of {mistake.says}."
    assert check_part("gelu", tripled).says == says


@pytest.mark.parametrize(("part", "name"), CLASSES.items())
def test_a_class_with_the_names_of_gpt2_is_judged_as_the_function(part: str, name: str) -> None:
    assert check_part(part, as_function(part, getattr(gpt2, name))).right


def test_a_class_may_keep_buffers_tie_weights_and_have_a_transformer_inside() -> None:
    class GPT(nn.Module):
        def __init__(self, config: gpt2.Config) -> None:
            super().__init__()
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
            self.transformer = gpt2.GPT(config)
            self.transformer.wte.weight = self.lm_head.weight
            self.register_buffer("mask", torch.ones(3, 3).tril())

        def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            inner = self.transformer
            x = gpt2.embed(tokens, inner.wte.weight, inner.wpe.weight)
            for block in inner.h:
                x = block(x)
            return self.lm_head(inner.ln_f(x)), None

    assert check_part("gpt", as_function("gpt", GPT)).right


class _Untied(gpt2.GPT):
    def __init__(self, config: gpt2.Config) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)


class _Renamed(nn.Module):
    def __init__(self, config: gpt2.Config) -> None:
        super().__init__()
        self.up, self.c_proj = nn.Linear(config.n_embd, 4), nn.Linear(4, config.n_embd)


class _Transposed(gpt2.FeedForward):
    def __init__(self, config: gpt2.Config) -> None:
        super().__init__(config)
        self.c_fc.weight = nn.Parameter(self.c_fc.weight.T)


@pytest.mark.parametrize(
    ("part", "kind", "says"),
    [
        ("gpt", _Untied, "_Untied has parameters that GPT-2 does not have there: lm_head.weight"),
        ("feed_forward", _Renamed, "_Renamed has no parameter c_fc.weight, c_fc.bias; it has up.weight, up.bias, "),
        ("feed_forward", _Transposed, r"_Transposed: c_fc.weight has shape \(\d+, \d+\), expected \(\d+, \d+\)"),
    ],
)
def test_the_parameters_of_a_class_that_are_not_those_of_gpt2_are_named(
    part: str, kind: Callable[..., nn.Module], says: str
) -> None:
    with pytest.raises(Unusable, match=says):
        check_part(part, as_function(part, kind))
