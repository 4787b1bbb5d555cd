"""Answers that are the name of what a question asks for.

Q: questions. T: tokens. R: regions of an image. A: answers. B: names. D: width of the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.layers.lru_cache import LRUCache
from glipv2_d2.modeling.heads.answer import ANSWER_HEAD_REGISTRY, AnswerHead
from glipv2_d2.modeling.heads.region_pointer import (
    LOGIT_OF_NAMING,
    PLACE_DIM,
    RegionPointer,
    as_shares,
    checked_names,
    names_of_regions,
)
from glipv2_d2.structures import ReadQuestions
from glipv2_d2.text.answers import canonical_answer
from glipv2_d2.text.tokenizer import Tokenizer

# Of a region to another: x, y, width and height less, and how much it is that other itself.
_RELATION_DIM = 5
_KNOWN_LISTS = 16


@ANSWER_HEAD_REGISTRY.register()
class PointingAnswerHead(AnswerHead):
    """Answers as :class:`AnswerHead` does, or with the name of the region that is asked for.

    The probability of an answer that is a name is a mixture of the two. What an image shows is told
    by its regions: the head's own score would have to find each of hundreds of names in one pooled
    question. Where answers are matched by their text, the names are answers, too. Our choice.
    """

    @configurable
    def __init__(self, *, pointer: AnswerPointer, names: Sequence[str], **others: Any) -> None:
        """
        Args:
            pointer: says which region is asked for.
            names: those with which regions are compared.
            others: see :class:`AnswerHead`.

        Raises:
            ValueError: no answer is a name.
        """
        super().__init__(**others)
        self.pointer = pointer
        self._name_of = {canonical_answer(name): i for i, name in enumerate(names)}
        self._known: LRUCache[tuple[str, ...], dict[int, int]] = LRUCache(_KNOWN_LISTS)
        if not self._names_among(self.answers):
            raise ValueError(
                f"none of the {len(self.answers)} answers is one of the {len(names)} names of "
                f"MODEL.REGION_READER.NAMES_FILE, such as {names[0]!r}: a {type(self).__name__} "
                "answers with names; give a list that has some, or choose AnswerHead"
            )

    @classmethod
    def from_config(
        cls, cfg: CfgNode, tokenizer: Tokenizer, language_backbone: Any
    ) -> dict[str, Any]:
        names = names_of_regions(
            cfg, f"MODEL.ANSWER.NAME {cls.__name__} answers with", "AnswerHead"
        )
        arguments = super().from_config(cfg, tokenizer, language_backbone)
        if cfg.MODEL.ANSWER.SCORE == "words":
            answers = arguments["answers"]
            listed = {canonical_answer(answer) for answer in answers}
            others = [name for name in names if canonical_answer(name) not in listed]
            arguments["answers"] = [*answers, *others]
        pointer = AnswerPointer(language_dim=language_backbone.width)
        return {**arguments, "pointer": pointer, "names": names}

    def logits(self, questions: ReadQuestions, answers: Sequence[str]) -> Tensor:
        checked_names(questions.regions, self)
        pooled = self.pool(questions.language)
        name_of = self._names_among(answers)
        with torch.autocast(pooled.device.type, enabled=False):
            own = self.scores(pooled, answers)
            if not name_of:
                return own
            named = self.pointer(pooled, questions, among=list(name_of.values()))
            columns = torch.tensor(list(name_of), device=own.device)
            shares = torch.zeros_like(own).index_copy(1, columns, named.shares.to(own))
            return _mixed(own, shares, named.logits)

    def _names_among(self, answers: Sequence[str]) -> dict[int, int]:
        """Which of the answers are names, and which names."""
        key = tuple(answers)
        known = self._known.find([key])
        if not known:
            names = ((i, self._name_of.get(canonical_answer(a))) for i, a in enumerate(answers))
            known[key] = {i: name for i, name in names if name is not None}
            self._known.keep(known)
        return known[key]


@dataclass(frozen=True)
class NamedAnswers:
    """Whether questions are answered by a name, and by which.

    Attributes:
        logits: (Q,), of the first.
        shares: (Q, B), of the names that may be the answer, in sum 1.
    """

    logits: Tensor
    shares: Tensor


class AnswerPointer(RegionPointer):
    """Points from a question to the region that it asks for, by way of the one that it names.

    "What is left of the dog?" names a region, the dog, and asks for one whose place has a relation
    to it. The first is where the regions match words that the question attends to.
    """

    def __init__(self, *, language_dim: int) -> None:
        """
        Args:
            language_dim: D.
        """
        super().__init__(language_dim=language_dim, place_dim=PLACE_DIM + _RELATION_DIM)
        self.named_word = nn.Linear(language_dim, 1)
        self.match_weight = nn.Parameter(torch.tensor(1.0))
        self.is_name = nn.Linear(language_dim, 1)
        nn.init.zeros_(self.is_name.weight)
        nn.init.constant_(self.is_name.bias, LOGIT_OF_NAMING)

    def forward(
        self, pooled: Tensor, questions: ReadQuestions, among: Sequence[int]
    ) -> NamedAnswers:
        """The region that each question asks for, by its names.

        Args:
            pooled: (Q, D).
            questions: the Q questions, with regions that were compared with names.
            among: the B names that may be the answer.
        """
        regions = questions.regions
        assert regions is not None
        named = self.named(questions)
        places = full_precision(regions.places)
        boxes = places[..., :4]
        there = (named[..., None] * boxes).sum(dim=1, keepdim=True)
        places = torch.cat([places, boxes - there, named[..., None]], dim=-1)
        logits = self.place_logits(pooled[:, None], regions, places).squeeze(1)
        asked_for = as_shares(logits, regions.is_found)
        shares = (asked_for[:, None] @ self.name_shares(regions, among)).squeeze(1)
        logits = self.is_name(pooled).squeeze(-1)
        is_empty = ~regions.is_found.any(dim=1)
        return NamedAnswers(logits.masked_fill(is_empty, torch.finfo(logits.dtype).min), shares)

    def named(self, questions: ReadQuestions) -> Tensor:
        """(Q, R), which region a question names, in sum 1."""
        assert questions.regions is not None and questions.matches is not None
        language = questions.language
        # Rows of padding have no meaning, and zero times infinity is none.
        hidden = full_precision(language.hidden).masked_fill(~language.mask[..., None], 0)
        words = as_shares(self.named_word(hidden).squeeze(-1), language.mask)
        matches = full_precision(questions.matches).masked_fill(~language.mask[:, None], 0)
        logits = (matches @ words[..., None]).squeeze(-1) * self.match_weight
        return as_shares(logits, questions.regions.is_found)


def _mixed(own: Tensor, shares: Tensor, logits_of_naming: Tensor) -> Tensor:
    """(Q, A) logits of answers that are right by their own (Q, A) logits, or by a region's name."""
    # Of neither side so sure that its gradient has no bounds.
    info = torch.finfo(shares.dtype)
    shares = shares.clamp(min=info.tiny, max=1 - info.eps)
    by_name, by_own = (
        F.logsigmoid(logits_of_naming)[:, None],
        F.logsigmoid(-logits_of_naming)[:, None],
    )
    right = torch.logaddexp(by_own + F.logsigmoid(own), by_name + shares.log())
    wrong = torch.logaddexp(by_own + F.logsigmoid(-own), by_name + (-shares).log1p())
    return right - wrong
