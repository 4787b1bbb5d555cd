"""The input dicts of a model: whether a mapper has set what it reads, and their names in errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from detectron2.structures import Instances
from torch import Tensor

from glipv2_d2.structures import fields

_GROUND_TRUTH = ("gt_boxes", "gt_classes")
MAX_NAMED_IMAGES = 8

Model = TypeVar("Model")
Inputs = list[dict[str, Any]]
R = TypeVar("R")


def names_images(forward: Callable[[Model, Inputs], R]) -> Callable[[Model, Inputs], R]:
    """Decorate the ``forward`` of a model: a note of its errors names the images of the batch.

    Inputs without a file name, such as those of :class:`~glipv2_d2.predictor.Predictor`, are
    not named.
    """

    @functools.wraps(forward)
    def named_forward(self: Model, batched_inputs: Inputs) -> R:
        try:
            return forward(self, batched_inputs)
        except Exception as error:
            note_images(error, batched_inputs)
            raise

    return named_forward


def note_images(error: Exception, inputs: Sequence[dict[str, Any]]) -> None:
    """Add a note to an error that names the files of a batch of inputs."""
    names = [x[fields.FILE_NAME] for x in inputs if isinstance(x, dict) and fields.FILE_NAME in x]
    names = list(dict.fromkeys(map(repr, names)))
    if names:
        more = len(names) - MAX_NAMED_IMAGES
        end = f" and {more} more" if more > 0 else ""
        error.add_note(f"images of the batch: {', '.join(names[:MAX_NAMED_IMAGES])}{end}")


def check_inputs(inputs: Sequence[dict[str, Any]], *, needs_instances: bool = False) -> None:
    """Check that inputs have an image and, where they have ground truth, its fields.

    Args:
        needs_instances: as in training with boxes only.

    Raises:
        ValueError: one does not; the message names the field.
    """
    for x in inputs:
        where = repr(x[fields.FILE_NAME]) if fields.FILE_NAME in x else "of an image"
        image = x.get(fields.IMAGE)
        if not isinstance(image, Tensor) or image.ndim != 3:
            found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(
                f"the input {where} needs an 'image', a tensor (C, H, W), but has {found}: the "
                "mapper must set it"
            )
        instances = x.get(fields.INSTANCES)
        if instances is None and not needs_instances:
            continue
        if not isinstance(instances, Instances):
            raise ValueError(
                f"the input {where} has no 'instances', which training needs: use a mapper with "
                "is_train=True, which sets them"
            )
        for name in _GROUND_TRUTH:
            if not instances.has(name):
                raise ValueError(
                    f"the instances of the input {where} have no {name!r}, only "
                    f"{sorted(instances.get_fields())}: the mapper must set it, as Detectron2's "
                    "annotations_to_instances does"
                )
