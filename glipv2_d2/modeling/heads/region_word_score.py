"""Region-word scores: what a detector's classifier is replaced by (glip_reference.md 10)."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.checkpoint_prefixes import CheckpointPrefixes
from glipv2_d2.modeling.heads.base import RegionWordScore
from glipv2_d2.modeling.registry import build_part
from glipv2_d2.structures import TextFeatures

REGION_WORD_SCORE_REGISTRY = Registry("REGION_WORD_SCORE")
REGION_WORD_SCORE_REGISTRY.__doc__ = """
Region-word scores: ``obj(visual_dim=, language_dim=, prior_prob=, log_scale=)`` returns a
:class:`~glipv2_d2.modeling.heads.base.RegionWordScore`.
"""

# The reference clamps the logits so that fp16 does not overflow.
MAX_LOGIT = 50000.0
# Width of the space in which cosines are taken.
COSINE_DIM = 128


def build_region_word_score(cfg: CfgNode, visual_dim: int, language_dim: int) -> RegionWordScore:
    """Build the score that ``cfg.MODEL.GROUNDING.REGION_WORD_SCORE`` names."""
    settings = cfg.MODEL.GROUNDING
    return build_part(
        REGION_WORD_SCORE_REGISTRY,
        settings.REGION_WORD_SCORE,
        RegionWordScore,
        "MODEL.GROUNDING.REGION_WORD_SCORE",
        visual_dim=visual_dim,
        language_dim=language_dim,
        prior_prob=settings.PRIOR_PROB,
        log_scale=settings.LOG_SCALE,
    )


@REGION_WORD_SCORE_REGISTRY.register()
class DotProductScore(RegionWordScore):
    """GLIP's score: dot products of regions with projected text, plus a bias per token.

    The region feature is used as it is; the text feature is L2-normalised, halved and projected;
    a learned temperature divides the product.
    """

    def __init__(
        self, *, visual_dim: int, language_dim: int, prior_prob: float, log_scale: float = 0.0
    ) -> None:
        """
        Args:
            visual_dim: C, channels of a region.
            language_dim: D, width of the text features.
            prior_prob: the probability that an untrained model gives to every pair.
            log_scale: initial logarithm of the temperature.
        """
        super().__init__()
        self.projection = nn.Linear(language_dim, visual_dim)
        self.log_scale = nn.Parameter(torch.full((1,), log_scale))
        self.bias_language = nn.Parameter(torch.zeros(language_dim))
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - prior_prob) / prior_prob)))

    def forward(self, regions_per_level: list[Tensor], text: TextFeatures) -> list[Tensor]:
        normalized = F.normalize(text.hidden, dim=-1)
        # A product of matrices: FLOP counters have no rule for one with a vector.
        word_bias = (normalized @ self.bias_language[:, None]).squeeze(-1)
        bias = (word_bias + self.bias)[:, None]  # (N, 1, T)
        # The temperature divides the few tokens, not the many logits: the same numbers.
        projected = self.projection(normalized / 2) / self.log_scale.exp()
        projected = projected.transpose(1, 2)  # (N, C, T)
        return [
            (regions.to(projected.dtype) @ projected + bias).clamp(-MAX_LOGIT, MAX_LOGIT)
            for regions in regions_per_level
        ]


class ResidualScore(DotProductScore, CheckpointPrefixes):
    """A :class:`DotProductScore` that is added to other logits: zero before training."""

    checkpoint_optional: tuple[str, ...] = ("",)  # all of its parameters
    checkpoint_neutral: tuple[str, ...] = ("",)

    def __init__(self, *, visual_dim: int, language_dim: int) -> None:
        """Arguments as in :class:`DotProductScore`."""
        super().__init__(visual_dim=visual_dim, language_dim=language_dim, prior_prob=0.5)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)


@REGION_WORD_SCORE_REGISTRY.register()
class CosineScore(RegionWordScore):
    """Cosines of projected regions and projected text, over a learned temperature (our choice).

    The norm of a region's feature does not matter, so a small model that is trained for hours
    instead of weeks separates class names early. With dot products it first raises the scores of
    all labels wherever there is an object.
    """

    def __init__(
        self, *, visual_dim: int, language_dim: int, prior_prob: float, log_scale: float = 0.0
    ) -> None:
        """Arguments as in :class:`DotProductScore`."""
        super().__init__()
        self.region_projection = nn.Linear(visual_dim, COSINE_DIM)
        self.projection = nn.Linear(language_dim, COSINE_DIM)
        self.log_scale = nn.Parameter(torch.full((1,), log_scale))
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - prior_prob) / prior_prob)))

    def forward(self, regions_per_level: list[Tensor], text: TextFeatures) -> list[Tensor]:
        projected = F.normalize(self.projection(F.normalize(text.hidden, dim=-1)), dim=-1)
        projected = (projected / self.log_scale.exp()).transpose(1, 2)  # (N, E, T)
        return [
            F.normalize(self.region_projection(regions), dim=-1).to(projected.dtype) @ projected
            + self.bias
            for regions in regions_per_level
        ]
