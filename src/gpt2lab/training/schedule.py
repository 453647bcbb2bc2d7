"""The learning rate as a function of the step: linear warm-up to ``lr``, then half a cosine down to ``min_lr``.

    step < W:   lr * (step + 1) / W
    else:       min_lr + (lr - min_lr) * (1 + cos(pi * (step - W) / (steps - 1 - W))) / 2

Loshchilov & Hutter 2017 (SGDR), without restarts; warm-up as in Vaswani et al. 2017. ``step`` counts from 0.
"""

from __future__ import annotations

import math

from gpt2lab.training.config import OptimConfig


def warmup_steps(config: OptimConfig, steps: int) -> int:
    """Return the steps of warm-up in a run of ``steps``: as asked, else 5 % and at most 2,000."""
    asked = config.warmup_steps
    return min(2_000, steps // 20) if asked is None else min(asked, steps)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Return the learning rate of update ``step`` (from 0) in a run of ``steps`` updates."""
    warmup = warmup_steps(config, steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return config.final_lr + (config.lr - config.final_lr) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
