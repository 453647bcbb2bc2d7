"""Rounded weights: the numbers against PyTorch's own, packed products and whole models against what they decode to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from random_models import random_ids, random_model

from gpt2lab import GPT, GPTConfig, generate
from gpt2lab.errors import InputError
from gpt2lab.evaluation.measure import LoadedRun
from gpt2lab.generation import encode_prompt, next_logits
from gpt2lab.model.cache import BatchCache
from gpt2lab.model.quantized import CODECS, QuantizedLinear, Width, dequantized, quantized

STORIES = Path(__file__).parents[2] / "docs" / "gallery" / "stories"
SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_ctx": 40, "vocab_size": 61}
VARIANTS: dict[str, dict[str, Any]] = {
    "GPT-2": {},
    "modern": {"position": "rope", "norm": "rmsnorm", "activation": "swiglu", "n_inner": 160, "qk_norm": True},
    "no biases, untied": {"bias": False, "tied_head": False, "norm_placement": "sandwich"},
    "grouped heads in a window": {"n_kv_head": 2, "mask": "window", "window": 5, "position": "alibi"},
    "gate, sinks, value residual": {"attention_gate": True, "attention_sinks": True, "value_residual": True},
    "differential": {"differential_attention": True},
    "latent": {"latent_dim": 24, "position": "rope"},
    "parallel, soft-capped": {"parallel_blocks": True, "logit_softcap": 5.0, "embedding_norm": True},
    "multi-token": {"mtp_depth": 1},
}  # fmt: skip
PROMPTS = ("", "One day", "The owl", "Rose had a dog", "In the morning", "Her brother said", "Once upon a time", "They")
MATRICES = arrays.arrays(
    "float32",
    st.tuples(st.sampled_from((16, 48)), st.sampled_from((32, 96))),
    elements=st.floats(-1e3, 1e3, width=32),
    fill=st.sampled_from((0.0, 0.5)),
)


@given(MATRICES)
def test_int8_is_the_nearest_number_of_steps(numbers: Any) -> None:
    held = CODECS["int8"].encode(torch.from_numpy(numbers))
    scale = torch.from_numpy(np.abs(numbers).max(axis=1) / np.float32(127)).bfloat16()
    assert torch.equal(held["scale"], scale)
    steps = np.rint(numbers / np.where(scale == 0, 1, scale.float().numpy())[:, None]).clip(-127, 127)
    assert np.array_equal(held["numbers"].numpy(), steps)
    assert np.array_equal(CODECS["int8"].decode(held).numpy(), steps.astype("float32") * scale.float().numpy()[:, None])


@given(MATRICES)
def test_int4_is_as_near_as_its_steps_allow(numbers: Any) -> None:
    matrix = torch.from_numpy(numbers)
    held = CODECS["int4"].encode(matrix)
    groups = matrix.unflatten(1, (-1, 32))
    reach = groups.amax(2) - groups.amin(2)
    decoded = CODECS["int4"].decode(held).unflatten(1, (-1, 32))
    # Without clipping, no number is further away than half a step of 1/15 of the range; bf16 rounds scale and zero.
    bound = (reach / 30 + groups.abs().amax(2) * 2**-7) * 32**0.5
    assert bool(((decoded - groups).square().sum(2).sqrt() <= bound + 1e-6).all())
    assert torch.equal(
        CODECS["int4"].decode(CODECS["int4"].encode(decoded.flatten(1))).isfinite(), decoded.flatten(1).isfinite()
    )


@pytest.mark.parametrize("width", CODECS)
@pytest.mark.parametrize("rows", [1, 3, 17, 129])
def test_every_product_is_that_of_the_decoded_matrix(width: Width, rows: int) -> None:
    torch.manual_seed(rows)
    layer = QuantizedLinear(48, 96, True, width)
    layer.load_state_dict({**CODECS[width].encode(torch.randn(48, 96)), "bias": torch.randn(48)})
    x = torch.randn(rows, 96).bfloat16()
    expected = x.double() @ layer.weight.double().T + layer.bias.double()  # type: ignore[union-attr]
    torch.testing.assert_close(layer(x).double(), expected, atol=0.2, rtol=2**-6)
    assert layer(x[None]).shape == (1, rows, 48)


@pytest.mark.parametrize("width", CODECS)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_computes_what_its_decoded_weights_do(name: str, width: Width) -> None:
    model = random_model(SHAPE | VARIANTS[name], scale=0.05).eval()
    rounded = quantized(model, width)
    plain, tokens = dequantized(rounded), random_ids(61, 2, 24)
    assert plain.n_params == rounded.n_params
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = rounded(tokens).logits, plain(tokens).logits
        torch.testing.assert_close(found.float(), expected.float(), atol=0.12, rtol=0.05)
        losses = rounded.token_losses(tokens, tokens), plain.token_losses(tokens, tokens)
        torch.testing.assert_close(*losses, atol=0.12, rtol=0.05)
        cache = rounded.new_cache(2)
        pieces = [rounded.head(rounded.hidden(tokens[:, [t]], cache=cache)) for t in range(24)]
        torch.testing.assert_close(torch.cat(pieces, 1).float(), found.float(), atol=0.12, rtol=0.05)


@pytest.mark.parametrize("width", CODECS)
def test_a_trained_model_chooses_the_tokens_of_its_decoded_weights(width: Width) -> None:
    run = LoadedRun(STORIES, "best", "cpu", "auto", width)
    plain, same, chosen = run.gpt, 0, 0
    for prompt in PROMPTS:
        tokens = encode_prompt(run.tokenizer, prompt, 1, torch.device("cpu"))
        text = generate(plain, tokens, 60, greedy=True)
        exact = plain(text).logits[0]
        with run.runtime.autocast():
            cache = run.model.new_cache(1)
            found = torch.stack([next_logits(run.model, text[:, [t]], cache)[0] for t in range(text.shape[1])])
        best, rounded = exact.argmax(1), found.argmax(1)
        different = (best != rounded).nonzero()[:, 0]
        margins = exact[different, best[different]] - exact[different, rounded[different]]
        assert bool((margins < 0.1).all())  # in fp32 the two are nearly equal; the activations are bf16
        same, chosen = same + len(text[0]) - len(different), chosen + len(text[0])
    assert same > 0.9 * chosen


@pytest.mark.parametrize("width", CODECS)
def test_rows_of_a_batch_have_the_bits_that_each_has_alone(width: Width) -> None:
    model = quantized(random_model(SHAPE, scale=0.05).eval(), width)

    def steps(prompts: list[list[int]], of: int) -> list[torch.Tensor]:
        batch = BatchCache(model.config, 4, torch.device("cpu"), torch.float32)
        for ids in prompts:
            cache = model.new_cache(1)
            next_logits(model, torch.tensor([ids]), cache)
            batch.join(cache)
        return [next_logits(model, torch.full((len(prompts), 1), token), batch)[of] for token in range(8)]

    texts = [[1, 2, 3], [4, 5], [6, 7, 8, 9], [10]]
    with torch.autocast("cpu", torch.bfloat16):
        alone = [steps([text], 0) for text in texts]
        beside = [steps(texts, row) for row in range(4)]
    for row in range(4):
        for one, other in zip(alone[row], beside[row], strict=True):
            assert torch.equal(one, other)


def test_a_matrix_that_the_products_cannot_read_is_refused() -> None:
    with pytest.raises(
        InputError, match="int4 needs rows in multiples of 16 and columns in multiples of 32, and c_attn has 144 x 48"
    ):
        quantized(GPT(GPTConfig(n_layer=1, n_head=4, n_embd=48, vocab_size=64, n_ctx=8)), "int4")
