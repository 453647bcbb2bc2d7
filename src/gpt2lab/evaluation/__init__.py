"""What a model is worth: perplexity with its protocol, and the share of its stories that the grammar accepts."""

from gpt2lab.evaluation.perplexity import Perplexity, perplexity_of
from gpt2lab.evaluation.stories import Break, StoryQuality, judge_stories

__all__ = ["Break", "Perplexity", "StoryQuality", "judge_stories", "perplexity_of"]
