"""One question, its names written in several orders.

A model whose words read each other scores a name differently behind other names. Asked in several
orders, with the mean of the scores, it depends less on where the caller happened to write a name.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from glipv2_d2.structures import Prompt
from glipv2_d2.text.prompts import Decoration, class_prompt

# Names whose orders nobody asks for all.
_MANY_NAMES = 12


def name_orders(prompt: Prompt, *, separator: str, count: int) -> list[Prompt]:
    """A prompt and further ones that ask its names in other orders.

    The orders are random, but always the same for as many names. Labels and their classes stay in
    place: label l is the same name in every prompt, and only its span is another.

    Args:
        prompt: of :func:`~glipv2_d2.text.prompts.class_prompts`.
        separator: that it was made with.
        count: of prompts, at least 1; fewer where the names have fewer orders.
    """
    labels = range(prompt.num_labels)
    prompts = {tuple(labels): prompt}
    rng = random.Random(0)
    num_orders = math.factorial(min(prompt.num_labels, _MANY_NAMES))
    while len(prompts) < min(count, num_orders):
        order = tuple(rng.sample(labels, prompt.num_labels))
        if order not in prompts:
            prompts[order] = _in_order(prompt, order, separator)
    return list(prompts.values())


def _in_order(prompt: Prompt, order: Sequence[int], separator: str) -> Prompt:
    """The prompt with the names of its labels written in this order."""
    names = [prompt.phrases[label] for label in order]
    # As they stand in the prompt: cleaning a name a second time may change it.
    as_they_are = [Decoration("", name, "") for name in names]
    written = class_prompt(names, separator=separator, decorations=as_they_are)
    spans = dict(zip(order, written.spans, strict=True))
    return replace(
        prompt, text=written.text, spans=tuple(spans[label] for label in range(len(order)))
    )
