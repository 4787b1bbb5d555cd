"""Random baseline of a detector: average precision of its boxes with permuted classes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

AP_AND_AP50 = (0, 1)
"""Indices in pycocotools' list of metrics."""


def average_precision(
    truth: COCO, detections: Sequence[dict[str, Any]], task: Literal["bbox", "segm"]
) -> tuple[float, float]:
    """AP and AP50 in percent; -1 without ground truth."""
    if not detections:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(list(detections)), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ap, ap50 = (max(-1.0, 100 * float(evaluation.stats[i])) for i in AP_AND_AP50)
    return ap, ap50


def shift_categories(
    detections: Sequence[dict[str, Any]], category_ids: Sequence[int], shift: int
) -> list[dict[str, Any]]:
    """Move the category of each detection by ``shift`` positions in the cyclic list of ids.

    >>> shift_categories([{"category_id": 4, "score": 0.5}], category_ids=[1, 4], shift=1)
    [{'category_id': 1, 'score': 0.5}]
    """
    index_of = {category: index for index, category in enumerate(category_ids)}
    return [
        {
            **detection,
            "category_id": category_ids[
                (index_of[detection["category_id"]] + shift) % len(category_ids)
            ],
        }
        for detection in detections
    ]
