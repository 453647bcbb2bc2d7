"""The estimate of memory against what torch's allocator is asked for in a step of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import trainer_of

from gpt2lab.model.config import PRESETS, GPTConfig
from gpt2lab.model.gpt import GPT
from gpt2lab.training.loop import Trainer
from gpt2lab.training.memory import FRAGMENTATION, LIBRARY_BYTES, Shape, estimate, largest_micro_batch, parameter_shapes

MODEL: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 64, "n_ctx": 256, "vocab_size": 257, "dropout": 0.1}
WINDOW: dict[str, Any] = {"mask": "window", "window": 32}
BANDED: dict[str, Any] = WINDOW | {"kernel": "banded"}
NO_DROPOUT: dict[str, Any] = {"dropout": 0.0}
BF16: dict[str, Any] = {"precision": "bf16"}
CHECKPOINTED: dict[str, Any] = {"activation_checkpointing": True}
DOCUMENTS: dict[str, Any] = {"mask_documents": True}
SDPA: dict[str, Any] = {"kernel": "sdpa"}
ROPE: dict[str, Any] = {"position": "rope", "dropout": 0.0}
ALIBI: dict[str, Any] = {"position": "alibi"}
CASES: dict[str, tuple[int, int, dict[str, Any], dict[str, Any]]] = {
    "fp32, plain attention with dropout": (64, 8, {}, {}),
    "fp32, SDPA without a fused kernel": (256, 2, {}, {}),
    "fp32, fused SDPA": (256, 4, NO_DROPOUT, {}),
    "bf16": (64, 8, {}, BF16),
    "bf16 without dropout": (128, 8, NO_DROPOUT, BF16),
    "grouped heads": (64, 8, {"n_kv_head": 2, "n_layer": 4}, BF16),
    "checkpointed": (128, 8, {"n_layer": 6}, CHECKPOINTED),
    "checkpointed in bf16": (128, 8, {}, CHECKPOINTED | BF16),
    "banded": (256, 4, BANDED | NO_DROPOUT, {}),
    "banded with dropout": (256, 4, BANDED, {}),
    "banded, grouped, in bf16": (256, 4, BANDED | {"n_kv_head": 2, "mask": "global", "prefix": 8}, BF16),
    "banded, checkpointed": (256, 4, BANDED | {"n_layer": 6}, CHECKPOINTED),
    "a window by SDPA": (256, 2, WINDOW | SDPA | NO_DROPOUT, {}),
    "a window by SDPA with dropout in bf16": (128, 4, WINDOW | SDPA | {"n_kv_head": 2}, BF16),
    "rotary and grouped, fused": (256, 4, ROPE | SDPA | {"n_kv_head": 1}, BF16),
    "rotary, plain products": (128, 8, ROPE | {"kernel": "matmul"}, {}),
    "rotary, half of each head, interleaved, not in every layer": (
        *(256, 4, ROPE | SDPA | {"n_layer": 4, "rope_fraction": 0.5, "rope_pairing": "interleaved", "nope_every": 4}),
        BF16,
    ),
    "ALiBi, plain products": (128, 8, ALIBI, {}),
    "ALiBi, fused": (256, 2, ALIBI | SDPA | NO_DROPOUT, BF16),
    "ALiBi, reference": (128, 8, ALIBI | {"kernel": "reference"}, BF16),
    "ALiBi in a window, banded": (256, 4, ALIBI | BANDED, {}),
    "reference in bf16": (128, 8, {"kernel": "reference"}, BF16),
    "reference without dropout": (128, 8, {"kernel": "reference", "dropout": 0.0}, BF16),
    "narrow feed-forward": (256, 4, {"n_inner": 32, "kernel": "matmul"}, {}),
    "gated": (64, 8, {"activation": "swiglu", "n_layer": 4}, {}),
    "gated in bf16": (64, 8, {"activation": "geglu"}, BF16),
    "relu": (64, 8, {"activation": "relu", "dropout": 0.0}, {}),
    "squared relu": (64, 8, {"activation": "relu2", "dropout": 0.0}, BF16),
    "rmsnorm": (64, 8, {"norm": "rmsnorm"}, {}),
    "rmsnorm in bf16": (64, 8, {"norm": "rmsnorm", "dropout": 0.0}, BF16),
    "queries and keys normalized": (128, 8, {"qk_norm": True, "kernel": "matmul"}, {}),
    "queries and keys normalized, fused, in bf16": (256, 4, ROPE | SDPA | {"qk_norm": True, "norm": "rmsnorm"}, BF16),
    "sandwich": (64, 8, {"norm_placement": "sandwich"}, {}),
    "parallel": (64, 8, {"parallel_blocks": True}, {}),
    "untied": (64, 8, {"tied_head": False, "logit_softcap": 30.0, "z_loss": 1e-4}, {}),
    "untied, accumulated": (64, 8, {"tied_head": False}, {"batch_tokens": 64 * 16}),
    "banded, queries and keys normalized": (256, 4, BANDED | NO_DROPOUT | {"qk_norm": True}, {}),
    "embedding norm": (64, 8, {"embedding_norm": True}, BF16),
    "multi-token prediction": (64, 8, {"mtp_depth": 2}, {}),
    "multi-token prediction in bf16": (128, 8, {"mtp_depth": 1, "dropout": 0.0}, BF16),
    "multi-token prediction, checkpointed": (128, 8, {"mtp_depth": 2, "n_layer": 6}, CHECKPOINTED),
    "multi-token prediction, accumulated": (64, 8, {"mtp_depth": 1}, {"batch_tokens": 64 * 16}),
    "sinks": (128, 8, {"attention_sinks": True, "dropout": 0.0}, {}),
    "soft-capped scores in bf16": (128, 8, {"attention_softcap": 50.0}, BF16),
    "a gate": (64, 8, {"attention_gate": True}, {}),
    "values of the first layer": (64, 8, {"value_residual": True, "n_layer": 4}, BF16),
    "values of the first layer, fused": (256, 4, NO_DROPOUT | {"value_residual": True, "n_kv_head": 2}, {}),
    "values of the first layer, banded": (256, 4, BANDED | {"value_residual": True, "n_layer": 4}, {}),
    "differential": (128, 8, {"differential_attention": True}, BF16),
    "differential, fused": (256, 4, ROPE | SDPA | {"differential_attention": True, "n_kv_head": 2}, {}),
    "differential, banded": (256, 4, BANDED | {"differential_attention": True}, BF16),
    "latent": (128, 8, {"latent_dim": 32, "position": "rope"}, {}),
    "latent in bf16": (64, 8, {"latent_dim": 32, "n_layer": 4}, BF16),
    "latent, fused": (256, 4, ROPE | SDPA | {"latent_dim": 64}, BF16),
    "latent without rotation, fused": (256, 4, NO_DROPOUT | SDPA | {"latent_dim": 32}, {}),
    "latent, banded": (256, 4, ROPE | BANDED | {"latent_dim": 48}, {}),
    "documents": (128, 8, {}, DOCUMENTS),
    "documents, reference": (128, 8, {"kernel": "reference"}, DOCUMENTS | BF16),
    "documents, fused": (256, 4, ROPE | SDPA, DOCUMENTS),
    "documents in a window, banded": (256, 4, BANDED | NO_DROPOUT, DOCUMENTS),
    "documents with ALiBi": (128, 8, ALIBI, DOCUMENTS | BF16),
    "documents with ALiBi, fused": (256, 4, ALIBI | SDPA | NO_DROPOUT, DOCUMENTS | BF16),
    "masks by layer": (256, 4, {"mask": "window,causal", "window": 32, "kernel": "sdpa", "dropout": 0.0}, {}),
    "one block": (256, 4, {"n_layer": 1, "kernel": "matmul", "dropout": 0.0}, {}),
    "wide, checkpointed": (64, 8, {"n_layer": 4, "n_embd": 256, "dropout": 0.0}, CHECKPOINTED),
    "accumulated": (64, 8, {}, {"batch_tokens": 64 * 16}),
}
"""Tokens per sequence, sequences per pass, and what differs of the model and the other options."""


def asked_of_the_allocator(trainer: Trainer) -> int:
    """The most bytes of tensors that were alive at once in a step, weights and moments included."""
    trainer.update()  # creates the optimizer's state
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        trainer.update()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()  # type: ignore[attr-defined]
        most = max(most, live)
    state = [t for kept in trainer.optimizer.state.values() for t in kept.values() if isinstance(t, torch.Tensor)]
    return most + sum(t.nbytes for t in [*trainer.model.parameters(), *state])


@pytest.mark.parametrize(("seq_len", "micro_batch", "model", "options"), CASES.values(), ids=CASES)
def test_a_step_takes_what_is_estimated(
    data: Path, tmp_path: Path, seq_len: int, micro_batch: int, model: dict[str, Any], options: dict[str, Any]
) -> None:
    options = {"seq_len": seq_len, "micro_batch": micro_batch, "batch_tokens": micro_batch * seq_len} | options
    options["model"] = GPTConfig(**(MODEL | model))
    trainer = trainer_of(data, tmp_path, **options)
    config = trainer.config
    shape = Shape(
        *(config.model, config.seq_len, config.micro_batch, config.precision, "cpu", config.activation_checkpointing),
        micro_steps=trainer.loader.micro_steps,
        documents=config.mask_documents,
    )
    estimated = (estimate(shape).peak - LIBRARY_BYTES) / FRAGMENTATION
    assert estimated == pytest.approx(asked_of_the_allocator(trainer), rel=0.05)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_parameters_are_those_of_the_model_unmade(preset: str) -> None:
    shapes = parameter_shapes(PRESETS[preset])
    if preset in ("nano", "tiny"):
        assert shapes == {name: p.shape for name, p in GPT(PRESETS[preset]).named_parameters()}
    memory = estimate(Shape(PRESETS[preset], PRESETS[preset].n_ctx, 1))
    total = sum(shape.numel() for shape in shapes.values())
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * total, 4 * total, 8 * total)


def test_a_gpu_keeps_the_softmax_of_plain_products_in_fp32_and_gathers_both_embeddings() -> None:
    plain = GPTConfig.preset("gpt2", dropout=0.0, kernel="matmul")
    on_cpu, on_gpu = (estimate(Shape(plain, 1024, 8, "bf16", device)).activations for device in ("cpu", "cuda"))
    weights, norms = 12 * 8 * 12 * 1024**2, 12 * 2 * 8 * 1024 * 768  # numbers; autocast also keeps norms in fp32
    assert on_gpu - on_cpu == pytest.approx(weights * 4 + norms * 2, rel=0.01)
    tied, untied = (GPTConfig.preset("gpt2-xl", tied_head=head) for head in (True, False))
    peaks = [estimate(Shape(config, 1024, 1, shards=8)) for config in (tied, untied)]
    state = [memory.weights + memory.optimizer for memory in peaks]
    assert peaks[1].peak - peaks[0].peak >= state[1] - state[0] + 2 * tied.padded_vocab * tied.n_embd


def test_sharded_over_ranks_each_holds_a_part_of_the_state() -> None:
    whole = estimate(Shape(PRESETS["gpt2-xl"], 1024, 1))
    share = estimate(Shape(PRESETS["gpt2-xl"], 1024, 1, shards=8))
    assert share.weights == pytest.approx(whole.weights / 8, abs=4)
    assert share.optimizer == pytest.approx(whole.optimizer / 8, abs=8)
    assert share.activations < whole.activations  # gathered weights take the place of autocast's copies
    accumulated = estimate(Shape(PRESETS["gpt2-xl"], 1024, 1, shards=8, micro_steps=2))
    assert accumulated.gradients == whole.gradients  # sharded in the last micro-step only
    assert share.peak < whole.peak - 0.6 * (whole.weights + whole.gradients + whole.optimizer)


def test_blocks_of_16_bits_as_korthikanti_et_al_count_them() -> None:
    # 34 BTC + 5 BHTT bytes without their fused kernels: here q, k and v once, no copy of the products' inputs less.
    model = GPTConfig(n_layer=10, dropout=0.1, kernel="matmul")
    one = estimate(Shape(model, 512, 4, "bf16", "cpu")).activations
    none = estimate(Shape(GPTConfig(n_layer=5, dropout=0.1, kernel="matmul"), 512, 4, "bf16", "cpu")).activations
    block = (one - none) / 5
    weights = 2 * 12 * 768**2  # bf16 copies
    ours = 4 * 512 * (18 * 768 * 2 + 3 * 12 * 512 * 2 + 2 * 2 * 768 - 4 * 768 + 16)
    assert block - weights == pytest.approx(ours, rel=0.02)


def test_the_largest_micro_batch_is_the_last_that_fits() -> None:
    shape = Shape(PRESETS["gpt2"], 1024, 1)
    room = 80 * 10**9
    most = largest_micro_batch(shape, room)
    peaks = [estimate(Shape(PRESETS["gpt2"], 1024, B)).peak for B in (most, most + 1)]
    assert peaks[0] <= room < peaks[1]
    assert largest_micro_batch(shape, 10**9) == 0
