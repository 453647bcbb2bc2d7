from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from random_models import random_ids, random_model

from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT, Block, evaluating

KERNELS = ["auto", "reference", "matmul", "sdpa"]
T, V = 17, 61


def model_of(seed: int = 0, **changes: Any) -> GPT:
    return random_model({"n_layer": 2, "n_head": 3, "n_embd": 24, "n_ctx": T, "vocab_size": V, **changes}, seed=seed)


def tokens_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return random_ids(V, *shape, seed=seed)


def gradients(model: GPT, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize("n_inner", [None, 10])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("length", [1, 5, T])
def test_logits_without_targets_and_the_loss_with_them(length: int, bias: bool, n_inner: int | None) -> None:
    model = model_of(bias=bias, n_inner=n_inner)
    tokens, targets = tokens_of(4, length), tokens_of(4, length, seed=1)
    logits, none = model(tokens)
    also_none, loss = model(tokens, targets)
    assert none is None
    assert also_none is None
    assert logits.shape == (4, length, V)
    assert loss.shape == ()
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


def test_a_fresh_model_has_gpt2s_initialisation() -> None:
    L, C = 6, 128
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=L, n_head=4, n_embd=C, n_ctx=256, vocab_size=1000))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            weight = parameter[:1000] if name == "wte.weight" else parameter
            std = 0.02 / math.sqrt(2 * L) if name.endswith("c_proj.weight") else 0.02
            assert weight.std().item() == pytest.approx(std, rel=0.03), name
            assert weight.mean().item() == pytest.approx(0.0, abs=std * 0.03), name
    assert (model.wte.weight[1000:] == 0).all()


def test_a_fresh_model_knows_nothing() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig.preset("nano")).eval()
    tokens = torch.randint(50257, (4, 128))
    assert model(tokens, tokens.roll(1)).loss.item() == pytest.approx(math.log(50257), abs=0.1)


def test_the_head_is_the_token_embedding() -> None:
    model = model_of()
    x = torch.randn(3, 24)
    torch.testing.assert_close(model.head(x), x @ model.wte.weight[:V].T)
    assert not any("head" in name for name, _ in model.named_parameters())


def test_a_padded_vocabulary_changes_neither_loss_nor_logits_nor_gradients() -> None:
    model = model_of()
    tokens, targets = tokens_of(3, T), tokens_of(3, T, seed=1)
    with torch.no_grad():
        model.wte.weight[V:] = 1e3  # were the padding read, everything would change
    found = gradients(model, model(tokens, targets).loss)
    assert (found["wte.weight"][V:] == 0).all()
    x = model.hidden(tokens)
    logits = x @ model.wte.weight[:V].T
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model(tokens).logits, logits)
    torch.testing.assert_close(model(tokens, targets).loss, plain)
    for name, expected in gradients(model, plain).items():
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_mask_stands_in_place_of_the_causal_one(kernel: str) -> None:
    model = model_of(kernel=kernel)
    tokens = tokens_of(2, T)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    expected = model(tokens).logits
    for mask in (causal, causal.int(), causal.expand(2, T, T).float(), causal.expand(2, 3, T, T)):
        torch.testing.assert_close(model(tokens, mask=mask).logits, expected, atol=1e-5, rtol=1e-5)
    both_ways = model(tokens, mask=torch.ones(T, T, dtype=torch.bool)).logits
    assert (both_ways[:, 0] - expected[:, 0]).abs().max() > 1e-3


def test_a_document_mask_keeps_documents_apart() -> None:
    model = model_of()
    document = torch.tensor([[0] * 7 + [1] * 10])
    mask = torch.ones(T, T, dtype=torch.bool).tril() & (document[:, :, None] == document[:, None, :])
    tokens = tokens_of(1, T)
    changed = torch.cat([(tokens[:, :7] + 1) % V, tokens[:, 7:]], dim=1)
    torch.testing.assert_close(model(changed, mask=mask).logits[:, 7:], model(tokens, mask=mask).logits[:, 7:])


def test_dropout_is_active_in_training_and_off_in_evaluation() -> None:
    model, without = model_of(dropout=0.3), model_of(dropout=0.0)
    tokens = tokens_of(2, T)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    model.eval()
    assert torch.equal(model(tokens).logits, without.train()(tokens).logits)


def values_and_share_of_zeros(x: torch.Tensor) -> tuple[list[float], float]:
    return x.unique().tolist(), float((x == 0).float().mean())


def test_dropout_falls_on_embeddings() -> None:
    model = model_of(dropout=0.25).train()
    with torch.no_grad():
        model.wte.weight.fill_(1.0)
        model.wpe.weight.fill_(2.0)
    values, zeros = values_and_share_of_zeros(model.embed(tokens_of(8, T), 0))
    assert values == [0.0, 4.0]  # 3 / (1 - 0.25)
    assert zeros == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("branch", ["attn", "mlp"])
def test_dropout_falls_on_residual_branches(branch: str) -> None:
    block = Block(GPTConfig(n_layer=1, n_head=3, n_embd=24, n_ctx=T, dropout=0.25)).train()
    x = torch.zeros(8, T, 24)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.get_parameter(f"{branch}.c_proj.bias").fill_(3.0)  # the branch gives 3 everywhere
    values, zeros = values_and_share_of_zeros(block(x))
    assert values == [0.0, 4.0]
    assert zeros == pytest.approx(0.25, abs=0.03)


