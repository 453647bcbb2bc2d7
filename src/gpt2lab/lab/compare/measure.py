"""What is measured on every run of a comparison once it is trained, and kept in its directory."""

from __future__ import annotations

import dataclasses

from gpt2lab import runtime
from gpt2lab.data import TokenDataset
from gpt2lab.evaluation import loss_by_position, recall_probe
from gpt2lab.files import write_json
from gpt2lab.lab.measure import measure_perplexity
from gpt2lab.lab.pictures import save_positions
from gpt2lab.runs import EVALUATIONS, Run
from gpt2lab.training import load_model, saved_config

RECALL, POSITIONS = "recall.json", "positions.json"
"""In the folder of the step's evaluations. The first is written last: a run that has it is measured."""


def is_measured(run: Run) -> bool:
    """Return whether `measure` has been through with a run."""
    return any(run.path.glob(f"{EVALUATIONS}/step_*/{RECALL}"))


def measure(run: Run) -> None:
    """Measure test perplexity, loss by position and recall of a run's best checkpoint, and keep them with the run.

    Raises:
        InputError: The data has no test split, or something is damaged.
    """
    config = saved_config(run)
    where = runtime.resolve(config.device, config.precision)
    model, checkpoint = load_model(run, "best", where.device)
    dataset = TokenDataset(config.data)
    measure_perplexity(model, dataset, "test", config.window, None, where).record(run, checkpoint.step)
    with where.autocast():
        positions = loss_by_position(model, dataset.stream("test"), config.window)
        recall = recall_probe(model, avoid=[dataset.manifest.tokenizer.eot])
    values = {"step": checkpoint.step, "protocol": recall.protocol, "chance": recall.chance}
    save_positions(run, checkpoint.step, "test", positions)
    write_json(run.evaluations(checkpoint.step) / RECALL, values | dataclasses.asdict(recall))
