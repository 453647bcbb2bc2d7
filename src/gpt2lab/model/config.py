"""The architecture as a value: the sizes of GPT-2 differ only in these numbers.

Sizes of the published models are those of Radford et al. 2019, "Language Models are Unsupervised Multitask Learners",
table 2; distilgpt2 is Sanh et al. 2019. ``nano`` and ``tiny`` are ours, for machines without a GPU. ``gpt2-modern`` is
GPT-2 124M with later parts; ``cs336`` is the model of Stanford CS336's assignment 1 (2025, section 7.2).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from gpt2lab.errors import InputError, one_of, require
from gpt2lab.model.masks import MASKS, Mask, make_mask, options_of
from gpt2lab.model.parts import BUILT_IN, REGISTRIES, Key, find_part, matrix_shapes, named_in, origin_of

if TYPE_CHECKING:  # --help must not wait for torch
    import torch

VOCAB_MULTIPLE = 64
"""The embedding is padded to a multiple of this many rows: matrix units are faster so; padding rows never count."""

Kernel = Literal["auto", "reference", "matmul", "sdpa", "banded", "flex"]
Position = Literal["learned", "sinusoidal", "rope", "alibi", "none"]
RopePairing = Literal["halves", "interleaved"]
RopeScaling = Literal["none", "linear", "ntk", "yarn"]
Norm = Literal["layernorm", "rmsnorm"]
NormPlacement = Literal["pre", "post", "sandwich"]
Activation = Literal["gelu_tanh", "gelu", "relu", "relu2", "silu", "glu", "geglu", "swiglu"]
GATED = ("glu", "geglu", "swiglu")
INNER_MULTIPLE = 8
"""The width of a gated feed-forward layer is rounded to a multiple of this."""
MASK_OPTIONS = ("window", "prefix")


@dataclass(frozen=True)
class GPTConfig:
    """The architecture of a GPT-2. The defaults are GPT-2 124M's.

    Raises:
        InputError: A size is not positive, the heads do not divide the width or one another, dropout is outside [0, 1),
            or an option does not fit the mask or the position that is chosen.
    """

    n_layer: int = 12
    """Transformer blocks."""
    n_head: int = 12
    """Attention heads; must divide n_embd."""
    n_embd: int = 768
    """Width C of the residual stream."""
    n_ctx: int = 1024
    """Longest sequence, in tokens: the rows of the position embedding."""
    vocab_size: int = 50257
    """Entries of the vocabulary; training takes it from the data's tokenizer."""
    n_inner: int | None = None
    """Width of the feed-forward layer; None is 4 * n_embd, and 8/3 * n_embd if gated, for as many parameters."""
    bias: bool = True
    """Biases in linear layers and layer norms."""
    dropout: float = 0.1
    """Dropout on embeddings, attention weights and residual branches."""
    kernel: Kernel = "auto"
    """How attention is computed; every kernel gives the same numbers. auto picks the fastest that applies."""
    position: Position = "learned"
    """How positions are encoded: learned (GPT-2), sinusoidal, rope (rotary), alibi (linear biases) or none."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies; the slowest turns once in 2 pi * base^(1 - 2 / head_dim) positions."""
    rope_pairing: RopePairing = "halves"
    """Numbers of a head that rotate together: i and i + D/2 (halves, as in Llama), or 2i and 2i + 1 (interleaved)."""
    rope_fraction: float = 1.0
    """Fraction of each head, from its first number on, that is rotated; GPT-NeoX's rotary_pct."""
    rope_scaling: RopeScaling = "none"
    """How rotary angles change for contexts longer than the trained one: linear, ntk or yarn."""
    rope_factor: float | None = None
    """How many times longer than the trained context, for rope_scaling."""
    rope_original_ctx: int | None = None
    """The trained context, for rope_scaling yarn."""
    nope_every: int | None = None
    """With rope: every n-th layer has no positions (4: layers 4, 8, ..); None: all layers have them."""
    n_kv_head: int | None = None
    """Key and value heads, each shared by n_head / n_kv_head query heads: None is n_head, 1 is multi-query."""
    mask: str = "causal"
    """Who may attend to whom: causal, window, global, strided, prefix, bidirectional, or one that --import adds.
    Layers take several, separated by commas, in turn: window,window,causal."""
    window: int | None = None
    """Positions that a query attends to, including its own, for masks window and global; the stride of strided."""
    prefix: int | None = None
    """Leading positions: every query attends to them (mask global), or they attend to one another (prefix)."""
    norm: Norm = "layernorm"
    """layernorm (GPT-2), or rmsnorm, which divides by the root mean square only."""
    norm_placement: NormPlacement = "pre"
    """Norms before each branch (pre, GPT-2), after each sum (post, GPT-1), or on both sides of a branch (sandwich)."""
    norm_eps: float = 1e-5
    """Added under the root of a norm."""
    norm_affine: bool = True
    """Train a weight in each norm, and with bias a bias in each layernorm."""
    qk_norm: bool = False
    """Normalize each head's queries and keys before they are rotated and multiplied."""
    attention_softcap: float | None = None
    """Squash attention scores to c * tanh(score / c) for this c, as in Gemma 2 (50 there); None leaves them."""
    attention_sinks: bool = False
    """Train a score for each head that queries may give their weight to in place of a key, as in gpt-oss."""
    attention_gate: bool = False
    """Multiply the output of attention by a sigmoid of its input's projection, as in Qwen3-Next."""
    value_residual: bool = False
    """Mix the values of every layer with those of the first, as in ResFormer; the two weights are trained."""
    differential_attention: bool = False
    """Pair heads: each pair subtracts the softmax map of its second head, times a trained weight, from the first's."""
    latent_dim: int | None = None
    """Expand keys and values from a latent of this width, and cache only it, as in DeepSeek-V2; None: no latent."""
    activation: Activation = "gelu_tanh"
    """Of the feed-forward layer; glu, geglu and swiglu are gated."""
    parallel_blocks: bool = False
    """Attention and feed-forward read the same normalized input and are added together, as in GPT-J."""
    tied_head: bool = True
    """Share the token embedding with the output head, as in GPT-2; otherwise train a separate matrix."""
    logit_softcap: float | None = None
    """Squash logits to c * tanh(logits / c) for this c, as in Gemma 2 (30 there); None leaves them."""
    z_loss: float = 0.0
    """Weight of log(Z)^2 in the training loss, Z the sum of exp(logits), as in PaLM (1e-4 there)."""
    mtp_depth: int = 0
    """Number of further heads that predict the second, third, .. next token in training: multi-token prediction."""
    mtp_weight: float = 1.0
    """Weight of the loss of each of these heads."""
    embedding_norm: bool = False
    """Normalize the embeddings before the first block, as in BLOOM."""
    mup_base_width: int | None = None
    """muP: scale initialization, logits and AdamW's rates with n_embd / this width; see docs/optimizers.md."""
    feed_forward: str | None = None
    """A feed-forward layer that --import adds, in place of two linear layers with the activation."""
    block: str | None = None
    """A block that --import adds; it decides itself which of the options it follows."""
    network: str | None = None
    """A whole model that --import adds; --model FILE:CLASS sets it. See docs/own-model.md."""
    import_sha256: str | None = None
    """SHA-256 of the imported file that defines mask, feed_forward, block and network; --import and --model set it."""

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "n_ctx", "vocab_size", "n_inner", "mup_base_width"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        for name, choices in _CHOICES.items():
            one_of(name, getattr(self, name), get_args(choices))
        require(0.0 <= self.dropout < 1.0, "dropout", self.dropout, "at least 0 and below 1")
        require(0.0 < self.norm_eps < 1.0, "norm_eps", self.norm_eps, "above 0 (usual: 1e-5 or 1e-6) and below 1")
        require(0.0 <= self.z_loss < math.inf, "z_loss", self.z_loss, "at least 0 (usual: 1e-4) and finite")
        for name in ("logit_softcap", "attention_softcap"):
            softcap, usual = getattr(self, name), "above 0 (usual: 15 to 50) and finite, or none"
            require(softcap is None or 0.0 < softcap < math.inf, name, softcap, usual)
        if self.changes_scores and self.kernel not in ("auto", "reference", "matmul"):
            changed = "attention_sinks" if self.attention_sinks else "attention_softcap"
            raise InputError(f"{changed} is not implemented for kernel {self.kernel}; take auto, matmul or reference")
        if self.value_residual and self.n_layer == 1:
            raise InputError(
                "value_residual with n_layer 1: later layers take the first one's values; take 2 layers or more"
            )
        require(
            0 <= self.mtp_depth < self.n_ctx, "mtp_depth", self.mtp_depth, f"at least 0 and below n_ctx {self.n_ctx}"
        )
        require(0.0 < self.mtp_weight < math.inf, "mtp_weight", self.mtp_weight, "above 0 (usual: 0.1 to 1) and finite")
        if self.mtp_weight != 1.0 and not self.mtp_depth:
            raise InputError(f"mtp_weight {self.mtp_weight} with mtp_depth 0, which has no heads; give mtp_depth too")
        if self.parallel_blocks and self.norm_placement != "pre":
            raise InputError(
                f"parallel_blocks with norm_placement {self.norm_placement}: a parallel block has one norm, before its "
                "branches; take norm_placement pre"
            )
        if self.mup_base_width is not None and self.n_inner is not None:
            raise InputError(
                f"mup_base_width {self.mup_base_width} with n_inner {self.n_inner}: muP scales every hidden width with "
                "n_embd; leave out n_inner"
            )
        self._check_heads()
        self._check_positions()
        self._check_own_parts()
        self._check_mask()

    def _check_heads(self) -> None:
        if self.n_embd % self.n_head:
            near = sorted(sorted(divisors(self.n_embd), key=lambda n: abs(n - self.n_head))[:4])
            raise InputError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; nearest that fit: {near}")
        if self.n_kv_head is not None and (self.n_kv_head < 1 or self.n_head % self.n_kv_head):
            fits = divisors(self.n_head)
            raise InputError(f"n_kv_head is {self.n_kv_head}; it must divide n_head {self.n_head}: choose from {fits}")
        if self.differential_attention:
            self._check_pairs()
        if self.latent_dim is not None:
            self._check_latent(self.latent_dim)

    def _check_pairs(self) -> None:
        for name, heads in (("n_head", self.n_head), ("n_kv_head", self.kv_heads)):
            if heads % 2:
                raise InputError(f"differential_attention with {name} {heads}: it pairs heads; take an even number")
        if self.position == "alibi":
            raise InputError(
                "differential_attention with position alibi: the two maps of a head would fall with distance at "
                "different rates; take position rope, learned, sinusoidal or none"
            )

    def _check_latent(self, latent_dim: int) -> None:
        require(latent_dim >= 1, "latent_dim", latent_dim, "at least 1 (usual: 4 * n_embd / n_head)")
        for name, why in _NOT_LATENT.items():
            value = getattr(self, name)
            if value:
                raise InputError(f"latent_dim {latent_dim} with {name} {value}: {why}; leave one of them out")
        if self.position == "rope" and self.rope_fraction != 1.0:
            raise InputError(
                f"latent_dim {latent_dim} with rope_fraction {self.rope_fraction}: what is rotated is half a head wide "
                "and stands beside the latent; leave rope_fraction out"
            )
        if self.rope_scaling == "yarn":
            raise InputError(
                f"latent_dim {latent_dim} with rope_scaling yarn: its temperature is for all of a head, of which only "
                "a part is rotated here; take linear or ntk"
            )
        if self.position == "rope" and self.head_dim % 4:
            raise InputError(
                f"latent_dim {latent_dim} with position rope rotates pairs of half a head's width, but n_embd "
                f"{self.n_embd} / n_head {self.n_head} = {self.head_dim} is not divisible by 4; choose another n_head "
                "or n_embd"
            )

    def _check_positions(self) -> None:
        usual = "above 1 (usual: 10000) and finite"
        require(1.0 < self.rope_base < math.inf, "rope_base", self.rope_base, usual)
        if self.position != "rope":
            for name, unset in ROPE_OPTIONS.items():
                value = getattr(self, name)
                if value != unset:
                    raise InputError(
                        f"{name} {value} with position {self.position}; only position rope takes {name}: leave it out, "
                        f"or set it to {unset} if preset or recipe sets it"
                    )
            return
        if self.head_dim % 2:
            raise InputError(
                f"position rope rotates pairs of numbers, but n_embd {self.n_embd} / n_head {self.n_head} = "
                f"{self.head_dim} per head is odd; choose another n_head or n_embd"
            )
        rotated = self.rope_fraction * self.head_dim
        if not (2 <= rotated <= self.head_dim and math.isclose(rotated, 2 * round(rotated / 2))):
            fits = [round(width / self.head_dim, 4) for width in range(2, min(self.head_dim, 64) + 1, 2)]
            raise InputError(
                f"rope_fraction {self.rope_fraction} of {self.head_dim} numbers per head is {rotated:g}; it must be an "
                f"even number from 2 to {self.head_dim}: choose from {fits}"
            )
        every, layers = self.nope_every, f"from 2 to n_layer {self.n_layer}, or none"
        require(every is None or 2 <= every <= self.n_layer, "nope_every", every, layers)
        self._check_scaling()

    def _check_scaling(self) -> None:
        scaling, factor, original = self.rope_scaling, self.rope_factor, self.rope_original_ctx
        for name, value, takers in (
            ("rope_factor", factor, ("linear", "ntk", "yarn")),
            ("rope_original_ctx", original, ("yarn",)),
        ):
            if value is None and scaling in takers:
                raise InputError(f"rope_scaling {scaling} needs {name}: give it, or take rope_scaling none")
            if value is not None and scaling not in takers:
                takes = " or ".join(takers)
                raise InputError(
                    f"{name} {value} with rope_scaling {scaling}, which has none; take rope_scaling {takes}"
                )
        require(factor is None or 1.0 <= factor < math.inf, "rope_factor", factor, "at least 1 and finite")
        require(original is None or original >= 1, "rope_original_ctx", original, "at least 1")
        if scaling == "ntk" and self.rotary_dim == 2:
            raise InputError(
                "rope_scaling ntk slows pairs by their number, and one pair is rotated; take linear or yarn"
            )

    def _check_own_parts(self) -> None:
        sha256 = origin_of(self.own_parts, self.import_sha256)
        for key in self.own_parts:
            find_part(key, sha256)
        chosen = [("parallel_blocks", self.parallel_blocks, False), ("norm_placement", self.norm_placement, "pre")]
        for name, value, unset in chosen:
            if self.block is not None and value != unset:
                raise InputError(f"{name} {value} with block {self.block}, which takes its place; take {name} {unset}")

    def _check_mask(self) -> None:
        names = self.mask_names
        takes = {option: name for name in names for option in options_of(find_part(("mask", name), self.import_sha256))}
        for option, name in takes.items():
            if option not in MASK_OPTIONS:
                raise InputError(f"mask {name} takes {option}; its options can be {' and '.join(MASK_OPTIONS)}")
        for name in MASK_OPTIONS:
            value = getattr(self, name)
            if value is None and name in takes:
                raise InputError(f"mask {takes[name]} needs {name}: give it, from 1 to the context of {self.n_ctx}")
            if value is not None and name not in takes:
                fitting = [mask for mask, make in MASKS.items() if name in options_of(make)]
                raise InputError(f"{name} is {value}, but mask {self.mask} has none; take mask {' or '.join(fitting)}")
            within = f"between 1 and the context of {self.n_ctx}"
            require(value is None or 1 <= value <= self.n_ctx, name, value, within)
        if len(names) > self.n_layer:
            raise InputError(f"mask {self.mask} is for {len(names)} layers, and n_layer is {self.n_layer}; name fewer")
        if self.kernel == "flex" and self.dropout > 0.0:
            raise InputError(f"kernel flex cannot drop attention weights; set dropout 0 (it is {self.dropout})")
        if self.kernel == "banded" and not all(mask.is_bandable for mask in self.masks):
            raise InputError(
                f"kernel banded needs a causal mask of limited reach, and mask {self.mask} has none; "
                "take mask window or global, or kernel auto"
            )

    @property
    def mask_names(self) -> list[str]:
        """The names in ``mask``."""
        return [name.strip() for name in self.mask.split(",")]

    @property
    def masks(self) -> tuple[Mask, ...]:
        """The mask of each layer.

        Raises:
            InputError: One is one of your own and is not what it says, or is not known in this process.
        """
        found = []
        for name in self.mask_names:
            make = find_part(("mask", name), self.import_sha256)
            options = tuple((option, getattr(self, option)) for option in options_of(make))
            found.append(make_mask(name, make, self.n_ctx, self.n_head, options))
        return tuple(found[layer % len(found)] for layer in range(self.n_layer))

    @property
    def named_parts(self) -> list[Key]:
        """The parts that the configuration names: option and name of each."""
        return named_in({kind: getattr(self, kind) for kind in REGISTRIES})

    @property
    def own_parts(self) -> list[Key]:
        """Those of them that are not built in."""
        return [key for key in self.named_parts if key not in BUILT_IN]

    def with_import(self) -> GPTConfig:
        """Return the configuration with the ``import_sha256`` of the file that its own parts are from now.

        Raises:
            InputError: They are from different files.
        """
        sha256 = origin_of(self.own_parts, self.import_sha256)
        return self if sha256 == self.import_sha256 else dataclasses.replace(self, import_sha256=sha256)

    @property
    def looks_ahead(self) -> bool:
        """Whether a layer lets queries attend to later keys."""
        return any(mask.looks_ahead for mask in self.masks)

    @property
    def mup_scale(self) -> float:
        """The width as a multiple m of muP's base width; 1 without muP."""
        return self.n_embd / (self.mup_base_width or self.n_embd)

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.n_kv_head or self.n_head

    @property
    def head_dim(self) -> int:
        """Width D of one head."""
        return self.n_embd // self.n_head

    @property
    def output_heads(self) -> int:
        """Heads whose outputs attention joins: half of n_head where pairs of them subtract their maps."""
        return self.n_head // 2 if self.differential_attention else self.n_head

    @property
    def key_width(self) -> int:
        """Numbers of a query and of a key."""
        return self.head_dim if self.latent_dim is None else self.latent_rotary + self.head_dim

    @property
    def value_width(self) -> int:
        """Numbers of a value and of the output of a head."""
        return self.n_embd // self.output_heads

    @property
    def latent_rotary(self) -> int:
        """Numbers R of the key beside a latent, which positions rotate: 0 without rotary positions."""
        return self.rotary_dim if self.position == "rope" else 0

    @property
    def c_attn_rows(self) -> int:
        """Numbers that ``c_attn`` projects a position to: queries, keys and values, or queries, key and latent."""
        if self.latent_dim is None:
            return (self.n_head + 2 * self.kv_heads) * self.head_dim
        return self.n_head * self.key_width + self.latent_rotary + self.latent_dim

    @property
    def cached(self) -> tuple[int, int, int]:
        """What the cache holds of a position in a layer: heads, numbers of a key, and numbers of a value."""
        if self.latent_dim is None:
            return self.kv_heads, self.head_dim, self.head_dim
        return 1, self.latent_rotary + self.latent_dim, 0

    @property
    def rotary_dim(self) -> int:
        """Numbers R that rotary positions rotate: the first ones of each head, or half as many beside a latent."""
        return self.head_dim // 2 if self.latent_dim is not None else round(self.rope_fraction * self.head_dim)

    @property
    def nope_layers(self) -> range:
        """Layers, from 0 on, that ``nope_every`` leaves without positions."""
        every = self.nope_every or self.n_layer + 1
        return range(every - 1, self.n_layer, every)

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer: by default 4 C, and gated, with three matrices for two, 8/3 C rounded."""
        if self.n_inner is not None or not self.is_gated:
            return self.n_inner or 4 * self.n_embd
        return max(1, round(8 * self.n_embd / 3 / INNER_MULTIPLE)) * INNER_MULTIPLE

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward layer has a gate."""
        return self.activation in GATED

    @property
    def changes_scores(self) -> bool:
        """Whether attention changes its scores before the softmax, which only kernels that hold them can do."""
        return self.attention_sinks or self.attention_softcap is not None

    @property
    def padded_vocab(self) -> int:
        """Rows of the token embedding: vocab_size rounded up to a multiple of 64."""
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def padding_params(self) -> int:
        """Entries in the padding rows of the token embedding, and of an untied head."""
        return (self.padded_vocab - self.vocab_size) * self.n_embd * (1 if self.tied_head else 2)

    def flops_per_token(self, T: int) -> float:
        """Return the operations of one training token (forward and backward) in sequences of T tokens.

        Those that the model needs, not those that an implementation repeats, as in Chowdhery et al. 2022 (PaLM,
        appendix B): 6 per parameter that takes part in a matrix product (2 forward, 4 backward), and for attention's
        two products over the whole context 12 * n_embd * T in each layer. Lookups in the embeddings cost nothing; the
        head does. As there, a causal mask counts as the whole context; a window of W counts as min(T, W), and a mask
        without a limited reach as T. Grouped heads have fewer key and value rows in c_attn, and the same products in
        attention; so has differential attention, which subtracts its maps before they meet the values. Each head of
        multi-token prediction is one more block and one more product with the output head. Of a part of your own, every
        matrix counts as used once by each token, and a block as if it had this attention. A whole model of your own
        counts as 6 per parameter. Over the peak rate this is model FLOPs utilization (MFU).
        """
        if self.network is not None:
            from gpt2lab.model.language_model import profile

            return 6.0 * profile(self).n_params
        c_attn = self.n_embd * self.c_attn_rows + 2 * self.n_embd * (self.latent_dim or 0)
        squares = 2 if self.attention_gate else 1  # attn.c_proj, and the gate
        feed_forward = (3 if self.is_gated else 2) * self.n_embd * self.inner
        if self.feed_forward is not None:
            feed_forward = sum(map(math.prod, matrix_shapes("feed_forward", self)))
        heads = self.mtp_depth
        blocks = (self.n_layer + heads) * (c_attn + squares * self.n_embd**2 + feed_forward)
        if self.block is not None:
            layers = range(self.n_layer + heads)
            blocks = sum(math.prod(shape) for layer in layers for shape in matrix_shapes("block", self, layer))
        products = blocks + (1 + heads) * self.vocab_size * self.n_embd
        keys = sum(mask.keys_per_query(T) for mask in (*self.masks, *self.masks[-1:] * heads))
        attended = self.n_head * self.key_width + self.output_heads * self.value_width
        return 6.0 * products + 6.0 * attended * keys

    def cache_bytes(self, T: int, dtype: torch.dtype) -> int:
        """Return the bytes of keys and values that T tokens of a row keep in the cache (T = 1: the bytes of a token).

        Grouped heads store n_kv_head, latent attention its latent and one rotated key; a mask of limited reach keeps no
        more than it reaches. A whole model of your own has no cache.
        """
        if self.network is not None:
            return 0
        kept = sum(min(T, mask.keys_per_query(self.n_ctx)) for mask in self.masks)
        heads, key, value = self.cached
        return heads * (key + value) * kept * dtype.itemsize

    @classmethod
    def preset(cls, name: str, **changes: Any) -> GPTConfig:
        """Return a named size, with ``changes`` on top.

        Raises:
            InputError: There is no such preset (the nearest is suggested), or a change does not fit.
        """
        one_of("preset", name, PRESETS)
        return dataclasses.replace(PRESETS[name], **changes)


