"""A grounding head that compares the things that a phrase fits: "the left apple".

N: images. A: locations of all levels. T: tokens. D: width of the words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.box_coder import box_centers, box_sizes
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.heads.grounding_rpn import LANGUAGE, GroundingRPN
from glipv2_d2.structures import DensePredictions, TextFeatures

# How much more a likely location says about where the things are than an unlikely one.
SHARPNESS = 2.0


@PROPOSAL_GENERATOR_REGISTRY.register()
class ComparingGroundingRPN(GroundingRPN):
    """A :class:`GroundingRPN` whose region-word scores also know what else the word fits.

    Its weights are those of a GroundingRPN and a :class:`PlaceComparison`, which changes nothing
    until it has learned. Our choice; GLIP's head tells such things by their features alone.
    """

    checkpoint_optional = ("comparison.",)
    """Weights that those of a GroundingRPN lack."""

    @configurable
    def __init__(self, *, language_dim: int, **kwargs: Any) -> None:
        """Arguments as of :class:`GroundingRPN`; ``language_dim`` is D."""
        super().__init__(**kwargs)
        self.comparison = PlaceComparison(language_dim=language_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        arguments = super().from_config(cfg, input_shape)
        return {**arguments, "language_dim": input_shape[LANGUAGE].channels}

    def predict(self, features: dict[str, Tensor], language: TextFeatures) -> DensePredictions:
        predictions = super().predict(features, language)
        boxes = self.box_coder.decode(
            torch.cat(predictions.box_deltas_per_level, dim=1).detach(),
            torch.cat(predictions.anchors_per_level),
        )
        compared = self.comparison(predictions.token_logits_per_level, boxes, language)
        return replace(predictions, token_logits_per_level=compared)


class PlaceComparison(nn.Module):
    """Says of a box how well a word's place and size fit it, beside the word's other boxes.

    All locations that a word matches vote, the better the more, on where its things are: a mean
    and a spread. Every box is then so far left, so far down and so much larger than they are; the
    word says in which of these directions the thing that it means lies. That is a logit: its
    probability, twice, is multiplied into the region-word score, so that it takes away from boxes
    that lie on the wrong side and adds nearly nothing to those that the word does not match.

    What is left and what is large is told from boxes as they are found, without gradient to them.
    Sizes and places of the image do not count, nor does what is padded.
    """

    def __init__(self, *, language_dim: int) -> None:
        super().__init__()
        # Right, down, larger; from zeros, where the place of a box says nothing.
        self.direction = nn.Linear(language_dim, 3, bias=False)
        nn.init.zeros_(self.direction.weight)

    def forward(
        self, token_logits_per_level: Sequence[Tensor], boxes: Tensor, language: TextFeatures
    ) -> list[Tensor]:
        """(N, A_i, T) region-word logits each -> the same, compared.

        Args:
            boxes: (N, A, 4) of all locations, XYXY with inclusive corners, in pixels.
            language: (N, T, D), what regions are scored against.
        """
        logits = torch.cat([full_precision(level) for level in token_logits_per_level], dim=1)
        with torch.autocast(logits.device.type, enabled=False):
            places = _places(full_precision(boxes))  # (N, A, 3)
            mean, spread = _where_things_are(logits.detach(), places, full_precision(boxes))
            direction = self.direction(full_precision(language.hidden)) / spread  # (N, T, 3)
            fits = places @ direction.transpose(1, 2) - (mean * direction).sum(dim=-1)[:, None]
            compared = logits + F.logsigmoid(fits) + math.log(2)
        sizes = [level.shape[1] for level in token_logits_per_level]
        return list(compared.split(sizes, dim=1))


def _places(boxes: Tensor) -> Tensor:
    """(N, A, 4) -> (N, A, 3): x and y of the centre in pixels, and the logarithm of the area."""
    log_area = box_sizes(boxes).clamp(min=1).log().sum(dim=-1, keepdim=True)
    return torch.cat([box_centers(boxes), log_area], dim=-1)


def _where_things_are(logits: Tensor, places: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of the places that each word matches, (N, T, 3) each.

    Things that lie within each other's boxes are not far apart: the spread is at least half of
    their mean width and height. That of the area's logarithm is 1.
    """
    votes = (SHARPNESS * logits).softmax(dim=1).transpose(1, 2)  # (N, T, A)
    mean = votes @ places
    variance = (votes @ places.square() - mean.square()).clamp(min=0)
    half_size = votes @ box_sizes(boxes).clamp(min=1) / 2  # (N, T, 2)
    spread = (variance[..., :2] + half_size.square()).sqrt()
    return mean, torch.cat([spread, torch.ones_like(spread[..., :1])], dim=-1)
