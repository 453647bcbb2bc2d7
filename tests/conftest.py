"""Shared by all tests: one thread per process, the real data, and a Hugging Face copy of a model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from gpt2lab.model.gpt import GPT

hypothesis.settings.register_profile("no deadline", deadline=None)  # timings on a busy machine are no failures
hypothesis.settings.load_profile("no deadline")

# The models here are so small that threads of several processes would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A pool of compilers takes longer to start than these models to compile.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

DATA = Path(os.environ.get("GPT2LAB_DATA", Path(__file__).parents[2] / "shared" / "data"))


def real_data(name: str) -> Path:
    """Return a file of real text; skip the test where it is missing, except under CI, where that is a failure."""
    path = DATA / name
    if not path.exists():
        reason = f"needs {name} of the real test data: set GPT2LAB_DATA to the folder that holds it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def tinyshakespeare() -> Path:
    """The 1.1 MB of Tiny Shakespeare."""
    return real_data("tinyshakespeare.txt")


@pytest.fixture(scope="session")
def wikitext2() -> Path:
    """The validation split of WikiText-2."""
    return real_data("wikitext2-valid.txt")


@pytest.fixture(scope="session")
def gpt2_vocabulary() -> Path:
    """The directory of GPT-2's own encoder.json and vocab.bpe."""
    return real_data("gpt2")


@pytest.fixture(scope="session")
def hugging_face_twin() -> Callable[[GPT], Any]:
    """Make Hugging Face's GPT-2 of a model's shape, with its weights, plain attention and in evaluation mode."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    @torch.no_grad()
    def twin(ours: GPT) -> Any:
        c = ours.config
        config: Any = GPT2Config(
            n_layer=c.n_layer,
            n_head=c.n_head,
            n_embd=c.n_embd,
            n_inner=c.n_inner,
            n_positions=c.n_ctx,
            vocab_size=c.vocab_size,
            bos_token_id=None,
            eos_token_id=None,
        )
        config._attn_implementation = "eager"
        theirs: Any = GPT2LMHeadModel(config)
        for name, parameter in theirs.transformer.named_parameters():
            parameter.copy_(transposed(name, ours.get_parameter(name))[: len(parameter)])
        return theirs.eval()

    return twin


def transposed(name: str, weight: Any) -> Any:
    """Turn the matrix of a block: Hugging Face keeps those as (in, out), nn.Linear as (out, in)."""
    return weight.T if name.startswith("h.") and weight.dim() == 2 else weight
