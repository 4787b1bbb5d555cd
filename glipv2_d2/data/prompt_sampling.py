"""Which class names a training image is asked: those in it, and some that are not.

A *class* indexes the data set's list of names. A *cost* is the tokens that a name takes in a
prompt, its separator included. The *budget* is the tokens that a prompt has for names.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sample_classes(
    positives: Sequence[int],
    texts: Sequence[str],
    costs: Sequence[int],
    *,
    budget: int,
    max_negatives: int,
    full_negatives_prob: float,
    shuffle: bool,
    rng: np.random.Generator,
) -> list[int]:
    """The classes to ask, in the order of the prompt (GLIP spec 16).

    Args:
        positives: classes that are in the image; those beyond the budget are left out, at random.
        texts: of every class, what the prompt says for it. A text that is asked already is not
            drawn as a negative (our choice: "bow (weapon)" is no negative for "bow (ribbon)").
        costs: of every class.
        max_negatives: classes drawn at most, positives among them not counted in the end.
        full_negatives_prob: how often exactly so many are drawn, else a uniform number.
        shuffle: random order, else that of the data set.

    Raises:
        ValueError: not one name fits the budget.
    """
    chosen = _within_budget(rng.permutation(positives).tolist(), costs, budget)
    asked = {texts[c] for c in chosen}
    spent = sum(costs[c] for c in chosen)
    drawn = _draw(len(texts), max_negatives, full_negatives_prob, rng)
    present = set(positives)
    negatives = []
    for c in drawn:
        if c not in present and texts[c] not in asked:
            negatives.append(c)
            asked.add(texts[c])
    chosen += _within_budget(negatives, costs, budget - spent)
    if not chosen:
        # Nothing to see and nothing drawn: an image without boxes is still asked one name.
        chosen = _within_budget(rng.permutation(len(texts)).tolist(), costs, budget)[:1]
    if not chosen:
        raise ValueError(
            f"no class name fits a prompt of {budget} tokens, the shortest takes {min(costs)}: "
            "raise MODEL.PROMPT.MAX_TOKENS or shorten the names"
        )
    return rng.permutation(chosen).tolist() if shuffle else sorted(chosen)


def _draw(
    num_classes: int, max_negatives: int, full_prob: float, rng: np.random.Generator
) -> list[int]:
    full = min(max_negatives, num_classes)
    if full == 0:
        return []
    count = full if rng.random() < full_prob else int(rng.integers(1, full + 1))
    return rng.choice(num_classes, size=count, replace=False).tolist()


def _within_budget(classes: Sequence[int], costs: Sequence[int], budget: int) -> list[int]:
    """The classes that still fit, in order; a long one does not shut out the short ones after."""
    kept = []
    for c in classes:
        if costs[c] <= budget:
            kept.append(c)
            budget -= costs[c]
    return kept
