"""Predictions and training targets of the one-stage head.

N: queries, with one image each. A: anchors of all levels (A_i of level i), row-major, one per
location. T: tokens. Boxes and anchors are XYXY in pixels of the padded network input with
*inclusive* corners, width = x2 - x1 + 1 (glip_reference.md 1); they leave the head in Detectron2's
convention.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DensePredictions:
    """Raw outputs of the grounding head, finest level first.

    Attributes:
        token_logits_per_level: (N, A_i, T) region-word logits.
        box_deltas_per_level: (N, A_i, 4) in the box coder's units.
        centerness_per_level: (N, A_i) logits.
        anchors_per_level: (A_i, 4).
    """

    token_logits_per_level: list[Tensor]
    box_deltas_per_level: list[Tensor]
    centerness_per_level: list[Tensor]
    anchors_per_level: list[Tensor]


@dataclass(frozen=True)
class DenseTargets:
    """Training targets of every anchor of a batch.

    Attributes:
        matched_idxs: (N, A) int64, index of the matched ground truth of the image, or -1.
        token_targets: (N, A, T) float, 1 on the tokens of the matched ground truth.
        box_deltas: (N, A, 4) encoded ground truth; zeros for background.
    """

    matched_idxs: Tensor
    token_targets: Tensor
    box_deltas: Tensor
