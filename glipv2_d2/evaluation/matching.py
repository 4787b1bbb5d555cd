"""Which detections of labelled images are right, and how good that makes them together.

D: detections of all images. C: classes. A detection is *right* when it is the best that shows a
box of its class with an IoU of at least 0.5, as COCO's evaluation pairs them.
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
    """The detections of labelled images, compared with the truth.

    Attributes:
        scores: (D,).
        classes: (D,) int.
        images: (D,) int, index of the image.
        is_right: (D,) bool.
        num_boxes: (images, C) int, the true boxes, crowds left out.
    """

    scores: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    is_right: np.ndarray
    num_boxes: np.ndarray

    @staticmethod
    def cat(parts: Sequence[MatchedDetections]) -> MatchedDetections:
        """The images of all parts, one after the other."""
        starts = np.cumsum([0, *(len(part.num_boxes) for part in parts)])
        return MatchedDetections(
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.classes for part in parts]),
            np.concatenate(
                [part.images + start for part, start in zip(parts, starts, strict=False)]
            ),
            np.concatenate([part.is_right for part in parts]),
            np.concatenate([part.num_boxes for part in parts]),
        )

    def of_images(self, wanted: np.ndarray) -> MatchedDetections:
        """Those of some images, given as (images,) bool."""
        kept = wanted[self.images]
        return MatchedDetections(
            self.scores[kept],
            self.classes[kept],
            (np.cumsum(wanted) - 1)[self.images[kept]],
            self.is_right[kept],
            self.num_boxes[wanted],
        )

    def of_class(self, class_: int) -> MatchedDetections:
        kept = self.classes == class_
        return MatchedDetections(
            self.scores[kept],
            self.classes[kept],
            self.images[kept],
            self.is_right[kept],
            self.num_boxes[:, class_ : class_ + 1],
        )

    def at_least(self, threshold: float | np.ndarray) -> Quality:
        """How good those are that reach a threshold, one for all or (D,) for each."""
        kept = self.scores >= threshold
        return Quality(int(self.is_right[kept].sum()), int(kept.sum()), int(self.num_boxes.sum()))


@dataclass(frozen=True)
class Quality:
    """How good some detections are; what cannot be said is nan."""

    num_right: int
    num_detections: int
    num_boxes: int

    @property
    def precision(self) -> float:
        return self.num_right / self.num_detections if self.num_detections else math.nan

    @property
    def recall(self) -> float:
        return self.num_right / self.num_boxes if self.num_boxes else math.nan

    @property
    def f1(self) -> float:
        total = self.num_detections + self.num_boxes
        return 2 * self.num_right / total if total else math.nan

    @property
    def precision_interval(self) -> tuple[float, float]:
        """Between which values the precision of such detections lies (Wilson, 95 %)."""
        return wilson_interval(self.num_right, self.num_detections)


def wilson_interval(num_right: int, num: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, eq. for the confidence interval).

    >>> [round(x, 3) for x in wilson_interval(9, 10)]
    [0.596, 0.982]
    """
    if num == 0:
        return 0.0, 1.0
    z, share = 1.959964, num_right / num
    middle = share + z * z / (2 * num)
    half = z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
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
    """Compare the detections of one image with its truth.

    The surest detection of a class chooses its box first, that of the highest IoU. Detections that
    show a crowd of their class, and nothing else, are left out.

    Args:
        boxes: (D, 4) XYXY in pixels of the image.
        scores, classes: (D,).
        gt_boxes: (G, 4) XYXY.
        gt_classes, gt_is_crowd: (G,).
        num_classes: C.
    """
    is_right = np.zeros(len(scores), dtype=bool)
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
                # Of equal ones the last, as pycocotools has it.
                is_free[len(true) - 1 - candidates[::-1].argmax()] = False
                is_right[detection] = True
            else:
                shown = ious[row][gt_is_crowd[true].astype(bool)]
                is_left_out[detection] = bool((shown >= MIN_IOU).any())
    kept = ~is_left_out
    counted = gt_classes[~gt_is_crowd.astype(bool)].astype(int)
    return MatchedDetections(
        scores[kept],
        classes[kept],
        np.zeros(kept.sum(), dtype=int),
        is_right[kept],
        np.bincount(counted, minlength=num_classes)[None],
    )


def _ious(boxes: np.ndarray, gt_boxes: np.ndarray, gt_is_crowd: np.ndarray) -> np.ndarray:
    """(D, G); of a crowd the share of the detection that it covers."""
    if len(boxes) == 0 or len(gt_boxes) == 0:
        return np.zeros((len(boxes), len(gt_boxes)))
    return coco_mask.iou(_to_xywh(boxes), _to_xywh(gt_boxes), gt_is_crowd.astype(np.uint8))


def _to_xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
