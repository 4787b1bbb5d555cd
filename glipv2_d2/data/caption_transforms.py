"""Caption transforms for training: left/right swap under flips, and packing negative captions.

A *negative caption* describes another image: it names objects that are mostly not in this image.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.structures import Prompt
from glipv2_d2.structures.text import Span
from glipv2_d2.text.tokenizer import Tokenizer

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def is_flipped(transforms: T.TransformList) -> bool:
    """Whether the transforms flip the image horizontally; two flips cancel out."""
    return sum(isinstance(t, T.HFlipTransform) for t in transforms.transforms) % 2 == 1


def swap_left_right(
    caption: str, phrases: Sequence[Sequence[Span]]
) -> tuple[str, list[list[Span]]]:
    """Swap "left" and "right" in a caption, and move its spans along.

    Every whole word is swapped, in any meaning (also "right behind"), and keeps its case. Spans
    cover the same words as before.

    >>> swap_left_right("Left dog right of a cat", [[(0, 8)], [(18, 23)]])
    ('Right dog left of a cat', [[(0, 9)], [(18, 23)]])
    """
    matches = list(_SIDES.finditer(caption))
    if not matches:
        return caption, [list(spans) for spans in phrases]
    begins = [match.start() for match in matches]
    ends = [match.end() for match in matches]
    # Offset of the text after the first n swapped words.
    words = [_other_side(match[0]) for match in matches]
    growth = [len(word) - len(match[0]) for word, match in zip(words, matches, strict=True)]
    moved = np.concatenate([[0], np.cumsum(growth)]).tolist()

    def swap_span(begin: int, end: int) -> Span:
        # A span that cuts a swapped word is extended to the whole word.
        first = bisect_right(begins, begin) - 1
        if first >= 0 and begins[first] < begin < ends[first]:
            begin = begins[first]
        last = bisect_left(ends, end)
        if last < len(ends) and begins[last] < end < ends[last]:
            end = ends[last]
        return (
            begin + moved[bisect_right(ends, begin)],
            end + moved[bisect_right(ends, end)],
        )

    text = _SIDES.sub(lambda match: _other_side(match[0]), caption)
    return text, [[swap_span(begin, end) for begin, end in spans] for spans in phrases]


def _other_side(word: str) -> str:
    other = "right" if word.lower() == "left" else "left"
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other


class CaptionPacker(Configurable):
    """Packs negative captions around a caption, in random order (glip_reference.md 16).

    With probability ``full_prob`` it draws ``max_negatives`` captions, with ``random_prob`` a
    random number of them, and otherwise none. The prompt's own caption is always kept whole. A
    caption that contains one of its phrases is not used as a negative (our choice).
    """

    @configurable
    def __init__(
        self, *, tokenizer: Tokenizer, max_negatives: int, full_prob: float, random_prob: float
    ) -> None:
        """
        Args:
            max_negatives: number of negative captions to draw, before those beyond the token
                limit are dropped.
            full_prob: probability of drawing exactly ``max_negatives``.
            random_prob: probability of drawing a uniform number from 1 to ``max_negatives``.
        """
        self.tokenizer = tokenizer
        self.max_negatives = max_negatives
        self.full_prob = full_prob
        self.random_prob = random_prob

    @classmethod
    def from_config(cls, cfg: CfgNode, tokenizer: Tokenizer) -> dict[str, Any]:
        return {
            "tokenizer": tokenizer,
            "max_negatives": cfg.DATALOADER.PROMPT.MAX_NEGATIVE_CAPTIONS,
            "full_prob": cfg.DATALOADER.PROMPT.FULL_NEGATIVE_CAPTIONS_PROB,
            "random_prob": cfg.DATALOADER.PROMPT.RANDOM_NEGATIVE_CAPTIONS_PROB,
        }

    def __call__(self, prompt: Prompt, captions: Sequence[str], rng: np.random.Generator) -> Prompt:
        """The prompt packed with negative captions, its spans moved to the new positions.

        Args:
            prompt: prompt of a caption within the token limit.
            captions: captions to draw from.
        """
        count = self._draw_count(rng)
        if count == 0 or len(captions) == 0:
            return prompt
        drawn = [_closed(captions[i]) for i in rng.integers(len(captions), size=count)]
        texts = self._within_budget(prompt, _negatives(drawn, prompt))
        position = int(rng.integers(len(texts) + 1))
        before = "".join(f"{text} " for text in texts[:position])
        text = " ".join([before + _closed(prompt.text), *texts[position:]])
        offset = len(before)
        moved = tuple(
            tuple((begin + offset, end + offset) for begin, end in spans) for spans in prompt.spans
        )
        packed = replace(prompt, text=text, spans=moved)
        # Some tokenizers need more tokens for a text than for its sentences one by one.
        fits = self.tokenizer.count(text) <= self._room
        return packed if texts and fits else prompt

    @property
    def _room(self) -> int:
        return self.tokenizer.max_tokens - self.tokenizer.num_special_tokens

    def _draw_count(self, rng: np.random.Generator) -> int:
        draw = rng.random()
        if self.max_negatives == 0 or draw >= self.full_prob + self.random_prob:
            return 0
        if draw < self.full_prob:
            return self.max_negatives
        return int(rng.integers(1, self.max_negatives + 1))

    def _within_budget(self, prompt: Prompt, texts: list[str]) -> list[str]:
        room = self._room - self.tokenizer.count(_closed(prompt.text))
        kept = []
        for text, cost in zip(texts, self.tokenizer.counts(texts), strict=True):
            if cost <= room:
                kept.append(text)
                room -= cost
        return kept


def _closed(caption: str) -> str:
    """The caption ended by a full stop. Leading blanks stay, because spans count them."""
    caption = caption.rstrip()
    return caption if caption.endswith(".") else f"{caption}."


def _negatives(texts: Sequence[str], prompt: Prompt) -> list[str]:
    """The distinct texts that contain none of the prompt's phrases."""
    phrases = [re.escape(phrase) for phrase in prompt.phrases if phrase.strip()]
    own = re.compile(rf"\b({'|'.join(phrases)})\b", re.IGNORECASE) if phrases else None
    unique = dict.fromkeys(text for text in texts if text != _closed(prompt.text))
    return [text for text in unique if own is None or not own.search(text)]
