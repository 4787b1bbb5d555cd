"""The region-word score that adds a frozen classifier's embedding to the trained one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.modeling.heads.base import RegionWordScore
from glipv2_d2.modeling.heads.region_word_score import REGION_WORD_SCORE_REGISTRY, CosineScore
from glipv2_d2.structures import TextFeatures

# Initial logarithm of the temperature of the classifier's cosines.
CLASSIFIER_LOG_SCALE = -2.0
# Weight of the classifier at inference. On the classes of training the trained cosines are better
# than on others, so that training underestimates the weight.
CLASSIFIER_INFERENCE_FACTOR = 3.0


@REGION_WORD_SCORE_REGISTRY.register()
class ClassifierScore(RegionWordScore):
    """Trained cosines plus cosines of the text and a frozen classifier's embedding (our choice).

    The last D channels of a region are an embedding in the space of the text features
    (:class:`~glipv2_mini.modeling.classifier_backbone.ClassifierFPN`). They are compared with the
    text without projection, so that new class names are scored as well as those of training. A
    gate per region, the same for all class names, weights the classifier.
    """

    def __init__(
        self, *, visual_dim: int, language_dim: int, prior_prob: float, log_scale: float = 0.0
    ) -> None:
        """Arguments as in :class:`DotProductScore`; ``visual_dim`` counts all channels."""
        super().__init__()
        self.cosine = CosineScore(
            visual_dim=visual_dim - language_dim,
            language_dim=language_dim,
            prior_prob=prior_prob,
            log_scale=log_scale,
        )
        self.log_scale = nn.Parameter(torch.full((1,), CLASSIFIER_LOG_SCALE))
        self.gate = nn.Linear(visual_dim - language_dim, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, regions_per_level: list[Tensor], text: TextFeatures) -> list[Tensor]:
        factor = 1.0 if self.training else CLASSIFIER_INFERENCE_FACTOR
        return self._score(regions_per_level, text, factor)

    def training_logits(self, regions_per_level: list[Tensor], text: TextFeatures) -> list[Tensor]:
        return self._score(regions_per_level, text, 1.0)

    def _score(
        self, regions_per_level: list[Tensor], text: TextFeatures, factor: float
    ) -> list[Tensor]:
        width = text.hidden.shape[-1]
        visual_per_level = [regions[..., :-width] for regions in regions_per_level]
        classifier_per_level = [regions[..., -width:] for regions in regions_per_level]
        normalized = F.normalize(text.hidden, dim=-1)
        normalized = (normalized * factor / self.log_scale.exp()).transpose(1, 2)  # (N, D, T)
        return [
            logits
            + self.gate(visual).sigmoid()
            * (F.normalize(embedding, dim=-1).to(normalized) @ normalized)
            for logits, visual, embedding in zip(
                self.cosine(visual_per_level, text),
                visual_per_level,
                classifier_per_level,
                strict=True,
            )
        ]
