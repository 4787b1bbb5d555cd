"""What the same boxes are worth under wrong names."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

AP_AND_AP50 = (0, 1)
"""Places in pycocotools' list of metrics."""


def average_precision(
    truth: COCO, detections: Sequence[dict[str, Any]], task: Literal["bbox", "segm"]
) -> tuple[float, float]:
    """AP and AP50 in percent; -1 where nothing is to be found."""
    if not detections:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(list(detections)), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50 = (max(-1.0, 100 * float(evaluation.stats[i])) for i in AP_AND_AP50)
    return ap, ap50


def rename(
    detections: Sequence[dict[str, Any]], category_ids: Sequence[int], shift: int
) -> list[dict[str, Any]]:
    """The detections, each with the name so many places further in the (cyclic) list of names.

    >>> rename([{"category_id": 4, "score": 0.5}], category_ids=[1, 4], shift=1)
    [{'category_id': 1, 'score': 0.5}]
    """
    place_of = {category: place for place, category in enumerate(category_ids)}
    return [
        {
            **detection,
            "category_id": category_ids[
                (place_of[detection["category_id"]] + shift) % len(category_ids)
            ],
        }
        for detection in detections
    ]
