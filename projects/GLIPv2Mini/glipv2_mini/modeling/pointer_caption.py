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
    ClassPointer,
    check_class_logits,
    configured_class_names,
    masked_softmax,
)
from glipv2_mini.modeling.region_text_tasks import RegionCaptionFeatures, RegionDecoderOutput
from glipv2_mini.modeling.regions import Regions, is_part
from glipv2_mini.text.articles import agree_articles

_NO_TOKEN = -1
# From this region-word logit a caption may mention a region (our choice, on photos).
MIN_NAMED_LOGIT = 0.0
# Initially, begun names are completed and mentioned names are not repeated.
_BEGUN_WEIGHT = 4.0
_REPETITION_WEIGHT = 4.0
# What a generated caption may continue with after a name.
_AFTER_NAME = (
    *(",", ".", "and", "on", "in", "left", "right", "above", "below", "beside", "near", "next"),
    *("behind", "with", "under"),
)
# Of the end against all other tokens, after a complete caption.
_ENDING_WEIGHT = 1e4


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
        words = [ids for ids in self.tokenizer.encode(_AFTER_NAME) if len(ids) == 1]
        self._after_name = [self.tokenizer.end_id, *(ids[0] for ids in words)]

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
        is_barred, token_ids, probabilities, logits = (
            x[:, :-1][has_next]
            for x in (names.is_barred, names.token_ids, names.probabilities, names.logits)
        )
        own = self._own(hidden[:, :-1][has_next], is_barred, token_ids)
        targets = targets[has_next][:, None]
        copied = (probabilities * (token_ids == targets)).sum(dim=1)
        return _mix(own.gather(1, targets).squeeze(1), copied, logits)

    def next_log_probs(self, output: DecoderOutput) -> Tensor:
        assert isinstance(output, RegionDecoderOutput)
        regions = check_class_logits(output.regions, self)
        names = self.pointer(output.hidden[:, None], output.input_ids, regions)
        own = self._own(output.hidden, names.is_barred[:, 0], names.token_ids[:, 0])
        copied = torch.zeros_like(own).scatter_add(
            1, names.token_ids[:, 0], names.probabilities[:, 0]
        )
        mixed = _mix(self._continued(own, names), copied, names.logits)
        # Still in order, for captions that must be longer.
        is_end = torch.arange(mixed.shape[1], device=mixed.device) == self.tokenizer.end_id
        ending = (mixed - _ENDING_WEIGHT * ~is_end).log_softmax(dim=-1)
        return torch.where(names.is_complete, ending, mixed)

    def generate(
        self, decoder: CaptionDecoder, generation: GenerationConfig | None = None
    ) -> list[str]:
        """As :meth:`CaptionHead.generate`; articles are corrected for the copied names."""
        return [agree_articles(caption) for caption in super().generate(decoder, generation)]

    def _continued(self, own: Tensor, names: NextNames) -> Tensor:
        """(N, V) log-probabilities without words that cannot follow a name or its beginning.

        The names of photos are often none of the training captions', after which any word comes.
        """
        follows_name = torch.zeros(own.shape[1], dtype=torch.bool, device=own.device)
        follows_name[self._after_name] = True
        is_barred = (names.ends_name & ~follows_name) | (names.is_within_name & follows_name)
        return (own - _ENDING_WEIGHT * is_barred).log_softmax(dim=-1)

    def _own(self, hidden: Tensor, is_barred: Tensor, token_ids: Tensor) -> Tensor:
        """(K, V) log-probabilities of (K, D) tokens, lowered for (K, A) barred names."""
        logits = self(hidden)
        penalty = -self.pointer.repetition_weight * is_barred.to(logits)
        return logits.scatter_add(1, token_ids, penalty).log_softmax(dim=-1)


@dataclass(frozen=True)
class NextNames:
    """The next tokens by copying class names.

    Attributes:
        logits: (N, T), of copying.
        probabilities: (N, T, A), of the class names.
        token_ids: (N, T, A) int64, the next token of each name.
        is_mentioned: (N, T, A) bool, the caption contains the whole name.
        is_barred: (N, T, A) bool, the name is mentioned, or another one has just ended: names do
            not follow each other without a word between them.
        ends_name: (N, T) bool, a name ends here.
        is_within_name: (N, T) bool, a name that may be copied has begun, and none ends here.
        is_complete: (N, T) bool, and no region is left to mention.
    """

    logits: Tensor
    probabilities: Tensor
    token_ids: Tensor
    is_mentioned: Tensor
    is_barred: Tensor
    ends_name: Tensor
    is_within_name: Tensor
    is_complete: Tensor


class CaptionPointer(ClassPointer):
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
        token_ids, is_begun, is_mentioned = match_names(input_ids, self.name_tokens)
        ends_name = (is_mentioned & ~F.pad(is_mentioned, (0, 0, 1, 0))[:, :-1]).any(dim=2)
        token_ids, is_begun, is_mentioned, ends_name = (
            x[:, -num_tokens:] for x in (token_ids, is_begun, is_mentioned, ends_name)
        )
        classes = self.class_probabilities(regions)
        # (N, T, A); weighted by the classes of each region (N, T, R).
        bonus = self.begun_weight * is_begun.to(classes)
        bonus = bonus - self.repetition_weight * is_mentioned.to(classes)
        logits = self.box_logits(hidden, regions, full_precision(regions.boxes))
        is_left = nameable_regions(regions)[:, None] & ~is_mentioned_region(regions, is_mentioned)
        pointed = masked_softmax(logits + bonus @ classes.transpose(1, 2), is_left)
        # The region that is pointed at may still match a name that is mentioned already.
        names = (pointed @ classes).clamp(min=torch.finfo(classes.dtype).tiny).log()
        names = (names + bonus).softmax(dim=-1)
        # A copied name is completed: the head's own distribution may not contain its tokens.
        begun = self.begun_weight * (names * is_begun).sum(dim=-1)
        logits = self.is_name(hidden).squeeze(-1) + begun
        is_done = ~is_left.any(dim=2)
        is_empty = ~regions.is_valid.any(dim=1)[:, None]
        has_begun = is_begun.any(dim=2)
        cannot_copy = is_empty | ((is_done | ends_name) & ~has_begun)
        return NextNames(
            logits.masked_fill(cannot_copy, torch.finfo(logits.dtype).min),
            names,
            token_ids,
            is_mentioned,
            is_mentioned | ends_name[:, :, None],
            ends_name,
            has_begun & ~ends_name & ~is_empty,
            is_done & ends_name,
        )


def nameable_regions(regions: Regions) -> Tensor:
    """(N, R) bool: the regions that a caption may mention.

    Those that match a class name well and are no part of a better one; without any, the best.
    """
    assert regions.class_logits is not None
    matches = full_precision(regions.class_logits).amax(dim=-1)
    matches = matches.masked_fill(~regions.is_valid, torch.finfo(matches.dtype).min)
    is_best = (matches == matches.amax(dim=1, keepdim=True)) & regions.is_valid
    is_good = (matches >= MIN_NAMED_LOGIT) & ~is_part(regions.boxes, matches)
    return is_best | (is_good & regions.is_valid)


def is_mentioned_region(regions: Regions, is_mentioned: Tensor) -> Tensor:
    """(N, T, R) bool: the most probable class of the region is among the (N, T, A) mentioned."""
    assert regions.class_logits is not None
    classes = regions.class_logits.argmax(dim=-1)[:, None].expand(-1, is_mentioned.shape[1], -1)
    return is_mentioned.gather(2, classes)


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
