"""``gpt2lab sample`` and ``gpt2lab eval ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from gpt2lab.cli.options import Trained


def sample(
    weights: Trained,
    prompt: str = "",
    strategy: Literal["greedy", "temperature", "top-k", "nucleus"] = "nucleus",
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    samples: int = 1,
    max_new_tokens: int = 300,
    seed: int = 1337,
) -> int:
    """Write texts with a trained model, streamed as they come.

    Args:
        prompt: What the texts begin with.
        strategy: greedy; temperature 0.8; top-k 50; or nucleus 0.9.
        temperature: Divide the logits by it; in place of the strategy's.
        top_k: Draw among so many tokens; in place of the strategy's.
        top_p: Draw among the fewest tokens of this probability mass; in place of the strategy's.
        samples: Texts to write.
        max_new_tokens: Longest continuation in tokens.
        seed: Same seed, same texts.
    """
    from gpt2lab.lab.commands.sample import print_samples, strategy_from

    chosen = strategy_from(strategy, temperature, top_k, top_p)
    print_samples(weights.load(), prompt, chosen, samples, max_new_tokens, seed)
    return 0


def perplexity(
    weights: Trained,
    data: Path | None = None,
    split: Literal["train", "val", "test"] | None = None,
    text: Path | None = None,
    detokenise: Literal["wikitext"] | None = None,
    context: int | None = None,
    stride: int | None = None,
    by_document: bool = False,
) -> int:
    """Measure perplexity per token and per word, and bits per byte, on held-out text.

    Args:
        data: Prepared data; without it, what the run was trained on.
        split: Which part of it; without it, test.
        text: A text file to measure instead; <|endoftext|> in it parts documents.
        detokenise: Undo this corpus's own tokenisation of the text first, as GPT-2's paper does.
        context: Tokens that the model sees at most; without it, the length it was trained with.
        stride: Tokens by which the window moves on; without it, half the context.
        by_document: Let no window cross the border of a document; always so for a run of --mask-documents.
    """
    from gpt2lab.lab.commands.evaluation import print_perplexity

    print_perplexity(weights.load(), data, split, text, detokenise, context, stride, by_document)
    return 0


def positions(
    weights: Trained,
    data: Path | None = None,
    split: Literal["train", "val", "test"] | None = None,
    text: Path | None = None,
    context: int | None = None,
    by_document: bool = False,
) -> int:
    """Measure the loss by the position in the context, and draw it.

    Args:
        data: Prepared data; without it, what the run was trained on.
        split: Which part of it; without it, test.
        text: A text file to measure instead.
        context: Tokens of a window; without it, all that the model reads.
        by_document: Let no window cross the border of a document; always so for a run of --mask-documents.
    """
    from gpt2lab.lab.commands.evaluation import print_positions

    print_positions(weights.load(), data, split, text, context, by_document)
    return 0


def hellaswag(
    weights: Trained,
    items: Path | None = None,
    style: Literal["completion", "harness"] = "completion",
    limit: int | None = None,
) -> int:
    """Measure how often the model chooses the true one of four endings.

    Args:
        items: HellaSwag's .jsonl file; without it, the validation split is fetched from the hub (extra hub).
        style: completion (GPT-2 124M: 29.55 %), or worded as by lm-evaluation-harness (31.14 %).
        limit: Take only the first so many items.
    """
    from gpt2lab.lab.commands.evaluation import print_hellaswag

    print_hellaswag(weights.load(), items, style, limit)
    return 0


def harness(
    weights: Trained,
    tasks: Annotated[tuple[str, ...], arg(metavar="TASK")],
    tasks_dir: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
) -> int:
    """Let EleutherAI's lm-evaluation-harness measure the model (extra harness).

    Args:
        tasks: The harness's names of tasks, such as hellaswag lambada_openai.
        tasks_dir: Folder of task definitions to take in place of its own.
        limit: Take only the first so many items of each.
        shots: Examples before each item; without it, the task's own number.
    """
    from gpt2lab.lab.commands.evaluation import print_harness

    print_harness(weights.load(), tasks, tasks_dir, limit, shots)
    return 0


def text(
    weights: Trained,
    data: Path | None = None,
    split: Literal["train", "val", "test"] = "test",
    samples: int = 64,
    prompt_tokens: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 1337,
) -> int:
    """Let the model complete held-out beginnings by each strategy, and measure the texts beside the true endings.

    Args:
        data: Prepared data; without it, what the run was trained on.
        split: Which part of it the beginnings are from.
        samples: Beginnings.
        prompt_tokens: Length of a beginning in tokens; without it, 32 or a quarter of the context.
        max_new_tokens: Longest continuation in tokens; without it, 256 or what the context leaves.
        seed: Same seed, same texts.
    """
    from gpt2lab.lab.commands.evaluation import print_text_quality

    print_text_quality(weights.load(), data, split, samples, prompt_tokens, max_new_tokens, seed)
    return 0
