"""GPT-2 in one file equals the product, and what nobody here wrote."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from gpt2lab.learn import gpt2
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT

SOURCE = Path(gpt2.__file__).read_text(encoding="utf-8")
CONFIG = gpt2.Config(vocab_size=128, n_ctx=16, n_embd=24, n_head=3, n_layer=2)


@pytest.fixture(scope="module")
def model() -> gpt2.GPT:
    """The model of the reference with weights far from the initial ones, fp64."""
    torch.manual_seed(0)
    model = gpt2.GPT(CONFIG).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def product(model: gpt2.GPT) -> GPT:
    """The product's model with the same weights."""
    product = GPT(GPTConfig(**vars(CONFIG))).double().eval()
    product.load_state_dict(model.state_dict())
    return product


def test_it_is_one_short_file_that_needs_nothing_of_ours() -> None:
    assert len(SOURCE.splitlines()) < 600
    imported = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                for node in ast.parse(SOURCE).body if isinstance(node, ast.Import | ast.ImportFrom)}  # fmt: skip
    standard = {"__future__", "math", "collections", "collections.abc", "dataclasses", "itertools"}
    assert imported == standard | {"regex", "torch"}


def test_model_function_and_product_agree(model: gpt2.GPT, product: GPT) -> None:
    tokens, targets = torch.randint(128, (2, 2, 16))
    targets[0, 3:7] = -100
    logits, loss = model(tokens, targets)
    theirs = product(tokens, targets, return_logits=True)
    torch.testing.assert_close(logits, theirs.logits)
    assert loss.item() == pytest.approx(theirs.loss.item(), rel=1e-6)  # theirs is fp32
    torch.testing.assert_close(gpt2.gpt(tokens, model.state_dict(), CONFIG.n_head), logits)
