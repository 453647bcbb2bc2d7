"""A feed-forward layer and a block of a user's own: what they may do, how they count, and what is said of mistakes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from gpt2lab.errors import InputError
from gpt2lab.model.config import GPTConfig
from gpt2lab.model.gpt import GPT, Block, attention_weights
from gpt2lab.model.layers import FeedForward
from gpt2lab.model.parts import BLOCKS, FEED_FORWARDS
from gpt2lab.training.memory import Shape, estimate

PLAIN = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_ctx=8, vocab_size=61, dropout=0.0)
Add = Callable[..., GPTConfig]


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Add:
    """Add a part under the name mine; return a configuration that names it."""

    def named(kind: str, part: Any, **options: Any) -> GPTConfig:
        monkeypatch.setitem({"feed_forward": FEED_FORWARDS, "block": BLOCKS}[kind], "mine", part)
        return dataclasses.replace(PLAIN, **{kind: "mine"}, **options)

    return named


@pytest.mark.parametrize(("kind", "part"), [("feed_forward", FeedForward), ("block", Block)])
def test_gpt2s_own_parts_under_another_name_are_gpt2_bit_for_bit(kind: str, part: type[nn.Module], add: Add) -> None:
    config, models, tokens = add(kind, part), [], torch.randint(61, (2, 8), generator=torch.Generator().manual_seed(0))
    for one in (PLAIN, config):
        torch.manual_seed(1)
        models.append(GPT(one))
    plain, own = models
    assert own.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(own(tokens).logits, plain(tokens).logits)
    assert config.flops_per_token(8) == PLAIN.flops_per_token(8)
    with torch.device("meta"):
        assert GPT(config).n_params == plain.n_params


class Stacked(nn.Module):
    """Two feed-forward layers whose outputs are added; their matrices are stacks."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.ones(2, config.n_embd, 24))
        self.c_proj = nn.Parameter(torch.ones(2, 24, config.n_embd))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("btc,ecf,efd->btd", x, self.up, self.c_proj)


def test_flops_and_memory_are_counted_from_its_matrices(add: Add) -> None:
    config = add("feed_forward", Stacked)
    c_attn, attn_c_proj, feed_forward, head, C, T = 48 * 16, 16 * 16, 2 * (16 * 24 + 24 * 16), 61 * 16, 16, 8
    assert config.flops_per_token(T) == 6 * (2 * (c_attn + attn_c_proj + feed_forward) + head) + 12 * C * 2 * T
    kept = [estimate(Shape(one, T, B=1, precision="fp32", device="cpu")).activations for one in (PLAIN, config)]
    assert kept[1] - kept[0] == 2 * T * 4 * ((24 + 16) + (16 + 24) - 2 * 64)  # inputs and outputs for GELU's two


def test_blocks_that_differ_by_layer_are_counted_each(add: Add) -> None:
    class Growing(Block):
        def __init__(self, config: GPTConfig, layer: int) -> None:
            super().__init__(config, layer)
            self.mlp = FeedForward(dataclasses.replace(config, n_inner=16 * (layer + 1)))

    config, T = add("block", Growing), 8
    more = sum(2 * 16 * (16 * (layer + 1) - 64) for layer in range(2))
    assert config.flops_per_token(T) == PLAIN.flops_per_token(T) + 6 * more
    kept = [estimate(Shape(one, T, B=1, precision="fp32", device="cpu")).activations for one in (PLAIN, config)]
    narrower = [add("block", Block, n_inner=16 * (layer + 1)) for layer in range(2)]
    each = [estimate(Shape(one, T, B=1, precision="fp32", device="cpu")).activations for one in narrower]
    assert kept[1] == sum(each) / 2


