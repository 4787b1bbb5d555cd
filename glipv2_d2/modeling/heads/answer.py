"""Questions answered from a list: the words that have read the image, pooled, choose an answer.

Q: questions. T: tokens. D: width of the words. A: answers to choose from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.heads.region_word import DotProductScore
from glipv2_d2.modeling.language.text_vectors import TextVectors
from glipv2_d2.modeling.losses.answers import answer_loss
from glipv2_d2.structures import ReadQuestions, TextFeatures
from glipv2_d2.text.answers import canonical_answer, check_answers, read_answers
from glipv2_d2.text.tokenizer import Tokenizer

ANSWER_HEAD_REGISTRY = Registry("ANSWER_HEAD")
ANSWER_HEAD_REGISTRY.__doc__ = """
Heads for answers: ``obj(cfg, tokenizer, language_backbone)`` gives an :class:`AnswerHead`.
"""


class Guess(NamedTuple):
    """An answer and how sure the model is of it, 0..1."""

    answer: str
    score: float


@ANSWER_HEAD_REGISTRY.register()
class AnswerHead(nn.Module):
    """Attention over the words of a question, two layers, and a score for every answer.

    GLIPv2's, as we remember the paper; its code was not released. Answers do not exclude each
    other: what each is worth is learned by itself.
    """

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
            answers: those that training scores, and inference where it is not told others.
            scores: (Q, D) pooled questions and a list of answers -> (Q, A) logits:
                :class:`ListedScores` or :class:`TextScores`.
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
        cls, cfg: CfgNode, tokenizer: Tokenizer, language_backbone: Any
    ) -> dict[str, Any]:
        answers = configured_answers(cfg)
        return {
            "language_dim": language_backbone.width,
            "answers": answers,
            "scores": _build_scores(cfg.MODEL.ANSWER.SCORE, answers, tokenizer, language_backbone),
            "weight": cfg.MODEL.ANSWER.WEIGHT,
        }

    def pool(self, language: TextFeatures) -> Tensor:
        """(Q, T, D) fused questions -> (Q, D), in at least float32 also under autocast."""
        with torch.autocast(language.hidden.device.type, enabled=False):
            # Rows of padding have no meaning, and zero times infinity is none.
            hidden = full_precision(language.hidden).masked_fill(~language.mask[..., None], 0)
            logits = self.attention(hidden).squeeze(-1)
            logits = logits.masked_fill(~language.mask, torch.finfo(logits.dtype).min)
            pooled = (logits.softmax(dim=1)[..., None] * hidden).sum(dim=1)
            return self.mlp(pooled)

    def logits(self, questions: ReadQuestions, answers: Sequence[str]) -> Tensor:
        """(Q, A), in at least float32, of A answers to the questions."""
        pooled = self.pool(questions.language)
        with torch.autocast(pooled.device.type, enabled=False):
            return self.scores(pooled, answers)

    def forward(
        self, questions: Sequence[ReadQuestions], answers: Sequence[Mapping[str, float]]
    ) -> dict[str, Tensor]:
        """``loss_answer``.

        Args:
            questions: in one or more parts that were read apart; of no question, too.
            answers: per question, what its answers are worth, 0..1. Those that are not in the list
                are left out.
        """
        logits = torch.cat([self.logits(part, self.answers) for part in questions])
        return {"loss_answer": self.weight * answer_loss(logits, self.targets(answers).to(logits))}

    def targets(self, answers: Sequence[Mapping[str, float]]) -> Tensor:
        """(Q, A), what each answer of the list is worth."""
        targets = torch.zeros(len(answers), len(self.answers))
        for row, worth in zip(targets, answers, strict=True):
            for answer, score in worth.items():
                index = self._index_of.get(canonical_answer(answer))
                if index is not None:
                    row[index] = max(float(row[index]), score)
        return targets

    def guess(
        self, questions: ReadQuestions, choices: Sequence[Sequence[str] | None]
    ) -> list[Guess]:
        """The best answer to each question.

        Args:
            choices: per question at least one answer to choose from; None: the list of training.

        Raises:
            ValueError: the head scores a list of its own, and a choice is not in it.
        """
        guesses: dict[int, Guess] = {}
        lists = [self.answers if c is None else tuple(c) for c in choices]
        for answers in dict.fromkeys(lists):
            rows = [row for row, own in enumerate(lists) if own == answers]
            best = self.logits(questions.rows(rows), answers).sigmoid().max(dim=1)
            for row, score, index in zip(
                rows, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                guesses[row] = Guess(answers[index], score)
        return [guesses[row] for row in range(len(lists))]


class ListedScores(nn.Module):
    """Weights of its own for every answer of a list; no other can be asked."""

    def __init__(self, *, language_dim: int, answers: Sequence[str]) -> None:
        super().__init__()
        self.answers = tuple(answers)
        self.linear = nn.Linear(language_dim, len(answers))
        nn.init.constant_(self.linear.bias, prior_logit(len(answers)))
        self._index_of = {canonical_answer(answer): i for i, answer in enumerate(answers)}

    def forward(self, pooled: Tensor, answers: Sequence[str]) -> Tensor:
        """(Q, D) and A answers -> (Q, A) logits.

        Raises:
            ValueError: an answer is not in the list.
        """
        logits = self.linear(pooled)
        if tuple(answers) == self.answers:
            return logits
        indices = [self._index_of.get(canonical_answer(answer)) for answer in answers]
        if None in indices:
            raise ValueError(
                f"answer {answers[indices.index(None)]!r} is not in the list of "
                f"{len(self.answers)} answers that this model knows; a model of "
                "MODEL.ANSWER.SCORE 'words' can be asked for others"
            )
        return logits[:, indices]


class TextScores(nn.Module):
    """Answers matched by their text, as regions are with words: any list can be asked."""

    def __init__(self, *, language_dim: int, num_answers: int, texts: TextVectors) -> None:
        """
        Args:
            num_answers: of the list of training, of which one is to be likely at first.
            texts: answers -> their (A, D) vectors.
        """
        super().__init__()
        self.texts = texts
        self.match = DotProductScore(
            visual_dim=language_dim, language_dim=language_dim, prior_prob=1 / (num_answers + 1)
        )

    def forward(self, pooled: Tensor, answers: Sequence[str]) -> Tensor:
        """(Q, D) and A answers -> (Q, A) logits."""
        vectors = self.texts(answers).to(pooled)[None]
        words = TextFeatures(vectors, torch.ones_like(vectors[..., 0], dtype=torch.bool))
        (logits,) = self.match([pooled[None]], words)
        return logits[0]


def build_answer_head(
    cfg: CfgNode, tokenizer: Tokenizer, language_backbone: Any
) -> AnswerHead | None:
    """The head of ``cfg.MODEL.ANSWER``; None where its weight is 0."""
    if cfg.MODEL.ANSWER.WEIGHT == 0:
        return None
    return ANSWER_HEAD_REGISTRY.get(cfg.MODEL.ANSWER.NAME)(cfg, tokenizer, language_backbone)


def _build_scores(
    kind: str, answers: Sequence[str], tokenizer: Tokenizer, language_backbone: Any
) -> nn.Module:
    width = language_backbone.width
    if kind == "classes":
        return ListedScores(language_dim=width, answers=answers)
    if kind != "words":
        raise ValueError(f"MODEL.ANSWER.SCORE is {kind!r}; choose 'classes' or 'words'")
    texts = TextVectors(language_backbone, tokenizer)
    return TextScores(language_dim=width, num_answers=len(answers), texts=texts)


def configured_answers(cfg: CfgNode) -> list[str]:
    """The list of ``cfg.MODEL.ANSWER``, or else that of the data sets' metadata ``answers``.

    Those of several data sets are joined, each answer once.

    Raises:
        FileNotFoundError: the list's file is missing.
        ValueError: there is no list or two, it is empty, or an answer is there twice.
    """
    settings = cfg.MODEL.ANSWER
    if settings.FILE and settings.ANSWERS:
        raise ValueError(
            f"MODEL.ANSWER has a FILE, {settings.FILE!r}, and a list of ANSWERS: leave one of the "
            "two empty"
        )
    if settings.FILE:
        return read_answers(settings.FILE)
    if settings.ANSWERS:
        return check_answers(list(settings.ANSWERS), "MODEL.ANSWER.ANSWERS")
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    joined = [answer for name in names for answer in MetadataCatalog.get(name).get("answers", ())]
    if not joined:
        raise ValueError(
            "MODEL.ANSWER.WEIGHT is not 0, but nothing says which answers there are: name a list "
            "in MODEL.ANSWER.FILE (tools/answer_vocabulary.py writes one) or MODEL.ANSWER.ANSWERS"
        )
    return check_answers(list(dict.fromkeys(joined)), f"the metadata of {names}")


def prior_logit(num_answers: int) -> float:
    """Where scores start: as if one of the answers, or none, were as likely as any other."""
    return -math.log(num_answers)
