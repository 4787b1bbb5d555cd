"""LVIS average precision: standard, with a limit of detections per image, and fixed AP."""

from __future__ import annotations

import contextlib
import functools
import heapq
import logging
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from detectron2.evaluation import LVISEvaluator

from glipv2_d2.data.readers.lvis import read_lvis_truth
from glipv2_d2.evaluation.coco import AREAS

FIXED_AP_LIMIT = 10_000

# Detections that a process accumulates before it drops those that cannot count.
MAX_KEPT_DETECTIONS = 2_000_000

FREQUENCIES = {"APr": "r", "APc": "c", "APf": "f"}


class LimitedLVISEvaluator(LVISEvaluator):
    """Detectron2's evaluator, with 0 for missed objects and nan for metrics without objects.

    Detectron2 returns nan for all metrics if there are no detections, and -100 for a metric
    without ground-truth objects (for example APr without rare classes).
    """

    def __init__(self, *args: Any, fast_lvis: Any = None, **kwargs: Any) -> None:
        """
        Args:
            args, kwargs: see Detectron2's LVISEvaluator.
            fast_lvis: a package that replaces lvis, from :func:`load_fast_lvis`.
        """
        import lvis

        # Detectron2 has no argument for the ground truth, only the package's class.
        with mock.patch.object(lvis, "LVIS", load_truth):
            super().__init__(*args, **kwargs)
        self._fast_lvis = fast_lvis

    def _eval_predictions(self, predictions: list[dict[str, Any]]) -> None:
        fast = self._fast_lvis
        with numpy_float_alias() if fast is None else patch_lvis(fast):
            super()._eval_predictions(predictions)
        for results in self._results.values():
            for metric, value in results.items():
                if not value >= 0:
                    results[metric] = 0.0 if self._has_objects(metric) else float("nan")

    def _has_objects(self, metric: str) -> bool:
        """Whether the ground truth has objects of a metric's areas and class frequencies."""
        low, high = AREAS.get(metric, AREAS["AP"])
        frequencies = FREQUENCIES.get(metric, "rcf")
        return any(
            low <= annotation["area"] <= high
            and self._lvis_api.cats[annotation["category_id"]]["frequency"] in frequencies
            for annotation in self._lvis_api.anns.values()
        )


class FixedLVISEvaluator(LimitedLVISEvaluator):
    """LVIS fixed AP (glip_reference.md 18): a limit per class over all images, none per image."""

    _predictions: list[dict[str, Any]]  # of Detectron2's class, one entry per image

    def reset(self) -> None:
        super().reset()
        self._num_kept = self._num_after_pruning = 0

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        super().process(inputs, outputs)
        self._num_kept += sum(len(p["instances"]) for p in self._predictions[-len(inputs) :])
        # A detection outside the best of this process is outside the best of all processes.
        if self._num_kept > self._num_after_pruning + MAX_KEPT_DETECTIONS:
            self._predictions = best_per_class(self._predictions, FIXED_AP_LIMIT)
            self._num_kept = sum(len(p["instances"]) for p in self._predictions)
            self._num_after_pruning = self._num_kept

    def _eval_predictions(self, predictions: list[dict[str, Any]]) -> None:
        super()._eval_predictions(best_per_class(predictions, FIXED_AP_LIMIT))


def best_per_class(predictions: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Keep the ``limit`` detections with the highest score of each class over all images.

    Args:
        predictions: per image ``{"image_id": ..., "instances": [detections in COCO's format]}``.

    Returns:
        The same without the other detections. Of equal scores the first ones are kept.
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
    """The package hotcoco, an implementation of LVIS AP in Rust.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        import hotcoco
    except ImportError as error:
        raise ValueError(
            "TEST.FAST_EVAL needs the package hotcoco for LVIS: pip install hotcoco; or set it to "
            "False"
        ) from error
    return hotcoco


def load_truth(json_file: str) -> Any:
    """The truth of a file in LVIS's format, as the package's class of ground truth.

    Raises:
        FileNotFoundError, ValueError: the annotation file cannot be used.
    """
    from lvis.lvis import LVIS

    truth = LVIS.__new__(LVIS)
    truth.logger = logging.getLogger(__name__)
    truth.dataset = {"annotations": [], **read_lvis_truth(json_file).to_coco()}
    truth._create_index()
    return truth


@contextlib.contextmanager
def patch_lvis(hotcoco: Any) -> Iterator[None]:
    """Replace the classes that Detectron2 imports from lvis by those of hotcoco."""
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
    """Define ``np.float`` during the evaluation: the package lvis still uses it."""
    if hasattr(np, "float"):
        yield
        return
    np.float = float  # type: ignore[attr-defined]  # noqa: NPY001
    try:
        yield
    finally:
        del np.float  # type: ignore[attr-defined]  # noqa: NPY001
