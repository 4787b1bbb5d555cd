"""Detections given to an evaluator image by image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from helpers.average_precision import Detection


def process_all(
    evaluator: DatasetEvaluator,
    detections: Sequence[Detection],
    image_ids: Iterable[int],
    size: tuple[int, int] = (48, 48),
) -> None:
    """Reset, then one call per image with its detections in their order."""
    evaluator.reset()
    for image_id in image_ids:
        here = [one for one in detections if one.image == image_id]
        boxes = torch.tensor([one.box for one in here], dtype=torch.float32).reshape(-1, 4)
        instances = Instances(
            size,
            pred_boxes=Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)),
            scores=torch.tensor([one.score for one in here], dtype=torch.float64),
            pred_classes=torch.tensor([one.category for one in here], dtype=torch.int64),
        )
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
