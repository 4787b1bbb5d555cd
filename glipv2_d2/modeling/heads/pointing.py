"""Answers that are the name of what a question asks for.

Q: questions. T: tokens. R: regions of an image. A: answers. B: names. D: width of the words.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.modeling.heads.answer import ANSWER_HEAD_REGISTRY, AnswerHead
from glipv2_d2.modeling.heads.region_pointer import (
    LOGIT_OF_NAMING,
    PLACE_DIM,
    RegionPointer,
    as_shares,
    names_of_regions,
    with_names,
)
from glipv2_d2.modeling.losses.precision import full_precision
from glipv2_d2.structures import ReadQuestions
from glipv2_d2.text.answers import canonical_answer
from glipv2_d2.text.tokenizer import Tokenizer

# Of a region to another: x, y, width and height less, and how much it is that other itself.
_RELATION_DIM = 5
_KNOWN_LISTS = 16
_NO_NAME = -1


@ANSWER_HEAD_REGISTRY.register()
class PointingAnswerHead(AnswerHead):
    """Answers as :class:`AnswerHead` does, or with the name of the region that is asked for.

    Every answer's probability is a mixture of the two. What an image shows is told by its regions:
    the head's own score would have to find each of hundreds of names in one pooled question. Our
    choice.
    """

    @configurable
    def __init__(self, *, pointer: AnswerPointer, names: Sequence[str], **others: Any) -> None:
        """
        Args:
            pointer: says which region is asked for.
            names: those with which regions are compared.
            others: see :class:`AnswerHead`.
        """
        super().__init__(**others)
        self.pointer = pointer
        self._name_of = {canonical_answer(name): i for i, name in enumerate(names)}
        self._names_of = functools.lru_cache(maxsize=_KNOWN_LISTS)(self._find_names)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, tokenizer: Tokenizer, language_backbone: Any
    ) -> dict[str, Any]:
        names = names_of_regions(
            cfg, f"MODEL.ANSWER.NAME {cls.__name__} answers with", "AnswerHead"
        )
        arguments = super().from_config(cfg, tokenizer, language_backbone)
        pointer = AnswerPointer(language_dim=language_backbone.width)
        return {**arguments, "pointer": pointer, "names": names}

    def logits(self, questions: ReadQuestions, answers: Sequence[str]) -> Tensor:
        pooled = self.pool(questions.language)
        with torch.autocast(pooled.device.type, enabled=False):
            own = self.scores(pooled, answers)
            named = self.pointer(pooled, questions)
            indices = torch.tensor(self._names_of(tuple(answers)), device=own.device)
            shares = named.shares[:, indices.clamp(min=0)].masked_fill(indices == _NO_NAME, 0)
            return _mixed(own, shares, named.logits)

    def _find_names(self, answers: tuple[str, ...]) -> list[int]:
        """Which name each answer is."""
        return [self._name_of.get(canonical_answer(answer), _NO_NAME) for answer in answers]


@dataclass(frozen=True)
class NamedAnswers:
    """Whether questions are answered by a name, and by which.

    Attributes:
        logits: (Q,), of the first.
        shares: (Q, B), in sum 1.
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

    def forward(self, pooled: Tensor, questions: ReadQuestions) -> NamedAnswers:
        """The region that each question asks for, by its names.

        Args:
            pooled: (Q, D).
            questions: the Q questions, with regions that were compared with names.
        """
        regions = with_names(questions.regions, self)
        named = self.named(questions)
        places = full_precision(regions.places)
        sizes = places[..., :4]
        there = (named[..., None] * sizes).sum(dim=1, keepdim=True)
        places = torch.cat([places, sizes - there, named[..., None]], dim=-1)
        logits = self.place_logits(pooled[:, None], regions, places).squeeze(1)
        asked_for = as_shares(logits, regions.is_found)
        shares = (asked_for[:, None] @ self.name_shares(regions)).squeeze(1)
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
