"""LVIS's average precision, with its limit of detections per image, or "fixed" without it."""

from __future__ import annotations

import contextlib
import functools
import heapq
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from detectron2.evaluation import LVISEvaluator

from glipv2_d2.evaluation.coco import AREAS

FIXED_AP_LIMIT = 10_000

# Detections that may pile up in a process before those that cannot count are dropped.
MAX_KEPT_DETECTIONS = 2_000_000

FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}


class LimitedLVISEvaluator(LVISEvaluator):
    """Detectron2's, with 0 for a metric about things of which none was found, nan without things.

    Detectron2 gives nan for everything where no detection is, and -100 for a metric about no
    thing (no rare class in the file, for example).
    """

    def __init__(self, *args: Any, fast_lvis: Any = None, **kwargs: Any) -> None:
        """
        Args:
            args, kwargs: Detectron2's.
            fast_lvis: a package that computes in place of lvis, of :func:`load_fast_lvis`.
        """
        super().__init__(*args, **kwargs)
        self._fast_lvis = fast_lvis

    def _eval_predictions(self, predictions: list[dict[str, Any]]) -> None:
        fast = self._fast_lvis
        with numpy_float_alias() if fast is None else in_place_of_lvis(fast):
            super()._eval_predictions(predictions)
        for results in self._results.values():
            for metric, value in results.items():
                if not value >= 0:
                    results[metric] = 0.0 if self._has_things(metric) else float("nan")

    def _has_things(self, metric: str) -> bool:
        """Whether the ground truth has something that a metric is about."""
        low, high = AREAS.get(metric, AREAS["AP"])
        frequencies = FREQUENCIES.get(metric, "rcf")
        return any(
            low <= annotation["area"] <= high
            and self._lvis_api.cats[annotation["category_id"]]["frequency"] in frequencies
            for annotation in self._lvis_api.anns.values()
        )


class FixedLVISEvaluator(LimitedLVISEvaluator):
    """LVIS's "fixed AP" (GLIP spec 18): no limit per image, but one per class over all images."""

    _predictions: list[dict[str, Any]]  # Detectron2's, an entry per image

    def reset(self) -> None:
        super().reset()
        self._num_kept = self._num_after_pruning = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        super().process(inputs, outputs)
        self._num_kept += sum(len(p["instances"]) for p in self._predictions[-len(inputs) :])
        # What is not among the best of this process is not among the best of all.
        if self._num_kept > self._num_after_pruning + MAX_KEPT_DETECTIONS:
            self._predictions = best_per_class(self._predictions, FIXED_AP_LIMIT)
            self._num_kept = sum(len(p["instances"]) for p in self._predictions)
            self._num_after_pruning = self._num_kept

    def _eval_predictions(self, predictions: list[dict[str, Any]]) -> None:
        super()._eval_predictions(best_per_class(predictions, FIXED_AP_LIMIT))


def best_per_class(predictions: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The ``limit`` detections of highest score of each class, all images together.

    Args:
        predictions: per image ``{"image_id": ..., "instances": [detections in COCO's format]}``.

    Returns:
        The same without the other detections. Of equal scores the first ones stay.
    """
    by_class = defaultdict(list)
    for prediction in predictions:
        for detection in prediction["instances"]:
            by_class[detection["category_id"]].append(detection)
    kept = {
        id(detection)
        for detections in by_class.values()
        for detection in heapq.nlargest(limit, detections, key=lambda d: d["score"])
    }
    return [
        {**prediction, "instances": [d for d in prediction["instances"] if id(d) in kept]}
        for prediction in predictions
    ]


def load_fast_lvis() -> Any:
    """The package hotcoco, which computes LVIS's AP in Rust.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import hotcoco
    except ImportError as error:
        raise ValueError(
            "TEST.FAST_EVAL needs the package hotcoco for LVIS: pip install hotcoco; or set it to "
            "False"
        ) from error
    return hotcoco


@contextlib.contextmanager
def in_place_of_lvis(hotcoco: Any) -> Iterator[None]:
    """Its classes under the names that Detectron2 imports from lvis when it evaluates."""
    import lvis

    @functools.cache
    def truth(lvis_api: lvis.LVIS) -> Any:
        return hotcoco.COCO(lvis_api.dataset)

    def results(lvis_api: lvis.LVIS, found: list[dict[str, Any]], max_dets: int) -> Any:
        return hotcoco.LVISResults(truth(lvis_api), found, max_dets=max_dets)

    def evaluation(lvis_api: lvis.LVIS, found: Any, iou_type: str) -> Any:
        return hotcoco.LVISEval(truth(lvis_api), found, iou_type)

    with mock.patch.multiple(lvis, LVISResults=results, LVISEval=evaluation):
        yield


@contextlib.contextmanager
def numpy_float_alias() -> Iterator[None]:
    """``np.float`` as long as the evaluation runs: the package lvis still says it."""
    if hasattr(np, "float"):
        yield
        return
    np.float = float  # type: ignore[attr-defined]  # noqa: NPY001
    try:
        yield
    finally:
        del np.float  # type: ignore[attr-defined]  # noqa: NPY001
