"""Permutations of the class names of a prompt.

In a fused model the score of a class name depends on the names before it. Averaging scores over
several orders reduces that dependence.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from glipv2_d2.structures import Prompt
from glipv2_d2.text.prompts import Decoration, class_prompt

# From here on there are more orders than anyone requests; bounds the factorial.
_MAX_COUNTED_NAMES = 12


def permuted_prompts(prompt: Prompt, *, separator: str, count: int) -> list[Prompt]:
    """The prompt, followed by copies with its class names in other random orders.

    The orders depend only on the number of names. Label l is the same class name in every prompt;
    only its span differs.

    Args:
        prompt: one of :func:`~glipv2_d2.text.prompts.class_prompts`.
        separator: the separator of that prompt.
        count: number of prompts, at least 1; there are fewer if the names have fewer orders.
    """
    labels = range(prompt.num_labels)
    prompts = {tuple(labels): prompt}
    rng = random.Random(0)
    num_orders = math.factorial(min(prompt.num_labels, _MAX_COUNTED_NAMES))
    while len(prompts) < min(count, num_orders):
        order = tuple(rng.sample(labels, prompt.num_labels))
        if order not in prompts:
            prompts[order] = _permute(prompt, order, separator)
    return list(prompts.values())


def _permute(prompt: Prompt, order: Sequence[int], separator: str) -> Prompt:
    """The prompt with the names of its labels in this order."""
    names = [prompt.phrases[label] for label in order]
    # Decorations are used verbatim; cleaning a name twice may change it.
    verbatim = [Decoration("", name, "") for name in names]
    permuted = class_prompt(names, separator=separator, decorations=verbatim)
    spans = dict(zip(order, permuted.spans, strict=True))
    return replace(
        prompt, text=permuted.text, spans=tuple(spans[label] for label in range(len(order)))
    )
