"""Question answering and captioning on the fused features of a GLIPv2.

Q: queries. T: tokens. D: width of the text features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.modeling.fusion import FusedHead
from glipv2_d2.modeling.generation.caption_decoder import CaptionDecoder
from glipv2_d2.modeling.heads.answer import AnswerHead, QuestionFeatures, build_answer_head
from glipv2_d2.modeling.heads.base import ProposalGenerator
from glipv2_d2.modeling.heads.caption import CaptionFeatures, CaptionHead, build_caption_head
from glipv2_d2.modeling.language import LanguageBackbone
from glipv2_d2.modeling.registry import build_part
from glipv2_d2.structures import (
    FusedFeatures,
    FusedText,
    GenerationConfig,
    ImageFeatures,
    Query,
    QueryKind,
    TextFeatures,
    TokenBatch,
    fields,
)
from glipv2_d2.text.tokenizer import Tokenizer

TEXT_TASKS_REGISTRY = Registry("TEXT_TASKS")
TEXT_TASKS_REGISTRY.__doc__ = """
Text tasks: ``obj(cfg, input_shape, tokenizer, language_backbone)`` returns a :class:`TextTasks`.
"""


class QueryEncoder(Protocol):
    """The encoding steps of a GLIPv2 that text tasks build on."""

    language_backbone: LanguageBackbone
    fused_head: FusedHead
    proposal_generator: ProposalGenerator

    def tokenize(self, queries: Sequence[Query], *, causal: bool = False) -> TokenBatch: ...

    def encode_text(self, tokens: TokenBatch) -> TextFeatures: ...

    def fuse(
        self,
        features: ImageFeatures,
        queries: Sequence[Query],
        tokens: TokenBatch,
        text: TextFeatures,
    ) -> FusedFeatures: ...

    def fuse_text(
        self,
        features: ImageFeatures,
        queries: Sequence[Query],
        tokens: TokenBatch,
        text: TextFeatures,
    ) -> FusedText: ...


@dataclass(frozen=True)
class TextContext:
    """What text tasks attend to besides the fused text, computed once per batch; here nothing."""


@TEXT_TASKS_REGISTRY.register()
class TextTasks(nn.Module, Configurable):
    """Answers questions and captions images from the fused text (GLIPv2 paper, section 3.1).

    Subclasses let text attend to further context: see :meth:`encode_context`.
    """

    @configurable
    def __init__(self, *, answer: AnswerHead | None, caption: CaptionHead | None) -> None:
        """
        Args:
            answer, caption: the heads; None: the model lacks the task.
        """
        super().__init__()
        self.answer = answer
        self.caption = caption

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        input_shape: dict[str, ShapeSpec],  # noqa: ARG003 - for subclasses with image parts
        tokenizer: Tokenizer,
        language_backbone: LanguageBackbone,
    ) -> dict[str, Any]:
        return {
            "answer": build_answer_head(cfg, tokenizer, language_backbone),
            "caption": build_caption_head(cfg, tokenizer, language_backbone),
        }

    @property
    def embeds_strings(self) -> bool:
        """Whether the language backbone also embeds answers, in full precision."""
        return self.answer is not None

    def losses(
        self,
        encoder: QueryEncoder,
        features: ImageFeatures,
        fused: FusedFeatures,
        queries: Sequence[Query],
    ) -> dict[str, Tensor]:
        """Losses of the heads. Without queries for a head its loss is 0, connected to the head.

        Args:
            fused: the localized queries, grounded questions among them.
            queries: all queries of the batch.
        """
        # All processes of a distributed training run the same modules, whatever their queries.
        if comm.get_world_size() == 1 and not any(query.kind.is_text_task for query in queries):
            return self._losses_of_none()
        context = self.encode_context(encoder, features, queries)
        losses: dict[str, Tensor] = {}
        if self.answer is not None:
            losses |= self.answer.losses(
                *self._questions(encoder, features, fused, queries, context)
            )
        if self.caption is not None:
            captions = [q for q in queries if q.kind is QueryKind.CAPTION]
            text = fused.select_text([])
            if captions:
                tokens = encoder.tokenize(captions, causal=True)
                text = encoder.fuse_text(features, captions, tokens, encoder.encode_text(tokens))
            losses |= self.caption.losses(self.encode_captions(features, text, context))
        return losses

    def _losses_of_none(self) -> dict[str, Tensor]:
        """Losses of 0 for a batch without text queries, connected to all parameters."""
        zero = 0 * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
        heads = (self.answer, self.caption)
        return {head.loss_name: zero for head in heads if head is not None}

    def predict(
        self, encoder: QueryEncoder, features: ImageFeatures, queries: Sequence[Query]
    ) -> list[dict[str, Any]]:
        """Per query ``answer`` and ``answer_score``, or ``caption``."""
        if not queries:
            return []
        context = self.encode_context(encoder, features, queries)
        outputs: dict[Query, dict[str, Any]] = {}
        questions = [q for q in queries if q.kind is QueryKind.ANSWER]
        if self.answer is not None and questions:
            tokens = encoder.tokenize(questions)
            fused = encoder.fuse_text(features, questions, tokens, encoder.encode_text(tokens))
            answers = self.answer.predict(
                self.encode_questions(encoder, features, fused, context),
                [self.answer.choices_of(query) for query in questions],
            )
            for query, (answer, score) in zip(questions, answers, strict=True):
                outputs[query] = {fields.ANSWER: answer, fields.ANSWER_SCORE: score}
        if self.caption is not None:
            for generation, captions in _by_generation(queries).items():
                decoder = self.build_decoder(encoder, features, captions, context)
                generated = self.caption.generate(decoder, generation)
                for query, caption in zip(captions, generated, strict=True):
                    outputs[query] = {fields.CAPTION: caption}
        return [outputs[query] for query in queries]

    def encode_context(
        self,
        encoder: QueryEncoder,  # noqa: ARG002 - for subclasses
        features: ImageFeatures,  # noqa: ARG002
        queries: Sequence[Query],  # noqa: ARG002
    ) -> TextContext:
        """Encode further context of the batch, once for all text queries."""
        return TextContext()

    def encode_questions(
        self,
        encoder: QueryEncoder,  # noqa: ARG002 - for subclasses
        features: ImageFeatures,  # noqa: ARG002
        fused: FusedText,
        context: TextContext,  # noqa: ARG002
    ) -> QuestionFeatures:
        """The features of fused questions, after attention to the context."""
        return QuestionFeatures(fused.fused_text)

    def encode_captions(
        self,
        features: ImageFeatures,  # noqa: ARG002 - for subclasses
        fused: FusedText,
        context: TextContext,  # noqa: ARG002
    ) -> CaptionFeatures:
        """The features of fused target captions, after attention to the context."""
        return CaptionFeatures(fused.fused_text, fused.tokens)

    def build_decoder(
        self,
        encoder: QueryEncoder,
        features: ImageFeatures,
        queries: Sequence[Query],
        context: TextContext,  # noqa: ARG002 - for subclasses
    ) -> CaptionDecoder:
        """A decoder of captions of the queries' images."""
        selected = features.select(queries)
        return CaptionDecoder(encoder.language_backbone, encoder.fused_head, selected.levels)

    def _questions(
        self,
        encoder: QueryEncoder,
        features: ImageFeatures,
        fused: FusedFeatures,
        queries: Sequence[Query],
        context: TextContext,
    ) -> tuple[list[QuestionFeatures], list[Mapping[str, float]]]:
        """Grounded questions, then the others: their features and answers."""
        grounded = [i for i, q in enumerate(fused.queries) if q.kind is QueryKind.ANSWER]
        others = [q for q in queries if q.kind is QueryKind.ANSWER and q.gt_instances is None]
        groups = [fused.select_text(grounded)]
        if others:
            tokens = encoder.tokenize(others)
            groups.append(encoder.fuse_text(features, others, tokens, encoder.encode_text(tokens)))
        answers = [query.answers or {} for group in groups for query in group.queries]
        encoded = [self.encode_questions(encoder, features, group, context) for group in groups]
        return encoded, answers


def _by_generation(queries: Sequence[Query]) -> dict[GenerationConfig | None, list[Query]]:
    """The caption queries by their generation settings."""
    groups: dict[GenerationConfig | None, list[Query]] = {}
    for query in queries:
        if query.kind is QueryKind.CAPTION:
            groups.setdefault(query.generation, []).append(query)
    return groups


def build_text_tasks(
    cfg: CfgNode,
    input_shape: dict[str, ShapeSpec],
    tokenizer: Tokenizer,
    language_backbone: LanguageBackbone,
) -> TextTasks | None:
    """The text tasks that ``cfg.MODEL.TEXT_TASKS.NAME`` names; None if no head has a weight."""
    if cfg.MODEL.ANSWER.WEIGHT == 0 and cfg.MODEL.CAPTION.WEIGHT == 0:
        return None
    return build_part(
        TEXT_TASKS_REGISTRY,
        cfg.MODEL.TEXT_TASKS.NAME,
        TextTasks,
        "MODEL.TEXT_TASKS.NAME",
        *(cfg, input_shape, tokenizer, language_backbone),
    )
