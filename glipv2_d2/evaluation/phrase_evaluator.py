"""Base class of evaluators of grounded captions, with one result row per phrase.

G: ground-truth boxes of a phrase. K: detections of a phrase.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from detectron2.utils import comm
from torch import Tensor

from glipv2_d2.evaluation.records import records_by_id
from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""Results of one phrase, as JSON values."""

PERCENT = 100.0


@dataclass(frozen=True)
class PhraseTruth:
    """The ground truth of one phrase of a caption.

    Attributes:
        phrase: the spans of the phrase joined by blanks.
        kinds: phrase types of the dataset; empty if it has none.
        boxes: (G, 4) XYXY in pixels of the image, x2 = x + w. Crowds are included.
        segmentations: per box polygons or an RLE in COCO's format, or None.
        image_size: (height, width).
    """

    phrase: str
    kinds: tuple[str, ...]
    boxes: Tensor
    segmentations: tuple[Any, ...]
    image_size: tuple[int, int]


def phrase_truths(record: dict[str, Any]) -> list[PhraseTruth]:
    """The ground truth of each phrase of a record, in order; a phrase may have no boxes."""
    phrases = record[fields.PHRASES]
    kinds = record.get(fields.PHRASE_TYPES, [()] * len(phrases))
    truths = []
    for label, spans in enumerate(phrases):
        of_phrase = [a for a in record["annotations"] if a["category_id"] == label]
        boxes = [
            BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in of_phrase
        ]
        truths.append(
            PhraseTruth(
                phrase=" ".join(record[fields.CAPTION][begin:end] for begin, end in spans),
                kinds=tuple(kinds[label]),
                boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                segmentations=tuple(a.get("segmentation") for a in of_phrase),
                image_size=(record[fields.HEIGHT], record[fields.WIDTH]),
            )
        )
    return truths


class PhraseEvaluator(DatasetEvaluator):
    """Evaluates each phrase of each caption, and summarises the rows in the main process.

    Phrases without ground truth are skipped. Results cover the processed images; a warning is
    logged if these are not all images of the dataset.
    """

    def __init__(self, dataset_name: str, output_folder: str, file_name: str) -> None:
        """
        Args:
            dataset_name: a registered dataset whose records have captions and phrases.
            output_folder: the main process writes the rows here.
            file_name: name of the file with the rows.

        Raises:
            ValueError: image ids are missing or not unique.
        """
        self.dataset_name = dataset_name
        self.path = Path(output_folder) / file_name
        self._records = records_by_id(dataset_name, fields.IMAGE_ID)
        self._rows: list[Row] = []

    @abstractmethod
    def measure(self, truth: PhraseTruth, detections: Instances) -> Row:
        """Compute the row of one phrase with G >= 1.

        Args:
            detections: detections of the phrase in descending order of score (stable).
        """

    @abstractmethod
    def summarize(self, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
        """Task -> metrics in percent, from the rows of all processes."""

    def reset(self) -> None:
        self._rows = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for x, output in zip(inputs, outputs, strict=True):
            record = self._find_record(x, output)
            instances = best_first(output[fields.INSTANCES].to("cpu"))
            for label, truth in enumerate(phrase_truths(record)):
                if len(truth.boxes) == 0:
                    continue
                row = self.measure(truth, instances[instances.pred_classes == label])
                self._rows.append(
                    {"image_id": x["image_id"], "label": label, "phrase": truth.phrase, **row}
                )

    def _find_record(self, x: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        record = self._records.get(x["image_id"])
        if record is None:
            raise ValueError(
                f"dataset {self.dataset_name!r} has no image_id {x['image_id']!r}: evaluate the "
                "predictions on the dataset that they were made for"
            )
        if fields.PHRASES not in output or _spans(x) != _spans(record):
            raise ValueError(
                f"the phrases of image {x.get(fields.FILE_NAME)!r} are not those of its record in "
                f"dataset {self.dataset_name!r}: use the 'caption' and 'phrases' of the record"
            )
        # A file without sizes gets them from the images.
        return {**{key: x[key] for key in (fields.HEIGHT, fields.WIDTH) if key in x}, **record}

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Task -> metrics in the main process, an empty dict in the others."""
        comm.synchronize()
        gathered = comm.gather(self._rows, dst=0)
        if not comm.is_main_process():
            return {}
        # In the order of the dataset, for any number of processes.
        position = {image_id: i for i, image_id in enumerate(self._records)}
        rows = sorted(
            (row for part in gathered for row in part),
            key=lambda row: (position[row["image_id"]], row["label"]),
        )
        self._warn_if_incomplete(rows)
        atomic_write(self.path, dump_json(rows))
        return self.summarize(rows)

    def _warn_if_incomplete(self, rows: Sequence[Row]) -> None:
        expected = sum(
            len({a["category_id"] for a in record["annotations"]})
            for record in self._records.values()
        )
        if len(rows) != expected:
            logger.warning(
                "dataset %r: only %d of the %d phrases with boxes were evaluated",
                self.dataset_name,
                len(rows),
                expected,
            )


def _spans(x: dict[str, Any]) -> list[list[tuple[int, ...]]]:
    """Phrase spans with tuples in place of lists, for comparison."""
    return [[tuple(span) for span in spans] for spans in x.get(fields.PHRASES, ())]


def best_first(instances: Instances) -> Instances:
    """Sort by descending score (stable)."""
    return instances[instances.scores.argsort(descending=True, stable=True)]


def best_ious(pred_boxes: Boxes, gt_boxes: Tensor) -> Tensor:
    """(K,) the highest IoU of each detection with any ground-truth box.

    Args:
        gt_boxes: (G, 4) XYXY, G >= 1. Corners are exclusive.
    """
    return pairwise_iou(pred_boxes, Boxes(gt_boxes)).amax(dim=1)
