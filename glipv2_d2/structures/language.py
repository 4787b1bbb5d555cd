"""The text side of the data path: Prompt -> TokenBatch -> LanguageFeatures.

N: prompts in the batch. T: tokens of its longest prompt. D: width of the language features.
A *label* indexes the spans of one prompt; a *class* indexes the caller's list or the data set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Span = tuple[int, int]
"""Characters [start, end) of a prompt's text."""


@dataclass(frozen=True)
class Prompt:
    """What is asked of one image: a text, and the spans of it that name things.

    Attributes:
        text: the whole text that the language backbone reads.
        spans: for each label, the character spans that name it (several when a phrase is split).
        classes: for each label, the caller's class. For a caption, label and class are the same.
        is_class_list: the labels are class names, which mean the same for every image, and the text
            is made of them. The words of a caption or a question mean what its own image shows.
    """

    text: str
    spans: tuple[tuple[Span, ...], ...]
    classes: tuple[int, ...]
    is_class_list: bool = False

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
        prompts: the prompts, in order.
    """

    input_ids: Tensor
    mask: Tensor
    positive_maps: tuple[Tensor, ...]
    prompts: tuple[Prompt, ...]

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
        return TokenBatch(
            self.input_ids.to(device),
            self.mask.to(device),
            tuple(positive_map.to(device) for positive_map in self.positive_maps),
            self.prompts,
        )


@dataclass(frozen=True)
class LanguageFeatures:
    """One vector per token, before or after fusion.

    Attributes:
        hidden: (N, T, D). Rows of padding have no meaning.
        mask: (N, T) bool, True on valid tokens.
    """

    hidden: Tensor
    mask: Tensor
