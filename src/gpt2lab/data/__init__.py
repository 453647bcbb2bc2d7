"""Text to tokens to batches: documents, splits, token files with a manifest, and a loader that is a pure function.

    documents(["stories"])  ->  prepare(...)  ->  TokenDataset(out).stream("train")  ->  Loader(...).batch(step, m)

``prepare`` writes a folder once; training and evaluation read it. Nothing here knows of models or devices.
"""
