"""``gpt2lab sample``."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from gpt2lab.cli.arguments import Command, Model
from gpt2lab.errors import InputError


@dataclass(frozen=True)
class Sample(Command):
    """Generate text with a trained model, printed token by token.

    Without any of --greedy, --temperature, --top-k and --top-p, the strategy is nucleus sampling at 0.9.
    """

    model: Model
    prompt: str = ""
    """Text to continue; by default the model begins a new document."""
    greedy: bool = False
    """Always take the most probable token."""
    temperature: float | None = None
    """Divide the logits by this number; below 1 makes likely tokens likelier."""
    top_k: int | None = None
    """Sample among this many of the most probable tokens (top-k sampling)."""
    top_p: float | None = None
    """Sample among the most probable tokens that together have this probability (nucleus sampling)."""
    samples: int = 1
    """Number of texts."""
    max_new_tokens: int = 300
    """Longest continuation in tokens."""
    seed: int = 1337
    """Random seed; the same seed gives the same texts."""

    def run(self) -> int:
        """Stream one text as it is generated, or print each of several as it ends."""
        from gpt2lab.generation import DecodingStrategy, encode_prompt, outgrows, seeded, stream, stream_text

        settings = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        given = {name: value for name, value in settings.items() if value is not None}
        strategy = DecodingStrategy(**(given or ({} if self.greedy else {"top_p": 0.9})), greedy=self.greedy)
        if self.samples < 1:
            raise InputError(f"samples is {self.samples}; it must be at least 1")
        run = self.model.load()
        model, tokenizer, samples = run.model, run.tokenizer, self.samples
        tokens = encode_prompt(tokenizer, self.prompt, samples, run.runtime.device)
        generator = seeded(self.seed, run.runtime.device)
        texts = dict.fromkeys(range(samples), self.prompt)
        if samples == 1:
            print(self.prompt, end="", flush=True)
        length = tokens.shape[1] - 1  # the last list of pieces is not a token
        with run.runtime.autocast():
            columns = stream(model, tokens, self.max_new_tokens, strategy, generator, tokenizer.eot)
            for pieces in stream_text(columns, tokenizer, samples):
                length += 1
                if samples == 1:
                    print(pieces[0] or "", end="", flush=True)
                    continue
                for row in list(texts):
                    if (piece := pieces[row]) is None:
                        print(f"--- sample {row + 1} of {samples}, {strategy} ---\n{texts.pop(row)}\n", flush=True)
                    else:
                        texts[row] += piece
        if samples == 1:
            print()
        else:
            for row, text in texts.items():
                print(f"--- sample {row + 1} of {samples}, {strategy}, cut off ---\n{text}\n")
        if outgrows(model, length):
            print(
                f"output exceeded the {model.config.n_ctx:,}-token context; older tokens were dropped", file=sys.stderr
            )
        return 0
