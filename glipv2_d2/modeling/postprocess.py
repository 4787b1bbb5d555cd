"""From the grounding head's raw outputs to detections.

N: images. A_i: anchors of level i. T: tokens. L: labels of one prompt. K: detections of one image.
S: side of a mask.
Until :func:`to_instances`, boxes are XYXY with inclusive corners in pixels of the network input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

from glipv2_d2.layers.box_coder import (
    BoxCoder,
    pairwise_iou_inclusive,
    to_exclusive,
    to_inclusive,
)
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.label_scores import LabelScores
from glipv2_d2.structures import DensePredictions

MASK_THRESHOLD = 0.5
"""A pixel of at least this probability belongs to a mask."""


@dataclass(frozen=True)
class PostprocessSettings:
    """What counts as a detection.

    Attributes:
        score_thresh: (anchor, label) pairs whose label score, before centerness, is not above it
            are dropped.
        pre_nms_topk: pairs kept per image and level.
        nms_thresh: a box that overlaps a better one of its label by more than this IoU is dropped.
        detections_per_prompt: boxes kept in the end; ties with the last one stay, too.
        aggregation: how token scores become a label's score, see
            :func:`glipv2_d2.text.token_maps.label_scores`.
    """

    score_thresh: float
    pre_nms_topk: int
    nms_thresh: float
    detections_per_prompt: int
    aggregation: str

    def __post_init__(self) -> None:
        for name in ("score_thresh", "nms_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"MODEL.GROUNDING.{name.upper()} is {getattr(self, name)}; "
                    "it must lie between 0 and 1"
                )
        for name in ("pre_nms_topk", "detections_per_prompt"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"MODEL.GROUNDING.{name.upper()} is {getattr(self, name)}; "
                    "it must be at least 1"
                )


@dataclass(frozen=True)
class DetectionsPerImage:
    """What was found in one image with one prompt.

    Attributes:
        boxes: (K, 4).
        scores: (K,), 0..1: the geometric mean of label score and centerness.
        labels: (K,) int64, index of the prompt's label.
        locations: (K,) int64, which location of the maps said so, counted over all levels.
        masks: (K, S, S), 0..1, the pixels of each box on a grid; None: no masks were asked for.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    locations: Tensor
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, selection: Tensor) -> DetectionsPerImage:
        """The detections of a bool (K,) or index tensor."""
        return DetectionsPerImage(
            self.boxes[selection],
            self.scores[selection],
            self.labels[selection],
            self.locations[selection],
            None if self.masks is None else self.masks[selection],
        )

    @staticmethod
    def cat(parts: Sequence[DetectionsPerImage]) -> DetectionsPerImage:
        """All detections of at least one part, without masks."""
        return DetectionsPerImage(
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.locations for part in parts]),
        )


@torch.no_grad()
def detect(
    predictions: DensePredictions,
    positive_maps: Sequence[Tensor],
    image_sizes: Sequence[tuple[int, int]],
    settings: PostprocessSettings,
    box_coder: BoxCoder,
    negatives_per_image: Sequence[Sequence[int]] | None = None,
) -> list[DetectionsPerImage]:
    """Detections of every image, best first (GLIP spec 12).

    Args:
        predictions: raw outputs of the head.
        positive_maps: per image (L, T) bool, the tokens that spell each label of its prompt.
        image_sizes: per image (height, width) in pixels without padding: boxes are clipped to it.
        settings: thresholds and limits.
        box_coder: the coder of the deltas.
        negatives_per_image: see :func:`detect_labels`.

    Returns:
        One per image.
    """
    return [
        detect_labels(
            LabelScores.of_image(predictions, index, positive_map, settings.aggregation),
            image_size,
            settings,
            box_coder,
            negatives_per_image[index] if negatives_per_image else (),
        )
        for index, (positive_map, image_size) in enumerate(
            zip(positive_maps, image_sizes, strict=True)
        )
    ]


