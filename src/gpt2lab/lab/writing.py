"""Texts from a model: prompts in, whole texts out."""

from __future__ import annotations

from gpt2lab.generation import Strategy, TextStreamer, encode_prompt, seeded, stream
from gpt2lab.model import GPT
from gpt2lab.runtime import Runtime
from gpt2lab.tokenizer import Tokenizer


def write_texts(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    samples: int,
    max_new_tokens: int,
    strategy: Strategy,
    seed: int,
    where: Runtime,
) -> list[str]:
    """Return ``samples`` texts that begin a document with ``prompt``, each up to its end or ``max_new_tokens``.

    Raises:
        InputError: A value of the strategy does not fit the vocabulary.
    """
    tokens = encode_prompt(tokenizer, prompt, samples, where.device)
    streamer = TextStreamer(tokenizer, samples)
    pieces = [[prompt] for _ in range(samples)]
    with where.autocast():
        for column in stream(model, tokens, max_new_tokens, strategy, seeded(seed, where.device), tokenizer.eot):
            for row, piece in zip(pieces, streamer.feed(column), strict=True):
                row.append(piece)
    for row, piece in zip(pieces, streamer.finish(), strict=True):
        row.append(piece)
    return ["".join(row) for row in pieces]
