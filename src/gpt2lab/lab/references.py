"""The literature that a report rests on, numbered in the order in which it is listed."""

from __future__ import annotations

_LISTED = {
    "gpt2": "Radford, Wu, Child, Luan, Amodei & Sutskever 2019, Language Models are Unsupervised Multitask Learners.",
    "bpe": "Sennrich, Haddow & Birch 2016, Neural Machine Translation of Rare Words with Subword Units.",
    "attention": "Vaswani et al. 2017, Attention Is All You Need.",
    "layer_norm": "Ba, Kiros & Hinton 2016, Layer Normalization.",
    "gelu": "Hendrycks & Gimpel 2016, Gaussian Error Linear Units.",
    "tied": "Press & Wolf 2017, Using the Output Embedding to Improve Language Models.",
    "schedule": "Brown et al. 2020, Language Models are Few-Shot Learners, appendix B.",
    "adamw": "Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization.",
    "muon": "Jordan et al. 2024, Muon: An Optimizer for Hidden Layers in Neural Networks.",
    "nucleus": "Holtzman, Buys, Du, Forbes & Choi 2020, The Curious Case of Neural Text Degeneration.",
    "self_bleu": "Zhu et al. 2018, Texygen: A Benchmarking Platform for Text Generation Models (self-BLEU).",
    "distinct": "Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models (distinct-n).",
    "recall": "Olsson et al. 2022, In-context Learning and Induction Heads; Arora et al. 2023, Zoology (recall).",
    "student": "Student 1908, The Probable Error of a Mean (the interval of a comparison).",
}
_OF_COMPARISONS = ("recall", "student")
"""The last ones, so that leaving them out renumbers nothing."""
CITE = {name: f"[{number}]" for number, name in enumerate(_LISTED, start=1)}
"""The mark by which a text cites an entry."""


def references(comparison: bool) -> tuple[str, ...]:
    """Return the entries in the order of their numbers; those of comparisons only where there is one."""
    return tuple(text for name, text in _LISTED.items() if comparison or name not in _OF_COMPARISONS)
