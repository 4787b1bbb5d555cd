"""Questions answered from a list: the words that have read the image, pooled, choose an answer.

Q: questions. T: tokens. D: width of the words. A: answers to choose from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from torch import Tensor, nn

from glipv2_d2.modeling.heads.region_word import RegionWordScore
from glipv2_d2.modeling.language.cache import PhraseCache, weights_version
from glipv2_d2.modeling.losses.answers import answer_loss
from glipv2_d2.modeling.losses.precision import full_precision
from glipv2_d2.structures import LanguageFeatures, Prompt
from glipv2_d2.text.answers import canonical_answer, check_answers, read_answers
from glipv2_d2.text.tokenizer import Tokenizer

# 8192 answers of BERT-base are 24 MiB.
_CACHED_ANSWERS = 8192
_ANSWERS_PER_BATCH = 256


class Guess(NamedTuple):
    """An answer and how sure the model is of it, 0..1."""

    answer: str
    score: float


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
        matches: WordMatches | None = None,
    ) -> None:
        """
        Args:
            language_dim: D.
            answers: those that training scores, and inference where it is not told others.
            scores: (Q, D) pooled questions and a list of answers -> (Q, A) logits:
                :class:`ListedScores` or :class:`TextScores`.
            weight: factor of the loss.
            matches: tells each word how well the regions match it, before words are pooled; None:
                they are pooled as they come.
        """
        super().__init__()
        self.matches = matches
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
            "matches": (
                WordMatches(language_dim=language_backbone.width)
                if cfg.MODEL.ANSWER.READS_MATCHES
                else None
            ),
        }

    def pool(self, language: LanguageFeatures) -> Tensor:
        """(Q, T, D) fused questions -> (Q, D), in at least float32 also under autocast."""
        with torch.autocast(language.hidden.device.type, enabled=False):
            # Rows of padding have no meaning, and zero times infinity is none.
            hidden = full_precision(language.hidden).masked_fill(~language.mask[..., None], 0)
            logits = self.attention(hidden).squeeze(-1)
            logits = logits.masked_fill(~language.mask, torch.finfo(logits.dtype).min)
            pooled = (logits.softmax(dim=1)[..., None] * hidden).sum(dim=1)
            return self.mlp(pooled)

    def forward(self, pooled: Tensor, answers: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
        """``loss_answer``.

        Args:
            pooled: (Q, D), of :meth:`pool`.
            answers: per question, what its answers are worth, 0..1. Those that are not in the list
                are left out.
        """
        with torch.autocast(pooled.device.type, enabled=False):
            logits = self.scores(pooled, self.answers)
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
        self, language: LanguageFeatures, choices: Sequence[Sequence[str] | None]
    ) -> list[Guess]:
        """The best answer to each fused question.

        Args:
            choices: per question at least one answer to choose from; None: the list of training.

        Raises:
            ValueError: the head scores a list of its own, and a choice is not in it.
        """
        pooled = self.pool(language)
        guesses: dict[int, Guess] = {}
        lists = [self.answers if c is None else tuple(c) for c in choices]
        for answers in dict.fromkeys(lists):
            rows = [row for row, own in enumerate(lists) if own == answers]
            with torch.autocast(pooled.device.type, enabled=False):
                best = self.scores(pooled[rows], answers).sigmoid().max(dim=1)
            for row, score, index in zip(
                rows, best.values.tolist(), best.indices.tolist(), strict=True
            ):
                guesses[row] = Guess(answers[index], score)
        return [guesses[row] for row in range(len(lists))]


class WordMatches(nn.Module):
    """Tells words how well regions match them: the best one, and all together.

    Attention says which regions a word should read, not whether any is the thing itself, which
    "is there a dog?" asks. The region-word scores, which detection learns, say it. They are added
    to the words, from zeros to start with. Our choice.
    """

    def __init__(self, *, language_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(2, language_dim)
        for parameter in self.projection.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, language: LanguageFeatures, token_logits_per_level: Sequence[Tensor]
    ) -> LanguageFeatures:
        """Questions (Q, T, D) and their region-word logits, (Q, A_i, T) each -> the same shape."""
        logits = torch.cat([full_precision(level) for level in token_logits_per_level], dim=1)
        matched = torch.stack([logits.amax(dim=1), logits.logsumexp(dim=1)], dim=-1)
        with torch.autocast(matched.device.type, enabled=False):
            hidden = full_precision(language.hidden) + self.projection(matched)
        return replace(language, hidden=hidden)


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

    def __init__(self, *, language_dim: int, num_answers: int, texts: AnswerTexts) -> None:
        """
        Args:
            num_answers: of the list of training, of which one is to be likely at first.
            texts: answers -> their vectors.
        """
        super().__init__()
        self.texts = texts
        self.match = RegionWordScore(
            visual_dim=language_dim, language_dim=language_dim, prior_prob=1 / (num_answers + 1)
        )

    def forward(self, pooled: Tensor, answers: Sequence[str]) -> Tensor:
        """(Q, D) and A answers -> (Q, A) logits."""
        vectors = self.texts(answers).to(pooled)[None]
        words = LanguageFeatures(vectors, torch.ones_like(vectors[..., 0], dtype=torch.bool))
        (logits,) = self.match([pooled[None]], words)
        return logits[0]


class AnswerTexts:
    """The vectors that the language backbone gives to answers, each the mean over its tokens.

    Without gradient: a list of thousands is read anew whenever the backbone has learned something.
    Those of a frozen one are kept.
    """

    def __init__(self, language_backbone: nn.Module, tokenizer: Tokenizer) -> None:
        self.language_backbone = language_backbone
        self.tokenizer = tokenizer
        self._cache = PhraseCache(_CACHED_ANSWERS)

    def __call__(self, answers: Sequence[str]) -> Tensor:
        """(A, D), in at least float32."""
        ids = [tuple(pieces) for pieces in self.tokenizer.pieces(answers)]
        text_of = dict(zip(ids, answers, strict=True))
        device = next(self.language_backbone.parameters()).device

        def encode(unknown: Sequence[tuple[int, ...]]) -> Tensor:
            texts = [text_of[pieces] for pieces in unknown]
            parts = [
                self._encode(texts[start : start + _ANSWERS_PER_BATCH], device)
                for start in range(0, len(texts), _ANSWERS_PER_BATCH)
            ]
            return torch.cat(parts)

        return self._cache(ids, encode, weights_version(self.language_backbone), device)

    @torch.no_grad()
    def _encode(self, answers: Sequence[str], device: torch.device) -> Tensor:
        prompts = [
            Prompt(answer, (((0, len(answer)),),), (0,), is_class_list=True) for answer in answers
        ]
        tokens = self.tokenizer(prompts).to(device)
        was_training = self.language_backbone.training
        # Without dropout.
        self.language_backbone.eval()
        try:
            with torch.autocast(device.type, enabled=False):
                hidden = full_precision(self.language_backbone(tokens).hidden)
        finally:
            self.language_backbone.train(was_training)
        is_answer = torch.cat(tokens.positive_maps)[..., None]
        return hidden.masked_fill(~is_answer, 0).sum(dim=1) / is_answer.sum(dim=1).clamp(min=1)


def build_answer_head(
    cfg: CfgNode, tokenizer: Tokenizer, language_backbone: Any
) -> AnswerHead | None:
    """The head of ``cfg.MODEL.ANSWER``; None where its weight is 0."""
    if cfg.MODEL.ANSWER.WEIGHT == 0:
        return None
    return AnswerHead(cfg, tokenizer, language_backbone)


def _build_scores(
    kind: str, answers: Sequence[str], tokenizer: Tokenizer, language_backbone: Any
) -> nn.Module:
    width = language_backbone.width
    if kind == "classes":
        return ListedScores(language_dim=width, answers=answers)
    if kind != "words":
        raise ValueError(f"MODEL.ANSWER.SCORE is {kind!r}; choose 'classes' or 'words'")
    texts = AnswerTexts(language_backbone, tokenizer)
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
