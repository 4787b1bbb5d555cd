"""Checks of a list of class names on the user's images.

Scores of names that are absent, sensitivity of the scores to the order of the names, and score
thresholds calibrated on labelled images.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from detectron2.data import MetadataCatalog

from glipv2_d2.batch_prediction import ImageBatches
from glipv2_d2.data.readers.coco import read_coco
from glipv2_d2.evaluation.calibration import calibrate
from glipv2_d2.evaluation.class_reports import (
    ClassReport,
    absent_report,
    calibration_report,
    order_report,
)
from glipv2_d2.evaluation.class_scores import order_sensitivity, summarize_classes
from glipv2_d2.evaluation.matching import MatchedDetections, match_detections
from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.predictor import Predictor

R = TypeVar("R")

_DATASET_NAME = "labelled images"
"""The metadata of :func:`load_labelled_images` in Detectron2's catalog."""


def check_absent_names(
    predictor: Predictor, batches: ImageBatches, class_names: list[str], thresholds: ScoreThresholds
) -> ClassReport:
    """Report the best score of every name and which names are below their threshold everywhere.

    Raises:
        ValueError: no image can be read and predicted.
    """
    scores: np.ndarray = np.stack(
        _results(
            batches,
            lambda images: predictor.class_scores(
                images.values(), classes=class_names, channel_order="RGB"
            ),
        )
    )
    minimums = thresholds.for_classes(class_names).numpy()
    summaries = summarize_classes(class_names, list(map(str, batches.loaded)), scores, minimums)
    threshold_of_name = dict(zip(class_names, minimums.tolist(), strict=True))
    return absent_report(summaries, threshold_of_name, len(scores))


def check_order_sensitivity(
    predictor: Predictor,
    batches: ImageBatches,
    class_names: list[str],
    thresholds: ScoreThresholds,
    *,
    num_orders: int,
    seed: int,
) -> ClassReport:
    """Compare the scores in the given order of the names with those in random orders.

    Args:
        num_orders: including the given one.
        seed: of the random orders.

    Raises:
        ValueError: fewer than two names or orders, or no image can be read.
    """
    if len(class_names) < 2 or num_orders < 2:
        raise ValueError(
            f"{len(class_names)} names in {num_orders} orders cannot be compared; pass at least "
            "two of both"
        )
    rng = random.Random(seed)
    given = list(range(len(class_names)))
    orders = [given, *(rng.sample(given, len(class_names)) for _ in range(num_orders - 1))]

    def predict(images: dict[int, np.ndarray]) -> np.ndarray:
        """(images, orders, classes)."""
        scores = np.empty((len(images), len(orders), len(class_names)), dtype=np.float32)
        for number, order in enumerate(orders):
            scores[:, number, order] = predictor.class_scores(
                images.values(), classes=[class_names[i] for i in order], channel_order="RGB"
            )
        return scores

    sensitivity = order_sensitivity(
        class_names,
        np.stack(_results(batches, predict), axis=1),
        thresholds.for_classes(class_names).numpy(),
    )
    return order_report(
        sensitivity,
        num_images=len(batches.loaded),
        num_orders=len(orders),
        num_averaged=predictor.cfg.MODEL.PROMPT.NUM_ORDERS,
    )


def load_labelled_images(
    annotations: Path, images: Path
) -> tuple[dict[Path, list[dict[str, Any]]], list[str]]:
    """Load a dataset in COCO's format: the annotations of each image file, and the class names."""
    records = read_coco(str(annotations), str(images), _DATASET_NAME)
    class_names = MetadataCatalog.get(_DATASET_NAME).thing_classes
    return {Path(record["file_name"]): record["annotations"] for record in records}, class_names


def calibrate_thresholds(
    predictor: Predictor,
    batches: ImageBatches,
    class_names: list[str],
    annotations_of_image: dict[Path, list[dict[str, Any]]],
    *,
    precision: float | None,
    min_positives: int,
) -> tuple[ClassReport, ScoreThresholds]:
    """Choose a score threshold per name on labelled images.

    Args:
        annotations_of_image: all objects of the names, see :func:`load_labelled_images`.
        precision: the required precision; None maximizes F1.
        min_positives: boxes that a name needs for a threshold of its own.

    Returns:
        A report on the thresholds, and the thresholds.

    Raises:
        ValueError: too few boxes, or no image can be read.
    """

    def predict(images: dict[int, np.ndarray]) -> list[MatchedDetections]:
        predictions: Any = predictor.predict(
            images.values(),
            classes=class_names,
            threshold=None,
            channel_order="RGB",
            batch_size=len(images),
        )
        return [
            match_detections(
                prediction.instances.pred_boxes.tensor.numpy(),
                prediction.instances.scores.numpy(),
                prediction.instances.pred_classes.numpy(),
                *_ground_truth(annotations_of_image[batches.paths[index]]),
                num_classes=len(class_names),
            )
            for index, prediction in zip(images, predictions, strict=True)
        ]

    parts = _results(batches, predict)
    criterion = "the best F1" if precision is None else f"a precision of {precision:g}"
    calibration = calibrate(
        MatchedDetections.cat(parts), class_names, precision=precision, min_positives=min_positives
    )
    thresholds = ScoreThresholds(
        {proposal.name: proposal.threshold for proposal in calibration.classes},
        calibration.overall.threshold,
    )
    report = calibration_report(calibration, num_images=len(batches.loaded), target=criterion)
    return report, thresholds


def _results(
    batches: ImageBatches, predict: Callable[[dict[int, np.ndarray]], Iterable[R]]
) -> list[R]:
    """The results of all images that can be read and predicted, in the order of the files."""
    results = [result for images in batches for result in batches.predict(images, predict).values()]
    if not results:
        first = f"; the first: {batches.skipped[0]}" if batches.skipped else ""
        raise ValueError(f"none of the {len(batches.paths)} images can be read{first}")
    return results


def _ground_truth(
    annotations: Sequence[dict[str, Any]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (G, 4) XYXY, classes (G,) and crowd flags (G,) of an image."""
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = np.array([a["category_id"] for a in annotations], dtype=np.int64)
    is_crowd = np.array([a["iscrowd"] for a in annotations], dtype=bool)
    return boxes, classes, is_crowd