class Chosen(nn.Module):
    """Starts at what its class chooses: a rotation that is not trained, a scale, and a zero matrix of its own."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.rotation = nn.Parameter(torch.eye(C).flip(0), requires_grad=False)
        self.gain_bias, self.zero = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C, C))
        self.c_proj, self.fixed = nn.Linear(C, C), nn.Linear(C, C)
        for parameter in self.fixed.parameters():
            nn.init.ones_(parameter).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(x @ self.rotation * self.gain_bias + x @ self.zero + self.fixed(x))


def test_only_linear_layers_and_embeddings_that_are_trained_start_as_gpt2s(add: Add) -> None:
    made = GPT(add("feed_forward", Chosen)).state_dict()
    for name, expected in Chosen(PLAIN).state_dict().items():
        assert torch.equal(made[f"h.0.mlp.{name}"], expected) != name.startswith("c_proj"), name
    assert made["h.0.mlp.c_proj.bias"].count_nonzero() == 0
    assert made["h.0.mlp.c_proj.weight"].std() == pytest.approx(0.02 / math.sqrt(2 * 2), rel=0.3)


def test_attention_called_by_keyword_shows_its_weights(add: Add) -> None:
    class Keywords(Block):
        def forward(self, x: torch.Tensor, bias: Any, rotation: Any, cache: Any, first: Any) -> torch.Tensor:  # type: ignore[override]
            y = self.attn(self.ln_1(x), cache=cache, rotation=rotation, bias=bias, first=first)
            return x + y + self.mlp(self.ln_2(x + y))

    weights = []
    for config in (dataclasses.replace(PLAIN, position="rope"), add("block", Keywords, position="rope")):
        torch.manual_seed(0)
        weights.append(attention_weights(GPT(config), torch.arange(8)[None]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("kernel", ["flex", "sdpa"])
def test_the_check_runs_the_plain_kernel_without_effect_on_the_model(kernel: Any, add: Add) -> None:
    class Seen(FeedForward):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not flex.called
            return super().forward(x)

    with patch("gpt2lab.model.attention.create_block_mask") as flex:
        model = GPT(add("feed_forward", Seen, kernel=kernel))
    assert not flex.called and model.config.kernel == kernel and model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_part_that_reads_values_is_told_of_the_meta_device(add: Add) -> None:
    class Reading(FeedForward):
        def __init__(self, config: GPTConfig) -> None:
            super().__init__(config)
            self.scale = torch.linspace(0, 1, 3).sum().item()

    config = add("feed_forward", Reading)
    GPT(config)
    with pytest.raises(InputError, match=r"test_own_parts.py, line \d+: TypeError: .* read no values in __init__"):
        config.flops_per_token(8)


def test_a_part_that_needs_rotation_masks_and_cache_gets_them(add: Add) -> None:
    class Scaled(Block):
        def forward(self, x: torch.Tensor, *attending: Any) -> torch.Tensor:
            return x + 2.0 * self.attn(self.ln_1(x), *attending) + self.mlp(self.ln_2(x))

    options = {
        "value_residual": True,
        "position": "rope",
        "mask": "window,causal",
        "window": 3,
        "n_kv_head": 1,
        "qk_norm": True,
    }
    model = GPT(add("block", Scaled, **options)).eval()
    tokens = torch.arange(8)[None]
    cache = model.new_cache(1)
    with torch.no_grad():
        parted = torch.cat([model.hidden(part, cache=cache) for part in tokens.split(3, dim=1)], dim=1)
    torch.testing.assert_close(parted, model.hidden(tokens))


class Narrow(nn.Linear):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.n_embd, 1)


class Mean(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=1, keepdim=True).expand_as(x)


class Gated(Mean):
    """A mean over all positions that a gate hides at the start."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate * super().forward(x)


class Shifted(Mean):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


class TwoArguments(nn.Module):
    def __init__(self, config: GPTConfig, width: int) -> None:
        super().__init__()


class WithoutLayer(Block):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)


class Transposed(Block):
    def forward(self, x: torch.Tensor, *attending: Any) -> torch.Tensor:
        return x.mT


class Unattending(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x


class Forgetful(Block):
    def forward(self, x: torch.Tensor, *attending: Any) -> torch.Tensor:
        return x + self.attn(x)


class Unused(FeedForward):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.extra = nn.Linear(2, 2)


class NotANumber(FeedForward):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 0.0 * 0.0


MISTAKES: list[tuple[str, Any, str]] = [
    (
        "feed_forward",
        Narrow,
        f"(Narrow): {__file__}: TypeError: forward returns (1, 4, 1) for an input of shape ",
    ),
    ("feed_forward", Mean, "lets a position depend on later ones"),
    ("feed_forward", Gated, "lets a position depend on later ones"),
    ("feed_forward", Shifted, "depends on earlier positions otherwise than by attention"),
    ("feed_forward", TwoArguments, "TwoArguments.__init__() missing 1 required positional argument: 'width'"),
    ("feed_forward", lambda config: config, "GPTConfig(n_layer=2"),
    ("feed_forward", nn.Module, 'feed_forward "mine" (Module): '),
    ("block", Forgetful, "depends on earlier positions otherwise than by attention"),
    ("block", WithoutLayer, "WithoutLayer.__init__() takes 2 positional arguments but 3 were given"),
    (
        "block",
        Transposed,
        f"(Transposed): {__file__}: TypeError: forward returns (1, 16, 4) for an input of shape (1, ",
    ),
    (
        "feed_forward",
        Unused,
        "mlp.extra.weight gets no gradient, since forward does not use it; use it, remove it, or ",
    ),
    ("feed_forward", NotANumber, f"(NotANumber): {__file__}: ValueError: forward returns NaN or infinity"),
    ("block", Unattending, "Unattending.forward() takes 2 positional arguments but "),
]


@pytest.mark.parametrize(("kind", "part", "said"), MISTAKES, ids=[said[:30] for *_, said in MISTAKES])
def test_a_mistake_is_one_line_with_the_class_and_the_file(kind: str, part: Any, said: str, add: Add) -> None:
    with pytest.raises(InputError) as error:
        GPT(add(kind, part))
    assert f'{kind} "mine"' in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


def test_a_value_residual_needs_the_values_of_the_first_layer(add: Add) -> None:
    class Forgetting(Block):
        def forward(self, x: torch.Tensor, bias: Any, rotation: Any, *others: Any) -> torch.Tensor:  # type: ignore[override]
            return x + self.attn(self.ln_1(x), bias, rotation) + self.mlp(self.ln_2(x))

    with pytest.raises(InputError, match="value_residual needs the argument first; hand all arguments of forward on"):
        GPT(add("block", Forgetting, value_residual=True))


def test_a_block_of_ones_own_takes_the_place_of_the_built_in_ones(add: Add) -> None:
    with pytest.raises(InputError, match="norm_placement post with block mine, which takes its place; take norm_plac"):
        add("block", Block, norm_placement="post")
    with pytest.raises(InputError, match="parallel_blocks True with block mine"):
        add("block", Block, parallel_blocks=True)
    with pytest.raises(InputError, match=r'unknown block "min" \(did you mean "mine"\?\)'):
        dataclasses.replace(add("block", Block), block="min")
    with pytest.raises(InputError, match='unknown feed_forward "x"; give its file to gpt2lab train --import FILE'):
        GPTConfig(feed_forward="x")
