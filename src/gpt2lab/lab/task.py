"""What a report says of the task and the data, and the literature that it rests on."""

from __future__ import annotations

from gpt2lab.lab import words
from gpt2lab.lab.facts import data_name
from gpt2lab.lab.record import Record

REFERENCES = (
    "Radford, Wu, Child, Luan, Amodei & Sutskever 2019, Language Models are Unsupervised Multitask Learners: the "
    "architecture, its initialisation and byte-level BPE.",
    "Vaswani et al. 2017, Attention Is All You Need: attention, section 3.2.",
    "Sennrich, Haddow & Birch 2016, Neural Machine Translation of Rare Words with Subword Units: byte-pair encoding.",
    "Ba, Kiros & Hinton 2016, Layer Normalization. Hendrycks & Gimpel 2016, Gaussian Error Linear Units.",
    "Press & Wolf 2017, Using the Output Embedding to Improve Language Models: the shared embedding.",
    "Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization: AdamW. Jordan et al. 2024, Muon: An optimizer "
    "for hidden layers in neural networks. Brown et al. 2020, Language Models are Few-Shot Learners, appendix B: the "
    "schedule.",
    "Holtzman, Buys, Du, Forbes & Choi 2020, The Curious Case of Neural Text Degeneration: nucleus sampling.",
    "Olsson et al. 2022, In-context Learning and Induction Heads; Arora et al. 2023, Zoology: associative recall.",
    "Student 1908, The Probable Error of a Mean: the interval of a comparison.",
)


def task(record: Record) -> tuple[str, ...]:
    """Return paragraphs on the task, the data and its preparation."""
    vocabulary = words.setting(record.options("model").get("vocab_size"))
    window = record.config.get("seq_len") or record.options("model").get("n_ctx")
    learn = (
        "The task is to predict each token of a text from those before it. A model that does it well gives a text a "
        "high probability, which its loss measures, and can write by drawing one token after another."
    )
    prepare = (
        f"The text ({data_name(record)}{_sizes(record)}) is cut into tokens by a byte-level BPE of {vocabulary} "
        "entries: GPT-2's pattern splits it into words, numbers and marks, and the most frequent pairs of neighbours "
        "are merged one after another. Documents are parted by an end-of-text token. Which document is held out for "
        f"validation and test follows from a hash of its text. A training step reads windows of "
        f"{words.setting(window)} tokens; each is visited once in a pass over the training set, in an order drawn anew "
        "for each pass."
    )
    return learn, prepare


def _sizes(record: Record) -> str:
    """Say how long the training set is, where the passes over it are recorded."""
    tokens, epochs = record.column("tokens"), record.column("epoch")
    if not tokens or not epochs or epochs[-1] <= 0:
        return ""
    return f", some {words.short(tokens[-1] / epochs[-1])} training tokens"
