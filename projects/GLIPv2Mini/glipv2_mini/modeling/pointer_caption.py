"""Captions that can copy the class names of regions.

N: captions. T: tokens of the longest, P: tokens so far. R: regions of an image. A: class names.
L: tokens of the longest class name. V: vocabulary. D: width of the text features.
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
from glipv2_d2.modeling.generation.caption_decoder import CaptionDecoder, DecoderOutput
from glipv2_d2.modeling.heads.caption import CAPTION_HEAD_REGISTRY, CaptionFeatures, CaptionHead
from glipv2_d2.modeling.language import LanguageBackbone
from glipv2_d2.structures import GenerationConfig
from glipv2_d2.text.tokenizer import Tokenizer
from glipv2_mini.modeling.region_pointer import (
    BOX_DIM,
    INITIAL_POINTER_LOGIT,
    RegionPointer,
    check_class_logits,
    configured_class_names,
    masked_softmax,
)
from glipv2_mini.modeling.region_text_tasks import RegionCaptionFeatures, RegionDecoderOutput
from glipv2_mini.modeling.regions import Regions
from glipv2_mini.text.articles import agree_articles

_NO_TOKEN = -1
# Initially, begun names are completed and mentioned names are not repeated.
_BEGUN_WEIGHT = 4.0
_REPETITION_WEIGHT = 4.0


@CAPTION_HEAD_REGISTRY.register()
class PointerCaptionHead(CaptionHead):
    """Generates tokens of the vocabulary, or copies the next token of a region's class name.

    A mixture of two distributions, as in pointer-generator networks (See et al. 2017): there words
    are copied from a source text, here from a list of class names by their region-word logits. With
    another list at inference, captions name classes that no training caption had. Our choice.
    """

    @configurable
    def __init__(self, *, pointer: CaptionPointer, **others: Any) -> None:
        """
        Args:
            pointer: distributes probability over the class names.
            others: see :class:`CaptionHead`.
        """
        super().__init__(**others)
        self.pointer = pointer

    @classmethod
    def from_config(
        cls, cfg: CfgNode, tokenizer: Tokenizer, language_backbone: LanguageBackbone
    ) -> dict[str, Any]:
        names = configured_class_names(cfg, f"MODEL.CAPTION.NAME {cls.__name__}", "CaptionHead")
        arguments = super().from_config(cfg, tokenizer, language_backbone)
        pointer = CaptionPointer(
            language_dim=language_backbone.width, name_tokens=tokenizer.encode(names)
        )
        return {**arguments, "pointer": pointer}

    def target_log_probs(self, captions: CaptionFeatures) -> Tensor:
        assert isinstance(captions, RegionCaptionFeatures)
        tokens, hidden = captions.tokens, full_precision(captions.text.hidden)
        has_next, targets = tokens.mask[:, 1:], tokens.input_ids[:, 1:]
        regions = check_class_logits(captions.regions, self)
        names = self.pointer(hidden, tokens.input_ids, regions)
        is_mentioned, token_ids, probabilities, logits = (
            x[:, :-1][has_next]
            for x in (names.is_mentioned, names.token_ids, names.probabilities, names.logits)
        )
        own = self._own(hidden[:, :-1][has_next], is_mentioned, token_ids)
        targets = targets[has_next][:, None]
        copied = (probabilities * (token_ids == targets)).sum(dim=1)
        return _mix(own.gather(1, targets).squeeze(1), copied, logits)

    def next_log_probs(self, output: DecoderOutput) -> Tensor:
        assert isinstance(output, RegionDecoderOutput)
        regions = check_class_logits(output.regions, self)
        names = self.pointer(output.hidden[:, None], output.input_ids, regions)
        own = self._own(output.hidden, names.is_mentioned[:, 0], names.token_ids[:, 0])
        copied = torch.zeros_like(own).scatter_add(
            1, names.token_ids[:, 0], names.probabilities[:, 0]
        )
        return _mix(own, copied, names.logits)

    def generate(
        self, decoder: CaptionDecoder, generation: GenerationConfig | None = None
    ) -> list[str]:
        """As :meth:`CaptionHead.generate`; articles are corrected for the copied names."""
        return [agree_articles(caption) for caption in super().generate(decoder, generation)]

    def _own(self, hidden: Tensor, is_mentioned: Tensor, token_ids: Tensor) -> Tensor:
        """(K, V) log-probabilities of (K, D) tokens, lowered for (K, A) mentioned names."""
        logits = self(hidden)
        penalty = -self.pointer.repetition_weight * is_mentioned.to(logits)
        return logits.scatter_add(1, token_ids, penalty).log_softmax(dim=-1)


@dataclass(frozen=True)
class NextNames:
    """The next tokens by copying class names.

    Attributes:
        logits: (N, T), of copying.
        probabilities: (N, T, A), of the class names.
        token_ids: (N, T, A) int64, the next token of each name.
        is_mentioned: (N, T, A) bool, the caption contains the whole name.
    """

    logits: Tensor
    probabilities: Tensor
    token_ids: Tensor
    is_mentioned: Tensor


class CaptionPointer(RegionPointer):
    """Points from a token to the region to mention next, and so to the names that it matches."""

    name_tokens: Tensor

    def __init__(self, *, language_dim: int, name_tokens: Sequence[Sequence[int]]) -> None:
        """
        Args:
            language_dim: D.
            name_tokens: the token ids of each class name.
        """
        super().__init__(language_dim=language_dim, box_dim=BOX_DIM)
        self.is_name = nn.Linear(language_dim, 1)
        nn.init.zeros_(self.is_name.weight)
        nn.init.constant_(self.is_name.bias, INITIAL_POINTER_LOGIT)
        self.begun_weight = nn.Parameter(torch.tensor(_BEGUN_WEIGHT))
        self.repetition_weight = nn.Parameter(torch.tensor(_REPETITION_WEIGHT))
        rows = [torch.tensor(tokens) for tokens in name_tokens]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=_NO_TOKEN)
        self.register_buffer("name_tokens", padded, persistent=False)

    def forward(self, hidden: Tensor, input_ids: Tensor, regions: Regions) -> NextNames:
        """
        Args:
            hidden: (N, T, D) of the last T of P tokens.
            input_ids: (N, P).
            regions: of each caption's image, with class logits.
        """
        num_tokens = hidden.shape[1]
        token_ids, is_begun, is_mentioned = (
            x[:, -num_tokens:] for x in match_names(input_ids, self.name_tokens)
        )
        classes = self.class_probabilities(regions)
        # (N, T, A); weighted by the classes of each region (N, T, R).
        bonus = self.begun_weight * is_begun.to(classes)
        bonus = bonus - self.repetition_weight * is_mentioned.to(classes)
        logits = self.box_logits(hidden, regions, full_precision(regions.boxes))
        pointed = masked_softmax(
            logits + bonus @ classes.transpose(1, 2), regions.is_valid[:, None]
        )
        # The region that is pointed at may still match a name that is mentioned already.
        names = (pointed @ classes).clamp(min=torch.finfo(classes.dtype).tiny).log()
        names = (names + bonus).softmax(dim=-1)
        # A copied name is completed: the head's own distribution may not contain its tokens.
        begun = self.begun_weight * (names * is_begun).sum(dim=-1)
        logits = self.is_name(hidden).squeeze(-1) + begun
        is_empty = ~regions.is_valid.any(dim=1)[:, None]
        return NextNames(
            logits.masked_fill(is_empty, torch.finfo(logits.dtype).min),
            names,
            token_ids,
            is_mentioned,
        )


def match_names(input_ids: Tensor, name_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How much of each of A names ends at each of P tokens of N captions.

    Args:
        input_ids: (N, P) token ids.
        name_tokens: (A, L) token ids of the names, padded with -1.

    Returns:
        Each (N, P, A): the next token of the name, its first if no part of it ends here; whether a
        part of it ends here; whether the whole name occurs here or before.

    >>> names = torch.tensor([[7, 8], [9, -1]])
    >>> token_ids, is_begun, is_mentioned = match_names(torch.tensor([[5, 7, 8, 9]]), names)
    >>> token_ids[0].tolist()
    [[7, 9], [8, 9], [7, 9], [7, 9]]
    >>> is_begun[0].int().tolist(), is_mentioned[0].int().tolist()
    ([[0, 0], [1, 0], [0, 0], [0, 0]], [[0, 0], [0, 0], [1, 0], [1, 1]])
    """
    lengths = (name_tokens != _NO_TOKEN).sum(dim=1)
    shape = (*input_ids.shape, len(name_tokens))
    num_begun = torch.zeros(shape, dtype=torch.int64, device=input_ids.device)
    is_whole = torch.zeros(shape, dtype=torch.bool, device=input_ids.device)
    for num_tokens in range(1, min(name_tokens.shape[1], input_ids.shape[1]) + 1):
        # (N, P - num_tokens + 1, num_tokens): the last tokens at each position that has them.
        last = input_ids.unfold(1, num_tokens, 1)
        is_prefix = (last[:, :, None] == name_tokens[:, :num_tokens]).all(dim=-1)
        is_prefix = F.pad(is_prefix, (0, 0, num_tokens - 1, 0))
        is_whole |= is_prefix & (lengths == num_tokens)
        num_begun[is_prefix & (lengths > num_tokens)] = num_tokens
    tokens = name_tokens.expand(*input_ids.shape, -1, -1)
    token_ids = tokens.gather(3, num_begun[..., None]).squeeze(3)
    return token_ids, num_begun > 0, is_whole.cummax(dim=1).values


def _mix(own: Tensor, copied: Tensor, pointer_logits: Tensor) -> Tensor:
    """Log-probabilities of the mixture of own log-probabilities and copied probabilities."""
    log_copied = copied.clamp(min=torch.finfo(copied.dtype).tiny).log()
    return torch.logaddexp(
        F.logsigmoid(-pointer_logits) + own, F.logsigmoid(pointer_logits) + log_copied
    )
