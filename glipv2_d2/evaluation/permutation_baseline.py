"""Metrics of detections and captions compared with those of permuted ones.

Detections keep their boxes, masks and scores and get wrong class names; captions are assigned to
other images. A model that cannot distinguish classes or images reaches these values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any, Literal

from pycocotools.coco import COCO

from glipv2_d2.evaluation.captions import score_captions
from glipv2_d2.evaluation.random_baseline import average_precision, shift_categories

Progress = Callable[[range, str], Iterable[int]]
"""Wraps a loop over shifts; the string describes it."""


def permuted_captions_baseline(
    captions: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    *,
    max_shifts: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Caption metrics, and their mean over captions shifted to other images.

    Args:
        captions: by image id, at least two.
        references: by image id, for the same images.
        max_shifts: captions are shifted by 1 to at most this number of images.

    Returns:
        A table row per metric.
    """
    reference_lists = list(references.values())
    generated = [captions[image_id] for image_id in references]
    own = score_captions(generated, reference_lists).metrics
    others = [
        score_captions(generated[shift:] + generated[:shift], reference_lists).metrics
        for shift in progress(_shifts(len(captions), max_shifts), "captions of other images")
    ]
    return [
        {
            "metric": name,
            "own": value,
            "of other images": mean(metrics[name] for metrics in others),
        }
        for name, value in own.items()
    ]


def permuted_classes_baseline(
    ground_truth: COCO,
    detections: Sequence[dict[str, Any]],
    *,
    max_shifts: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """AP and AP50 of boxes (and masks), and their mean over wrong class names.

    Args:
        ground_truth: at least two categories.
        detections: a COCO result list.
        max_shifts: classes are shifted by 1 to at most this number of categories.

    Returns:
        A table row per task, values in percent.
    """
    category_ids = sorted(ground_truth.getCatIds())
    annotations = (*detections, *ground_truth.anns.values())
    tasks: tuple[Literal["bbox", "segm"], ...] = ("bbox",)
    if all("segmentation" in annotation for annotation in annotations):
        tasks = ("bbox", "segm")
    rows = []
    for task in tasks:
        own = average_precision(ground_truth, detections, task)
        wrong = [
            average_precision(ground_truth, shift_categories(detections, category_ids, shift), task)
            for shift in progress(_shifts(len(category_ids), max_shifts), f"{task}, wrong names")
        ]
        values = [*own, *(mean(values) for values in zip(*wrong, strict=True))]
        columns = ["AP", "AP50", "AP, wrong names", "AP50, wrong names"]
        rows.append({"task": task, **dict(zip(columns, values, strict=True))})
    return rows


def _shifts(num_items: int, max_shifts: int) -> range:
    return range(1, min(num_items - 1, max_shifts) + 1)
