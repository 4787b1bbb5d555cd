"""Captions that name what the detector has recognised.

N: captions. T: tokens of the longest, P: those written so far. R: regions of an image. A: names.
L: tokens of the longest name. V: vocabulary. C: channels of the maps. D: width of the words.
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
from glipv2_d2.modeling.generation.beam_search import GenerationConfig
from glipv2_d2.modeling.heads.caption import CAPTION_HEAD_REGISTRY, CaptionHead, CaptionReader
from glipv2_d2.modeling.heads.region_pointer import (
    LOGIT_OF_NAMING,
    PLACE_DIM,
    RegionPointer,
    as_shares,
    checked_names,
    names_of_regions,
)
from glipv2_d2.structures import Regions, TokenBatch
from glipv2_d2.text.articles import agree_articles
from glipv2_d2.text.tokenizer import Tokenizer

_NO_TOKEN = -1
# To start with: names that are begun are ended, those that are written are not written again.
_BEGUN_WEIGHT = 4.0
_SAID_WEIGHT = 4.0


@CAPTION_HEAD_REGISTRY.register()
class NamingCaptionHead(CaptionHead):
    """Writes words of its own, or the next token of the name of a region.

    A mixture of two distributions, as pointer-generator networks have it (See et al. 2017): there
    words are copied from a text, here from a list of names, by how well regions match them. The
    list can be another one at inference, and captions then name things that no caption of the
    training had. Our choice.
    """

    @configurable
    def __init__(self, *, pointer: NamePointer, **others: Any) -> None:
        """
        Args:
            pointer: knows the names, and which may come next.
            others: see :class:`CaptionHead`.
        """
        super().__init__(**others)
        self.pointer = pointer

    @classmethod
    def from_config(
        cls, cfg: CfgNode, tokenizer: Tokenizer, language_backbone: Any
    ) -> dict[str, Any]:
        names = names_of_regions(cfg, f"MODEL.CAPTION.NAME {cls.__name__} writes", "CaptionHead")
        arguments = super().from_config(cfg, tokenizer, language_backbone)
        pointer = NamePointer(language_dim=language_backbone.width, pieces=tokenizer.pieces(names))
        return {**arguments, "pointer": pointer}

    def next_words(self, hidden: Tensor, tokens: TokenBatch, regions: Regions | None) -> Tensor:
        has_next, targets = tokens.mask[:, 1:], tokens.input_ids[:, 1:]
        names = self.pointer(hidden, tokens.input_ids, checked_names(regions, self))
        is_said, token_ids, shares, logits = (
            of_all[:, :-1][has_next]
            for of_all in (names.is_said, names.token_ids, names.shares, names.logits)
        )
        own = self._own(hidden[:, :-1][has_next], is_said, token_ids)
        targets = targets[has_next][:, None]
        of_names = (shares * (token_ids == targets)).sum(dim=1)
        return _mixed(own.gather(1, targets).squeeze(1), of_names, logits)

    def log_probs(self, hidden: Tensor, written: Tensor, regions: Regions | None) -> Tensor:
        names = self.pointer(hidden[:, None], written, checked_names(regions, self))
        own = self._own(hidden, names.is_said[:, 0], names.token_ids[:, 0])
        shares = torch.zeros_like(own).scatter_add(1, names.token_ids[:, 0], names.shares[:, 0])
        return _mixed(own, shares, names.logits)

    def describe(
        self, reader: CaptionReader, decoding: GenerationConfig | None = None
    ) -> list[str]:
        """As :meth:`CaptionHead.describe`; an article is written before its name is chosen."""
        return [agree_articles(caption) for caption in super().describe(reader, decoding)]

    def _own(self, hidden: Tensor, is_said: Tensor, token_ids: Tensor) -> Tensor:
        """(K, V) log-probabilities of (K, D) words, less for the next of (K, A) written names."""
        logits = self.predict(hidden)
        less = -self.pointer.said_weight * is_said.to(logits)
        return logits.scatter_add(1, token_ids, less).log_softmax(dim=-1)


@dataclass(frozen=True)
class NextNames:
    """Which token of which name comes next, if one does.

    Attributes:
        logits: (N, T), whether it is one of a name.
        shares: (N, T, A), of which, in sum 1.
        token_ids: (N, T, A) int64, the token of each.
        is_said: (N, T, A) bool, the whole name is written already.
    """

    logits: Tensor
    shares: Tensor
    token_ids: Tensor
    is_said: Tensor


class NamePointer(RegionPointer):
    """Points from a word to the region that is to be named next, and so to the names it matches."""

    pieces: Tensor

    def __init__(self, *, language_dim: int, pieces: Sequence[Sequence[int]]) -> None:
        """
        Args:
            language_dim: D.
            pieces: the tokens of each name.
        """
        super().__init__(language_dim=language_dim, place_dim=PLACE_DIM)
        self.is_name = nn.Linear(language_dim, 1)
        nn.init.zeros_(self.is_name.weight)
        nn.init.constant_(self.is_name.bias, LOGIT_OF_NAMING)
        self.begun_weight = nn.Parameter(torch.tensor(_BEGUN_WEIGHT))
        self.said_weight = nn.Parameter(torch.tensor(_SAID_WEIGHT))
        rows = [torch.tensor(tokens) for tokens in pieces]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_NO_TOKEN)
        self.register_buffer("pieces", padded, persistent=False)

    def forward(self, hidden: Tensor, written: Tensor, regions: Regions) -> NextNames:
        """What may follow the last T of P words.

        Args:
            hidden: (N, T, D) of the words.
            written: (N, P) token ids.
            regions: of each text's image, compared with the names.
        """
        num_words = hidden.shape[1]
        token_ids, is_begun, is_said = (
            of_all[:, -num_words:] for of_all in names_in_texts(written, self.pieces)
        )
        shares = self.name_shares(regions)
        # (N, T, A), and with what each region is called (N, T, R).
        is_due = self.begun_weight * is_begun.to(shares) - self.said_weight * is_said.to(shares)
        logits = self.place_logits(hidden, regions, full_precision(regions.places))
        pointed = as_shares(logits + is_due @ shares.transpose(1, 2), regions.is_found[:, None])
        # The region that is pointed at may still be called by what is written.
        names = (pointed @ shares).clamp(min=torch.finfo(shares.dtype).tiny).log()
        names = (names + is_due).softmax(dim=-1)
        # Who begins a name of the list ends it: the head's own words may not know how.
        goes_on = self.begun_weight * (names * is_begun).sum(dim=-1)
        logits = self.is_name(hidden).squeeze(-1) + goes_on
        return NextNames(
            logits.masked_fill(
                ~regions.is_found.any(dim=1)[:, None], torch.finfo(logits.dtype).min
            ),
            names,
            token_ids,
            is_said,
        )


def names_in_texts(written: Tensor, pieces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """At each of P tokens of N texts, how far each of A names is written.

    Args:
        written: (N, P) token ids.
        pieces: (A, L) token ids of the names, -1 behind their ends.

    Returns:
        Each (N, P, A): the token of the name that comes next, its first where the text does not
        end in a part of it; whether it does; whether the whole name stands there or before.

    >>> names = torch.tensor([[7, 8], [9, -1]])
    >>> token_ids, is_begun, is_said = names_in_texts(torch.tensor([[5, 7, 8, 9]]), names)
    >>> token_ids[0].tolist()
    [[7, 9], [8, 9], [7, 9], [7, 9]]
    >>> is_begun[0].int().tolist(), is_said[0].int().tolist()
    ([[0, 0], [1, 0], [0, 0], [0, 0]], [[0, 0], [0, 0], [1, 0], [1, 1]])
    """
    lengths = (pieces != _NO_TOKEN).sum(dim=1)
    shape = (*written.shape, len(pieces))
    num_begun = torch.zeros(shape, dtype=torch.int64, device=written.device)
    is_whole = torch.zeros(shape, dtype=torch.bool, device=written.device)
    for num_tokens in range(1, min(pieces.shape[1], written.shape[1]) + 1):
        # (N, P - num_tokens + 1, num_tokens): the last tokens at each place that has so many.
        last = written.unfold(1, num_tokens, 1)
        ends_so = (last[:, :, None] == pieces[:, :num_tokens]).all(dim=-1)
        ends_so = F.pad(ends_so, (0, 0, num_tokens - 1, 0))
        is_whole |= ends_so & (lengths == num_tokens)
        num_begun[ends_so & (lengths > num_tokens)] = num_tokens
    token_ids = pieces.expand(*written.shape, -1, -1).gather(3, num_begun[..., None]).squeeze(3)
    return token_ids, num_begun > 0, is_whole.cummax(dim=1).values


def _mixed(own: Tensor, shares: Tensor, logit_of_naming: Tensor) -> Tensor:
    """Log-probabilities of tokens that are the head's own, or of a name with those shares."""
    of_names = shares.clamp(min=torch.finfo(shares.dtype).tiny).log()
    return torch.logaddexp(
        F.logsigmoid(-logit_of_naming) + own, F.logsigmoid(logit_of_naming) + of_names
    )
