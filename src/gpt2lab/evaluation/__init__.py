"""What a model is worth: perplexity with its protocol, and the share of its stories that the grammar accepts."""

from gpt2lab.evaluation.detokenise import DETOKENISERS
from gpt2lab.evaluation.perplexity import Perplexity, perplexity_of
from gpt2lab.evaluation.positions import PositionLosses, loss_by_position
from gpt2lab.evaluation.recall import Recall, recall_probe, repeat_losses
from gpt2lab.evaluation.stories import Break, StoryQuality, judge_stories

__all__ = [
    "DETOKENISERS",
    "Break",
    "Perplexity",
    "PositionLosses",
    "Recall",
    "StoryQuality",
    "judge_stories",
    "loss_by_position",
    "perplexity_of",
    "recall_probe",
    "repeat_losses",
]
