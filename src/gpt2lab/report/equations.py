"""The model of a run in equations: each part as it ran, in words and in TeX, with its source.

A part is Markdown with formulas, which markdown.py turns into HTML and PDF. What a configuration leaves out is as in
GPT-2, so a damaged or older one still has its equations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2lab.formatting import plural, setting
from gpt2lab.model.config import GATED
from gpt2lab.report.references import CITE

_BLOCK = {
    "pre": (
        "Each of the $L$ blocks adds attention and then feed-forward to the residual stream, each with a norm before "
        "it.",
        r"y^\ell = x^\ell + \mathrm{Attention}(N(x^\ell))",
        r"x^{\ell+1} = y^\ell + \mathrm{FF}(N(y^\ell))",
    ),
    "post": (
        "Each of the $L$ blocks adds attention and then feed-forward to the residual stream, and normalizes each sum, "
        "as in GPT-1 (Radford et al. 2018).",
        r"y^\ell = N(x^\ell + \mathrm{Attention}(x^\ell))",
        r"x^{\ell+1} = N(y^\ell + \mathrm{FF}(y^\ell))",
    ),
    "sandwich": (
        "Each of the $L$ blocks adds attention and then feed-forward to the residual stream, each between two norms "
        "(Ding et al. 2021).",
        r"y^\ell = x^\ell + N(\mathrm{Attention}(N(x^\ell)))",
        r"x^{\ell+1} = y^\ell + N(\mathrm{FF}(N(y^\ell)))",
    ),
    "parallel": (
        "Each of the $L$ blocks adds attention and feed-forward of the same normalized input to the residual stream "
        "(Wang & Komatsuzaki 2021).",
        r"x^{\ell+1} = x^\ell + \mathrm{Attention}(N(x^\ell)) + \mathrm{FF}(N(x^\ell))",
    ),
}
_QUOTIENT = {"layernorm": r"\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}", "rmsnorm": r"\frac{x}{\sqrt{m + \epsilon}}"}
_NORM = {
    "layernorm": f"**Layer norm** {CITE['layer_norm']} normalizes each position to mean 0 and variance 1; "
    "$\\mu$ and $\\sigma^2$ are over its $C$ features.",
    "rmsnorm": "**RMSNorm** (Zhang & Sennrich 2019) divides each position by its root mean square; $m$ is the mean of "
    "the squares of its $C$ features.",
}
_MASK = {
    "window": "A position attends to itself and those just before it, {window} in all: $M$ is 0 only there.",
    "global": "A position attends to the last {window} and the first {prefix}.",
    "strided": "A position attends to the last {window}, and before them to those at a distance that is a multiple of "
    "{window} (Child et al. 2019).",
    "prefix": "The first {prefix} positions attend to one another in both directions.",
    "bidirectional": "Every position attends to every other: $M$ is 0.",
}
_ACTIVATION = {
    "gelu_tanh": (
        f"GELU {CITE['gelu']} in its tanh form",
        r"f(z) = \frac{z}{2} \left(1 + \tanh\left(\sqrt{\frac{2}{\pi}} (z + 0.044715 z^3)\right)\right)",
    ),
    "gelu": (
        f"GELU {CITE['gelu']}",
        r"f(z) = \frac{z}{2} \left(1 + \mathrm{erf}\left(\frac{z}{\sqrt{2}}\right)\right)",
    ),
    "relu": ("ReLU", r"f(z) = \max(z, 0)"),
    "relu2": ("ReLU squared (So et al. 2021)", r"f(z) = \max(z, 0)^2"),
    "silu": ("SiLU (Elfwing et al. 2017)", r"f(z) = \frac{z}{1 + e^{-z}}"),
    "glu": ("a sigmoid as the gate (Dauphin et al. 2017)", r"f(z) = \frac{1}{1 + e^{-z}}"),
    "geglu": (
        "GELU as the gate (Shazeer 2020)",
        r"f(z) = \frac{z}{2} \left(1 + \tanh\left(\sqrt{\frac{2}{\pi}} (z + 0.044715 z^3)\right)\right)",
    ),
    "swiglu": ("SiLU as the gate (Shazeer 2020)", r"f(z) = \frac{z}{1 + e^{-z}}"),
}

_POSITION = {
    "learned": "Positions are learned: row $t$ of the table $P$ is trained like the embedding of a token (Radford et "
    "al. 2018, 2019).\n\n$$x_t^0 = E_{s_t} + P_t$$",
    "sinusoidal": "Positions are fixed waves in place of a learned $P$ (Vaswani et al. 2017), scaled to the size of "
    r"the embeddings: $$x_t^0 = E_{s_t} + P_t, \quad P_{t,2i} = 0.02 \sin \frac{t}{10000^{2i/C}}, \quad P_{t,2i+1} "
    r"= 0.02 \cos \frac{t}{10000^{2i/C}}$$",
    "rope": "Positions are rotary (Su et al. 2021): there is no $P$. In each head, the numbers $FIRST$ and $SECOND$ of "
    r"the query and of the key at position $t$ are rotated by an angle proportional to $t$: $$x_t^0 = E_{s_t}, \quad "
    r"\begin{pmatrix} q'_{FIRST} \\ q'_{SECOND} \end{pmatrix} = \begin{pmatrix} \cos t \theta_i & -\sin t \theta_i \\ "
    r"\sin t \theta_i & \cos t \theta_i \end{pmatrix} \begin{pmatrix} q_{FIRST} \\ q_{SECOND} \end{pmatrix}, \quad "
    r"\theta_i = BASE^{-2i/WIDTH}$$",
    "alibi": "The score of a query at position $i$ and a key at position $j$ falls with their distance, in each head "
    r"$h$ at a rate of its own (Press et al. 2022); there is no $P$: $$x_t^0 = E_{s_t}, \quad \frac{q_i \cdot k_j}"
    r"{\sqrt{D}} - m_h |i - j|, \quad SLOPES$$",
    "none": "There is no position encoding: order is known from the causal mask alone (Haviv et al. 2022): "
    "$$x_t^0 = E_{s_t}$$",
}
_SCALING = {
    "linear": r"For a context $s = FACTOR$ times the trained one, all angles are divided by $s$ (Chen et al. 2023): "
    r"$$\theta'_i = \theta_i / s$$",
    "ntk": r"For a context $s = FACTOR$ times the trained one, the base grows (bloc97 2023): "
    r"$$\theta'_i = (BASE \cdot s^{WIDTH/(WIDTH-2)})^{-2i/WIDTH}$$",
    "yarn": r"For a context $s = FACTOR$ times the trained one, the angles of slow pairs are divided by $s$ (Peng et "
    r"al. 2023): $$\theta'_i = \frac{\gamma_i}{s} \theta_i + (1 - \gamma_i) \theta_i$$ where $\gamma_i$ rises from 0 "
    "for pairs that turn 32 times within the trained context to 1 for those that turn once. Rotated queries and keys "
    r"are multiplied by $0.1 \ln s + 1$.",
}


def parts(model: Mapping[str, Any], imported: Path | None = None) -> dict[str, str]:
    """Return the equations of a model by part, after those of its embedding.

    Args:
        model: Options of a `GPTConfig` by name.
        imported: The file that defines the parts that are not built in.
    """
    if (block := model.get("block")) is not None:
        words = f"**Block.** Each of the $L$ blocks is `{block}`{_own(imported)}"
        return {"Block": words, "Output": _output(model), "Loss": _loss(model)}
    return {
        "Block": _text("**Block.** ", *_BLOCK["parallel" if model.get("parallel_blocks") else _placement(model)]),
        "Norm": _norm(model),
        "Attention": _attention(model, imported),
        "Feed-forward": _feed_forward(model, imported),
        "Output": _output(model),
        "Loss": _loss(model),
    }


def differences(model: Mapping[str, Any], imported: Path | None = None) -> list[str]:
    """Return the parts that are not as in GPT-2."""
    gpt2 = parts({})
    return [text for name, text in parts(model, imported).items() if text != gpt2[name]]


def learning_rate() -> str:
    """Return the equations of the cosine schedule."""
    return _text(
        "",
        f"The learning rate {CITE['schedule']} at step $k$ of $K$ rises linearly over $w$ warmup steps, then decays "
        "along a cosine.",
        r"\eta_k = \eta_{\max} \frac{k + 1}{w} \quad \text{where } k < w, \quad \text{else}",
        r"\eta_k = \eta_{\min} + \frac{1}{2} (\eta_{\max} - \eta_{\min}) \left(1 + \cos \frac{\pi (k - w)}"
        r"{K - 1 - w}\right)",
    )


def _text(title: str, words: str, *formulas: str) -> str:
    return "\n\n".join([title + words, *(f"$${formula}$$" for formula in formulas)])


def _placement(model: Mapping[str, Any]) -> str:
    placement = str(model.get("norm_placement"))
    return placement if placement in _BLOCK else "pre"


def _norm(model: Mapping[str, Any]) -> str:
    kind = "rmsnorm" if model.get("norm") == "rmsnorm" else "layernorm"
    words, formula = _NORM[kind], _QUOTIENT[kind]
    if model.get("norm_affine", True):
        words += r" The weight $\gamma$ is learned."
        formula = rf"\gamma \odot {formula}"
        if kind == "layernorm" and model.get("bias", True):
            words = words.replace("The weight $\\gamma$ is", "The weight $\\gamma$ and the bias $\\beta$ are")
            formula += r" + \beta"
    return _text("", words, f"N(x) = {formula}")


def _attention(model: Mapping[str, Any], imported: Path | None) -> str:
    words = (
        f"**Attention** {CITE['attention']}. Each of the $H$ heads projects the stream to queries, keys and values of "
        r"width $D = C/H$; a position attends to itself and those before it: the mask $M$ is 0 where $j \leq i$, else "
        r"$-\infty$."
    )
    heads, shared = model.get("n_head"), model.get("n_kv_head")
    if isinstance(shared, int) and shared != heads:
        words += (
            f" The {heads} query heads share {plural(shared, 'key-value head')} (Shazeer 2019; Ainslie et al. 2023)."
        )
    words += _masks(model, imported)
    q, k = r"x W_h^Q", r"x W_h^K"
    if model.get("qk_norm"):
        words += " Queries and keys are normalized over their $D$ features (Henry et al. 2020)."
        q, k = f"N({q})", f"N({k})"
    v = "x W_h^V"
    if model.get("value_residual"):
        words += (
            r" The values of later layers are mixed with those of the first, $x^1 W_h^{V,1}$; $\lambda_1$ and "
            r"$\lambda_2$ are learned in each layer (Zhou et al. 2024)."
        )
        v = r"\lambda_1 x^1 W_h^{V,1} + \lambda_2 x W_h^V"
    outputs, width = [], "D"
    if (latent := model.get("latent_dim")) is not None:
        words += (
            f" Keys and values are expanded from a latent $c$ of {setting(latent)} numbers, which is what the cache "
            "holds (DeepSeek-AI 2024); $N_c$ is an RMSNorm."
        )
        outputs, k, v = [r"c = N_c(x W^{DKV})"], "c W_h^{UK}", "c W_h^{UV}"
        if model.get("position") == "rope":
            words += r" Of queries and keys only the first $R = D/2$ numbers are rotated; heads share those of a key."
            q, k, width = r"[x W_h^{QR}; x W_h^Q]", r"[x W^{KR}; c W_h^{UK}]", "D + R"
    more, weights, where = _attention_weights(model, width)
    words, heads_together = words + more, r"[A_1; \dots; A_H]"
    outputs.append(rf"A_h = {weights} V_h{where}")
    if model.get("differential_attention"):
        words += (
            " A pair of heads $h$ and $h + H/2$ subtracts its maps $P$ and normalizes the result over its $2 D$ "
            r"features by $N_h$, an RMSNorm; $\lambda$ is learned in each layer $\ell$ (Ye et al. 2024)."
        )
        outputs = [
            rf"P_h = {weights}{where}",
            r"A_h = (1 - \lambda_0) N_h\left((P_h - \lambda P_{h + H/2}) [V_h; V_{h + H/2}]\right)",
            r"\lambda = e^{\lambda_{q1} \cdot \lambda_{k1}} - e^{\lambda_{q2} \cdot \lambda_{k2}} + \lambda_0, "
            r"\quad \lambda_0 = 0.8 - 0.6 e^{-0.3 (\ell - 1)}",
        ]
        heads_together = r"[A_1; \dots; A_{H/2}]"
    if model.get("attention_gate"):
        words += r" A gate multiplies the output of the heads; $\sigma$ is the sigmoid (Qiu et al. 2025)."
        heads_together = rf"({heads_together} \odot \sigma(x W^G))"
    return _text(
        "",
        words,
        *outputs,
        rf"(Q_h, K_h, V_h) = ({q}, {k}, {v})",
        rf"\mathrm{{Attention}}(x) = {heads_together} W^O",
    )


def _masks(model: Mapping[str, Any], imported: Path | None) -> str:
    """Return a sentence on each mask that is not causal."""
    names = [name.strip() for name in str(model.get("mask", "causal")).split(",")]
    words = f" The layers take the masks {', '.join(names)} in turn." if len(names) > 1 else ""
    for name in dict.fromkeys(names):
        said = f"$M$ is the mask `{name}`{_from(imported)}."
        if name in _MASK or name == "causal":
            said = _MASK.get(name, "").format(window=model.get("window"), prefix=model.get("prefix"))
        if said:
            words += f" Under {name}: {said}" if len(names) > 1 else f" {said}"
    return words


def _attention_weights(model: Mapping[str, Any], width: str) -> tuple[str, str, str]:
    """Return what is said of the weights of a head whose keys have a width, their formula, and what it refers to."""
    words, scores = "", rf"\frac{{Q_h K_h^\top}}{{\sqrt{{{width}}}}}"
    if (softcap := model.get("attention_softcap")) is not None:
        words += f" Scores are bounded by $b = {setting(softcap)}$ (Gemma Team 2024)."
        scores = rf"b\, \tanh\left(\frac{{1}}{{b}} {scores}\right)"
    weights, where = rf"\mathrm{{softmax}}\left({scores} + M\right)", ""
    if model.get("attention_sinks"):
        words += " Each head has a learned score $s_h$ for attending to nothing, its sink (gpt-oss 2025)."
        weights, where = r"\frac{e^S}{e^{s_h} + \sum_j e^{S_j}}", rf", \quad S = {scores} + M"
    return words, weights, where


def _from(imported: Path | None) -> str:
    return "" if imported is None else f", defined in imports/{imported.name}"


def _own(imported: Path | None) -> str:
    return f"{_from(imported)}. The FLOPs count each of its matrices once per token."


def _feed_forward(model: Mapping[str, Any], imported: Path | None) -> str:
    if (own := model.get("feed_forward")) is not None:
        return f"**Feed-forward.** $\\mathrm{{FF}}$ is `{own}`{_own(imported)}"
    name = str(model.get("activation"))
    activation, formula = _ACTIVATION.get(name, _ACTIVATION["gelu_tanh"])
    layers, inside = "Two linear layers with $F$ hidden units", "f(x W_1)"
    if name in GATED:
        layers, inside = "Three linear layers with $F$ hidden units", r"(f(x W_1) \odot x W_3)"
    words = f"{layers} and {activation}."
    return _text("**Feed-forward.** ", words, rf"\mathrm{{FF}}(x) = {inside} W_2", formula)


def _output(model: Mapping[str, Any]) -> str:
    head, words = r"E^\top", f"The token embedding is also the output head {CITE['tied']}, which"
    if model.get("tied_head") is False:
        head, words = "W^U", "The output head, a matrix of its own,"
    last = "x_t^L" if _placement(model) == "post" else "N(x_t^L)"
    logits, words = f"{last} {head}", f"{words} scores each of the $V$ tokens as the next one."
    if (base := model.get("mup_base_width")) is not None:
        words += f" The scores are divided by $m = C / {setting(base)}$, as muP requires (Yang et al. 2022)."
        logits = rf"\frac{{1}}{{m}} {logits}"
    if (softcap := model.get("logit_softcap")) is not None:
        words += f" The scores are bounded by $c = {setting(softcap)}$ (Gemma Team 2024)."
        logits = rf"c\, \tanh\left(\frac{{{logits}}}{{c}}\right)"
    return _text("**Output.** ", words, rf"p(s_{{t+1}} | s_{{\leq t}}) = \mathrm{{softmax}}\left({logits}\right)")


def _loss(model: Mapping[str, Any]) -> str:
    words = (
        "The mean negative log-likelihood of the next token, in nats; from it follow perplexity per token, and bits "
        "per byte for a text of $N$ tokens and $B$ bytes."
    )
    formulas = [
        r"\mathcal{L} = -\frac{1}{T} \sum_{t=1}^{T} \ln\, p(s_{t+1} | s_{\leq t})",
        r"\text{perplexity} = e^{\mathcal{L}}, \quad \text{bits per byte} = "
        r"\frac{\mathcal{L}}{\ln\, 2} \cdot \frac{N}{B}",
    ]
    if weight := model.get("z_loss"):
        words += (
            f" In training, {setting(weight)} times the mean of $(\\ln\\, Z_t)^2$ is added, $Z_t$ the sum of $e^z$ "
            "over the $V$ scores $z$ (Chowdhery et al. 2022)."
        )
    if heads := model.get("mtp_depth"):
        words += (
            f" In training, {setting(model.get('mtp_weight'))} times the loss of each of {plural(heads, 'head')} is "
            "added. Head $k$ predicts the token $k$ places after the next one: it is a block $B_k$ that reads what the "
            "last block reads, with the same output layer (Gloeckle et al. 2024)."
        )
        formulas.append(
            r"\mathcal{L}_k = -\frac{1}{T} \sum_t \ln\, p_k(s_{t+1+k} | s_{\leq t}), \quad z_k = B_k(x^{L-1})"
        )
    return _text("**Loss.** ", words, *formulas)


def position(model: Mapping[str, Any]) -> str:
    """Return how positions are encoded, with the equation and its source; nothing if that is unknown."""
    name, heads = str(model.get("position", "learned")), model.get("n_head")
    texts = [_POSITION.get(name, "") if model else ""]
    if name == "rope":
        texts.append(_SCALING.get(str(model.get("rope_scaling")), ""))
        if model.get("rope_fraction", 1.0) != 1.0:
            texts.append(
                "$R$ is the fraction {rope_fraction} of the head width $D$; the other numbers stay as they are."
            )
        if model.get("nope_every"):
            texts.append("Layers {nope_every}, 2 · {nope_every}, .. have no positions (Yang et al. 2025).")
    width = "D" if model.get("rope_fraction", 1.0) == 1.0 and model.get("latent_dim") is None else "R"
    interleaved = model.get("rope_pairing") == "interleaved"
    values = {
        "FIRST": "2i" if interleaved else "i",
        "SECOND": "2i+1" if interleaved else f"i+{width}/2",
        "WIDTH": width,
        "BASE": _tex(model.get("rope_base") or 10_000),
        "FACTOR": _tex(model.get("rope_factor")),
        "SLOPES": _slopes(heads) if isinstance(heads, int) and heads > 0 else "m_h",
        **{f"{{{name}}}": setting(model.get(name)) for name in ("rope_fraction", "nope_every")},
    }
    text = " ".join(filter(None, texts))
    text = f"**Embedding.** Each token has a learned vector of width $C$. {text}" if text else ""
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _slopes(heads: int) -> str:
    """Return the equation of ALiBi's slopes; those beyond a power of two stand between the others."""
    P = 1 << (heads.bit_length() - 1)
    first = rf"m_h = 2^{{-8h/{P}}}"
    if heads == P:
        return first
    return rf"{first} \ (h \le {P}), \quad m_h = 2^{{-4(2(h-{P})-1)/{P}}} \ (h > {P})"


def _tex(base: Any) -> str:
    """Return the base of a power; a letter if a damaged configuration has no number there."""
    if not isinstance(base, int | float):
        return "b"
    mantissa, _, exponent = f"{base:.15g}".partition("e")
    return rf"({mantissa} \cdot 10^{{{int(exponent)}}})" if exponent else mantissa
