"""Whether a mapper has set the fields of its input dicts that a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.structures import Instances
from torch import Tensor

from glipv2_d2.structures import fields

_GROUND_TRUTH = ("gt_boxes", "gt_classes")


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
