"""PhraseCut: everything in an image that a phrase means, as one region.

The answer to a phrase is the union of its detections whose score reaches a threshold, and of its
best detection in any case, as a phrase of PhraseCut always means something. The answers' mean IoU,
cumulative IoU (sum of the intersections over sum of the unions) and precisions are

- ``phrasecut_segm``, where the model gives masks: against the union of the truth's masks;
- ``phrasecut_bbox``: boxes filled to masks against the filled boxes of the truth, the data set's
  measure for models without masks (from memory).

A rectangle is never measured against a mask. No source says which threshold GLIPv2 used: it is
ours, ``TEST.PHRASECUT_SCORE_THRESH``. ``mIoU-0.3`` is the mean IoU with another threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from detectron2.structures import Instances

from glipv2_d2.evaluation.overlaps import (
    Overlap,
    iou_metrics,
    overlap,
    union_of_boxes,
    union_of_segmentations,
)
from glipv2_d2.evaluation.phrases import PhraseEvaluator, PhraseTruth, Row

OTHER_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

BOXES, MASKS = "phrasecut_bbox", "phrasecut_segm"


class PhraseCutEvaluator(PhraseEvaluator):
    """Mean and cumulative IoU of the region of a phrase."""

    def __init__(self, dataset_name: str, output_folder: str, score_thresh: float) -> None:
        """
        Args:
            score_thresh: detections with at least this score are part of the answer.

        Raises:
            ValueError: it is not between 0 and 1.
        """
        super().__init__(dataset_name, output_folder, "phrase_regions.json")
        if not 0 <= score_thresh <= 1:
            raise ValueError(
                f"TEST.PHRASECUT_SCORE_THRESH is {score_thresh}; it must lie between 0 and 1"
            )
        self.score_thresh = score_thresh
        self.thresholds = (score_thresh, *OTHER_THRESHOLDS)

    def measure(self, truth: PhraseTruth, detections: Instances) -> Row:
        """Per task the overlap of the answer at each threshold; None without masks."""
        scores = detections.scores.numpy()
        boxes = detections.pred_boxes.tensor.numpy()
        row: Row = {
            BOXES: region_overlaps(
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
            row[MASKS] = region_overlaps(
                scores, lambda start, end: masks[start:end].any(axis=0), gt_mask, self.thresholds
            )
        return row

    def summarize(self, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
        results = {BOXES: self._metrics([row[BOXES] for row in rows])}
        with_masks = [row[MASKS] for row in rows if row[MASKS] is not None]
        if with_masks:
            results[MASKS] = self._metrics(with_masks)
        return results

    def _metrics(self, overlaps_per_phrase: Sequence[Sequence[Overlap]]) -> dict[str, float]:
        metrics = iou_metrics([overlaps[0] for overlaps in overlaps_per_phrase], "cIoU")
        for i, threshold in enumerate(self.thresholds[1:], start=1):
            at_threshold = iou_metrics([overlaps[i] for overlaps in overlaps_per_phrase], "cIoU")
            metrics[f"mIoU-{threshold}"] = at_threshold["mIoU"]
        return metrics


def region_overlaps(
    scores: np.ndarray,
    region_of: Callable[[int, int], np.ndarray],
    gt_region: np.ndarray,
    thresholds: Sequence[float],
) -> list[Overlap]:
    """The overlap with the truth of the union of the detections that reach each threshold.

    Args:
        scores: (K,), falling.
        region_of: (start, end) -> (H, W) bool, the union of those detections.
        gt_region: (H, W) bool.
    """
    # The best detection counts in any case.
    counts = [max(int((scores >= limit).sum()), min(1, len(scores))) for limit in thresholds]
    overlaps = {}
    region, done = np.zeros_like(gt_region), 0
    for count in sorted(set(counts)):
        region = region | region_of(done, count)
        done = count
        overlaps[count] = overlap(region, gt_region)
    return [overlaps[count] for count in counts]
