"""PhraseCut: segmentation of all objects that a phrase describes, as one region.

The predicted region is the union of the detections of a phrase with at least a threshold score,
and always includes the best detection, as every phrase of PhraseCut has an object. Tasks, each
with mean IoU, cumulative IoU (sum of intersections over sum of unions) and precisions:

- ``phrasecut_segm``, if the model predicts masks: IoU with the union of the ground-truth masks;
- ``phrasecut_bbox``: IoU of filled boxes with filled ground-truth boxes, the dataset's metric for
  models without masks (from memory).

Boxes are never compared with masks. GLIPv2's threshold is not published; it is set here by
``TEST.PHRASECUT_SCORE_THRESH``. ``mIoU-0.3`` is the mean IoU at the threshold 0.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from detectron2.structures import Instances

from glipv2_d2.evaluation.mask_iou import (
    IntersectionUnion,
    intersection_union,
    iou_metrics,
    union_of_boxes,
    union_of_segmentations,
)
from glipv2_d2.evaluation.phrase_evaluator import PhraseEvaluator, PhraseTruth, Row

OTHER_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

BOXES, MASKS = "phrasecut_bbox", "phrasecut_segm"


class PhraseCutEvaluator(PhraseEvaluator):
    """Mean and cumulative IoU of the predicted regions of phrases."""

    def __init__(self, dataset_name: str, output_folder: str, score_thresh: float) -> None:
        """
        Args:
            score_thresh: detections with at least this score are part of the region.

        Raises:
            ValueError: ``score_thresh`` is not between 0 and 1.
        """
        super().__init__(dataset_name, output_folder, "phrase_regions.json")
        if not 0 <= score_thresh <= 1:
            raise ValueError(
                f"score_thresh is {score_thresh}; it must be between 0 and 1 "
                "(config: TEST.PHRASECUT_SCORE_THRESH)"
            )
        self.score_thresh = score_thresh
        self.thresholds = (score_thresh, *OTHER_THRESHOLDS)

    def measure(self, truth: PhraseTruth, detections: Instances) -> Row:
        """Task -> intersection and union at each threshold; None without masks."""
        scores = detections.scores.numpy()
        boxes = detections.pred_boxes.tensor.numpy()
        row: Row = {
            BOXES: region_areas(
                scores,
                lambda start, end: union_of_boxes(boxes[start:end], truth.image_size),
                union_of_boxes(truth.boxes.numpy(), truth.image_size),
                self.thresholds,
            ),
            MASKS: None,
        }
        gt_mask = union_of_segmentations(truth.segmentations, truth.image_size)
        if gt_mask is not None and detections.has("pred_masks"):
            masks = detections.pred_masks.numpy()
            row[MASKS] = region_areas(
                scores, lambda start, end: masks[start:end].any(axis=0), gt_mask, self.thresholds
            )
        return row

    def summarize(self, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
        results = {BOXES: self._metrics([row[BOXES] for row in rows])}
        with_masks = [row[MASKS] for row in rows if row[MASKS] is not None]
        if with_masks:
            results[MASKS] = self._metrics(with_masks)
        return results

    def _metrics(self, areas_per_phrase: Sequence[Sequence[IntersectionUnion]]) -> dict[str, float]:
        metrics = iou_metrics([areas[0] for areas in areas_per_phrase], "cIoU")
        for i, threshold in enumerate(self.thresholds[1:], start=1):
            at_threshold = iou_metrics([areas[i] for areas in areas_per_phrase], "cIoU")
            metrics[f"mIoU-{threshold}"] = at_threshold["mIoU"]
        return metrics


def region_areas(
    scores: np.ndarray,
    region_of: Callable[[int, int], np.ndarray],
    gt_region: np.ndarray,
    thresholds: Sequence[float],
) -> list[IntersectionUnion]:
    """Intersection and union with the ground truth at each threshold.

    Args:
        scores: (K,), descending.
        region_of: (start, end) -> (H, W) bool, the union of the detections [start, end).
        gt_region: (H, W) bool.
    """
    # The best detection is always included.
    counts = [max(int((scores >= limit).sum()), min(1, len(scores))) for limit in thresholds]
    areas = {}
    region, done = np.zeros_like(gt_region), 0
    for count in sorted(set(counts)):
        region = region | region_of(done, count)
        done = count
        areas[count] = intersection_union(region, gt_region)
    return [areas[count] for count in counts]
