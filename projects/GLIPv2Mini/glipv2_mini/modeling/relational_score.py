"""A score for relational phrases such as "the left apple".

N: images. A: locations of all levels. T: tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.box_coder import box_centers, box_sizes
from glipv2_d2.layers.dtypes import full_precision

# Inverse temperature of the softmax that weights the candidate locations of a token.
SHARPNESS = 2.0
INITIAL_STRENGTH = 3.0


class RelationalScore(nn.Module):
    """A score of each box by its position and size relative to the candidates of a token.

    The candidates are all locations, weighted by the softmax of their region-word logits. Their
    weighted mean and spread normalise the x, y and log-area of every box. The log-sigmoid of the
    projection onto the direction that a phrase describes (plus log 2) is added to the logit. Boxes
    on the wrong side are penalised; boxes that do not match the token hardly change.

    The image's size and padding do not matter.
    """

    def __init__(self) -> None:
        super().__init__()
        # Of right, down and larger.
        self.strength = nn.Parameter(torch.full((3,), INITIAL_STRENGTH))

    def forward(
        self, token_logits_per_level: Sequence[Tensor], boxes: Tensor, directions: Tensor
    ) -> list[Tensor]:
        """(N, A_i, T) region-word logits each -> the same with the relational score added.

        Args:
            boxes: (N, A, 4) of all locations, XYXY with inclusive corners, in pixels.
            directions: (N, T, 3), right, down, larger, of the phrase of each token; zeros change no
                score.
        """
        logits = torch.cat([full_precision(level) for level in token_logits_per_level], dim=1)
        with torch.autocast(logits.device.type, enabled=False):
            coordinates = _coordinates(full_precision(boxes))  # (N, A, 3)
            mean, spread = _candidate_statistics(
                logits.detach(), coordinates, full_precision(boxes)
            )
            direction = self.strength * directions / spread  # (N, T, 3)
            offset = (mean * direction).sum(dim=-1)[:, None]
            projection = coordinates @ direction.transpose(1, 2) - offset
            # The log-sigmoid, in the form that runtimes of exported graphs do not underflow.
            scored = logits - F.softplus(-projection) + math.log(2)
        sizes = [level.shape[1] for level in token_logits_per_level]
        return list(scored.split(sizes, dim=1))


def _coordinates(boxes: Tensor) -> Tensor:
    """(N, A, 4) -> (N, A, 3): x and y of the centre in pixels, and the logarithm of the area."""
    log_area = box_sizes(boxes).clamp(min=1).log().sum(dim=-1, keepdim=True)
    return torch.cat([box_centers(boxes), log_area], dim=-1)


def _candidate_statistics(
    logits: Tensor, coordinates: Tensor, boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted mean and spread of each token's candidates, (N, T, 3) each.

    The spread of x and y is at least half of the mean width and height, since overlapping objects
    are not far apart. The spread of the log-area is 1.
    """
    weights = (SHARPNESS * logits).softmax(dim=1).transpose(1, 2)  # (N, T, A)
    mean = weights @ coordinates
    variance = (weights @ coordinates.square() - mean.square()).clamp(min=0)
    half_size = weights @ box_sizes(boxes).clamp(min=1) / 2  # (N, T, 2)
    spread = (variance[..., :2] + half_size.square()).sqrt()
    return mean, torch.cat([spread, torch.ones_like(spread[..., :1])], dim=-1)
