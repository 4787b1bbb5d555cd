"""Answers that are the class name of a region.

Q: questions. T: tokens. R: regions of an image. A: answers. B: class names. D: width of the text
features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.config import configurable
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.layers.lru_cache import LRUCache
from glipv2_d2.modeling.heads.answer import ANSWER_HEAD_REGISTRY, AnswerHead, QuestionFeatures
from glipv2_d2.modeling.language import LanguageBackbone
from glipv2_d2.text.answers import canonical_answer
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_mini.modeling.colors import NUM_COLORS, color_logits
from glipv2_mini.modeling.evidence_backbone import EvidenceLevel
from glipv2_mini.modeling.region_pointer import (
    BOX_DIM,
    INITIAL_POINTER_LOGIT,
    ClassPointer,
    RegionPointer,
    check_class_logits,
    configured_class_names,
    masked_softmax,
)
from glipv2_mini.modeling.region_text_tasks import RegionQuestionFeatures
from glipv2_mini.modeling.regions import is_part
from glipv2_mini.text.phrases import COLOR_NAMES, COLOR_OF

# Offsets of a region's x, y, width and height to another region, and the weight of that other one.
_RELATION_DIM = 5
_CACHED_LISTS = 16

# Of a RegionCounter, initially. A region with this logit is as likely there as not, and regions
# within this margin of the best one are counted.
PRESENCE_LOGIT = -1.9
COUNT_MARGIN = 1.25
PRESENCE_WEIGHT = 3.0
COUNT_WEIGHT = 3.0
SHARPNESS = 3.0
# Of a ColorPointer, initially.
COLOR_MATCH_WEIGHT = 3.0
COLOR_WEIGHT = 2.0
_COLOR_INDEX = {word: COLOR_NAMES.index(color) for word, color in COLOR_OF.items()}
# The lowest logit of a match: images may have no region.
MIN_MATCH = -12.0


@ANSWER_HEAD_REGISTRY.register()
class PointerAnswerHead(AnswerHead):
    """An :class:`AnswerHead` that can also answer with the class name of a region (our choice).

    The probability of an answer that is a class name mixes the head's own score with a pointer to a
    region: the own score would have to recognise hundreds of classes in one pooled vector. With a
    text classifier the class names join the answers.
    """

    @configurable
    def __init__(
        self,
        *,
        pointer: AnswerPointer,
        counter: RegionCounter,
        color_pointer: ColorPointer,
        names: Sequence[str],
        **others: Any,
    ) -> None:
        """
        Args:
            pointer: points at the region that answers a question.
            counter: scores "yes", "no" and numbers by the regions that match a question.
            color_pointer: scores colours by the region that a question mentions.
            names: the class names that regions are scored against.
            others: see :class:`AnswerHead`.

        Raises:
            ValueError: no answer is a class name.
        """
        super().__init__(**others)
        self.pointer = pointer
        self.counter = counter
        self.color_pointer = color_pointer
        self._name_of = {canonical_answer(name): i for i, name in enumerate(names)}
        self._cache: LRUCache[tuple[str, ...], dict[int, int]] = LRUCache(_CACHED_LISTS)
        if not self._names_among(self.answers):
            raise ValueError(
                f"none of the {len(self.answers)} answers is one of the {len(names)} class names, "
                f"such as {names[0]!r}: a {type(self).__name__} answers with class names; use "
                "other answers, or AnswerHead"
            )

    @classmethod
    def from_config(
        cls, cfg: CfgNode, tokenizer: Tokenizer, language_backbone: LanguageBackbone
    ) -> dict[str, Any]:
        names = configured_class_names(cfg, f"MODEL.ANSWER.NAME {cls.__name__}", "AnswerHead")
        arguments = super().from_config(cfg, tokenizer, language_backbone)
        if cfg.MODEL.ANSWER.CLASSIFIER == "text":
            answers = arguments["answers"]
            listed = {canonical_answer(answer) for answer in answers}
            others = [name for name in names if canonical_answer(name) not in listed]
            arguments["answers"] = [*answers, *others]
        width = language_backbone.width
        return {
            **arguments,
            "pointer": AnswerPointer(language_dim=width),
            "counter": RegionCounter(),
            "color_pointer": ColorPointer(language_dim=width),
            "names": names,
        }

    def logits(self, questions: QuestionFeatures, answers: Sequence[str]) -> Tensor:
        assert isinstance(questions, RegionQuestionFeatures)
        check_class_logits(questions.regions, self)
        pooled = self.pool(questions.text)
        name_of = self._names_among(answers)
        with torch.autocast(pooled.device.type, enabled=False):
            own = level_kinds(self.scores(pooled, answers), answers)
            own = own + self.counter(questions, answers)
            own = own + self.color_pointer(pooled, questions, answers)
            if not name_of:
                return own
            pointed = self.pointer(pooled, questions, among=list(name_of.values()))
            columns = torch.tensor(list(name_of), device=own.device)
            probabilities = torch.zeros_like(own)
            probabilities = probabilities.index_copy(1, columns, pointed.probabilities.to(own))
            return _mix(own, probabilities, pointed.logits)

    def _names_among(self, answers: Sequence[str]) -> dict[int, int]:
        """Index of each answer that is a class name -> index of the class name."""
        key = tuple(answers)
        cached = self._cache.find([key])
        if not cached:
            names = ((i, self._name_of.get(canonical_answer(a))) for i, a in enumerate(answers))
            cached[key] = {i: name for i, name in names if name is not None}
            self._cache.keep(cached)
        return cached[key]


class RegionCounter(nn.Module):
    """Logits of "yes", "no" and numbers by the regions that match the words of a question.

    Whether something matches and how often is lost in a pooled vector, and is what "is there a
    dog?" and "how many dogs are there?" need. A region matches with its best logit over the tokens;
    words such as "there" match no region. Regions almost as good as the best one are counted,
    unless they lie in a better one, as a cat's head in the cat. The question decides between the
    kinds of answers by the head's own scores. Initialised by what the evidence's logits are on
    photos (our choice).
    """

    def __init__(self) -> None:
        super().__init__()
        self.presence_weight = nn.Parameter(torch.tensor(PRESENCE_WEIGHT))
        self.count_weight = nn.Parameter(torch.tensor(COUNT_WEIGHT))

    def forward(self, questions: RegionQuestionFeatures, answers: Sequence[str]) -> Tensor:
        """(Q, A), to be added to the logits of the answers."""
        matches = best_matches(questions)
        best = matches.amax(dim=1, keepdim=True).clamp(min=MIN_MATCH)
        presence = torch.tanh(SHARPNESS * (best - PRESENCE_LOGIT))  # (Q, 1), -1..1
        is_counted = (SHARPNESS * (matches - best + COUNT_MARGIN)).sigmoid()
        is_counted = is_counted.masked_fill(is_part(questions.regions.boxes, matches), 0)
        number = is_counted.sum(dim=1, keepdim=True) * (1 + presence) / 2
        texts = [canonical_answer(answer) for answer in answers]
        sign = best.new_tensor([(text == "yes") - (text == "no") for text in texts])
        is_number = best.new_tensor([text.isdigit() for text in texts])
        numbers = best.new_tensor([int(text) if text.isdigit() else 0 for text in texts])
        # All parameters receive gradients, whichever the answers are.
        return (
            sign * self.presence_weight * presence
            - is_number * self.count_weight * (number - numbers).abs()
        )


class ColorPointer(RegionPointer):
    """Logits of colours by those of the region that a question mentions.

    The region matches the words of the question, and may be one of several by its place: "what
    color is the book on the right?". The question decides between colours and other answers by the
    head's own scores (our choice).
    """

    def __init__(self, *, language_dim: int) -> None:
        """
        Args:
            language_dim: D.
        """
        super().__init__(language_dim=language_dim, box_dim=BOX_DIM)
        self.match_weight = nn.Parameter(torch.tensor(COLOR_MATCH_WEIGHT))
        self.color_weight = nn.Parameter(torch.tensor(COLOR_WEIGHT))

    def forward(
        self, pooled: Tensor, questions: RegionQuestionFeatures, answers: Sequence[str]
    ) -> Tensor:
        """(Q, A), to be added to the logits of the answers.

        Args:
            pooled: (Q, D).
        """
        regions = questions.regions
        boxes = full_precision(regions.boxes)
        logits = self.box_logits(pooled[:, None], regions, boxes).squeeze(1)
        logits = logits + self.match_weight * best_matches(questions).clamp(min=MIN_MATCH)
        pointed = masked_softmax(logits, regions.is_valid)  # (Q, R)
        colors = color_logits(EvidenceLevel.split(regions.fused_features).color_probs)
        best = colors.amax(dim=-1, keepdim=True)
        scores = (pointed[:, None] @ (colors - best)).squeeze(1) * self.color_weight  # (Q, 11)
        scores = scores.masked_fill(~regions.is_valid.any(dim=1, keepdim=True), 0)
        columns = [_COLOR_INDEX.get(canonical_answer(answer), NUM_COLORS) for answer in answers]
        # Other answers have the score 0.
        return F.pad(scores, (0, 1))[:, columns]


def level_kinds(scores: Tensor, answers: Sequence[str]) -> Tensor:
    """(Q, A) scores in which the answers of one kind are equal: yes and no, numbers, colours.

    Each gets the best score of its kind. A pooled vector gives the kind of an answer; which one it
    is, the regions decide (our choice).
    """
    texts = [canonical_answer(answer) for answer in answers]
    kinds = (
        [i for i, text in enumerate(texts) if text in ("yes", "no")],
        [i for i, text in enumerate(texts) if text.isdigit()],
        [i for i, text in enumerate(texts) if text in _COLOR_INDEX],
    )
    for kind in kinds:
        if kind:
            columns = torch.tensor(kind, device=scores.device)
            best = scores[:, columns].amax(dim=1, keepdim=True)
            scores = scores.index_copy(1, columns, best.expand(-1, len(kind)))
    return scores


def best_matches(questions: RegionQuestionFeatures) -> Tensor:
    """(Q, R): the best region-word logit of each region over the tokens of a question."""
    logits = full_precision(questions.region_word_logits)
    is_valid = questions.regions.is_valid[:, :, None] & questions.text.mask[:, None]
    return logits.masked_fill(~is_valid, torch.finfo(logits.dtype).min).amax(dim=2)


@dataclass(frozen=True)
class PointedAnswers:
    """Distributions over class names by pointing.

    Attributes:
        logits: (Q,), of answering with a class name.
        probabilities: (Q, B), of the class names.
    """

    logits: Tensor
    probabilities: Tensor


class AnswerPointer(ClassPointer):
    """Points from a question to the region that answers it, through the region that it mentions.

    The answer to "what is left of the dog?" is a region with a spatial relation to the dog.
    The mentioned region has the best logits against the tokens that the question attends to.
    """

    def __init__(self, *, language_dim: int) -> None:
        """
        Args:
            language_dim: D.
        """
        super().__init__(language_dim=language_dim, box_dim=BOX_DIM + _RELATION_DIM)
        self.mention_attention = nn.Linear(language_dim, 1)
        self.match_weight = nn.Parameter(torch.tensor(1.0))
        self.is_name = nn.Linear(language_dim, 1)
        nn.init.zeros_(self.is_name.weight)
        nn.init.constant_(self.is_name.bias, INITIAL_POINTER_LOGIT)

    def forward(
        self, pooled: Tensor, questions: RegionQuestionFeatures, among: Sequence[int]
    ) -> PointedAnswers:
        """
        Args:
            pooled: (Q, D).
            questions: the Q questions, with class logits of their regions.
            among: indices of the B class names to choose from.
        """
        regions = questions.regions
        mentioned = self.mentioned_regions(questions)
        boxes = full_precision(regions.boxes)
        relative = boxes[..., :4]
        reference = (mentioned[..., None] * relative).sum(dim=1, keepdim=True)
        boxes = torch.cat([boxes, relative - reference, mentioned[..., None]], dim=-1)
        logits = self.box_logits(pooled[:, None], regions, boxes).squeeze(1)
        pointed = masked_softmax(logits, regions.is_valid)
        probabilities = (pointed[:, None] @ self.class_probabilities(regions, among)).squeeze(1)
        logits = self.is_name(pooled).squeeze(-1)
        is_empty = ~regions.is_valid.any(dim=1)
        logits = logits.masked_fill(is_empty, torch.finfo(logits.dtype).min)
        return PointedAnswers(logits, probabilities)

    def mentioned_regions(self, questions: RegionQuestionFeatures) -> Tensor:
        """(Q, R), the probability that a question mentions each region."""
        text = questions.text
        # Rows of padding are undefined, and zero times infinity is NaN.
        hidden = full_precision(text.hidden).masked_fill(~text.mask[..., None], 0)
        attention = masked_softmax(self.mention_attention(hidden).squeeze(-1), text.mask)
        matches = full_precision(questions.region_word_logits)
        matches = matches.masked_fill(~text.mask[:, None], 0)
        logits = (matches @ attention[..., None]).squeeze(-1) * self.match_weight
        return masked_softmax(logits, questions.regions.is_valid)


def _mix(own: Tensor, probabilities: Tensor, pointer_logits: Tensor) -> Tensor:
    """(Q, A) logits of the mixture of own logits and pointed probabilities."""
    # Away from 0 and 1, so that gradients are bounded.
    info = torch.finfo(probabilities.dtype)
    probabilities = probabilities.clamp(min=info.tiny, max=1 - info.eps)
    by_pointer, by_own = (
        F.logsigmoid(pointer_logits)[:, None],
        F.logsigmoid(-pointer_logits)[:, None],
    )
    correct = torch.logaddexp(by_own + F.logsigmoid(own), by_pointer + probabilities.log())
    wrong = torch.logaddexp(by_own + F.logsigmoid(-own), by_pointer + (-probabilities).log1p())
    return correct - wrong
