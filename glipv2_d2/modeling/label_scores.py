"""Label scores and boxes at every location of an image, before thresholds and NMS.

A_i: anchors of level i. T: tokens. L: labels of the prompt. Levels come finest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from glipv2_d2.structures import DensePredictions
from glipv2_d2.text.token_maps import label_scores


@dataclass(frozen=True)
class LabelScores:
    """Scores of the labels of one prompt, and boxes as deltas.

    Attributes:
        scores_per_level: (A_i, L), 0..1, before centerness.
        centerness_per_level: (A_i,), 0..1.
        box_deltas_per_level: (A_i, 4) in the box coder's units.
        anchors_per_level: (A_i, 4), XYXY with inclusive corners in pixels of the network input.
    """

    scores_per_level: list[Tensor]
    centerness_per_level: list[Tensor]
    box_deltas_per_level: list[Tensor]
    anchors_per_level: list[Tensor]

    @staticmethod
    def of_image(
        predictions: DensePredictions, index: int, positive_map: Tensor, aggregation: str
    ) -> LabelScores:
        """The label scores of one image of a batch.

        Args:
            index: index of the image.
            positive_map: (L, T) bool, the tokens that spell each label.
            aggregation: how token scores become a label's score, see
                :func:`~glipv2_d2.text.token_maps.label_scores`.
        """
        return LabelScores(
            scores_per_level=[
                label_scores(logits[index].float().sigmoid(), positive_map, aggregation)
                for logits in predictions.token_logits_per_level
            ],
            centerness_per_level=[
                logits[index].float().sigmoid() for logits in predictions.centerness_per_level
            ],
            box_deltas_per_level=[
                deltas[index].float() for deltas in predictions.box_deltas_per_level
            ],
            anchors_per_level=predictions.anchors_per_level,
        )

    def lerp(self, other: LabelScores, weight: float) -> LabelScores:
        """Linear interpolation with the scores of the same labels and anchors."""

        def mix(ours: list[Tensor], theirs: list[Tensor]) -> list[Tensor]:
            return [a.lerp(b, weight) for a, b in zip(ours, theirs, strict=True)]

        return LabelScores(
            mix(self.scores_per_level, other.scores_per_level),
            mix(self.centerness_per_level, other.centerness_per_level),
            mix(self.box_deltas_per_level, other.box_deltas_per_level),
            self.anchors_per_level,
        )

    def best_scores(self) -> Tensor:
        """(L,) the maximal detection score of each label over all locations."""
        products = [
            (scores * centerness[:, None]).amax(dim=0)
            for scores, centerness in zip(
                self.scores_per_level, self.centerness_per_level, strict=True
            )
        ]
        return torch.stack(products).amax(dim=0).sqrt()
