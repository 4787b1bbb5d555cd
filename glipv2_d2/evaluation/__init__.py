"""Which evaluator a data set gets."""

from glipv2_d2.evaluation.build import build_evaluator, missing_head

__all__ = ["build_evaluator", "missing_head"]
