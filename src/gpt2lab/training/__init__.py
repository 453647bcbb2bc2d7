"""Training: configuration, optimiser, schedule, checkpoints, and the loop that brings them together.

What happens at an interval besides (sampling, reporting) is passed in as `Hooks`; nothing here imports generation,
evaluation or the laboratory. Most users want `gpt2lab.train`, which adds those.
"""
