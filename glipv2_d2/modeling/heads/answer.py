"""Answers to questions: fused text is pooled and scored against a list of answers.

Q: questions. T: tokens. D: width of the text features. A: answers to choose from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.messages import quote
from glipv2_d2.modeling.heads.region_word_score import DotProductScore
from glipv2_d2.modeling.language import LanguageBackbone
from glipv2_d2.modeling.language.text_embedder import TextEmbedder
from glipv2_d2.modeling.losses.answers import answer_loss
from glipv2_d2.modeling.registry import build_part
from glipv2_d2.structures import Query, TextFeatures
from glipv2_d2.text.answers import canonical_answer, check_answers, load_answers
from glipv2_d2.text.questions import named_alternatives, question_of
from glipv2_d2.text.tokenizer import Tokenizer

ANSWER_HEAD_REGISTRY = Registry("ANSWER_HEAD")
ANSWER_HEAD_REGISTRY.__doc__ = """
Answer heads: ``obj(cfg, tokenizer, language_backbone)`` returns an :class:`AnswerHead`.
"""


@dataclass(frozen=True)
class QuestionFeatures:
    """Features of Q questions that have attended to their images.

    Attributes:
        text: (Q, T, D).
    """

    text: TextFeatures

    def rows(self, indices: Sequence[int]) -> QuestionFeatures:
        """The features of some of the questions, with their padding."""
        return QuestionFeatures(self.text.rows(indices))


class PredictedAnswer(NamedTuple):
    """An answer and its score, 0..1."""

    answer: str
    score: float


@ANSWER_HEAD_REGISTRY.register()
class AnswerHead(nn.Module, Configurable):
    """Attention pooling over the tokens of a question, an MLP, and a score for every answer.

    The head of GLIPv2 as described in the paper; its code was not released. Answers are scored
    independently, with binary cross-entropy.
    """

    loss_name: ClassVar[str] = "loss_answer"
    config_keys: ClassVar[dict[str, str]] = {"classifier": "MODEL.ANSWER.CLASSIFIER"}

    @configurable
    def __init__(
        self,
        *,
        language_dim: int,
        answers: Sequence[str],
        scores: nn.Module,
        weight: float,
    ) -> None:
        """
        Args:
            language_dim: D.
            answers: the vocabulary of training; at inference see :meth:`choices_of`.
            scores: (Q, D) pooled questions and a list of answers -> (Q, A) logits:
                :class:`LinearAnswerScores` or :class:`TextAnswerScores`.
            weight: factor of the loss.
        """
        super().__init__()
        self.answers = tuple(answers)
        self.weight = weight
        self.attention = nn.Linear(language_dim, 1)
        self.mlp = nn.Sequential(
            nn.Linear(language_dim, language_dim),
            nn.GELU(),
            nn.Linear(language_dim, language_dim),
            nn.GELU(),
        )
        self.scores = scores
        self._index_of = {canonical_answer(answer): i for i, answer in enumerate(answers)}

    @classmethod
    def from_config(
        cls, cfg: CfgNode, tokenizer: Tokenizer, language_backbone: LanguageBackbone
    ) -> dict[str, Any]:
        answers = configured_answers(cfg)
        return {
            "language_dim": language_backbone.width,
            "answers": answers,
            "scores": _build_scores(
                cfg.MODEL.ANSWER.CLASSIFIER, answers, tokenizer, language_backbone
            ),
            "weight": cfg.MODEL.ANSWER.WEIGHT,
        }

    def pool(self, text: TextFeatures) -> Tensor:
        """(Q, T, D) fused questions -> (Q, D), in at least float32 also under autocast."""
        with torch.autocast(text.hidden.device.type, enabled=False):
            # Rows of padding are undefined, and zero times infinity is NaN.
            hidden = full_precision(text.hidden).masked_fill(~text.mask[..., None], 0)
            logits = self.attention(hidden).squeeze(-1)
            logits = logits.masked_fill(~text.mask, torch.finfo(logits.dtype).min)
            pooled = (logits.softmax(dim=1)[..., None] * hidden).sum(dim=1)
            return self.mlp(pooled)

    def logits(self, questions: QuestionFeatures, answers: Sequence[str]) -> Tensor:
        """(Q, A) logits of A answers, in at least float32."""
        pooled = self.pool(questions.text)
        with torch.autocast(pooled.device.type, enabled=False):
            return self.scores(pooled, answers)

    def losses(
        self, questions: Sequence[QuestionFeatures], answers: Sequence[Mapping[str, float]]
    ) -> dict[str, Tensor]:
        """``loss_answer``.

        Args:
            questions: one or more groups of questions, possibly empty ones.
            answers: per question {answer: score in 0..1}. Answers outside the vocabulary are
                ignored, and questions without any other answer are left out, as in FIBER.
        """
        logits = torch.cat([self.logits(group, self.answers) for group in questions])
        targets = self.targets(answers).to(logits)
        has_target = (targets > 0).any(dim=1)
        return {self.loss_name: self.weight * answer_loss(logits[has_target], targets[has_target])}

    def targets(self, answers: Sequence[Mapping[str, float]]) -> Tensor:
        """(Q, A), the soft target of each answer of the vocabulary."""
        targets = torch.zeros(len(answers), len(self.answers))
        for row, score_of in zip(targets, answers, strict=True):
            for answer, score in score_of.items():
                index = self._index_of.get(canonical_answer(answer))
                if index is not None:
                    row[index] = max(float(row[index]), score)
        return targets

    def choices_of(self, query: Query) -> Sequence[str] | None:
        """The answers to choose from: those of the query, or the two that its question names.

        The latter only if the head can score any strings. None: the vocabulary.
        """
        if query.choices is not None or not isinstance(self.scores, TextAnswerScores):
            return query.choices
        return named_alternatives(question_of(query.prompt))

    def predict(
        self, questions: QuestionFeatures, choices: Sequence[Sequence[str] | None]
    ) -> list[PredictedAnswer]:
        """The best answer to each question.

        Args:
            choices: per question the answers to choose from, at least one; None: the vocabulary.

        Raises:
            ValueError: the head scores a fixed vocabulary, and a choice is outside it.
        """
        predicted: dict[int, PredictedAnswer] = {}
        lists = [self.answers if c is None else tuple(c) for c in choices]
        for answers in dict.fromkeys(lists):
            rows = [row for row, own in enumerate(lists) if own == answers]
            best = self.logits(questions.rows(rows), answers).sigmoid().max(dim=1)
            for row, score, index in zip(
                rows, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                predicted[row] = PredictedAnswer(answers[index], score)
        return [predicted[row] for row in range(len(lists))]


class LinearAnswerScores(nn.Module):
    """A linear classifier over a fixed vocabulary of answers."""

    def __init__(self, *, language_dim: int, answers: Sequence[str]) -> None:
        super().__init__()
        self.answers = tuple(answers)
        self.linear = nn.Linear(language_dim, len(answers))
        nn.init.constant_(self.linear.bias, prior_logit(len(answers)))
        self._index_of = {canonical_answer(answer): i for i, answer in enumerate(answers)}

    def forward(self, pooled: Tensor, answers: Sequence[str]) -> Tensor:
        """(Q, D) pooled questions and A answers -> (Q, A) logits.

        Raises:
            ValueError: an answer is outside the vocabulary.
        """
        logits = self.linear(pooled)
        if tuple(answers) == self.answers:
            return logits
        indices = [self._index_of.get(canonical_answer(answer)) for answer in answers]
        if None in indices:
            raise ValueError(
                f"answer {quote(answers[indices.index(None)])} is not in the model's vocabulary of "
                f"{len(self.answers)} answers; a model whose answer classifier is 'text' accepts "
                "any answer"
            )
        return logits[:, indices]


class TextAnswerScores(nn.Module):
    """Dot products of questions with the text embeddings of answers: any list can be scored."""

    def __init__(self, *, language_dim: int, num_answers: int, embedder: TextEmbedder) -> None:
        """
        Args:
            num_answers: size of the training vocabulary; sets the prior probability of an answer.
            embedder: answers -> (A, D) embeddings.
        """
        super().__init__()
        self.embedder = embedder
        self.match = DotProductScore(
            visual_dim=language_dim, language_dim=language_dim, prior_prob=1 / (num_answers + 1)
        )

    def forward(self, pooled: Tensor, answers: Sequence[str]) -> Tensor:
        """(Q, D) pooled questions and A answers -> (Q, A) logits."""
        embeddings = self.embedder(answers).to(pooled)[None]
        text = TextFeatures(embeddings, torch.ones_like(embeddings[..., 0], dtype=torch.bool))
        (logits,) = self.match([pooled[None]], text)
        return logits[0]


def build_answer_head(
    cfg: CfgNode, tokenizer: Tokenizer, language_backbone: LanguageBackbone
) -> AnswerHead | None:
    """The head of ``cfg.MODEL.ANSWER``; None where its weight is 0."""
    if cfg.MODEL.ANSWER.WEIGHT == 0:
        return None
    return build_part(
        ANSWER_HEAD_REGISTRY,
        cfg.MODEL.ANSWER.NAME,
        AnswerHead,
        "MODEL.ANSWER.NAME",
        *(cfg, tokenizer, language_backbone),
    )


def _build_scores(
    kind: str, answers: Sequence[str], tokenizer: Tokenizer, language_backbone: LanguageBackbone
) -> nn.Module:
    width = language_backbone.width
    if kind == "linear":
        return LinearAnswerScores(language_dim=width, answers=answers)
    if kind != "text":
        raise ValueError(f"classifier is {kind!r}; choose 'linear' or 'text'")
    embedder = TextEmbedder(language_backbone, tokenizer)
    return TextAnswerScores(language_dim=width, num_answers=len(answers), embedder=embedder)


def configured_answers(cfg: CfgNode) -> list[str]:
    """The answer vocabulary of ``cfg.MODEL.ANSWER``, or of the datasets' metadata (``answers``).

    The vocabularies of several datasets are merged.

    Raises:
        FileNotFoundError: the vocabulary file is missing.
        ValueError: no vocabulary or two are configured, it is empty, or it has duplicates.
    """
    settings = cfg.MODEL.ANSWER
    if settings.FILE and settings.ANSWERS:
        raise ValueError(
            f"MODEL.ANSWER has both a FILE, {settings.FILE!r}, and a list of ANSWERS: leave one "
            "empty"
        )
    if settings.FILE:
        return load_answers(settings.FILE)
    if settings.ANSWERS:
        return check_answers(list(settings.ANSWERS), "MODEL.ANSWER.ANSWERS")
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    merged = [answer for name in names for answer in MetadataCatalog.get(name).get("answers", ())]
    if not merged:
        raise ValueError(
            "MODEL.ANSWER.WEIGHT is not 0, but there is no answer vocabulary: set "
            "MODEL.ANSWER.FILE (tools/answer_vocabulary.py writes one) or MODEL.ANSWER.ANSWERS"
        )
    return check_answers(list(dict.fromkeys(merged)), f"the metadata of {names}")


def prior_logit(num_answers: int) -> float:
    """Initial bias: every answer, and no answer, is equally likely."""
    return -math.log(num_answers)
