"""The embedded corpus: short stories of known entropy."""
