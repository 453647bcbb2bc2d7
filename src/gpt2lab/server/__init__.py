"""A trained model over HTTP: continuous batching, OpenAI's completions API, and the pages of ``gpt2lab play``."""
