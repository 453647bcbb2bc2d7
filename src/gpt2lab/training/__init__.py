"""Training: configuration, optimizers, schedules, checkpoints, and the loop that uses them.

Sampling and evaluation during training are passed in as `Hooks`; nothing here imports generation, evaluation or the
laboratory. Most users want `gpt2lab.train`, which adds them.
"""
