"""What ``gpt2lab sample`` does."""

from __future__ import annotations

import dataclasses
import sys

from gpt2lab.errors import InputError
from gpt2lab.generation import STRATEGIES, Strategy, TextStreamer, encode_prompt, outgrows, seeded, stream
from gpt2lab.lab.commands.subject import Subject


def strategy_from(name: str, temperature: float | None, top_k: int | None, top_p: float | None) -> Strategy:
    """Return a named strategy with single settings replaced."""
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return dataclasses.replace(STRATEGIES[name], **{key: value for key, value in given.items() if value is not None})


def print_samples(
    subject: Subject,
    prompt: str,
    strategy: Strategy,
    samples: int,
    max_new_tokens: int,
    seed: int,
) -> None:
    """Write texts with a run's model: a single one is printed as it comes, several each when it ends."""
    if samples < 1:
        raise InputError(f"samples is {samples}; give at least 1")
    model, tokenizer, where = subject.model, subject.tokenizer, subject.where
    tokens = encode_prompt(tokenizer, prompt, samples, where.device)
    streamer = TextStreamer(tokenizer, samples)
    open_texts = dict.fromkeys(range(samples), prompt)
    if samples == 1:
        print(prompt, end="", flush=True)
    length = tokens.shape[1]
    with where.autocast():
        for column in stream(model, tokens, max_new_tokens, strategy, seeded(seed, where.device), tokenizer.eot):
            ids, pieces = column.tolist(), streamer.feed(column)
            length += 1
            if samples == 1:
                print(pieces[0], end="", flush=True)
                continue
            for row in list(open_texts):
                open_texts[row] += pieces[row]
                if ids[row] == tokenizer.eot:
                    print(f"--- sample {row + 1} of {samples}, {strategy} ---\n{open_texts.pop(row)}\n", flush=True)
    rest = streamer.finish()
    if samples == 1:
        print(rest[0])
    else:
        for row, text in open_texts.items():
            print(f"--- sample {row + 1} of {samples}, {strategy}, cut off ---\n{text}{rest[row]}\n")
    if outgrows(model, length):
        print(
            f"{length:,} tokens are more than the context of {model.config.n_ctx:,}: the window slid, and each time "
            "its older half was forgotten",
            file=sys.stderr,
        )
