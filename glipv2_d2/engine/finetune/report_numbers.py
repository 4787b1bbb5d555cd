"""Numbers of a report: curves of the training, precision-recall, confusions, the worst images."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from glipv2_d2.data.coco_truth import CocoTruth, coco_api

IOU_OF_MATCH = 0.5
"""From which a detection counts as found, in confusions and pictures."""

Detections = Mapping[Any, Sequence[dict[str, Any]]]
"""Image id -> rows of a COCO result file, best first."""

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Match:
    """What became of the boxes of an image at a score threshold.

    Attributes:
        pairs: (category id of the truth, that of the detection) of boxes that overlap.
        missed, false: category ids of truths without a detection, and the reverse.
        right: the boxes of truths and detections that are paired and have the same class.
    """

    pairs: list[tuple[int, int]]
    missed: list[int]
    false: list[int]
    right: list[dict[str, Any]]

    def is_right(self, box: dict[str, Any]) -> bool:
        """Whether a box of the truth was found, or a detection is true."""
        return any(box is other for other in self.right)

    @property
    def num_errors(self) -> int:
        confused = sum(truth != detected for truth, detected in self.pairs)
        return len(self.missed) + len(self.false) + confused


def read_curves(metrics: Path, names: Iterable[str]) -> dict[str, Curve]:
    """The (iteration, value) pairs of some metrics in Detectron2's metrics.json.

    A resumed training appends to the file: the last line of an iteration counts.
    """
    values: dict[str, dict[int, float]] = {name: {} for name in names}
    with contextlib.suppress(FileNotFoundError):
        for line in metrics.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                iteration = int(row["iteration"])
            # The last line of a killed training may be a part of one.
            except (ValueError, KeyError, TypeError):
                continue
            for name, found in values.items():
                if isinstance(row.get(name), int | float):
                    found[iteration] = float(row[name])
    return {name: sorted((float(i), v) for i, v in found.items()) for name, found in values.items()}


def read_detections(path: Path) -> Detections:
    """The detections of an evaluation; none if it wrote no file, as without detections."""
    rows: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    with contextlib.suppress(FileNotFoundError):
        for row in json.loads(path.read_bytes()):
            rows[row["image_id"]].append(row)
    return {key: sorted(found, key=lambda row: -row["score"]) for key, found in rows.items()}


def precision_recall(truth: CocoTruth, detections: Detections, iou: float) -> Curve:
    """(recall, precision) of COCO's evaluation at one IoU, the mean over the classes."""
    rows = [row for found in detections.values() for row in found]
    if not rows:
        return []
    with contextlib.redirect_stdout(io.StringIO()):
        api = coco_api(truth.to_coco())
        evaluation = COCOeval(api, api.loadRes([dict(row) for row in rows]), "bbox")
        evaluation.params.iouThrs = np.array([iou])
        evaluation.evaluate()
        evaluation.accumulate()
    # (IoU, recall, class, area, maximum number): all areas, the largest number.
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    with_truth = precision[:, (precision > -1).any(axis=0)]
    means = with_truth.mean(axis=1)
    return list(zip(evaluation.params.recThrs.tolist(), means.tolist(), strict=True))


def best_threshold(truth: CocoTruth, detections: Detections) -> float:
    """The score with the best F1 over all classes: of the least score that is kept."""
    scored = []
    num_truths = 0
    for image_id in truth.images:
        boxes = _without_crowds(truth, image_id)
        num_truths += len(boxes)
        for category in truth.categories:
            own = [box for box in boxes if box["category_id"] == category["id"]]
            found = _of_category(detections.get(image_id, ()), category["id"])
            pairs, _ = _assign(own, found)
            scored += [(row["score"], i in pairs) for i, row in enumerate(found)]
    scored.sort(key=lambda pair: -pair[0])
    best, threshold, hits = 0.0, 0.5, 0
    for count, (score, is_hit) in enumerate(scored, start=1):
        hits += is_hit
        f1 = 2 * hits / (count + num_truths)
        if f1 > best:
            best, threshold = f1, score
    return float(threshold)


def match_images(truth: CocoTruth, detections: Detections, threshold: float) -> dict[Any, Match]:
    """Match per image, in the order of the file."""
    return {
        image_id: _match(
            _without_crowds(truth, image_id),
            [row for row in detections.get(image_id, ()) if row["score"] >= threshold],
        )
        for image_id in truth.images
    }


def confusion(truth: CocoTruth, matches: Iterable[Match]) -> np.ndarray:
    """(classes + 1, classes + 1) counts: rows are truths, columns detections, the last is none."""
    index = {category["id"]: i for i, category in enumerate(truth.categories)}
    none = len(index)
    counts = np.zeros((none + 1, none + 1), dtype=int)
    for match in matches:
        for true, detected in match.pairs:
            counts[index[true], index[detected]] += 1
        for true in match.missed:
            counts[index[true], none] += 1
        for detected in match.false:
            counts[none, index[detected]] += 1
    return counts


def worst_images(matches: Mapping[Any, Match], count: int) -> list[Any]:
    """Image ids with the most errors first."""
    return sorted(matches, key=lambda image_id: -matches[image_id].num_errors)[:count]


def _match(boxes: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> Match:
    pairs: list[tuple[int, int]] = []
    right: list[dict[str, Any]] = []
    left_boxes, left_found = list(boxes), list(found)
    # First those of the right class; what is left may be confused.
    for category in dict.fromkeys(box["category_id"] for box in boxes):
        own = [box for box in left_boxes if box["category_id"] == category]
        rows = _of_category(left_found, category)
        assigned, taken = _assign(own, rows)
        pairs += [(category, category)] * len(assigned)
        right += [*(own[i] for i in taken), *(rows[i] for i in assigned)]
        left_boxes = _except(left_boxes, right)
        left_found = _except(left_found, right)
    assigned, taken = _assign(left_boxes, left_found)
    for detection, box in zip(assigned, taken, strict=True):
        pairs.append((left_boxes[box]["category_id"], left_found[detection]["category_id"]))
    missed = [box["category_id"] for i, box in enumerate(left_boxes) if i not in taken]
    false = [row["category_id"] for i, row in enumerate(left_found) if i not in assigned]
    return Match(pairs, missed, false, right)


def _assign(
    boxes: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]
) -> tuple[list[int], list[int]]:
    """Indices of detections, best first, and of the truth that each of them takes."""
    if not boxes or not found:
        return [], []
    overlaps = coco_mask.iou(
        np.array([row["bbox"] for row in found], dtype=float),
        np.array([box["bbox"] for box in boxes], dtype=float),
        [0] * len(boxes),
    )
    assigned: list[int] = []
    taken: list[int] = []
    for i, row in enumerate(overlaps):
        free = [j for j in range(len(boxes)) if j not in taken and row[j] >= IOU_OF_MATCH]
        if free:
            assigned.append(i)
            taken.append(max(free, key=row.__getitem__))
    return assigned, taken


def _without_crowds(truth: CocoTruth, image_id: Any) -> list[dict[str, Any]]:
    return [a for a in truth.annotations_of.get(image_id, ()) if not a["iscrowd"]]


def _of_category(rows: Iterable[dict[str, Any]], category: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["category_id"] == category]


def _except(rows: Sequence[dict[str, Any]], removed: Sequence[dict[str, Any]]) -> list[Any]:
    ids = {id(row) for row in removed}
    return [row for row in rows if id(row) not in ids]


def is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)
