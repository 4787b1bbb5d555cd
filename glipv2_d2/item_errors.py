"""Separates the errors of one item of a batch, such as an image, from those of the whole call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def predict_each(
    predict: Callable[[dict[int, T]], Iterable[R]],
    items: Mapping[int, T],
    make_probe: Callable[[T], T],
) -> tuple[dict[int, R], dict[int, Exception]]:
    """Predict a batch; if that fails, predict its items one by one.

    An error is an item's own if its probe can be predicted in its place. Otherwise the prompt or
    the model is at fault, and the error of the probe is raised.

    Args:
        predict: items by index -> one result per item, in their order.
        make_probe: of an item, one that is predicted with the same prompt and has no fault, such
            as a small gray image.

    Returns:
        The results and the errors, by index.
    """
    try:
        return dict(zip(items, predict(dict(items)), strict=True)) if items else {}, {}
    except Exception as raised:
        # Without the frames, which hold the memory of the batch.
        error = raised.with_traceback(None)
    if len(items) > 1:
        results: dict[int, R] = {}
        errors: dict[int, Exception] = {}
        for index, item in items.items():
            its_result, its_error = predict_each(predict, {index: item}, make_probe)
            results |= its_result
            errors |= its_error
        return results, errors
    ((index, item),) = items.items()
    predict({index: make_probe(item)})
    return {}, {index: error}
