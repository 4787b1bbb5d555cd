"""Evaluators of detection, grounding, captioning and VQA, and their selection by dataset."""

from glipv2_d2.evaluation.background_evaluator import BackgroundEvaluator
from glipv2_d2.evaluation.build import build_evaluator, missing_head

__all__ = ["BackgroundEvaluator", "build_evaluator", "missing_head"]
