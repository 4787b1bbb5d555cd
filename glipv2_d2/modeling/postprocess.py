"""From label scores to detections, and from detections to the results of an image.

A_i: anchors of level i. L: labels of one prompt. K: detections of one image. S: side of a mask.
Until :func:`to_instances`, boxes are XYXY with inclusive corners in pixels of the network input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from glipv2_d2.layers.box_coder import (
    BoxCoder,
    pairwise_iou_inclusive,
    to_exclusive,
    to_inclusive,
)
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.layers.tracing import boxes_of, is_tracing
from glipv2_d2.modeling.label_scores import LabelScores
from glipv2_d2.modeling.prompt_builder import caption_phrases
from glipv2_d2.structures import Query, fields
from glipv2_d2.text.token_maps import AGGREGATIONS

MASK_THRESHOLD = 0.5
"""Pixels of at least this probability belong to a mask."""


@dataclass(frozen=True)
class PostprocessSettings:
    """Thresholds and limits of detection.

    Attributes:
        score_thresh: minimum (exclusive) of a label score before centerness.
        pre_nms_topk: (anchor, label) pairs kept per image and level.
        nms_thresh: IoU above which the worse of two boxes of a label is suppressed.
        detections_per_prompt: boxes kept in the end, ties with the last one included.
        aggregation: from token scores to label scores, see
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
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        for name in ("pre_nms_topk", "detections_per_prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.aggregation not in AGGREGATIONS:
            raise ValueError(
                f"aggregation is {self.aggregation!r}; choose one of {', '.join(AGGREGATIONS)}"
            )


@dataclass(frozen=True)
class DetectionsPerImage:
    """Detections of one prompt in one image.

    Attributes:
        boxes: (K, 4).
        scores: (K,), 0..1: the geometric mean of label score and centerness.
        labels: (K,) int64, index of the prompt's label.
        locations: (K,) int64, index of the location over all levels.
        masks: (K, S, S), 0..1, on a grid over each box; None without masks.
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
        """All detections of at least one part, with masks if all parts have them."""
        masks = [part.masks for part in parts if part.masks is not None]
        return DetectionsPerImage(
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.locations for part in parts]),
            torch.cat(masks) if len(masks) == len(parts) else None,
        )


@torch.no_grad()
def detect_labels(
    predictions: LabelScores,
    image_size: tuple[int, int],
    settings: PostprocessSettings,
    box_coder: BoxCoder,
    negative_labels: Sequence[int] = (),
) -> DetectionsPerImage:
    """Detections of one image, best first (glip_reference.md 12).

    Args:
        predictions: label scores and boxes at every location.
        image_size: (height, width) in pixels without padding; boxes are clipped to it.
        settings: thresholds and limits.
        box_coder: decodes the box deltas.
        negative_labels: labels that only compete. A detection is dropped if a box of theirs
            overlaps it with an IoU of at least ``nms_thresh`` and a higher score; they are not
            returned.
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


def merge_detections(
    parts: Sequence[DetectionsPerImage], image_size: tuple[int, int], settings: PostprocessSettings
) -> DetectionsPerImage:
    """Detections of one prompt from several views of an image, best first: NMS and limit.

    Args:
        parts: at least one, in pixels of the same image.
        image_size: (height, width) of that image; boxes are clipped to it.
        settings: thresholds and limits of each part.
    """
    return _suppress_and_limit(_clip(DetectionsPerImage.cat(parts), image_size), settings, ())


def keep_topk(
    detections: DetectionsPerImage, others: Sequence[DetectionsPerImage], limit: int
) -> DetectionsPerImage:
    """The detections among the ``limit`` best of all, ties with the last one included."""
    if limit == 0:
        return detections[detections.labels[:0]]
    scores = torch.cat([detections.scores, *(x.scores for x in others)])
    return detections[detections.scores >= _kth_best(scores, limit)]


@dataclass(frozen=True)
class ChunkDetections:
    """Detections of one query: one chunk of an image's class names, or its caption."""

    query: Query
    detections: DetectionsPerImage


def image_results(
    x: dict[str, Any],
    chunks: Sequence[ChunkDetections],
    image_size: tuple[int, int],
    limit: int,
) -> dict[str, Any]:
    """The detections of all chunks of an image, in the caller's pixels and classes.

    Args:
        x: the input dict.
        chunks: one per query of the image; none if nothing is to be localized.
        image_size: (height, width) of the network input without padding.
        limit: detections kept of the image, the best, best first; -1: all, chunk by chunk.

    Returns:
        ``instances`` and, for a caption, ``phrases`` (see structures.fields); empty without chunks.
    """
    if not chunks:
        return {}
    output_size = (x.get(fields.HEIGHT, image_size[0]), x.get(fields.WIDTH, image_size[1]))
    parts: list[DetectionsPerImage] = []
    classes: list[int] = []
    for chunk in chunks:
        labels = chunk.detections.labels + len(classes)
        parts.append(replace(chunk.detections, labels=labels))
        classes += chunk.query.prompt.classes
    found = DetectionsPerImage.cat(parts)
    if limit >= 0:
        found = found[found.scores.sort(descending=True, stable=True).indices[:limit]]
    instances = to_instances(found, image_size, output_size, classes)
    if instances.has("pred_masks"):
        instances = paste_masks(instances, image_size)
    results: dict[str, Any] = {fields.INSTANCES: instances}
    if fields.CAPTION in x:
        results[fields.PHRASES] = caption_phrases(x, chunks[0].query.prompt)
    return results


def to_instances(
    detections: DetectionsPerImage,
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    classes: Sequence[int],
) -> Instances:
    """Detections as Detectron2's Instances in the requested size.

    The inclusive corners are scaled first and made exclusive afterwards, without clipping again, so
    that a box of a shrunk image may exceed the border by a part of a pixel. In this order COCO
    results equal GLIP's; its LVIS and Flickr30k evaluations omit the added pixel (glip_reference.md
    18).

    Args:
        detections: detections of one image.
        image_size: (height, width) of the network input without padding.
        output_size: (height, width) of the result.
        classes: for each label of the prompt, the caller's class.

    Returns:
        ``pred_boxes`` (Detectron2's XYXY), ``scores``, ``pred_classes``; of size ``output_size``.
        Masks become ``pred_masks`` unchanged, for :func:`paste_masks`.
    """
    (height, width), (output_height, output_width) = image_size, output_size
    scale_x, scale_y = output_width / width, output_height / height
    boxes = detections.boxes * detections.boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
    class_of_label = torch.as_tensor(classes, dtype=torch.int64, device=detections.labels.device)
    instances = Instances(output_size)
    # Instances.set() needs the number, which torch.export does not know.
    instances.get_fields().update(
        pred_boxes=boxes_of(to_exclusive(boxes)),
        scores=detections.scores,
        pred_classes=class_of_label[detections.labels],
    )
    if detections.masks is not None:
        instances.pred_masks = detections.masks
    return instances


def paste_masks(instances: Instances, image_size: tuple[int, int]) -> Instances:
    """Paste masks from the grids of their boxes into the image.

    A mask covers the pixels of its box in the network input, which end at the inclusive corner plus
    one. Scaled, they end ``scale - 1`` pixels after the box of :func:`to_instances`, whose pixel is
    added afterwards.

    Args:
        instances: from :func:`to_instances`, with ``pred_masks`` (K, S, S), 0..1.
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

    Exclusive corners give torchvision's ``nms`` the areas of inclusive ones. Boxes of different
    labels are moved apart, as in ``torchvision.ops.batched_nms``, but in float64: in float32 a
    thousand labels leave a grid of an eighth of a pixel.

    Args:
        boxes: (K, 4).
        scores: (K,).
        labels: (K,) int64.
        iou_thresh: boxes with a larger IoU are suppressed.

    Returns:
        Indices of the boxes to keep, best first.
    """
    boxes = to_exclusive(boxes.double())
    # With a zero, there is an extreme without boxes; tracers cannot branch on the number of boxes.
    coordinates = F.pad(boxes.flatten(), (0, 1))
    extent = coordinates.max() - coordinates.min() + 1
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
    """The best (anchor, label) pairs of one level of one image, decoded.

    Args:
        label_scores: (A_i, L).
        centerness: (A_i,), 0..1.
        box_deltas: (A_i, 4).
        anchors: (A_i, 4).
        first_location: number of locations of the finer levels.
    """
    scores = label_scores * centerness[:, None]
    # Pairs below the threshold come last, so that the number of the best does not depend on the
    # image, which a tracer would record as a constant.
    scores = scores.masked_fill(~(label_scores > settings.score_thresh), -1).flatten()
    scores, best = scores.topk(min(settings.pre_nms_topk, len(scores)))
    scores, best = scores[scores >= 0], best[scores >= 0]
    num_labels = label_scores.shape[1]
    anchor_idxs, labels = best // max(num_labels, 1), best % max(num_labels, 1)
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
    """NMS over the candidates of all levels, and the limit (ties with the last one stay)."""
    kept = candidates[
        nms_inclusive(candidates.boxes, candidates.scores, candidates.labels, settings.nms_thresh)
    ]
    if len(negative_labels) > 0:
        kept = _suppress_by_negatives(kept, candidates, negative_labels, settings.nms_thresh)
    return kept[kept.scores >= _kth_best(kept.scores, settings.detections_per_prompt)]


def _kth_best(scores: Tensor, k: int) -> Tensor:
    """The k-th best of scores (K,), 0..1; 0 if there are fewer."""
    # A tracer would record the branch as a constant. Zeros stand in for scores that are missing.
    if not is_tracing() and len(scores) < k:
        return scores.new_zeros(())
    return F.pad(scores, (0, k)).topk(k).values[-1]


def _suppress_by_negatives(
    detections: DetectionsPerImage,
    candidates: DetectionsPerImage,
    negative_labels: Sequence[int],
    iou_thresh: float,
) -> DetectionsPerImage:
    """The detections of other labels that no candidate of a negative label beats.

    All candidates of a negative compete, also those that NMS suppresses: the box of the same
    location is among them.
    """
    negatives = torch.as_tensor(negative_labels, device=candidates.labels.device)
    rivals = candidates[torch.isin(candidates.labels, negatives)]
    detections = detections[~torch.isin(detections.labels, negatives)]
    if is_tracing():
        return detections[~_is_beaten(detections.boxes, detections.scores, rivals, iou_thresh)]
    # A few boxes at a time: both may be thousands.
    is_beaten = [
        _is_beaten(boxes, scores, rivals, iou_thresh)
        for boxes, scores in zip(
            detections.boxes.split(256), detections.scores.split(256), strict=True
        )
    ]
    return detections[~torch.cat(is_beaten)]


def _is_beaten(
    boxes: Tensor, scores: Tensor, rivals: DetectionsPerImage, iou_thresh: float
) -> Tensor:
    """(K,) bool, whether a rival overlaps each of the boxes (K, 4) and has a higher score."""
    overlaps = pairwise_iou_inclusive(boxes, rivals.boxes) >= iou_thresh
    return (overlaps & (rivals.scores > scores[:, None])).any(dim=1)
