"""``gpt2lab import-hf`` and ``gpt2lab export-hf``."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from gpt2lab.cli.options import Checkpoint


def import_hf(source: Positional[str], run: Positional[Path], tokenizer: Path | None = None) -> int:
    """Make a run of a GPT-2 in Hugging Face's form, to sample, measure, fine-tune and report on.

    Args:
        source: Directory that save_pretrained wrote, or a name on the hub: gpt2, gpt2-xl, distilgpt2, hub:user/model.
        run: Directory of the run, which must not exist.
        tokenizer: Directory of the tokenizer; without it, the one that lies with the model.
    """
    from gpt2lab.lab.commands.weights import import_model

    import_model(source, run, tokenizer)
    return 0


def export_hf(run: Positional[Path], directory: Positional[Path], checkpoint: Checkpoint = "best") -> int:
    """Write a run's model, tokenizer and model card for Hugging Face's transformers.

    Args:
        run: Directory of a run.
        directory: Directory to write, which must not exist.
        checkpoint: Which weights.
    """
    from gpt2lab.lab.commands.weights import export_run

    export_run(run, directory, checkpoint)
    return 0
