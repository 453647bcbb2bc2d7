"""The papers that a report cites: always those of GPT-2, and those of the options of its runs."""

from __future__ import annotations

from collections.abc import Sequence

from gpt2lab.evaluation.measure import RunData
from gpt2lab.model.config import GATED

REFERENCES = {
    "gpt2": "Radford, Wu, Child, Luan, Amodei & Sutskever 2019, Language Models are Unsupervised Multitask Learners.",
    "bpe": "Sennrich, Haddow & Birch 2016, Neural Machine Translation of Rare Words with Subword Units.",
    "attention": "Vaswani et al. 2017, Attention Is All You Need.",
    "layer_norm": "Ba, Kiros & Hinton 2016, Layer Normalization.",
    "gelu": "Hendrycks & Gimpel 2016, Gaussian Error Linear Units.",
    "tied": "Press & Wolf 2017, Using the Output Embedding to Improve Language Models.",
    "schedule": "Brown et al. 2020, Language Models are Few-Shot Learners, appendix B.",
    "adamw": "Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization.",
    "learned": "Radford, Narasimhan, Salimans & Sutskever 2018, Improving Language Understanding by Generative "
    "Pre-Training.",
    "rope": "Su, Lu, Pan, Murtadha, Wen & Liu 2021, RoFormer: Enhanced Transformer with Rotary Position Embedding.",
    "alibi": "Press, Smith & Lewis 2022, Train Short, Test Long: Attention with Linear Biases Enables Input Length "
    "Extrapolation.",
    "linear": "Chen, Wong, Chen & Tian 2023, Extending Context Window of Large Language Models via Positional "
    "Interpolation.",
    "ntk": "bloc97 2023, NTK-Aware Scaled RoPE Allows LLaMA Models to Have Extended Context Size (Reddit, LocalLLaMA).",
    "yarn": "Peng, Quesnelle, Fan & Shippole 2023, YaRN: Efficient Context Window Extension of Large Language Models.",
    "nope_every": "Yang et al. 2025, Rope to Nope and Back Again: A New Hybrid Attention Strategy.",
    "none": "Haviv, Ram, Press, Izsak & Levy 2022, Transformer Language Models without Positional Encodings Still "
    "Learn Positional Information.",
    "heads": "Shazeer 2019, Fast Transformer Decoding; Ainslie et al. 2023, GQA (shared key-value heads).",
    "window": "Beltagy, Peters & Cohan 2020, Longformer: The Long-Document Transformer.",
    "strided": "Child, Gray, Radford & Sutskever 2019, Generating Long Sequences with Sparse Transformers.",
    "rmsnorm": "Zhang & Sennrich 2019, Root Mean Square Layer Normalization.",
    "sandwich": "Ding et al. 2021, CogView: Mastering Text-to-Image Generation via Transformers (sandwich norm).",
    "qk_norm": "Henry, Dachapally, Pawar & Chen 2020, Query-Key Normalization for Transformers.",
    "relu2": "So et al. 2021, Primer: Searching for Efficient Transformers for Language Modeling (squared ReLU).",
    "silu": "Elfwing, Uchibe & Doya 2017, Sigmoid-Weighted Linear Units for Neural Network Function Approximation.",
    "gated": "Dauphin et al. 2017, Language Modeling with Gated Convolutional Networks; Shazeer 2020, GLU Variants "
    "Improve Transformer.",
    "parallel_blocks": "Wang & Komatsuzaki 2021, GPT-J-6B: A 6 Billion Parameter Autoregressive Language Model.",
    "attention_sinks": "OpenAI 2025, gpt-oss-120b & gpt-oss-20b Model Card; Xiao et al. 2023, Efficient Streaming "
    "Language Models with Attention Sinks.",
    "attention_gate": "Qiu et al. 2025, Gated Attention for Large Language Models: Non-linearity, Sparsity, and "
    "Attention-Sink-Free.",
    "value_residual": "Zhou, Wu, Jiang, Obeid & Lan 2024, Value Residual Learning.",
    "differential_attention": "Ye, Dong, Xia, Sun, Zhu, Huang & Wei 2024, Differential Transformer.",
    "latent_dim": "DeepSeek-AI 2024, DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts Language "
    "Model.",
    "mtp_depth": "Gloeckle, Idrissi, Rozière, Lopez-Paz & Synnaeve 2024, Better & Faster Large Language Models via "
    "Multi-token Prediction.",
    "softcap": "Gemma Team 2024, Gemma 2: Improving Open Language Models at a Practical Size.",
    "z_loss": "Chowdhery et al. 2022, PaLM: Scaling Language Modeling with Pathways.",
    "embedding_norm": "Le Scao et al. 2022, BLOOM: A 176B-Parameter Open-Access Multilingual Language Model.",
    "mup_base_width": "Yang et al. 2022, Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter "
    "Transfer (muP).",
    "texts": "Holtzman, Buys, Du, Forbes & Choi 2020, The Curious Case of Neural Text Degeneration.",
    "self_bleu": "Zhu et al. 2018, Texygen: A Benchmarking Platform for Text Generation Models (self-BLEU).",
    "distinct": "Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models (distinct-n).",
    "muon": "Jordan et al. 2024, Muon: An Optimizer for Hidden Layers in Neural Networks.",
    "recall": "Olsson et al. 2022, In-context Learning and Induction Heads; Arora et al. 2023, Zoology (recall).",
    "student": "Student 1908, The Probable Error of a Mean (the confidence interval of a comparison).",
}
ALWAYS = ("gpt2", "bpe", "attention", "layer_norm", "gelu", "tied", "schedule", "adamw")
"""Cited by every report, so that their numbers are always the same."""
CITE = {name: f"[{n}]" for n, name in enumerate(ALWAYS, start=1)}

_PARTS = (
    "nope_every",
    "mup_base_width",
    "qk_norm",
    "parallel_blocks",
    "attention_sinks",
    "attention_gate",
    "value_residual",
    "differential_attention",
    "latent_dim",
    "mtp_depth",
    "z_loss",
    "embedding_norm",
)
"""Options that are off in GPT-2, and have a reference."""


def references(runs: Sequence[RunData], comparison: bool) -> dict[str, str]:
    """Return the references of a report on runs by name, in the order of their numbers."""
    used = {*ALWAYS, *(("recall", "student") if comparison else ())}
    for data in runs:
        model = data.options("model")
        if model.get("network") is not None:  # of a class of the author's own, nothing is known
            model = {"position": ""}
        masks = str(model.get("mask")).replace("global", "window").split(",")
        used |= {str(model.get("position", "learned")), *(mask.strip() for mask in masks)}
        used |= {str(model.get(name)) for name in ("norm", "norm_placement", "activation")}
        used |= {"gated"} if model.get("activation") in GATED else set()
        used |= {"softcap"} if model.get("logit_softcap") or model.get("attention_softcap") else set()
        used |= {name for name in _PARTS if model.get(name)}
        if model.get("position") == "rope":
            used |= {str(model.get("rope_scaling"))} - {"none"}
            used |= {"none"} if model.get("nope_every") else set()
        used |= {"heads"} if model.get("n_kv_head") not in (None, model.get("n_head")) else set()
        used |= {"muon"} if data.options("optim").get("name") == "muon" else set()
        used |= {"texts", "self_bleu", "distinct"} if data.texts else set()
    return {name: text for name, text in REFERENCES.items() if name in used}
