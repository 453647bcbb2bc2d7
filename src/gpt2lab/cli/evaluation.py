"""``gpt2lab sample`` and ``gpt2lab eval ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from gpt2lab.cli.options import Checkpoint


def sample(
    run: Positional[Path],
    prompt: str = "",
    strategy: Literal["greedy", "temperature", "top-k", "nucleus"] = "nucleus",
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    samples: int = 1,
    max_new_tokens: int = 300,
    seed: int = 1337,
    checkpoint: Checkpoint = "best",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
) -> int:
    """Write texts with a trained model, streamed as they come.

    Args:
        run: Directory of a run.
        prompt: What the texts begin with.
        strategy: greedy; temperature 0.8; top-k 50; or nucleus 0.9.
        temperature: Divide the logits by it; in place of the strategy's.
        top_k: Draw among so many tokens; in place of the strategy's.
        top_p: Draw among the fewest tokens of this probability mass; in place of the strategy's.
        samples: Texts to write.
        max_new_tokens: Longest continuation in tokens.
        seed: Same seed, same texts.
        checkpoint: Which weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, fp32, bf16 or fp16.
    """
    from gpt2lab.lab.commands.sample import print_samples, strategy_from

    chosen = strategy_from(strategy, temperature, top_k, top_p)
    print_samples(run, prompt, chosen, samples, max_new_tokens, seed, checkpoint, device, precision)
    return 0


def perplexity(
    run: Positional[Path],
    data: Path | None = None,
    split: Literal["train", "val", "test"] | None = None,
    text: Path | None = None,
    detokenise: Literal["wikitext"] | None = None,
    context: int | None = None,
    stride: int | None = None,
    by_document: bool = False,
    checkpoint: Checkpoint = "best",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
) -> int:
    """Measure perplexity per token and per word, and bits per byte, on held-out text.

    Args:
        run: Directory of a run.
        data: Prepared data; without it, what the run was trained on.
        split: Which part of it; without it, test.
        text: A text file to measure instead; <|endoftext|> in it parts documents.
        detokenise: Undo this corpus's own tokenisation of the text first, as GPT-2's paper does.
        context: Tokens that the model sees at most; without it, the length it was trained with.
        stride: Tokens by which the window moves on; without it, half the context.
        by_document: Let no window cross the border of a document; always so for a run of --mask-documents.
        checkpoint: Which weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, fp32, bf16 or fp16.
    """
    from gpt2lab.lab.commands.evaluation import Subject, print_perplexity

    subject = Subject.load(run, checkpoint, device, precision)
    print_perplexity(subject, data, split, text, detokenise, context, stride, by_document)
    return 0


def positions(
    run: Positional[Path],
    data: Path | None = None,
    split: Literal["train", "val", "test"] | None = None,
    text: Path | None = None,
    context: int | None = None,
    by_document: bool = False,
    checkpoint: Checkpoint = "best",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
) -> int:
    """Measure the loss by the position in the context, and draw it.

    Args:
        run: Directory of a run.
        data: Prepared data; without it, what the run was trained on.
        split: Which part of it; without it, test.
        text: A text file to measure instead.
        context: Tokens of a window; without it, all that the model reads.
        by_document: Let no window cross the border of a document; always so for a run of --mask-documents.
        checkpoint: Which weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, fp32, bf16 or fp16.
    """
    from gpt2lab.lab.commands.evaluation import Subject, print_positions

    print_positions(Subject.load(run, checkpoint, device, precision), data, split, text, context, by_document)
    return 0


def hellaswag(
    run: Positional[Path],
    items: Path | None = None,
    style: Literal["completion", "harness"] = "completion",
    limit: int | None = None,
    checkpoint: Checkpoint = "best",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
) -> int:
    """Measure how often the model chooses the true one of four endings.

    Args:
        run: Directory of a run.
        items: HellaSwag's .jsonl file; without it, the validation split is fetched from the hub (extra hub).
        style: completion (GPT-2 124M: 29.55 %), or worded as by lm-evaluation-harness (31.14 %).
        limit: Take only the first so many items.
        checkpoint: Which weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, fp32, bf16 or fp16.
    """
    from gpt2lab.lab.commands.evaluation import Subject, print_hellaswag

    print_hellaswag(Subject.load(run, checkpoint, device, precision), items, style, limit)
    return 0


def harness(
    run: Positional[Path],
    tasks: Annotated[tuple[str, ...], arg(metavar="TASK")],
    tasks_dir: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    checkpoint: Checkpoint = "best",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
) -> int:
    """Let EleutherAI's lm-evaluation-harness measure the model (extra harness).

    Args:
        run: Directory of a run.
        tasks: The harness's names of tasks, such as hellaswag lambada_openai.
        tasks_dir: Folder of task definitions to take in place of its own.
        limit: Take only the first so many items of each.
        shots: Examples before each item; without it, the task's own number.
        checkpoint: Which weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, fp32, bf16 or fp16.
    """
    from gpt2lab.lab.commands.evaluation import Subject, print_harness

    print_harness(Subject.load(run, checkpoint, device, precision), tasks, tasks_dir, limit, shots)
    return 0


def text(
    run: Positional[Path],
    data: Path | None = None,
    split: Literal["train", "val", "test"] = "test",
    samples: int = 64,
    prompt_tokens: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 1337,
    checkpoint: Checkpoint = "best",
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
) -> int:
    """Let the model complete held-out beginnings by each strategy, and measure the texts beside the true endings.

    Args:
        run: Directory of a run.
        data: Prepared data; without it, what the run was trained on.
        split: Which part of it the beginnings are from.
        samples: Beginnings.
        prompt_tokens: Length of a beginning in tokens; without it, 32 or a quarter of the context.
        max_new_tokens: Longest continuation in tokens; without it, 256 or what the context leaves.
        seed: Same seed, same texts.
        checkpoint: Which weights.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, fp32, bf16 or fp16.
    """
    from gpt2lab.lab.commands.evaluation import Subject, print_text_quality

    subject = Subject.load(run, checkpoint, device, precision)
    print_text_quality(subject, data, split, samples, prompt_tokens, max_new_tokens, seed)
    return 0
