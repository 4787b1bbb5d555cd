"""What the evaluators of captions share: the truth about a phrase, and a row of results for each.

G: boxes of ground truth of one phrase. K: detections of one phrase.
"""

from __future__ import annotations

import json
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
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

Row = dict[str, Any]
"""What was measured of one phrase, as JSON can hold it."""

PERCENT = 100.0


@dataclass(frozen=True)
class PhraseTruth:
    """What is right for one phrase of one caption.

    Attributes:
        phrase: its text; its spans joined by blanks.
        kinds: of things, as the data set groups its phrases; none where it does not.
        boxes: (G, 4) XYXY in pixels of the image, x2 = x + w. Crowds are boxes like others.
        segmentations: per box its polygons or RLE (COCO's), None for a box without a mask.
        image_size: (height, width).
    """

    phrase: str
    kinds: tuple[str, ...]
    boxes: Tensor
    segmentations: tuple[Any, ...]
    image_size: tuple[int, int]


def phrase_truths(record: dict[str, Any]) -> list[PhraseTruth]:
    """The truth of every phrase that a record asks, in order; some may have no box."""
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
    """Measures every phrase of every caption where it was detected, and sums up in one process.

    Phrases without ground truth are not measured. What is summed up are the phrases of the images
    that were processed; a warning tells when these are not all.
    """

    def __init__(self, dataset_name: str, output_folder: str, file_name: str) -> None:
        """
        Args:
            dataset_name: registered; its records have captions and phrases.
            output_folder: where the main process writes the rows.
            file_name: of the rows.

        Raises:
            ValueError: records cannot be told apart.
        """
        self.dataset_name = dataset_name
        self.path = Path(output_folder) / file_name
        self._records = records_by_id(dataset_name, fields.IMAGE_ID)
        self._rows: list[Row] = []

    @abstractmethod
    def measure(self, truth: PhraseTruth, detections: Instances) -> Row:
        """A row of one phrase with G >= 1.

        Args:
            detections: of this phrase, the best first; of equal scores in the model's order.
        """

    @abstractmethod
    def summarize(self, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
        """Per task its metrics, in percent; rows are those of all processes."""

    def reset(self) -> None:
        self._rows = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for x, output in zip(inputs, outputs, strict=True):
            record = self._record_of(x, output)
            instances = best_first(output[fields.INSTANCES].to("cpu"))
            for label, truth in enumerate(phrase_truths(record)):
                if len(truth.boxes) == 0:
                    continue
                row = self.measure(truth, instances[instances.pred_classes == label])
                self._rows.append(
                    {"image_id": x["image_id"], "label": label, "phrase": truth.phrase, **row}
                )

    def _record_of(self, x: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        record = self._records.get(x["image_id"])
        if record is None:
            raise ValueError(
                f"data set {self.dataset_name!r} has no image_id {x['image_id']!r}: evaluate the "
                "predictions with the data set that they are of"
            )
        if fields.PHRASES not in output or _spans(x) != _spans(record):
            raise ValueError(
                f"the image {x.get(fields.FILE_NAME)!r} was not asked the phrases that its data "
                f"set {self.dataset_name!r} is evaluated on: ask the 'caption' and 'phrases' of "
                "its record"
            )
        return record

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Per task its metrics in the main process, nothing in the others."""
        comm.synchronize()
        gathered = comm.gather(self._rows, dst=0)
        if not comm.is_main_process():
            return {}
        # The order of the data set, whatever the number of processes.
        place = {image_id: i for i, image_id in enumerate(self._records)}
        rows = sorted(
            (row for part in gathered for row in part),
            key=lambda row: (place[row["image_id"]], row["label"]),
        )
        self._tell_what_is_missing(rows)
        self.path.write_text(json.dumps(rows), encoding="utf-8")
        return self.summarize(rows)

    def _tell_what_is_missing(self, rows: Sequence[Row]) -> None:
        expected = sum(
            len({a["category_id"] for a in record["annotations"]})
            for record in self._records.values()
        )
        if len(rows) != expected:
            logger.warning(
                "data set %r: %d of the %d phrases with boxes were asked; the results are of those",
                self.dataset_name,
                len(rows),
                expected,
            )


def _spans(x: dict[str, Any]) -> list[list[tuple[int, ...]]]:
    """What is asked, whether it came as lists or as tuples."""
    return [[tuple(span) for span in spans] for spans in x.get(fields.PHRASES, ())]


def best_first(instances: Instances) -> Instances:
    """By falling score; of equal scores in the order in which they were."""
    return instances[instances.scores.argsort(descending=True, stable=True)]


def best_ious(pred_boxes: Boxes, gt_boxes: Tensor) -> Tensor:
    """(K,) the IoU of each detection with the box of ground truth that it overlaps most.

    Args:
        gt_boxes: (G, 4) XYXY, G >= 1. Areas are those of exclusive corners, in all protocols here.
    """
    return pairwise_iou(pred_boxes, Boxes(gt_boxes)).amax(dim=1)
