"""Referring expression comprehension and segmentation (RefCOCO, RefCOCO+, RefCOCOg).

Task ``referring_bbox``: the prediction for an expression is its box with the highest score. P@0.5
is the fraction of predictions with an IoU of at least 0.5, "precision" or "accuracy" in the
literature; top5 and top10 accept any of the five or ten best boxes. MDETR, whose annotation files
are used, evaluates with generalized IoU (from memory), which is never higher than IoU.

Task ``referring_segm``, if there are predicted and ground-truth masks: the prediction is the mask
with the highest score. mIoU is the mean over expressions, oIoU the sum of the intersections divided
by the sum of the unions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances

from glipv2_d2.evaluation.mask_iou import (
    PRECISION_AT,
    intersection_union,
    iou_metrics,
    union_of_segmentations,
)
from glipv2_d2.evaluation.phrase_evaluator import (
    PERCENT,
    PhraseEvaluator,
    PhraseTruth,
    Row,
    best_ious,
)

MIN_IOU = 0.5
TOPS = (5, 10)

BOXES, MASKS = "referring_bbox", "referring_segm"


class RefCOCOEvaluator(PhraseEvaluator):
    """Precision of the best box and, if there are masks, IoU of the best mask.

    An expression without a detection counts as IoU 0. With several ground-truth boxes, any of them
    counts.
    """

    def __init__(self, dataset_name: str, output_folder: str) -> None:
        super().__init__(dataset_name, output_folder, "referring_expressions.json")

    def measure(self, truth: PhraseTruth, detections: Instances) -> Row:
        ious = best_ious(detections.pred_boxes, truth.boxes)[: max(TOPS)]
        best = detections[:1]
        return {
            "ious": ious.tolist(),
            "box": best.pred_boxes.tensor.flatten().tolist(),
            "score": best.scores.tolist(),
            MASKS: self._mask_areas(truth, best),
        }

    @staticmethod
    def _mask_areas(truth: PhraseTruth, best: Instances) -> tuple[int, int] | None:
        gt_mask = union_of_segmentations(truth.segmentations, truth.image_size)
        if gt_mask is None or not best.has("pred_masks"):
            return None
        pred_mask = best.pred_masks.numpy()[0] if len(best) else np.zeros_like(gt_mask)
        return intersection_union(pred_mask, gt_mask)

    def summarize(self, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
        results = {BOXES: box_metrics([row["ious"] for row in rows])}
        areas = [row[MASKS] for row in rows if row[MASKS] is not None]
        if areas:
            results[MASKS] = iou_metrics(areas, "oIoU")
        return results


def box_metrics(ious_per_expression: Sequence[Sequence[float]]) -> dict[str, float]:
    """P@0.5, 0.7, 0.9 and mean IoU of the best box, top5 and top10, in percent; nan if empty.

    Args:
        ious_per_expression: IoU with the target of each box, the best box first.

    >>> box_metrics([[0.6, 0.9], [0.0, 0.5]])
    {'P@0.5': 50.0, 'P@0.7': 0.0, 'P@0.9': 0.0, 'mIoU': 30.0, 'top5': 100.0, 'top10': 100.0}
    """
    tops = tuple(f"top{k}" for k in TOPS)
    if not ious_per_expression:
        names = (*(f"P@{limit}" for limit in PRECISION_AT), "mIoU", *tops)
        return dict.fromkeys(names, float("nan"))
    best = np.array([ious[0] if ious else 0.0 for ious in ious_per_expression])
    metrics = {f"P@{limit}": (best >= limit).mean() for limit in PRECISION_AT}
    metrics["mIoU"] = best.mean()
    for name, k in zip(tops, TOPS, strict=True):
        hits = [max(ious[:k], default=0.0) >= MIN_IOU for ious in ious_per_expression]
        metrics[name] = np.mean(hits)
    return {name: PERCENT * float(value) for name, value in metrics.items()}
