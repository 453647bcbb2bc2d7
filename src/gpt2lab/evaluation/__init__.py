"""What a model is worth: perplexity with its protocol, HellaSwag, and the share of its stories that are right."""

from gpt2lab.evaluation.detokenise import DETOKENISERS
from gpt2lab.evaluation.hellaswag import (
    STYLES,
    HellaSwag,
    HellaSwagItem,
    encode_items,
    hellaswag,
    hellaswag_item,
    read_hellaswag,
)
from gpt2lab.evaluation.leak import require_no_leak
from gpt2lab.evaluation.perplexity import Perplexity, perplexity_of
from gpt2lab.evaluation.positions import PositionLosses, loss_by_position
from gpt2lab.evaluation.recall import Recall, recall_probe, repeat_losses
from gpt2lab.evaluation.scoring import Continuation, Score, score
from gpt2lab.evaluation.stories import Break, StoryQuality, judge_stories
from gpt2lab.evaluation.text_stats import METRICS, PROTOCOL, Metric, Text, Writing, text_stats
from gpt2lab.evaluation.windows import document_begins

__all__ = [
    "DETOKENISERS",
    "METRICS",
    "PROTOCOL",
    "STYLES",
    "Break",
    "Continuation",
    "HellaSwag",
    "HellaSwagItem",
    "Metric",
    "Perplexity",
    "PositionLosses",
    "Recall",
    "Score",
    "StoryQuality",
    "Text",
    "Writing",
    "document_begins",
    "encode_items",
    "hellaswag",
    "hellaswag_item",
    "judge_stories",
    "loss_by_position",
    "perplexity_of",
    "read_hellaswag",
    "recall_probe",
    "repeat_losses",
    "require_no_leak",
    "score",
    "text_stats",
]
