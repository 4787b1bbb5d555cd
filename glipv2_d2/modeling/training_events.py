"""What a training step writes to Detectron2's EventStorage: scalars and pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.structures import DensePredictions, DenseTargets, Query, fields

MAX_BOXES = 20
"""Predictions drawn in a picture, as in Detectron2's RetinaNet."""


@torch.no_grad()
def put_grounding_scalars(predictions: DensePredictions, targets: DenseTargets) -> None:
    """Write the share of positive anchors, and their mean region-word score.

    The score is the mean probability of the tokens of the matched ground truth, 0..1. A batch
    without positives has none.
    """
    storage = get_event_storage()
    is_positive = targets.matched_idxs >= 0  # (N, A)
    storage.put_scalar("grounding/foreground_share", is_positive.float().mean())
    scores = _positive_scores(predictions, targets, is_positive)
    if len(scores) > 0:
        storage.put_scalar("grounding/positive_score", scores.mean())


def _positive_scores(
    predictions: DensePredictions, targets: DenseTargets, is_positive: Tensor
) -> Tensor:
    """(K,) the mean probability of the tokens of each positive anchor."""
    # Level by level: concatenating the logits would copy the largest tensor.
    logits_per_level = predictions.token_logits_per_level
    num_anchors = [logits.shape[1] for logits in logits_per_level]
    probs, tokens = [], []
    for logits, positive, token_targets in zip(
        logits_per_level,
        is_positive.split(num_anchors, dim=1),
        targets.token_targets.split(num_anchors, dim=1),
        strict=True,
    ):
        probs.append(full_precision(logits[positive]).sigmoid())
        tokens.append(token_targets[positive] != 0)
    is_token = torch.cat(tokens)
    # The columns of padding are undefined.
    sums = torch.cat(probs).masked_fill(~is_token, 0).sum(dim=1)
    return sums / is_token.sum(dim=1).clamp(min=1)


def put_training_image(
    x: dict[str, Any], query: Query, detections: Instances, image_format: str
) -> None:
    """Write a picture of a training image: ground truth on top, the best predictions below.

    Args:
        x: the input dict.
        query: one of its queries, with ground truth.
        detections: those of the query in pixels of the network input, ``pred_classes`` as in
            ``gt_classes``.
        image_format: the order of the channels, as ``INPUT.FORMAT``.
    """
    # With matplotlib, a quarter of the time of importing this package.
    from detectron2.utils.visualizer import Visualizer

    assert query.gt_instances is not None
    image = convert_image_to_rgb(x[fields.IMAGE].permute(1, 2, 0), image_format)
    names = dict(zip(query.prompt.classes, query.prompt.phrases, strict=True))
    best = detections[detections.scores.argsort(descending=True)[:MAX_BOXES]].to("cpu")
    truth = query.gt_instances.to("cpu")
    pictures = [
        Visualizer(image).overlay_instances(boxes=boxes, labels=labels).get_image()
        for boxes, labels in (
            (truth.gt_boxes, [names.get(c, str(c)) for c in truth.gt_classes.tolist()]),
            (
                best.pred_boxes,
                [
                    f"{names[c]} {100 * score:.0f}%"
                    for c, score in zip(
                        best.pred_classes.tolist(), best.scores.tolist(), strict=True
                    )
                ],
            ),
        )
    ]
    name = f"Top: GT bounding boxes; Bottom: {MAX_BOXES} Highest Scoring Results"
    get_event_storage().put_image(name, np.vstack(pictures).transpose(2, 0, 1))
