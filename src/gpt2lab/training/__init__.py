"""Training: configuration, optimiser, schedule, checkpoints, and the loop that brings them together.

What happens at an interval besides (sampling, reporting) is passed in as `Hooks`; nothing here imports generation,
evaluation or the laboratory. Most users want `gpt2lab.train`, which adds those.
"""

from __future__ import annotations

from gpt2lab.training.checkpoint import Checkpoint, load_model
from gpt2lab.training.config import TrainConfig, from_dict, saved_config, to_dict
from gpt2lab.training.hooks import Hooks, HooksFor, StepReport
from gpt2lab.training.imported import save_imported
from gpt2lab.training.interrupt import Interrupted
from gpt2lab.training.processes import Processes
from gpt2lab.training.recipes import RECIPES, OptimConfig
from gpt2lab.training.session import resume, start

__all__ = [
    "RECIPES",
    "Checkpoint",
    "Hooks",
    "HooksFor",
    "Interrupted",
    "OptimConfig",
    "Processes",
    "StepReport",
    "TrainConfig",
    "from_dict",
    "load_model",
    "resume",
    "save_imported",
    "saved_config",
    "start",
    "to_dict",
]
