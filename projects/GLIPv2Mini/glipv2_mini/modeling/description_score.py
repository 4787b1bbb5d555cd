"""What phrases state about an object beside its name: place, size and colour.

N: images. A: locations of all levels. T: tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.structures import TokenBatch
from glipv2_mini.modeling.colors import NUM_COLORS, color_logits
from glipv2_mini.modeling.relational_score import RelationalScore
from glipv2_mini.text.phrases import describe_phrase

_NUM_DIRECTIONS = 3


@dataclass(frozen=True)
class Descriptions:
    """How the phrase of each token describes its object; zeros for tokens of none.

    Attributes:
        directions: (N, T, 3): right, down, larger.
        colors: (N, T, 11), 1 for the colours of the phrase.
    """

    directions: Tensor
    colors: Tensor

    @staticmethod
    def split(values: Tensor) -> Descriptions:
        """The parts of (N, T, 3 + 11) values of :func:`describe`."""
        return Descriptions(*values.split([_NUM_DIRECTIONS, NUM_COLORS], dim=-1))


class DescriptionScore(nn.Module):
    """Adds scores of place, size and colour to region-word logits (our choice).

    A :class:`RelationalScore` compares the boxes of a phrase. Of its colours, a box should have
    more than is usual in photos, and as much as the other candidates.
    """

    def __init__(self) -> None:
        super().__init__()
        self.relation = RelationalScore()
        self.color_weight = nn.Parameter(torch.ones(1))

    def forward(
        self,
        token_logits_per_level: Sequence[Tensor],
        boxes: Tensor,
        color_probs: Tensor,
        descriptions: Descriptions,
    ) -> list[Tensor]:
        """(N, A_i, T) region-word logits each -> the same with the scores added.

        Args:
            boxes: (N, A, 4) of all locations, XYXY with inclusive corners, in pixels.
            color_probs: (N, A, 11), of the boxes.
        """
        # A phrase of several colours needs each of them.
        share = descriptions.colors / descriptions.colors.sum(dim=-1, keepdim=True).clamp(min=1)
        scores = self.color_weight * (color_logits(color_probs) @ share.transpose(1, 2))
        sizes = [level.shape[1] for level in token_logits_per_level]
        colored = [
            full_precision(level) + own
            for level, own in zip(token_logits_per_level, scores.split(sizes, dim=1), strict=True)
        ]
        return self.relation(colored, boxes, descriptions.directions)


def describe(tokens: TokenBatch) -> Tensor:
    """(N, T, 3 + 11), the descriptions of all labels, at the tokens that spell them."""
    device = tokens.input_ids.device
    per_prompt = []
    for prompt, positive_map in zip(tokens.prompts, tokens.positive_maps, strict=True):
        rows = torch.tensor(
            [describe_phrase(label) for label in prompt.phrases],
            dtype=torch.float32,
            device=device,
        ).view(-1, _NUM_DIRECTIONS + NUM_COLORS)
        per_prompt.append(positive_map.to(rows).T @ rows)
    return torch.stack(per_prompt)
