"""What a model found in an image, and what it said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode, Instances
from pycocotools import mask as coco_mask
from torch import Tensor

from glipv2_d2.evaluation.thresholds import NameThresholds
from glipv2_d2.structures import fields
from glipv2_d2.structures.text import Span

Thresholds = NameThresholds | Mapping[str, float] | str | Path
"""The least score of each name: a mapping, or a file of tools/check_names.py calibrate."""


@dataclass(frozen=True)
class Prediction:
    """What was found in one image.

    Attributes:
        instances: ``pred_boxes`` (XYXY, pixels of the original image), ``scores`` (0..1, best
            first) and ``pred_classes`` (index in ``names``), on the CPU; of a model with masks also
            ``pred_masks`` (bool, (K, height, width)).
        names: the class names that were asked, or the phrases of the caption.
        image_size: (height, width) of the original image.
        text: of a caption, or of a question and its answer; None for class names.
        spans: for each of ``names`` its character spans in ``text``.
    """

    instances: Instances
    names: list[str]
    image_size: tuple[int, int]
    text: str | None = None
    spans: tuple[tuple[Span, ...], ...] = ()

    @staticmethod
    def of(x: dict[str, Any], output: dict[str, Any]) -> Prediction:
        """What a model found.

        Args:
            x: its input dict, which asked ``classes``, a ``caption``, or to ``ground`` a text.
            output: the model's.
        """
        instances = output[fields.INSTANCES].to("cpu")
        best_first = instances.scores.argsort(descending=True, stable=True)
        names = output.get(fields.PHRASES, x.get(fields.CLASSES, ()))
        text, spans = x.get(fields.CAPTION), x.get(fields.PHRASES, ())
        if fields.PROMPT in output:
            text, spans = output[fields.PROMPT].text, output[fields.PROMPT].spans
        return Prediction(
            instances[best_first],
            list(names),
            (x[fields.HEIGHT], x[fields.WIDTH]),
            text,
            tuple(tuple(of_name) for of_name in spans),
        )

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def labels(self) -> list[str]:
        """The name of each detection."""
        return [self.names[index] for index in self.instances.pred_classes.tolist()]

    def above(self, threshold: float | Thresholds) -> Prediction:
        """The detections with a score of at least ``threshold``, one for all or by name."""
        least: float | Tensor
        if isinstance(threshold, int | float):
            least = threshold
        else:
            of_names = NameThresholds.of(threshold).of_names(self.names)
            least = of_names[self.instances.pred_classes]
        return replace(self, instances=self.instances[self.instances.scores >= least])

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Rows of a COCO result file; ``bbox`` is XYWH, ``category_id`` the index in ``names``.

        Of a model with masks also ``segmentation``, compressed RLE that JSON can hold.
        """
        boxes = self.instances.pred_boxes.tensor.numpy()
        boxes_xywh = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS).tolist()
        rows: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": class_index,
                "category_name": self.names[class_index],
                "bbox": box,
                "score": score,
            }
            for class_index, box, score in zip(
                self.instances.pred_classes.tolist(),
                boxes_xywh,
                self.instances.scores.tolist(),
                strict=True,
            )
        ]
        if self.instances.has("pred_masks"):
            for row, mask in zip(rows, self.instances.pred_masks.numpy(), strict=True):
                row["segmentation"] = _encode_mask(mask)
        return rows


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        score: how sure it is, 0..1.
        grounding: where the phrases of the question and the answer were seen; None where that was
            not asked. The answer is the last name; a yes, no or number, which no region shows, is
            no name where the question has others (MODEL.ANSWER.GROUND_BY "words").
    """

    question: str
    answer: str
    score: float
    grounding: Prediction | None = None

    @staticmethod
    def of(x: dict[str, Any], output: dict[str, Any]) -> Answer:
        """What a model answered; ``x`` has asked a ``question``, and maybe to ``ground`` it."""
        grounding = Prediction.of(x, output) if x[fields.GROUND] else None
        return Answer(
            x[fields.QUESTION], output[fields.ANSWER], output[fields.ANSWER_SCORE], grounding
        )


@dataclass(frozen=True)
class Caption:
    """How a model described an image.

    Attributes:
        grounding: where the noun phrases of the caption were seen; None where that was not asked.
    """

    caption: str
    grounding: Prediction | None = None

    @staticmethod
    def of(x: dict[str, Any], output: dict[str, Any]) -> Caption:
        """What a model said; ``x`` has asked it to ``describe``, and maybe to ``ground`` that."""
        return Caption(
            output[fields.CAPTION], Prediction.of(x, output) if x[fields.GROUND] else None
        )


def _encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> COCO's compressed RLE, its bytes as text."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