_CHOICES = {
    "kernel": Kernel,
    "position": Position,
    "rope_pairing": RopePairing,
    "rope_scaling": RopeScaling,
    "norm": Norm,
    "norm_placement": NormPlacement,
    "activation": Activation,
}
ROPE_OPTIONS = {
    "rope_pairing": "halves",
    "rope_fraction": 1.0,
    "rope_scaling": "none",
    "rope_factor": None,
    "rope_original_ctx": None,
    "nope_every": None,
}
"""Options of position rope, with the values that leave it as it is; other positions refuse any other value."""


_NOT_LATENT = {
    "n_kv_head": "a latent takes the place of shared key and value heads",
    "qk_norm": "keys are expanded from a latent that is normalized, and not at all while tokens are generated",
    "value_residual": "the cache holds no values that could be mixed",
    "differential_attention": "both replace the projections of attention",
    "mup_base_width": "muP scales every hidden width with n_embd",
}
"""Options that latent attention refuses, and why."""


def divisors(n: int) -> list[int]:
    """Return the divisors of n, ascending."""
    return [d for d in range(1, n + 1) if n % d == 0]


_MODERN = GPTConfig(norm="rmsnorm", position="rope", activation="swiglu", bias=False, tied_head=False, dropout=0.0)
"""GPT-2 124M with the parts of Llama (Touvron et al. 2023)."""
PRESETS: dict[str, GPTConfig] = {
    "nano": GPTConfig(n_layer=1, n_head=2, n_embd=64, n_ctx=128, dropout=0.0),
    "tiny": GPTConfig(n_layer=2, n_head=4, n_embd=128, n_ctx=256),
    "distilgpt2": GPTConfig(n_layer=6, n_head=12, n_embd=768),
    "gpt2": GPTConfig(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600),
    "gpt2-modern": dataclasses.replace(_MODERN, qk_norm=True),
    "cs336": dataclasses.replace(
        _MODERN,
        n_layer=4,
        n_head=16,
        n_embd=512,
        n_ctx=256,
        vocab_size=10_000,
        n_inner=1344,
        rope_pairing="interleaved",
    ),
}
"""The models by name; their parameter counts are fixed by tests."""
