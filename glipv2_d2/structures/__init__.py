"""What flows between the parts of the model: frozen dataclasses, shapes in their docstrings."""

from glipv2_d2.structures.dense import DensePredictions, DenseTargets
from glipv2_d2.structures.features import FusedFeatures, FusedText, ImageFeatures
from glipv2_d2.structures.generation import GenerationConfig
from glipv2_d2.structures.query import Query, QueryKind, gt_instances_of
from glipv2_d2.structures.text import Prompt, TextFeatures, TokenBatch

__all__ = [
    "DensePredictions",
    "DenseTargets",
    "FusedFeatures",
    "FusedText",
    "GenerationConfig",
    "ImageFeatures",
    "Prompt",
    "Query",
    "QueryKind",
    "TextFeatures",
    "TokenBatch",
    "gt_instances_of",
]
