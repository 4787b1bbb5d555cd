"""The text side of the data path: Prompt -> TokenBatch -> TextFeatures.

N: prompts in the batch. T: tokens of its longest prompt. D: width of the text features.
A *label* indexes the spans of one prompt; a *class* indexes the caller's list or the dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

Span = tuple[int, int]
"""Characters [start, end) of a prompt's text."""

NEGATIVE = -1
"""The class of a label that only competes for boxes and is not returned."""


@dataclass(frozen=True)
class Prompt:
    """A text to encode, and the spans of it that are labels.

    Attributes:
        text: the whole text.
        spans: for each label, the character spans that spell it (several for a split phrase).
        classes: for each label, the caller's class, or :data:`NEGATIVE`. For a caption, label and
            class are the same.
        is_class_list: the text is a list of class names, which mean the same in every image. The
            words of a caption or question refer to their own image.
        is_question: the text is a question. Its encoding does not depend on its labels.
        label_keys: of a training prompt of class names, a key per label, by which the names of two
            datasets are compared (:mod:`glipv2_d2.data.class_alignment`).
        nouns: of a question, the spans of its nouns, without articles; for language backbones that
            encode nouns separately.
    """

    text: str
    spans: tuple[tuple[Span, ...], ...]
    classes: tuple[int, ...]
    is_class_list: bool = False
    is_question: bool = False
    nouns: tuple[Span, ...] = ()
    label_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.spans) != len(self.classes):
            raise ValueError(
                f"a prompt needs one class per label: {len(self.spans)} labels, "
                f"{len(self.classes)} classes"
            )

    @property
    def num_labels(self) -> int:
        return len(self.spans)

    @property
    def negative_labels(self) -> list[int]:
        """The labels that only compete for boxes."""
        return [label for label, class_ in enumerate(self.classes) if class_ == NEGATIVE]

    @property
    def phrases(self) -> list[str]:
        """The text of each label, its spans joined by blanks.

        >>> Prompt("a cat. dog", (((2, 5),), ((7, 10),)), (0, 1)).phrases
        ['cat', 'dog']
        """
        return span_texts(self.text, self.spans)


def span_texts(text: str, spans_per_phrase: Sequence[Sequence[Span]]) -> list[str]:
    """The text of each phrase, its spans joined by blanks."""
    return [" ".join(text[start:end] for start, end in spans) for spans in spans_per_phrase]


@dataclass(frozen=True)
class TokenBatch:
    """Tokenized prompts, padded to the longest of the batch.

    Attributes:
        input_ids: (N, T) int64, [CLS] pieces [SEP] and padding.
        mask: (N, T) bool, True from [CLS] to [SEP], separators included (glip_reference.md 2).
        positive_maps: for each prompt, (labels, T) bool: the tokens that spell each label.
        noun_maps: for each prompt, (nouns, T) bool: the tokens that spell each noun.
        prompts: the prompts, in order.
        causal: a token attends to itself and the tokens on its left, and the image attends to no
            token.
        mlm_targets: (N, T) int64, the ids to predict where tokens are masked, -100 elsewhere; None:
            nothing is masked.
    """

    input_ids: Tensor
    mask: Tensor
    positive_maps: tuple[Tensor, ...]
    noun_maps: tuple[Tensor, ...]
    prompts: tuple[Prompt, ...]
    causal: bool = False
    mlm_targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def is_word(self) -> Tensor:
        """(N, T) bool, True between [CLS] and [SEP], punctuation included."""
        # The token after [SEP] is padding or beyond the end.
        is_word = F.pad(self.mask[:, 1:], (0, 1))
        is_word[:, 0] = False
        return is_word

    def to(self, device: torch.device | str) -> TokenBatch:
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            mask=self.mask.to(device),
            positive_maps=tuple(positive_map.to(device) for positive_map in self.positive_maps),
            noun_maps=tuple(noun_map.to(device) for noun_map in self.noun_maps),
            mlm_targets=None if self.mlm_targets is None else self.mlm_targets.to(device),
        )

    def rows(self, indices: Sequence[int]) -> TokenBatch:
        """Some of the prompts, with their padding; itself for all of them."""
        if list(indices) == list(range(len(self))):
            return self
        return replace(
            self,
            input_ids=self.input_ids[indices],
            mask=self.mask[indices],
            positive_maps=tuple(self.positive_maps[i] for i in indices),
            noun_maps=tuple(self.noun_maps[i] for i in indices),
            prompts=tuple(self.prompts[i] for i in indices),
            mlm_targets=None if self.mlm_targets is None else self.mlm_targets[indices],
        )


@dataclass(frozen=True)
class TextFeatures:
    """One vector per token, before or after fusion.

    Attributes:
        hidden: (N, T, D). Rows of padding are undefined.
        mask: (N, T) bool, True on valid tokens.
        causal: as in :class:`TokenBatch`.
    """

    hidden: Tensor
    mask: Tensor
    causal: bool = False

    def rows(self, indices: Sequence[int]) -> TextFeatures:
        """The features of some of the prompts; itself for all of them."""
        if list(indices) == list(range(len(self.mask))):
            return self
        return replace(self, hidden=self.hidden[indices], mask=self.mask[indices])
