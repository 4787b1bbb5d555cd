"""What flows between the rooms: frozen dataclasses, shapes in their docstrings."""

from glipv2_d2.structures.dense import DensePredictions, DenseTargets
from glipv2_d2.structures.reading import Reading, ReadQuestions
from glipv2_d2.structures.regions import Regions
from glipv2_d2.structures.text import Prompt, TextFeatures, TokenBatch

__all__ = [
    "DensePredictions",
    "DenseTargets",
    "Prompt",
    "ReadQuestions",
    "Reading",
    "Regions",
    "TextFeatures",
    "TokenBatch",
]
