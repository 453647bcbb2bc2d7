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
    window = words.setting(record.config.get("seq_len") or record.options("model").get("n_ctx"))
    learn = (
        "The task is to predict each token of a text from those before it. A model that does it well gives a text a "
        "high probability, which its loss measures, and can write by drawing one token after another."
    )
    prepare = (
        f"The text ({data_name(record)}{_sizes(record)}) is cut into tokens{_tokenizer(record)}. Documents are parted "
        f"by an end-of-text token. {_reading(record, window)}"
    )
    return learn, prepare


def _reading(record: Record, window: str) -> str:
    if record.streamed:
        return (
            "It is prepared in rounds while training goes on; what is held out for validation and test is of the "
            f"first. A training step reads windows of {window} tokens of one round, in an order drawn anew for each."
        )
    return (
        "Documents are held out for validation and test as the corpus comes divided, else by a hash of their text or, "
        f"where there are few, the last part of each. A training step reads windows of {window} tokens; each is "
        "visited once in a pass over the training set, in an order drawn anew for each pass."
    )


def _tokenizer(record: Record) -> str:
    entries = record.options("model").get("vocab_size")
    if isinstance(entries, int) and entries <= BYTES:
        return f" that are single bytes ({entries} entries, with the end-of-text token)"
    return (
        f" by a byte-level BPE {CITE['bpe']} of {words.setting(entries)} entries: a pattern, GPT-2's "
        f"{CITE['gpt2']} unless another was given, splits it into pieces such as words, numbers and marks, and the "
        "most frequent pairs of neighbours are merged one by one"
    )


def _sizes(record: Record) -> str:
    """Say how long the training set is, where the passes over it are recorded."""
    tokens, epochs = record.column("tokens"), record.column("epoch")
    if not tokens or not epochs or epochs[-1] <= 0 or record.streamed:
        return ""
    return f", some {words.short(tokens[-1] / epochs[-1])} training tokens"
