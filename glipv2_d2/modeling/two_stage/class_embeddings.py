"""The text embeddings of the classes of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassEmbeddings:
    """Text embeddings of the L classes that the regions of one image are scored against.

    Attributes:
        embeddings: (L, D).
        classes: the class index of each embedding, all different.

    Raises:
        ValueError: a class has several embeddings.
    """

    embeddings: Tensor
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.embeddings) == len(self.classes), (self.embeddings.shape, self.classes)
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"a prompt has several labels of one class, classes {self.classes}: a two-stage "
                "model scores one label per class"
            )

    @staticmethod
    def cat(parts: Sequence[ClassEmbeddings]) -> ClassEmbeddings:
        """Concatenate at least one part."""
        return ClassEmbeddings(
            torch.cat([part.embeddings for part in parts]),
            tuple(c for part in parts for c in part.classes),
        )

    @property
    def num_classes(self) -> int:
        """The least number of columns that holds every class index."""
        return max(self.classes, default=-1) + 1
