"""Match detections with ground truth, and compute precision, recall and F1.

D: detections of all images. C: classes. Detections are matched as in COCO's evaluation at an IoU
of 0.5: a detection is a true positive if it is matched with a ground-truth box of its class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

MIN_IOU = 0.5


@dataclass(frozen=True)
class MatchedDetections:
    """The detections of labelled images, matched with the ground truth.

    Attributes:
        scores: (D,).
        classes: (D,) int.
        images: (D,) int, index of the image.
        is_true_positive: (D,) bool.
        num_boxes: (images, C) int, number of ground-truth boxes without crowds.
    """

    scores: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    is_true_positive: np.ndarray
    num_boxes: np.ndarray

    @staticmethod
    def cat(parts: Sequence[MatchedDetections]) -> MatchedDetections:
        """Concatenate the images of all parts."""
        starts = np.cumsum([0, *(len(part.num_boxes) for part in parts)])
        return MatchedDetections(
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.classes for part in parts]),
            np.concatenate(
                [part.images + start for part, start in zip(parts, starts, strict=False)]
            ),
            np.concatenate([part.is_true_positive for part in parts]),
            np.concatenate([part.num_boxes for part in parts]),
        )

    def select_images(self, is_selected: np.ndarray) -> MatchedDetections:
        """Select images by a mask (images,) bool."""
        kept = is_selected[self.images]
        return MatchedDetections(
            self.scores[kept],
            self.classes[kept],
            (np.cumsum(is_selected) - 1)[self.images[kept]],
            self.is_true_positive[kept],
            self.num_boxes[is_selected],
        )

    def select_class(self, class_: int) -> MatchedDetections:
        kept = self.classes == class_
        return MatchedDetections(
            self.scores[kept],
            self.classes[kept],
            self.images[kept],
            self.is_true_positive[kept],
            self.num_boxes[:, class_ : class_ + 1],
        )

    def quality_at(self, threshold: float | np.ndarray) -> Quality:
        """Quality of the detections at or above a threshold, one for all or (D,) per detection."""
        kept = self.scores >= threshold
        return Quality(
            int(self.is_true_positive[kept].sum()), int(kept.sum()), int(self.num_boxes.sum())
        )


@dataclass(frozen=True)
class Quality:
    """Precision, recall and F1 of detections; nan where undefined."""

    num_true_positives: int
    num_detections: int
    num_boxes: int

    @property
    def precision(self) -> float:
        return self.num_true_positives / self.num_detections if self.num_detections else math.nan

    @property
    def recall(self) -> float:
        return self.num_true_positives / self.num_boxes if self.num_boxes else math.nan

    @property
    def f1(self) -> float:
        total = self.num_detections + self.num_boxes
        return 2 * self.num_true_positives / total if total else math.nan

    @property
    def precision_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the precision (Wilson)."""
        return wilson_interval(self.num_true_positives, self.num_detections)


def wilson_interval(num_true_positives: int, num: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927).

    >>> [round(x, 3) for x in wilson_interval(9, 10)]
    [0.596, 0.982]
    """
    if num == 0:
        return 0.0, 1.0
    z, proportion = 1.959964, num_true_positives / num
    middle = proportion + z * z / (2 * num)
    half = z * math.sqrt(proportion * (1 - proportion) / num + z * z / (4 * num * num))
    scale = 1 + z * z / num
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def match_detections(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    gt_boxes: np.ndarray,
    gt_classes: np.ndarray,
    gt_is_crowd: np.ndarray,
    num_classes: int,
) -> MatchedDetections:
    """Match the detections of one image with its ground truth.

    In descending order of score, each detection is matched with the free box of its class with the
    highest IoU. Unmatched detections that overlap a crowd of their class are left out.

    Args:
        boxes: (D, 4) XYXY in pixels of the image.
        scores, classes: (D,).
        gt_boxes: (G, 4) XYXY.
        gt_classes, gt_is_crowd: (G,).
        num_classes: C.
    """
    is_true_positive = np.zeros(len(scores), dtype=bool)
    is_left_out = np.zeros(len(scores), dtype=bool)
    for class_ in np.unique(classes):
        found = np.flatnonzero(classes == class_)
        found = found[np.argsort(-scores[found], kind="stable")]
        true = np.flatnonzero(gt_classes == class_)
        ious = _ious(boxes[found], gt_boxes[true], gt_is_crowd[true])
        is_free = ~gt_is_crowd[true].astype(bool)
        for row, detection in enumerate(found):
            candidates = np.where(is_free, ious[row], 0.0)
            if len(true) and candidates.max() >= MIN_IOU:
                # Of equal IoUs the last one, as in pycocotools.
                is_free[len(true) - 1 - candidates[::-1].argmax()] = False
                is_true_positive[detection] = True
            else:
                crowd_ious = ious[row][gt_is_crowd[true].astype(bool)]
                is_left_out[detection] = bool((crowd_ious >= MIN_IOU).any())
    kept = ~is_left_out
    counted = gt_classes[~gt_is_crowd.astype(bool)].astype(int)
    return MatchedDetections(
        scores[kept],
        classes[kept],
        np.zeros(kept.sum(), dtype=int),
        is_true_positive[kept],
        np.bincount(counted, minlength=num_classes)[None],
    )


def _ious(boxes: np.ndarray, gt_boxes: np.ndarray, gt_is_crowd: np.ndarray) -> np.ndarray:
    """(D, G) IoUs; for a crowd the fraction of the detection that it covers."""
    if len(boxes) == 0 or len(gt_boxes) == 0:
        return np.zeros((len(boxes), len(gt_boxes)))
    return coco_mask.iou(_to_xywh(boxes), _to_xywh(gt_boxes), gt_is_crowd.astype(np.uint8))


def _to_xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
