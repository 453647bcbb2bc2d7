"""The learning rate as a function of the step: a linear warm-up to ``lr``, then one of four shapes.

    warm-up, step < W:  lr * (step + 1) / W                                        Vaswani et al. 2017
    after it:           min_lr + (lr - min_lr) * shape(p),  p = (step - W) / (steps - 1 - W) from 0 to 1

    cosine      (1 + cos(pi p)) / 2                     Loshchilov & Hutter 2017 (SGDR), without restarts
    linear      1 - p
    constant    1
    wsd         1, and over the last decay_fraction of the run a line down to 0: warm-up, stable, decay
                (Hu et al. 2024, MiniCPM, section 4). Until the decay it does not depend on the run's length, so
                that a run can be given more steps from a checkpoint before it.

``step`` counts from 0.
"""

from __future__ import annotations

import math

from gpt2lab.training.recipes import OptimConfig

WSD_DECAY_FRACTION = 0.2
"""Between the tenth that Hu et al. 2024 decay over and the longer decays that train a little better."""


def warmup_steps(config: OptimConfig, steps: int, batch_tokens: int) -> int:
    """Return the steps of warm-up in a run of ``steps``: as asked, else 5 % and at most 2,000."""
    if config.warmup_tokens is not None:
        return min(-(-config.warmup_tokens // batch_tokens), steps)
    return min(2_000, steps // 20) if config.warmup_steps is None else min(config.warmup_steps, steps)


def learning_rate(config: OptimConfig, step: int, steps: int, batch_tokens: int) -> float:
    """Return the learning rate of update ``step`` (from 0) in a run of ``steps`` updates of so many tokens."""
    warmup = warmup_steps(config, steps, batch_tokens)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.final_lr + (config.lr - config.final_lr) * _shape(config, step, steps, warmup)


def _shape(config: OptimConfig, step: int, steps: int, warmup: int) -> float:
    """Return where the rate stands between ``min_lr`` (0) and ``lr`` (1) after the warm-up."""
    if config.schedule == "constant":
        return 1.0
    begin = warmup
    if config.schedule == "wsd":
        fraction = WSD_DECAY_FRACTION if config.decay_fraction is None else config.decay_fraction
        begin = max(warmup, steps - math.ceil(fraction * steps))
    progress = min(1.0, max(0, step - begin) / max(1, steps - 1 - begin))
    return 0.5 * (1.0 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1.0 - progress
