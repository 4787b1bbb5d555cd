"""Sampling the class names of a training prompt: positives in the image, and random negatives.

A *class* indexes the dataset's list of class names. A *cost* is the number of tokens of a class
name in a prompt, separator included. The *budget* is the number of tokens available to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sample_classes(
    positives: Sequence[int],
    keys: Sequence[str],
    costs: Sequence[int],
    *,
    budget: int,
    max_negatives: int,
    full_negatives_prob: float,
    shuffle: bool,
    rng: np.random.Generator,
    candidates: Sequence[int] | None = None,
) -> list[int]:
    """Sample the classes of a prompt, in prompt order (glip_reference.md 16).

    Args:
        positives: classes in the image; if they exceed the budget, random ones are dropped.
        keys: key of every class; classes of one key are one (our choice: "bow (weapon)" and
            "bow (ribbon)"). The prompt has a random one of them, and none as a negative of another.
        costs: cost of every class.
        max_negatives: maximum number of classes drawn as negatives; positives among them are
            discarded.
        full_negatives_prob: probability of drawing ``max_negatives``; otherwise a uniform number.
        shuffle: shuffle the classes; otherwise they keep the dataset's order.
        candidates: classes that are known to be absent from the image, from which negatives are
            drawn; None: all classes.

    Raises:
        ValueError: no class name fits the budget.
    """
    present = {keys[c] for c in positives}
    chosen = _within_budget(_one_per_key(positives, keys, costs, budget, rng), costs, budget)
    spent = sum(costs[c] for c in chosen)
    pool = np.arange(len(keys)) if candidates is None else np.array(candidates, dtype=np.int64)
    drawn = pool[_draw(len(pool), max_negatives, full_negatives_prob, rng)].tolist()
    negatives = []
    for c in drawn:
        if keys[c] not in present:
            negatives.append(c)
            present.add(keys[c])
    chosen += _within_budget(negatives, costs, budget - spent)
    if not chosen:
        # Neither positives nor negatives: a prompt needs at least one class name.
        chosen = _within_budget(rng.permutation(len(keys)).tolist(), costs, budget)[:1]
    if not chosen:
        raise ValueError(
            f"no class name fits the budget of {budget} tokens, the shortest takes {min(costs)}: "
            "use a tokenizer with more max_tokens, or shorten the class names"
        )
    return rng.permutation(chosen).tolist() if shuffle else sorted(chosen)


def _one_per_key(
    positives: Sequence[int],
    keys: Sequence[str],
    costs: Sequence[int],
    budget: int,
    rng: np.random.Generator,
) -> list[int]:
    """A random class of each key that the positives have, in random order; one that fits if any."""
    classes_of: dict[str, list[int]] = {keys[c]: [] for c in rng.permutation(positives).tolist()}
    for c, key in enumerate(keys):
        if key in classes_of and costs[c] <= budget:
            classes_of[key].append(c)
    return [
        classes[0] if len(classes) == 1 else int(rng.choice(classes))
        for classes in classes_of.values()
        if classes
    ]


def _draw(
    num_classes: int, max_negatives: int, full_prob: float, rng: np.random.Generator
) -> list[int]:
    full = min(max_negatives, num_classes)
    if full == 0:
        return []
    count = full if rng.random() < full_prob else int(rng.integers(1, full + 1))
    return rng.choice(num_classes, size=count, replace=False).tolist()


def _within_budget(classes: Sequence[int], costs: Sequence[int], budget: int) -> list[int]:
    """The classes that fit the budget, in order; one that does not fit is skipped."""
    kept = []
    for c in classes:
        if costs[c] <= budget:
            kept.append(c)
            budget -= costs[c]
    return kept