@torch.no_grad()
def detect_labels(
    predictions: LabelScores,
    image_size: tuple[int, int],
    settings: PostprocessSettings,
    box_coder: BoxCoder,
    negative_labels: Sequence[int] = (),
) -> DetectionsPerImage:
    """Detections of one image, best first.

    Args:
        predictions, image_size, settings, box_coder: see :func:`detect`.
        negative_labels: labels that only compete. A detection is dropped where a box of theirs
            overlaps it with an IoU of at least ``nms_thresh`` and a higher score; they themselves
            are not detected.
    """
    num_locations = [len(anchors) for anchors in predictions.anchors_per_level]
    firsts = list(itertools.accumulate(num_locations, initial=0))[:-1]
    candidates = DetectionsPerImage.cat(
        [
            _select_candidates(scores, centerness, deltas, anchors, first, settings, box_coder)
            for scores, centerness, deltas, anchors, first in zip(
                predictions.scores_per_level,
                predictions.centerness_per_level,
                predictions.box_deltas_per_level,
                predictions.anchors_per_level,
                firsts,
                strict=True,
            )
        ]
    )
    return _suppress_and_limit(_clip(candidates, image_size), settings, negative_labels)


def among_best(
    found: DetectionsPerImage, others: Sequence[DetectionsPerImage], limit: int
) -> DetectionsPerImage:
    """Those of ``found`` that are among the ``limit`` best of all; ties with the last one stay."""
    scores = torch.cat([found.scores, *(detections.scores for detections in others)])
    if len(scores) <= limit:
        return found
    if limit == 0:
        return found[found.labels[:0]]
    return found[found.scores >= scores.topk(limit).values[-1]]


def to_instances(
    detections: DetectionsPerImage,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    classes: Sequence[int],
) -> Instances:
    """Detections as Detectron2's Instances, in the size in which the caller wants them.

    The inclusive corners are scaled first and made exclusive afterwards, and the result is not
    clipped again, although in an image that shrinks it may exceed the border by a part of a pixel.
    In this order COCO results are those of GLIP, whose LVIS evaluation alone leaves the added pixel
    out (GLIP spec 18).

    Args:
        detections: of one image.
        image_size: (height, width) of the network input without padding.
        output_size: (height, width) of the result.
        classes: for each label of the prompt, the caller's class.

    Returns:
        ``pred_boxes`` (Detectron2's XYXY), ``scores``, ``pred_classes``; of size ``output_size``.
        Masks become ``pred_masks`` as they are, for :func:`paste_masks`.
    """
    (height, width), (output_height, output_width) = image_size, output_size
    scale_x, scale_y = output_width / width, output_height / height
    boxes = detections.boxes * detections.boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
    class_of_label = torch.as_tensor(classes, dtype=torch.int64, device=detections.labels.device)
    instances = Instances(output_size)
    instances.pred_boxes = Boxes(to_exclusive(boxes))
    instances.scores = detections.scores
    instances.pred_classes = class_of_label[detections.labels]
    if detections.masks is not None:
        instances.pred_masks = detections.masks
    return instances


def paste_masks(instances: Instances, image_size: tuple[int, int]) -> Instances:
    """Masks on the grids of their boxes -> masks of the whole image.

    A mask is of the pixels that its box covers in the network input, which end at the inclusive
    corner plus one. Scaled, they end ``scale - 1`` pixels behind the box of :func:`to_instances`,
    which gets its added pixel afterwards.

    Args:
        instances: of :func:`to_instances`, with ``pred_masks`` (K, S, S), 0..1.
        image_size: (height, width) of the network input without padding.

    Returns:
        The same with ``pred_masks`` (K, height, width) bool, in the size of ``instances``.
    """
    (height, width), (output_height, output_width) = image_size, instances.image_size
    scale_x, scale_y = output_width / width, output_height / height
    corners = to_inclusive(instances.pred_boxes.tensor)
    covered = corners + corners.new_tensor([0, 0, scale_x, scale_y])
    pasted = paste_masks_in_image(
        full_precision(instances.pred_masks), covered, instances.image_size, MASK_THRESHOLD
    )
    instances.pred_masks = pasted.bool()
    return instances


