"""Which evaluator a data set gets, and one that works beside the model."""

from glipv2_d2.evaluation.build import build_evaluator, missing_head
from glipv2_d2.evaluation.overlapping import OverlappingEvaluator

__all__ = ["OverlappingEvaluator", "build_evaluator", "missing_head"]
