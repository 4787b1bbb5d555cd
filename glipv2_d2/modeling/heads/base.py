"""Base classes of the heads: what GLIPv2 calls on them.

Q: queries, each with the features of its image. A_i: anchors of level i. T: tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from glipv2_d2.layers.checkpoint_prefixes import CheckpointPrefixes
from glipv2_d2.modeling.label_scores import LabelScores
from glipv2_d2.modeling.postprocess import DetectionsPerImage
from glipv2_d2.structures import (
    DensePredictions,
    DenseTargets,
    FusedFeatures,
    Query,
    TextFeatures,
    TokenBatch,
)

TEXT = "text"
"""The key of ``input_shape`` under which heads find the width of the text features."""


class ProposalGenerator(CheckpointPrefixes, ABC):
    """Boxes with a score per token at every location of the fused maps.

    Built by Detectron2's PROPOSAL_GENERATOR_REGISTRY with the config and the pyramid's shapes plus
    ``ShapeSpec(channels=D)`` under :data:`TEXT`.

    Attributes:
        phrase_parser: the module of :meth:`describe_labels`' function ``describe_phrase``, from the
            text of a label to its K numbers, for runtimes of exported graphs. It imports the
            standard library only. "": labels have no description.
    """

    phrase_parser: ClassVar[str] = ""

    @abstractmethod
    def predict(self, fused: FusedFeatures) -> DensePredictions:
        """Raw outputs at every location, in training and at inference."""

    def describe_labels(self, tokens: TokenBatch) -> Tensor:
        """What :meth:`predict` uses of the words of labels, at their tokens, (Q, T, K).

        By default nothing, K = 0.
        """
        return torch.zeros(*tokens.mask.shape, 0, device=tokens.mask.device)

    def predict_described(
        self,
        fused: FusedFeatures,
        descriptions: Tensor,  # noqa: ARG002 - there are none
    ) -> DensePredictions:
        """:meth:`predict` with :meth:`describe_labels` as an input, for graphs without strings."""
        return self.predict(fused)

    def initialize_from(
        self,
        batches: Iterable[tuple[FusedFeatures, DensePredictions]],  # noqa: ARG002 - for subclasses
    ) -> None:
        """Set layers in closed form from training batches, before the first iteration.

        All processes of a distributed training call it with their batches, and end with the same
        weights.

        Raises:
            ValueError: this proposal generator has no such layers.
        """
        raise ValueError(
            f"SOLVER.INITIALIZE_FROM_IMAGES must be 0: {type(self).__name__} "
            "(MODEL.PROPOSAL_GENERATOR.NAME) sets no layers from images"
        )

    @abstractmethod
    def label_anchors(self, predictions: DensePredictions, fused: FusedFeatures) -> DenseTargets:
        """Match the anchors to the ground truth of the queries.

        Raises:
            ValueError: the ground truth has a class that its prompt lacks.
        """

    @abstractmethod
    def losses(
        self, predictions: DensePredictions, targets: DenseTargets, fused: FusedFeatures
    ) -> dict[str, Tensor]:
        """L_loc + L_intra by name."""

    @abstractmethod
    def score_labels(
        self, predictions: DensePredictions, fused: FusedFeatures
    ) -> list[LabelScores]:
        """Scores of every label of the prompt at every location, per query."""

    @abstractmethod
    def detect(
        self, scores: Sequence[LabelScores], fused: FusedFeatures
    ) -> list[DetectionsPerImage]:
        """Detections per query, best first: thresholds, NMS, limit."""

    @abstractmethod
    def region_word_logits(self, regions: Tensor, text: TextFeatures) -> Tensor:
        """Logits of some regions against text, (Q, K, T).

        Args:
            regions: (Q, K, C), features of the fused maps at some locations.
            text: (Q, T, D), what regions are scored against.
        """


class RegionWordScore(nn.Module, ABC):
    """Logits of regions against tokens: what replaces a detector's classifier.

    Built by REGION_WORD_SCORE_REGISTRY with ``visual_dim``, ``language_dim``, ``prior_prob`` and
    ``log_scale`` (see :class:`~glipv2_d2.modeling.heads.region_word_score.DotProductScore`).
    """

    @abstractmethod
    def forward(self, regions_per_level: list[Tensor], text: TextFeatures) -> list[Tensor]:
        """Logits of every region against every token.

        Args:
            regions_per_level: (N, A_i, C) each.
            text: (N, T, D); the columns of padding are undefined.

        Returns:
            (N, A_i, T) each.
        """


class LossHead(nn.Module, ABC):
    """A head that only contributes losses to training."""

    def corrupt_tokens(
        self,
        tokens: TokenBatch,
        queries: Sequence[Query],  # noqa: ARG002 - for heads that mask tokens
    ) -> TokenBatch:
        """Tokens to encode in place of the given ones; by default the same."""
        return tokens

    @abstractmethod
    def losses(self, fused: FusedFeatures, targets: DenseTargets) -> dict[str, Tensor]:
        """Losses by name, weighted.

        Args:
            fused: localized queries with their ground truth.
            targets: of the proposal generator's anchors.
        """
