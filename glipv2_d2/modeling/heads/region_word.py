"""The region-word score: what a detector's classifier is replaced by (GLIP eq. 2; GLIP spec 10)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.structures import LanguageFeatures

# The reference clamps the logits so that fp16 does not overflow.
MAX_LOGIT = 50000.0


class RegionWordScore(nn.Module):
    """Dot products of region features with projected words, plus a bias that each word brings.

    The region feature is used as it is, the word is L2-normalised, halved and projected; a learned
    temperature divides the product.
    """

    def __init__(
        self, *, visual_dim: int, language_dim: int, prior_prob: float, log_scale: float = 0.0
    ) -> None:
        """
        Args:
            prior_prob: the probability that an untrained model gives to every pair.
            log_scale: the logarithm of the temperature to start from.
        """
        super().__init__()
        self.projection = nn.Linear(language_dim, visual_dim)
        self.log_scale = nn.Parameter(torch.full((1,), log_scale))
        self.bias_language = nn.Parameter(torch.zeros(language_dim))
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - prior_prob) / prior_prob)))

    def forward(self, regions_per_level: list[Tensor], language: LanguageFeatures) -> list[Tensor]:
        """Logits of every region with every token.

        Args:
            regions_per_level: (N, A_i, C) each.
            language: (N, T, D) features; columns of padding have no meaning.

        Returns:
            (N, A_i, T) each.
        """
        words = F.normalize(language.hidden, dim=-1)
        bias = (words @ self.bias_language + self.bias)[:, None]  # (N, 1, T)
        # The temperature divides the few words, not the many logits: the same numbers.
        projected = (self.projection(words / 2) / self.log_scale.exp()).transpose(1, 2)  # (N, C, T)
        return [
            (regions.to(projected.dtype) @ projected + bias).clamp(-MAX_LOGIT, MAX_LOGIT)
            for regions in regions_per_level
        ]
