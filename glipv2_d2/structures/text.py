"""The text side of the data path: Prompt -> TokenBatch -> TextFeatures.

N: prompts in the batch. T: tokens of its longest prompt. D: width of the language features.
A *label* indexes the spans of one prompt; a *class* indexes the caller's list or the data set.
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
"""The class of a label that only competes: what it names is not returned."""


@dataclass(frozen=True)
class Prompt:
    """What is asked of one image: a text, and the spans of it that name things.

    Attributes:
        text: the whole text that the language backbone reads.
        spans: for each label, the character spans that name it (several when a phrase is split).
        classes: for each label, the caller's class, or :data:`NEGATIVE`. For a caption, label and
            class are the same.
        is_class_list: the labels are class names, which mean the same for every image, and the text
            is made of them. The words of a caption or a question mean what its own image shows.
        is_question: the text is to be answered. What it is read as does not depend on its labels.
        nouns: of a question, the spans that name things, without their articles; for language
            backbones that read names alone.
    """

    text: str
    spans: tuple[tuple[Span, ...], ...]
    classes: tuple[int, ...]
    is_class_list: bool = False
    is_question: bool = False
    nouns: tuple[Span, ...] = ()

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
        """The labels that only compete."""
        return [label for label, class_ in enumerate(self.classes) if class_ == NEGATIVE]

    @property
    def phrases(self) -> list[str]:
        """The text of each label, its spans joined by blanks.

        >>> Prompt("a cat. dog", (((2, 5),), ((7, 10),)), (0, 1)).phrases
        ['cat', 'dog']
        """
        return [" ".join(self.text[start:end] for start, end in spans) for spans in self.spans]


@dataclass(frozen=True)
class TokenBatch:
    """Tokenized prompts, padded to the longest of the batch.

    Attributes:
        input_ids: (N, T) int64, [CLS] pieces [SEP] and padding.
        mask: (N, T) bool, True from [CLS] to [SEP]. Separators count as valid (GLIP spec 2).
        positive_maps: for each prompt, (labels, T) bool: the tokens that spell each label.
        noun_maps: for each prompt, (nouns, T) bool: the tokens that spell each noun.
        prompts: the prompts, in order.
        causal: a token reads what is left of it and itself, and the image reads no token.
    """

    input_ids: Tensor
    mask: Tensor
    positive_maps: tuple[Tensor, ...]
    noun_maps: tuple[Tensor, ...]
    prompts: tuple[Prompt, ...]
    causal: bool = False

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def is_word(self) -> Tensor:
        """(N, T) bool, True between [CLS] and [SEP]; punctuation counts."""
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
        )

    def rows(self, indices: Sequence[int]) -> TokenBatch:
        """Some of the prompts, with their padding; itself where it is all of them."""
        if list(indices) == list(range(len(self))):
            return self
        return replace(
            self,
            input_ids=self.input_ids[indices],
            mask=self.mask[indices],
            positive_maps=tuple(self.positive_maps[i] for i in indices),
            noun_maps=tuple(self.noun_maps[i] for i in indices),
            prompts=tuple(self.prompts[i] for i in indices),
        )


@dataclass(frozen=True)
class TextFeatures:
    """One vector per token, before or after fusion.

    Attributes:
        hidden: (N, T, D). Rows of padding have no meaning.
        mask: (N, T) bool, True on valid tokens.
        causal: as of :class:`TokenBatch`.
    """

    hidden: Tensor
    mask: Tensor
    causal: bool = False

    def rows(self, indices: Sequence[int]) -> TextFeatures:
        """Those of some of the prompts; itself where it is all of them."""
        if list(indices) == list(range(len(self.mask))):
            return self
        return replace(self, hidden=self.hidden[indices], mask=self.mask[indices])
