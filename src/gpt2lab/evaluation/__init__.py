"""What a model is worth: perplexity with its protocol, HellaSwag, and the share of its stories that are right."""
