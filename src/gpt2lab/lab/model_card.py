"""The model card of an exported model: README.md with the metadata that model hubs read."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

import gpt2lab
from gpt2lab.lab import words
from gpt2lab.lab.facts import data_name, model_facts, training_facts
from gpt2lab.lab.gather import evaluations
from gpt2lab.lab.page import TEMPLATES
from gpt2lab.lab.record import Record, read
from gpt2lab.model import GPTConfig
from gpt2lab.runs import Run


def model_card(run: Run, config: GPTConfig, step: int, name: str, eot: str | None) -> str:
    """Return the card of a run's weights after a step, in Markdown; its figures are those taken of these weights.

    Args:
        run: The run.
        config: Its architecture.
        step: The checkpoint's.
        name: Under which ``from_pretrained`` will find the model.
        eot: Text of the token that documents begin with, where there is one.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["cell"] = _cell
    record = read(run)
    return environment.get_template("model_card.md.jinja").render(
        name=name,
        parameters=words.short(record.parameters or 0),
        origin=_origin(record, step),
        config=config,
        eot=eot or "",
        architecture=model_facts(record),
        training=training_facts(record),
        evaluations=evaluations(e for e in record.evals if e.step == step),
        version=gpt2lab.__version__,
    )


def _cell(text: str) -> str:
    """Return text that a Markdown table holds in one cell."""
    return " ".join(text.replace("|", "\\|").split())


def _origin(record: Record, step: int) -> str:
    """Say where weights are from."""
    if "data" not in record.config:
        return str(record.state.get("finished"))
    begun = f" from the weights of {Path(record.config['init']).name}" if record.config.get("init") else ""
    return f"trained{begun} for {words.plural(step, 'step')} on {data_name(record)}"
