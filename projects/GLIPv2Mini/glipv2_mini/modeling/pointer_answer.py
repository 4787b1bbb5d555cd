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
from glipv2_mini.modeling.region_pointer import (
    BOX_DIM,
    INITIAL_POINTER_LOGIT,
    RegionPointer,
    check_class_logits,
    configured_class_names,
    masked_softmax,
)
from glipv2_mini.modeling.region_text_tasks import RegionQuestionFeatures

# Offsets of a region's x, y, width and height to another region, and the weight of that other one.
_RELATION_DIM = 5
_CACHED_LISTS = 16

# Of a RegionCounter, initially. A region with this logit is as likely there as not, and regions
# within this margin of the best one are counted.
PRESENCE_LOGIT = -2.0
COUNT_MARGIN = 1.5
PRESENCE_WEIGHT = 3.0
COUNT_WEIGHT = 3.0
SHARPNESS = 3.0
# Of its area, from which a box lies in another one.
PART_SHARE = 0.8
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
        names: Sequence[str],
        **others: Any,
    ) -> None:
        """
        Args:
            pointer: points at the region that answers a question.
            counter: scores "yes", "no" and numbers by the regions that match a question.
            names: the class names that regions are scored against.
            others: see :class:`AnswerHead`.

        Raises:
            ValueError: no answer is a class name.
        """
        super().__init__(**others)
        self.pointer = pointer
        self.counter = counter
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
        pointer = AnswerPointer(language_dim=language_backbone.width)
        return {**arguments, "pointer": pointer, "counter": RegionCounter(), "names": names}

    def logits(self, questions: QuestionFeatures, answers: Sequence[str]) -> Tensor:
        assert isinstance(questions, RegionQuestionFeatures)
        check_class_logits(questions.regions, self)
        pooled = self.pool(questions.text)
        name_of = self._names_among(answers)
        with torch.autocast(pooled.device.type, enabled=False):
            own = self.scores(pooled, answers) + self.counter(questions, answers)
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
        self.presence_logit = nn.Parameter(torch.tensor(PRESENCE_LOGIT))
        self.count_weight = nn.Parameter(torch.tensor(COUNT_WEIGHT))
        self.count_margin = nn.Parameter(torch.tensor(COUNT_MARGIN))

    def forward(self, questions: RegionQuestionFeatures, answers: Sequence[str]) -> Tensor:
        """(Q, A), to be added to the logits of the answers."""
        logits = full_precision(questions.region_word_logits)
        is_valid = questions.regions.is_valid[:, :, None] & questions.text.mask[:, None]
        lowest = torch.finfo(logits.dtype).min
        matches = logits.masked_fill(~is_valid, lowest).amax(dim=2)  # (Q, R)
        best = matches.amax(dim=1, keepdim=True).clamp(min=MIN_MATCH)
        presence = torch.tanh(SHARPNESS * (best - self.presence_logit))  # (Q, 1), -1..1
        is_counted = (SHARPNESS * (matches - best + self.count_margin)).sigmoid()
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


def is_part(boxes: Tensor, scores: Tensor) -> Tensor:
    """(Q, R) bool: whether :data:`PART_SHARE` of a box lies in one with a higher score.

    Args:
        boxes: (Q, R, 5), see :class:`~glipv2_mini.modeling.regions.Regions`.
        scores: (Q, R).

    >>> boxes = torch.tensor([[[0.5, 0.5, 0.8, 0.8, 1], [0.5, 0.5, 0.2, 0.2, 1]]])
    >>> is_part(boxes, torch.tensor([[2.0, 1.0]])).tolist()
    [[False, True]]
    """
    center, size = full_precision(boxes[..., :2]), full_precision(boxes[..., 2:4])
    low, high = center - size / 2, center + size / 2
    overlap = torch.minimum(high[:, :, None], high[:, None]) - torch.maximum(
        low[:, :, None], low[:, None]
    )
    covered = overlap.clamp(min=0).prod(dim=-1) / size.prod(dim=-1).clamp(min=1e-6)[:, :, None]
    is_better = scores[:, :, None] < scores[:, None]
    return ((covered >= PART_SHARE) & is_better).any(dim=2)


@dataclass(frozen=True)
class PointedAnswers:
    """Distributions over class names by pointing.

    Attributes:
        logits: (Q,), of answering with a class name.
        probabilities: (Q, B), of the class names.
    """

    logits: Tensor
    probabilities: Tensor


class AnswerPointer(RegionPointer):
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
