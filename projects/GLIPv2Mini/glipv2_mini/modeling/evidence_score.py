"""The region-word score that starts from the class probabilities of closed-set classifiers.

N: images. A_i: regions of level i. K: regions with a cut-out. T: tokens. D: width of the text.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.checkpoint_prefixes import CheckpointPrefixes
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.layers.tracing import is_tracing
from glipv2_d2.modeling.class_evidence import ClassEvidence, evidence_logits
from glipv2_d2.modeling.heads.base import RegionWordScore
from glipv2_d2.modeling.heads.region_word_score import ResidualScore
from glipv2_d2.structures import TextFeatures
from glipv2_mini.modeling.colors import NUM_COLORS
from glipv2_mini.modeling.evidence_backbone import (
    FEATURE_CHANNELS,
    NUM_IMAGENET_CLASSES,
    EvidenceLevel,
)
from glipv2_mini.modeling.score_regression import LinearScores

# A cut-out is classified whatever it shows. Its evidence is weighted by the square root of the
# detector's probability that the box has an object (our choice, measured on photos).
CUTOUT_WEIGHT = 0.9
OBJECTNESS_POWER = 0.5
# An object may have a name that neither classifier knows. This share of the detector's probability
# lets training start from "any object" instead of from nothing, and ranks below other evidence.
UNKNOWN_NAME_WEIGHT = 0.02
# Of the ridge regression of words on class names.
REGRESSION_PENALTY = 1.0
# The regression rules out words, and raises others by little: a part of a cat is classified as a
# cat, too (our choice, measured on photos).
MAX_RAISE = 1.0
# What the learned products read of a region.
VISUAL_DIM = FEATURE_CHANNELS + NUM_COLORS


class EvidenceScore(RegionWordScore):
    """Logits of a region for a word from the evidence of closed-set classifiers.

    The evidence of a word is the larger of two. A detector's class contributes its probability
    times the similarity of its name to the word, the best class counts. The classes of a cut-out
    are exclusive and contribute their sum. A cut-out also distinguishes words of related classes,
    such as forks from spoons: the word is regressed on the class names, and the same combination
    of the class logits is added, in proportion to the word's similarity to the detector's classes.
    Only a scale and a bias are learned, if at all. Our choice, not GLIP's.
    """

    regression: Tensor

    def __init__(
        self,
        *,
        detector_evidence: ClassEvidence,
        classifier_evidence: ClassEvidence,
        learns_scale: bool = True,
    ) -> None:
        """
        Args:
            detector_evidence: of COCO's class names.
            classifier_evidence: of ImageNet's class names.
            learns_scale: train the scale and the bias.
        """
        super().__init__()
        self.detector_evidence = detector_evidence
        self.classifier_evidence = classifier_evidence
        regression = regress_on_classes(classifier_evidence, REGRESSION_PENALTY)
        self.register_buffer("regression", regression, persistent=False)
        self.evidence_scale = nn.Parameter(torch.ones(1), requires_grad=learns_scale)
        self.evidence_bias = nn.Parameter(torch.zeros(1), requires_grad=learns_scale)

    def forward(self, regions_per_level: list[Tensor], text: TextFeatures) -> list[Tensor]:
        regions = torch.cat(regions_per_level, dim=1)
        logits = self._score(EvidenceLevel.split(regions), text)
        return list(logits.split([level.shape[1] for level in regions_per_level], dim=1))

    def _score(self, regions: EvidenceLevel, text: TextFeatures) -> Tensor:
        """(N, A, T)."""
        evidence = self._evidence(regions, text)
        return self.evidence_scale * evidence_logits(evidence) + self.evidence_bias

    @torch.no_grad()
    def _evidence(self, regions: EvidenceLevel, text: TextFeatures) -> Tensor:
        """(N, A, T), 0..1."""
        probs = regions.class_probs
        detector_similarity = self.detector_evidence.similarity(text.hidden)
        evidence = ClassEvidence.best(probs, detector_similarity)
        objectness = probs.amax(dim=-1, keepdim=True)
        evidence = torch.maximum(evidence, UNKNOWN_NAME_WEIGHT * objectness)
        if regions.class_logits.shape[-1] == 0:
            return evidence
        weights = CUTOUT_WEIGHT * objectness**OBJECTNESS_POWER
        similarity = self.classifier_evidence.similarity(text.hidden)
        coefficients = F.normalize(full_precision(text.hidden), dim=-1) @ self.regression
        coefficients = coefficients * detector_similarity.amax(dim=-1, keepdim=True)  # (N, T, 1000)
        if is_tracing():
            # Of all regions, as the number of cut-outs would be a constant of the graph.
            logits = regions.class_logits
            of_cutouts = _add_classification(evidence, logits, weights, similarity, coefficients)
            return torch.where(regions.is_cut_out > 0, of_cutouts, evidence)
        for i, own in enumerate(evidence):
            rows = regions.is_cut_out[i, :, 0].nonzero().squeeze(1)
            own[rows] = _add_classification(
                own[rows],
                regions.class_logits[i, rows],
                weights[i, rows],
                similarity[i],
                coefficients[i],
            )
        return evidence


class LearnedEvidenceScore(EvidenceScore, CheckpointPrefixes):
    """An :class:`EvidenceScore` plus learned region-word products.

    Dot products of the words with the fused map and colours, and with the cut-out's class logits,
    are added, and a score of the region alone. Sentence embeddings of names have most in common:
    their mean over the evidence's class names is subtracted, so that the products learn what
    distinguishes names. All weights start at zero: an untrained score is the evidence.
    """

    text_mean: Tensor

    # A file without the products has their initial weights of zero.
    checkpoint_optional = ("objectness.",)
    checkpoint_neutral = ("objectness.",)

    def __init__(
        self,
        *,
        detector_evidence: ClassEvidence,
        classifier_evidence: ClassEvidence,
        language_dim: int,
    ) -> None:
        """
        Args:
            detector_evidence, classifier_evidence: as of :class:`EvidenceScore`.
            language_dim: D.
        """
        super().__init__(
            detector_evidence=detector_evidence, classifier_evidence=classifier_evidence
        )
        names = [evidence.class_embeddings for evidence in (detector_evidence, classifier_evidence)]
        text_mean = F.normalize(torch.cat(names), dim=-1).mean(dim=0)
        self.register_buffer("text_mean", text_mean, persistent=False)
        visual_dim = VISUAL_DIM
        self.feature_score = ResidualScore(visual_dim=visual_dim, language_dim=language_dim)
        self.objectness = nn.Linear(visual_dim, 1)
        nn.init.zeros_(self.objectness.weight)
        nn.init.zeros_(self.objectness.bias)
        self.cutout_score = ResidualScore(
            visual_dim=NUM_IMAGENET_CLASSES, language_dim=language_dim
        )

    def centered(self, text: TextFeatures) -> TextFeatures:
        """The text without what all names have in common."""
        hidden = F.normalize(full_precision(text.hidden), dim=-1) - self.text_mean
        return replace(text, hidden=hidden.to(text.hidden))

    @torch.no_grad()
    def start_from(self, scores: LinearScores) -> None:
        """Set the products of features and colours, and the score of the region alone.

        Args:
            scores: of :func:`visual_of` and of the normalised :meth:`centered` text.
        """
        part = self.feature_score
        # The score halves the text.
        part.projection.weight.copy_(2 * scores.weight)
        part.projection.bias.zero_()
        part.log_scale.zero_()
        part.bias_language.copy_(scores.text_weight)
        part.bias.zero_()
        self.objectness.weight.copy_(scores.region_weight[None])
        self.objectness.bias.copy_(scores.bias)

    def _score(self, regions: EvidenceLevel, text: TextFeatures) -> Tensor:
        centered = self.centered(text)
        visual = visual_of(regions)
        (product,) = self.feature_score([visual], centered)
        logits = super()._score(regions, text) + product + self.objectness(visual)
        if regions.class_logits.shape[-1] > 0:
            return logits + self._cutout_products(regions, centered)
        # DDP waits for gradients of all parameters, here 0.
        return logits + 0 * sum(p.sum() for p in self.cutout_score.parameters())

    def _cutout_products(self, regions: EvidenceLevel, text: TextFeatures) -> Tensor:
        """(N, A, T), zeros where no box was cut out."""
        if is_tracing():
            (product,) = self.cutout_score([F.normalize(regions.class_logits, dim=-1)], text)
            return product * regions.is_cut_out
        width = max((int(x) for x in regions.is_cut_out.sum(dim=(1, 2))), default=0)
        # (N, K): the cut-outs of each image, then others with a weight of zero.
        order = regions.is_cut_out[..., 0].argsort(dim=1, descending=True, stable=True)[:, :width]
        chosen = order[..., None]
        logits = regions.class_logits.gather(1, chosen.expand(-1, -1, NUM_IMAGENET_CLASSES))
        (product,) = self.cutout_score([F.normalize(logits, dim=-1)], text)
        product = product * regions.is_cut_out.gather(1, chosen)
        zeros = product.new_zeros(*regions.is_cut_out.shape[:2], product.shape[-1])
        return zeros.scatter(1, chosen.expand_as(product), product)


def visual_of(regions: EvidenceLevel) -> Tensor:
    """(..., 128 + 11): what the learned products read of regions."""
    return torch.cat([regions.features, regions.color_probs.to(regions.features)], dim=-1)


def _add_classification(
    evidence: Tensor, logits: Tensor, weights: Tensor, similarity: Tensor, coefficients: Tensor
) -> Tensor:
    """The evidence (..., K, T) of the detector's classes, with that of the classifier added.

    Args:
        logits: (..., K, 1000), of the cut-outs.
        weights: (..., K, 1), of the classes that they contribute.
        similarity: (..., T, 1000), of the words to the classes.
        coefficients: (..., T, 1000), of the regression of the words on the classes.
    """
    logits = full_precision(logits)
    expected = ClassEvidence.expected(logits.softmax(dim=-1), similarity)
    best = evidence_logits(torch.maximum(evidence, (weights * expected).to(evidence)))
    centered = logits - logits.mean(dim=-1, keepdim=True)
    combined = (centered @ coefficients.transpose(-1, -2)).clamp(max=MAX_RAISE)
    return (best + combined).sigmoid().to(evidence)


def regress_on_classes(evidence: ClassEvidence, penalty: float) -> Tensor:
    """(D, K) matrix that maps a text embedding to coefficients of the K classes' embeddings.

    The ridge regression of the embedding on those of the classes, the first name of each. Applied
    to the logits of a linear classifier, the coefficients give those of a classifier of the text.
    """
    names, classes = evidence.class_embeddings, evidence.class_of_embedding
    is_first = classes != torch.cat([classes.new_tensor([-1]), classes[:-1]])
    first = names[is_first]
    identity = torch.eye(first.shape[1], dtype=first.dtype, device=first.device)
    return torch.linalg.solve(first.T @ first + penalty * identity, first.T)
