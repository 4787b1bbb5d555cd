"""The region-word score: what a detector's classifier is replaced by (GLIP eq. 2; GLIP spec 10)."""

from __future__ import annotations

import math

import torch
from detectron2.utils.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.structures import TextFeatures

REGION_WORD_SCORE_REGISTRY = Registry("REGION_WORD")
REGION_WORD_SCORE_REGISTRY.__doc__ = """
Region-word scores: ``obj(visual_dim=, language_dim=, prior_prob=, log_scale=)`` gives a module that
is called as :meth:`DotProductScore.forward` is.
"""

# The reference clamps the logits so that fp16 does not overflow.
MAX_LOGIT = 50000.0
# Width of the space in which cosines are taken.
COSINE_DIM = 128
# Where the temperature of the classifier's cosines starts (its logarithm).
CLASSIFIER_LOG_SCALE = -2.0
# How much more the classifier counts at inference. On the names and things of training the learned
# cosines are better than they are on others, so training asks for too little of it.
CLASSIFIER_INFERENCE_FACTOR = 3.0


@REGION_WORD_SCORE_REGISTRY.register()
class DotProductScore(nn.Module):
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

    def forward(self, regions_per_level: list[Tensor], language: TextFeatures) -> list[Tensor]:
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


@REGION_WORD_SCORE_REGISTRY.register()
class CosineScore(nn.Module):
    """Cosines of projected region features and projected words, over a learned temperature.

    The length of a region's feature says nothing here, so a small model trained for hours instead
    of weeks tells names apart early: with the dot product it learns first that all names of a
    prompt are likelier where any thing is. Our choice; GLIP's is :class:`DotProductScore`.
    """

    def __init__(
        self, *, visual_dim: int, language_dim: int, prior_prob: float, log_scale: float = 0.0
    ) -> None:
        """Arguments as of :class:`DotProductScore`."""
        super().__init__()
        self.region_projection = nn.Linear(visual_dim, COSINE_DIM)
        self.projection = nn.Linear(language_dim, COSINE_DIM)
        self.log_scale = nn.Parameter(torch.full((1,), log_scale))
        self.bias = nn.Parameter(torch.full((1,), -math.log((1 - prior_prob) / prior_prob)))

    def forward(self, regions_per_level: list[Tensor], language: TextFeatures) -> list[Tensor]:
        """Logits of every region with every token; shapes as of :class:`DotProductScore`."""
        words = F.normalize(self.projection(F.normalize(language.hidden, dim=-1)), dim=-1)
        words = (words / self.log_scale.exp()).transpose(1, 2)  # (N, E, T)
        return [
            F.normalize(self.region_projection(regions), dim=-1).to(words.dtype) @ words + self.bias
            for regions in regions_per_level
        ]


@REGION_WORD_SCORE_REGISTRY.register()
class ClassifierScore(nn.Module):
    """Learned cosines plus those between the words and what a frozen classifier sees.

    The last D channels of a region are a vector in the space of the D wide words
    (:class:`~glipv2_d2.modeling.backbone.classifier_backbone.ClassifierFPN`): they are compared
    with a word as they are, so that nothing learned from the training names stands between a new
    name and the classifier. What is learned is where to trust it, for all names alike: elsewhere
    its guesses would only be noise that the learned cosines have to undo. Our choice.
    """

    def __init__(
        self, *, visual_dim: int, language_dim: int, prior_prob: float, log_scale: float = 0.0
    ) -> None:
        """Arguments as of :class:`DotProductScore`; ``visual_dim`` counts all channels."""
        super().__init__()
        self.learned = CosineScore(
            visual_dim=visual_dim - language_dim,
            language_dim=language_dim,
            prior_prob=prior_prob,
            log_scale=log_scale,
        )
        self.log_scale = nn.Parameter(torch.full((1,), CLASSIFIER_LOG_SCALE))
        self.trust = nn.Linear(visual_dim - language_dim, 1)
        nn.init.zeros_(self.trust.weight)
        nn.init.zeros_(self.trust.bias)

    def forward(self, regions_per_level: list[Tensor], language: TextFeatures) -> list[Tensor]:
        """Logits of every region with every token; shapes as of :class:`DotProductScore`."""
        factor = 1.0 if self.training else CLASSIFIER_INFERENCE_FACTOR
        return self._score(regions_per_level, language, factor)

    def as_trained(self, regions_per_level: list[Tensor], language: TextFeatures) -> list[Tensor]:
        """The logits of training, for those who learn from them."""
        return self._score(regions_per_level, language, 1.0)

    def _score(
        self, regions_per_level: list[Tensor], language: TextFeatures, factor: float
    ) -> list[Tensor]:
        width = language.hidden.shape[-1]
        visual_per_level = [regions[..., :-width] for regions in regions_per_level]
        seen_per_level = [regions[..., -width:] for regions in regions_per_level]
        words = F.normalize(language.hidden, dim=-1)
        words = (words * factor / self.log_scale.exp()).transpose(1, 2)  # (N, D, T)
        return [
            logits + self.trust(visual).sigmoid() * (F.normalize(seen, dim=-1).to(words) @ words)
            for logits, visual, seen in zip(
                self.learned(visual_per_level, language),
                visual_per_level,
                seen_per_level,
                strict=True,
            )
        ]