def test_dropout_reaches_attention_weights_in_training_only() -> None:
    layer = model_of(dropout=0.5).h[0].get_submodule("attn")
    x = torch.randn(2, T, 24)
    assert not torch.equal(layer.train()(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_evaluating_leaves_every_module_as_it_was_even_after_an_error() -> None:
    model = model_of().train()
    model.h[1].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("scored", [1, 6, T])
def test_token_losses_are_those_of_the_last_positions(scored: int) -> None:
    model = model_of()
    tokens, targets = tokens_of(3, T), tokens_of(3, T, seed=1)
    expected = F.cross_entropy(model(tokens).logits.transpose(1, 2), targets, reduction="none")[:, -scored:]
    found = model.token_losses(tokens, targets[:, -scored:])
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad


@pytest.mark.parametrize("grad", [True, False])
def test_under_autocast_the_stream_is_narrow_and_the_loss_fp32_and_near(grad: bool) -> None:
    model = model_of()
    tokens, targets = tokens_of(3, T), tokens_of(3, T, seed=1)
    expected = model(tokens, targets).loss
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(tokens, targets).loss
        assert model.hidden(tokens).dtype == torch.bfloat16
        assert model(tokens).logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "none"])
def test_weights_may_be_narrow_themselves(position: str, norm: str, dtype: torch.dtype) -> None:
    model, wide = (model_of(position=position, norm_placement=norm).eval() for _ in range(2))
    tokens, targets = tokens_of(3, T), tokens_of(3, T, seed=1)
    loss = model.to(dtype)(tokens, targets).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wide(tokens, targets).loss, atol=0.02, rtol=0.02)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_targets_of_minus_100_are_left_out_of_the_mean() -> None:
    model, tokens, targets = model_of(), tokens_of(3, T), tokens_of(3, T, seed=1)
    targets[:, :5] = -100
    logits, loss = model(tokens, targets, return_logits=True)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    torch.testing.assert_close(logits, model(tokens).logits)


def test_an_attention_mask_means_what_it_means_to_hugging_face(hugging_face_twin: Callable[[GPT], Any]) -> None:
    model = model_of()
    theirs, tokens = hugging_face_twin(model), tokens_of(2, T)
    padding = torch.ones(2, T, dtype=torch.long)
    padding[0, 9:] = padding[1, :4] = 0
    found = model(tokens, attention_mask=padding).logits
    expected = theirs(tokens, attention_mask=padding).logits
    real = padding.bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)


def test_importing_the_model_does_not_import_the_compiler() -> None:
    """It takes longer than all the rest."""
    said = "import sys, gpt2lab.model.gpt; print('torch._dynamo' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", said], text=True) == "False\n"


def holding(value: int) -> torch.Tensor:
    """Two rows of ids, with a value at row 1, position 3."""
    tokens = tokens_of(2, T)
    tokens[1, 3] = value
    return tokens


TWO_ROWS, ZEROS, ONES = tokens_of(2, T), torch.zeros(2, T, dtype=torch.long), torch.ones(2, T, dtype=torch.long)
ANY_SHAPE = r"it must be one of \(17, 17\), \(2, 17, 17\) and \(2, 3, 17, 17\)"
AT = "at row 1, position 3"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tokens": tokens_of(5)}, r"tokens has shape \(5,\); it must be \(B, T\), rows of ids"),
    ({"tokens": tokens_of(1, T + 1)}, "18 tokens exceed the model's context of 17"),
    # Ids outside the vocabulary, also where the padded embedding has rows.
    *(({"tokens": holding(wrong)}, f"tokens holds {wrong} {AT}; ids are 0 to 60") for wrong in (V, V + 2, -1)),
    *(
        ({"targets": holding(wrong)}, f"targets holds {wrong} {AT}; ids are 0 to 60, and -100 is ignored")
        for wrong in (V, V + 2, -1)
    ),
    ({"targets": tokens_of(2, T - 1)}, r"targets has shape \(2, 16\); it must be that of tokens, \(2, 17\)"),
    ({"targets": tokens_of(2, T + 1)}, r"targets has shape \(2, 18\); it must be that of tokens, \(2, 17\)"),
    ({"attention_mask": torch.ones(T, T)}, r"attention_mask has shape \(17, 17\); it must be .* is the argument mask"),
    ({"attention_mask": ONES, "documents": ONES}, "attention_mask and documents are both given"),
    ({"documents": ONES[:, 1:]}, r"documents has shape \(2, 16\)"),
    ({"positions": torch.zeros(2, T)}, r"positions has shape \(2, 17\) and dtype torch.float32; it must be integers"),
    ({"positions": ZEROS + T}, "positions range from 17 to 17; they must be from 0 to 16"),
    ({"positions": ZEROS - 1}, "positions range from -1 to -1"),
    *(
        ({"mask": torch.ones(shape, dtype=torch.bool)}, rf"the mask has shape {re.escape(str(shape))}; {ANY_SHAPE}")
        for shape in ((T, T + 1), (T,), (3, T, T), (2, 1, T, T), (1, 2, 3, T, T))
    ),
    *(
        ({"mask": torch.ones(T, T).fill_diagonal_(wrong)}, "the mask holds values other than 0 and 1; give a boolean")
        for wrong in (2.0, -1.0, 0.5, -math.inf, math.nan)
    ),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_arguments_that_cannot_be_meant_are_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    model = model_of()
    assert model.config.padded_vocab > V + 2
    with pytest.raises(InputError, match=message) as caught:
        model(**({"tokens": TWO_ROWS} | given))
    assert "\n" not in str(caught.value)


KERNEL_REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"kernel": "banded", "mask": "window", "window": 4},
        {"mask": torch.ones(T, T).tril()},
        "kernel banded supports masks of limited reach",
    ),
    ({"kernel": "flex"}, {}, "kernel flex has no gradient on a CPU"),
]


@pytest.mark.parametrize(("options", "given", "message"), KERNEL_REFUSED)
def test_kernels_refuse_what_they_cannot_do(options: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_of(**options)(TWO_ROWS, **given)
