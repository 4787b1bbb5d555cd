"""What flows between the rooms: frozen dataclasses, shapes in their docstrings."""

from glipv2_d2.structures.dense import DensePredictions, DenseTargets
from glipv2_d2.structures.language import LanguageFeatures, Prompt, TokenBatch
from glipv2_d2.structures.reading import Reading, ReadQuestions
from glipv2_d2.structures.regions import Regions

__all__ = [
    "DensePredictions",
    "DenseTargets",
    "LanguageFeatures",
    "Prompt",
    "ReadQuestions",
    "Reading",
    "Regions",
    "TokenBatch",
]
