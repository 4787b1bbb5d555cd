"""Question answering and captioning that also attend to regions.

Q: queries. R: regions of an image. T: tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor

from glipv2_d2.config import configurable
from glipv2_d2.modeling.fusion import FusedHead
from glipv2_d2.modeling.generation.caption_decoder import CaptionDecoder, DecoderOutput
from glipv2_d2.modeling.heads.answer import QuestionFeatures
from glipv2_d2.modeling.heads.caption import CaptionFeatures
from glipv2_d2.modeling.language import LanguageBackbone
from glipv2_d2.modeling.text_tasks import (
    TEXT_TASKS_REGISTRY,
    QueryEncoder,
    TextContext,
    TextTasks,
)
from glipv2_d2.structures import FusedText, ImageFeatures, Query, TextFeatures
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_mini.modeling.region_encoder import RegionEncoder
from glipv2_mini.modeling.regions import Regions


@dataclass(frozen=True)
class RegionContext(TextContext):
    """The regions of the images with text queries.

    Attributes:
        regions: of these images.
        index_of: row of an image in the batch's features -> its index in ``regions``.
    """

    regions: Regions
    index_of: dict[int, int]

    def regions_of(self, features: ImageFeatures, queries: Sequence[Query]) -> Regions:
        """The regions of each query's image."""
        return self.regions.rows([self.index_of[row] for row in features.rows_of(queries)])


@dataclass(frozen=True)
class RegionQuestionFeatures(QuestionFeatures):
    """Features of Q questions that have attended to regions.

    Attributes:
        regions: of each question's image.
        region_word_logits: (Q, R, T).
    """

    regions: Regions
    region_word_logits: Tensor

    def rows(self, indices: Sequence[int]) -> RegionQuestionFeatures:
        rows = list(indices)
        return RegionQuestionFeatures(
            self.text.rows(rows), self.regions.rows(rows), self.region_word_logits[rows]
        )


@dataclass(frozen=True)
class RegionCaptionFeatures(CaptionFeatures):
    """Target captions that have attended to the regions of their images."""

    regions: Regions


@dataclass(frozen=True)
class RegionDecoderOutput(DecoderOutput):
    """The state after a decoding step, with the regions of each caption's image."""

    regions: Regions


class RegionCaptionDecoder(CaptionDecoder):
    """Decodes captions whose tokens also attend to the regions of their image."""

    def __init__(
        self,
        language_backbone: LanguageBackbone,
        fused_head: FusedHead,
        features: dict[str, Tensor],
        *,
        region_encoder: RegionEncoder,
        regions: Regions,
    ) -> None:
        """
        Args:
            regions: of the N images.
        """
        super().__init__(language_backbone, fused_head, features)
        self.region_encoder = region_encoder
        self.regions = regions
        self._region_cache = region_encoder.encode(regions)

    def attend_to_context(self, hidden: Tensor) -> Tensor:
        hidden, self._region_cache = self.region_encoder.decode_step(hidden, self._region_cache)
        return hidden

    def output(self, hidden: Tensor) -> RegionDecoderOutput:
        return RegionDecoderOutput(hidden, self.input_ids, self.regions)

    def reorder_context(self, rows: Tensor) -> None:
        self._region_cache = [cache.rows(rows) for cache in self._region_cache]
        self.regions = self.regions.rows(rows.tolist())


@TEXT_TASKS_REGISTRY.register()
class RegionTextTasks(TextTasks):
    """Text tasks whose text attends to class-agnostic regions after fusion (our choice)."""

    @configurable
    def __init__(self, *, region_encoder: RegionEncoder, **kwargs: Any) -> None:
        """
        Args:
            region_encoder: proposes and encodes the regions.
            kwargs: arguments of :class:`~glipv2_d2.modeling.text_tasks.TextTasks`.
        """
        super().__init__(**kwargs)
        self.region_encoder = region_encoder

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        input_shape: dict[str, ShapeSpec],
        tokenizer: Tokenizer,
        language_backbone: LanguageBackbone,
    ) -> dict[str, Any]:
        arguments = super().from_config(cfg, input_shape, tokenizer, language_backbone)
        encoder = RegionEncoder(cfg, input_shape, tokenizer, language_backbone)
        return {**arguments, "region_encoder": encoder}

    @property
    def embeds_strings(self) -> bool:
        return True

    def encode_context(
        self, encoder: QueryEncoder, features: ImageFeatures, queries: Sequence[Query]
    ) -> RegionContext:
        """Propose the regions of each image once.

        Without text queries the first image is used, so that all processes of a distributed
        training run the same modules.
        """
        rows = sorted(set(features.rows_of([q for q in queries if q.kind.is_text_task]))) or [0]
        selected = ImageFeatures(
            {name: level[rows] for name, level in features.levels.items()},
            [features.image_sizes[row] for row in rows],
            list(range(len(rows))),
        )
        regions = self.region_encoder.proposer(encoder, selected)
        if self.region_encoder.class_embeddings is not None:
            embeddings = self.region_encoder.class_embeddings()
            regions = with_class_logits(encoder, regions, embeddings)
        return RegionContext(regions, {row: index for index, row in enumerate(rows)})

    def encode_questions(
        self,
        encoder: QueryEncoder,
        features: ImageFeatures,
        fused: FusedText,
        context: TextContext,
    ) -> RegionQuestionFeatures:
        assert isinstance(context, RegionContext)
        regions = context.regions_of(features, fused.queries)
        logits = encoder.proposal_generator.region_word_logits(
            regions.fused_features, fused.region_text
        )
        text = self.region_encoder(fused.fused_text, regions, logits)
        return RegionQuestionFeatures(text, regions, logits)

    def encode_captions(
        self, features: ImageFeatures, fused: FusedText, context: TextContext
    ) -> RegionCaptionFeatures:
        assert isinstance(context, RegionContext)
        regions = context.regions_of(features, fused.queries)
        text = self.region_encoder(fused.fused_text, regions)
        return RegionCaptionFeatures(text, fused.tokens, regions)

    def build_decoder(
        self,
        encoder: QueryEncoder,
        features: ImageFeatures,
        queries: Sequence[Query],
        context: TextContext,
    ) -> RegionCaptionDecoder:
        assert isinstance(context, RegionContext)
        return RegionCaptionDecoder(
            encoder.language_backbone,
            encoder.fused_head,
            features.select(queries).levels,
            region_encoder=self.region_encoder,
            regions=context.regions_of(features, queries),
        )


@torch.no_grad()
def with_class_logits(encoder: QueryEncoder, regions: Regions, embeddings: Tensor) -> Regions:
    """Regions with their logits against (A, D) class embeddings, without gradients."""
    hidden = embeddings.expand(len(regions.boxes), -1, -1)
    text = TextFeatures(hidden, torch.ones_like(hidden[..., 0], dtype=torch.bool))
    logits = encoder.proposal_generator.region_word_logits(regions.fused_features, text)
    return replace(regions, class_logits=logits)
