"""What a report says of the task and the data."""

from __future__ import annotations

from gpt2lab.lab import words
from gpt2lab.lab.facts import data_name
from gpt2lab.lab.record import Record
from gpt2lab.lab.references import CITE

BYTES = 257
"""Entries of a vocabulary of bytes and the end-of-text token: nothing is merged."""


def task(record: Record) -> tuple[str, ...]:
    """Return paragraphs on the task, the data and its preparation."""
    window = record.config.get("seq_len") or record.options("model").get("n_ctx")
    learn = (
        "The task is to predict each token of a text from those before it. A model that does it well gives a text a "
        "high probability, which its loss measures, and can write by drawing one token after another."
    )
    prepare = (
        f"The text ({data_name(record)}{_sizes(record)}) is cut into tokens{_tokenizer(record)}. Documents are parted "
        "by an end-of-text token. Documents are held out for validation and test by a hash of their text or, where "
        f"there are few, the last part of each. A training step reads windows of {words.setting(window)} tokens; each "
        "is visited once in a pass over the training set, in an order drawn anew for each pass."
    )
    return learn, prepare


def _tokenizer(record: Record) -> str:
    entries = record.options("model").get("vocab_size")
    if isinstance(entries, int) and entries <= BYTES:
        return f" that are single bytes ({entries} entries, with the end-of-text token)"
    return (
        f" by a byte-level BPE {CITE['bpe']} of {words.setting(entries)} entries: GPT-2's pattern {CITE['gpt2']} "
        "splits it into words, numbers and marks, and the most frequent pairs of neighbours are merged one by one"
    )


def _sizes(record: Record) -> str:
    """Say how long the training set is, where the passes over it are recorded."""
    tokens, epochs = record.column("tokens"), record.column("epoch")
    if not tokens or not epochs or epochs[-1] <= 0:
        return ""
    return f", some {words.short(tokens[-1] / epochs[-1])} training tokens"
