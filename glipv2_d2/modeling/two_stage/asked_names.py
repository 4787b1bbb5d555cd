"""The names that the images of a batch are asked, on their way to the box predictors.

Between the meta-architecture and a box predictor lie methods of Detectron2 that have no place for
another argument. The names are handed past them for the time of one call, in a context variable:
threads that share a model do not see each other's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AskedNames:
    """The names that one image is asked, as the language backbone reads them.

    Attributes:
        vectors: (L, D), one per name.
        classes: for each name the caller's class, all different.
    """

    vectors: Tensor
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.vectors) == len(self.classes), (self.vectors.shape, self.classes)
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"a prompt has several labels of one class, classes {self.classes}: a two-stage "
                "model scores one label per class"
            )

    @staticmethod
    def cat(parts: Sequence[AskedNames]) -> AskedNames:
        """The names of at least one part, one list."""
        return AskedNames(
            torch.cat([part.vectors for part in parts]),
            tuple(c for part in parts for c in part.classes),
        )

    @property
    def num_classes(self) -> int:
        """Classes that the caller's list has at least."""
        return max(self.classes, default=-1) + 1


_ASKED: ContextVar[tuple[AskedNames, ...]] = ContextVar("names asked of a batch")


@contextmanager
def asking(names_per_image: Sequence[AskedNames]) -> Iterator[None]:
    """Within the block, :func:`asked_names` gives these."""
    token = _ASKED.set(tuple(names_per_image))
    try:
        yield
    finally:
        _ASKED.reset(token)


def asked_names() -> tuple[AskedNames, ...]:
    """The names of each image of the batch that is looked at.

    Raises:
        RuntimeError: nobody has said them.
    """
    try:
        return _ASKED.get()
    except LookupError as error:
        raise RuntimeError(
            "a region-word box predictor was not told what to look for: its model has to be "
            "MODEL.META_ARCHITECTURE OpenVocabularyRCNN, or to call it within "
            "glipv2_d2.modeling.two_stage.asked_names.asking"
        ) from error