def nms_inclusive(boxes: Tensor, scores: Tensor, labels: Tensor, iou_thresh: float) -> Tensor:
    """Greedy non-maximum suppression within each label, on boxes with inclusive corners.

    Exclusive corners give torchvision's ``nms`` the areas of inclusive ones. The boxes of every
    label are moved to a place of their own, as ``torchvision.ops.batched_nms`` does; that works in
    float32, where a thousand labels leave a grid of an eighth of a pixel, and this in float64.

    Args:
        boxes: (K, 4).
        scores: (K,).
        labels: (K,) int64.
        iou_thresh: boxes with a larger IoU are suppressed.

    Returns:
        Indices of the boxes to keep, best first.
    """
    if len(boxes) == 0:
        return labels.new_zeros(0)
    boxes = to_exclusive(boxes.double())
    extent = boxes.max() - boxes.min() + 1
    return nms(boxes + (labels * extent)[:, None], scores.double(), iou_thresh)


def _select_candidates(
    label_scores: Tensor,
    centerness: Tensor,
    box_deltas: Tensor,
    anchors: Tensor,
    first_location: int,
    settings: PostprocessSettings,
    box_coder: BoxCoder,
) -> DetectionsPerImage:
    """The best (anchor, label) pairs of one level of one image; only these are decoded.

    Args:
        label_scores: (A_i, L).
        centerness: (A_i,), 0..1.
        box_deltas: (A_i, 4).
        anchors: (A_i, 4).
        first_location: how many locations the levels before have.
    """
    anchor_idxs, labels = (label_scores > settings.score_thresh).nonzero(as_tuple=True)
    scores = label_scores[anchor_idxs, labels] * centerness[anchor_idxs]
    scores, best = scores.topk(min(settings.pre_nms_topk, len(scores)))
    anchor_idxs, labels = anchor_idxs[best], labels[best]
    boxes = box_coder.decode(box_deltas[anchor_idxs], anchors[anchor_idxs])
    return DetectionsPerImage(boxes, scores.sqrt(), labels, anchor_idxs + first_location)


def _clip(detections: DetectionsPerImage, image_size: tuple[int, int]) -> DetectionsPerImage:
    """Boxes clipped to the pixels of an image (height, width)."""
    height, width = image_size
    last_pixel = detections.boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
    boxes = torch.minimum(detections.boxes.clamp(min=0), last_pixel)
    return replace(detections, boxes=boxes)


def _suppress_and_limit(
    candidates: DetectionsPerImage, settings: PostprocessSettings, negative_labels: Sequence[int]
) -> DetectionsPerImage:
    """Candidates of all levels without duplicates, as many as wanted and ties with the last."""
    kept = candidates[
        nms_inclusive(candidates.boxes, candidates.scores, candidates.labels, settings.nms_thresh)
    ]
    if len(negative_labels) > 0:
        kept = _without_negatives(kept, candidates, negative_labels, settings.nms_thresh)
    if len(kept) <= settings.detections_per_prompt:
        return kept
    worst_score = kept.scores[settings.detections_per_prompt - 1]
    return kept[kept.scores >= worst_score]


def _without_negatives(
    found: DetectionsPerImage,
    candidates: DetectionsPerImage,
    negative_labels: Sequence[int],
    iou_thresh: float,
) -> DetectionsPerImage:
    """The detections of other labels than the negative ones, whose candidates none of them shows.

    All candidates of a negative count, not only those that its own better boxes leave: the box of
    the same location is among them.
    """
    negatives = torch.as_tensor(negative_labels, device=candidates.labels.device)
    rivals = candidates[torch.isin(candidates.labels, negatives)]
    found = found[~torch.isin(found.labels, negatives)]
    # A few boxes at a time: both may be thousands.
    is_beaten = [
        (
            (pairwise_iou_inclusive(boxes, rivals.boxes) >= iou_thresh)
            & (rivals.scores > scores[:, None])
        ).any(dim=1)
        for boxes, scores in zip(found.boxes.split(256), found.scores.split(256), strict=True)
    ]
    return found[~torch.cat(is_beaten)]
