"""Results of :class:`~glipv2_d2.predictor.Predictor`: detections, answers and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.structures.boxes import pairwise_intersection
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import nms

from glipv2_d2.evaluation.thresholds import ScoreThresholds
from glipv2_d2.prediction_formats import label_studio_task, voc_xml, yolo_lines
from glipv2_d2.structures import fields
from glipv2_d2.structures.text import Span
from glipv2_d2.tiling import import_supervision

if TYPE_CHECKING:
    import supervision

Thresholds = ScoreThresholds | Mapping[str, float] | str | Path
"""Score threshold per class name: a mapping, or the file of a calibration."""


@dataclass(frozen=True)
class Prediction:
    """Detections in one image.

    Attributes:
        instances: ``pred_boxes`` (XYXY, pixels of the upright image), ``scores`` (0..1, best
            first) and ``pred_classes`` (index in ``names``), on the CPU; with a mask head also
            ``pred_masks`` (bool, (K, height, width)).
        names: the class names, or the phrases of the caption.
        image_size: (height, width) of the image, turned upright by its EXIF orientation.
        text: the caption, or the question followed by its answer; None for class names.
        spans: for each of ``names`` its character spans in ``text``.
    """

    instances: Instances
    names: list[str]
    image_size: tuple[int, int]
    text: str | None = None
    spans: tuple[tuple[Span, ...], ...] = ()

    @staticmethod
    def from_output(x: dict[str, Any], output: dict[str, Any]) -> Prediction:
        """Convert the output of a model.

        Args:
            x: the model's input dict, with ``classes``, a ``caption``, or ``ground``.
            output: the model's output dict.
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
            tuple(tuple(phrase_spans) for phrase_spans in spans),
        )

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def labels(self) -> list[str]:
        """The class name or phrase of each detection."""
        return [self.names[index] for index in self.instances.pred_classes.tolist()]

    def above(self, threshold: float | Thresholds) -> Prediction:
        """The detections with a score of at least ``threshold``, for all classes or per class."""
        min_scores: float | Tensor
        if isinstance(threshold, int | float):
            min_scores = threshold
        else:
            per_class = ScoreThresholds.from_source(threshold).for_classes(self.names)
            min_scores = per_class[self.instances.pred_classes]
        return replace(self, instances=self.instances[self.instances.scores >= min_scores])

    def one_name_per_box(self, iou_threshold: float) -> Prediction:
        """Non-maximum suppression across names: of detections that overlap, only the best stays.

        Args:
            iou_threshold: detections with a larger IoU overlap.
        """
        boxes, scores = self.instances.pred_boxes.tensor, self.instances.scores
        return replace(self, instances=self.instances[nms(boxes, scores, iou_threshold)])

    def without_parts(self, share: float = 0.8) -> Prediction:
        """Drop detections that lie in a better one of the same name: the paw of a cat.

        Args:
            share: of its area, from which a box lies in another one.
        """
        boxes, scores = self.instances.pred_boxes, self.instances.scores
        same_name = self.instances.pred_classes[:, None] == self.instances.pred_classes
        is_better = scores[:, None] < scores  # (detections, others)
        covered = pairwise_intersection(boxes, boxes) / boxes.area().clamp(min=1)[:, None]
        is_part = ((covered >= share) & same_name & is_better).any(dim=1)
        return replace(self, instances=self.instances[~is_part])

    @staticmethod
    def from_coco(
        rows: Sequence[Mapping[str, Any]], names: Sequence[str], image_size: tuple[int, int]
    ) -> Prediction:
        """The prediction of which ``rows`` are the result of :meth:`to_coco`."""
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32).reshape(-1, 4)
        instances = Instances(image_size)
        instances.pred_boxes = Boxes(
            BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) if rows else boxes
        )
        instances.scores = torch.tensor([row["score"] for row in rows], dtype=torch.float32)
        instances.pred_classes = torch.tensor(
            [row["category_id"] for row in rows], dtype=torch.int64
        )
        if rows and "segmentation" in rows[0]:
            masks = [coco_mask.decode(row["segmentation"]) for row in rows]
            instances.pred_masks = torch.from_numpy(np.stack(masks)).bool()
        return Prediction(instances, list(names), image_size)

    @staticmethod
    def from_supervision(
        detections: supervision.Detections, names: Sequence[str], image_size: tuple[int, int]
    ) -> Prediction:
        """The prediction of which ``detections`` are the result of :meth:`to_supervision`."""
        scores = torch.as_tensor(
            [] if detections.confidence is None else detections.confidence, dtype=torch.float32
        )
        best_first = scores.argsort(descending=True, stable=True)
        instances = Instances(image_size)
        instances.pred_boxes = Boxes(torch.as_tensor(detections.xyxy, dtype=torch.float32))
        instances.scores = scores
        instances.pred_classes = torch.as_tensor(
            [] if detections.class_id is None else detections.class_id, dtype=torch.int64
        )
        if detections.mask is not None and len(detections):
            instances.pred_masks = torch.from_numpy(np.asarray(detections.mask)).bool()
        return Prediction(instances[best_first], list(names), image_size)

    def to_supervision(self) -> supervision.Detections:
        """As ``Detections`` of the package supervision, with the names as ``class_name``.

        Raises:
            ValueError: the package is not installed.
        """
        instances = self.instances
        return import_supervision().Detections(
            xyxy=instances.pred_boxes.tensor.numpy(),
            mask=instances.pred_masks.numpy() if instances.has("pred_masks") else None,
            confidence=instances.scores.numpy(),
            class_id=instances.pred_classes.numpy(),
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def to_yolo(self) -> str:
        """The lines of a YOLO label file: class index and box, relative to the image."""
        return yolo_lines(self._boxes(), self.instances.pred_classes.tolist(), self.image_size)

    def to_voc(self, file_name: str) -> str:
        """A Pascal VOC annotation of the image ``file_name``, in XML."""
        return voc_xml(self._boxes(), self.labels, self.image_size, file_name)

    def to_label_studio(self, image: str, model_version: str = "glipv2_d2") -> dict[str, Any]:
        """A task of Label Studio, with the detections as its predictions.

        Args:
            image: the address under which Label Studio finds the image.
        """
        scores = self.instances.scores.tolist()
        return label_studio_task(
            self._boxes(), self.labels, scores, self.image_size, image, model_version
        )

    def _boxes(self) -> list[list[float]]:
        boxes: list[list[float]] = self.instances.pred_boxes.tensor.tolist()
        return boxes

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Detections in COCO's result format.

        ``bbox`` is XYWH in pixels, ``category_id`` the index in ``names``, and ``segmentation``,
        present if there are masks, a compressed RLE that can be written as JSON.
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
    """The answer to a question about an image.

    Attributes:
        score: confidence, 0..1.
        grounding: boxes of the phrases of the question and of the answer; None unless requested.
            The answer is the last of its ``names``. With ``MODEL.ANSWER.GROUNDING`` "text", an
            answer without a region (yes, no, a number) is left out if the question has phrases.
    """

    question: str
    answer: str
    score: float
    grounding: Prediction | None = None

    def above(self, threshold: float | Thresholds) -> Answer:
        """With only the boxes of :meth:`Prediction.above`."""
        grounding = None if self.grounding is None else self.grounding.above(threshold)
        return replace(self, grounding=grounding)

    @staticmethod
    def from_output(x: dict[str, Any], output: dict[str, Any]) -> Answer:
        """Convert the output for an input dict ``x`` with a ``question``."""
        grounding = Prediction.from_output(x, output) if x[fields.GROUND] else None
        return Answer(
            x[fields.QUESTION], output[fields.ANSWER], output[fields.ANSWER_SCORE], grounding
        )


@dataclass(frozen=True)
class Caption:
    """A generated caption.

    Attributes:
        grounding: boxes of the noun phrases of the caption; None unless requested.
    """

    caption: str
    grounding: Prediction | None = None

    def above(self, threshold: float | Thresholds) -> Caption:
        """With only the boxes of :meth:`Prediction.above`."""
        grounding = None if self.grounding is None else self.grounding.above(threshold)
        return replace(self, grounding=grounding)

    @staticmethod
    def from_output(x: dict[str, Any], output: dict[str, Any]) -> Caption:
        """Convert the output for an input dict ``x`` with ``describe``."""
        grounding = Prediction.from_output(x, output) if x[fields.GROUND] else None
        return Caption(output[fields.CAPTION], grounding)


@dataclass(frozen=True)
class TaskResults:
    """What :meth:`~glipv2_d2.predictor.Predictor.run_tasks` predicts for one image.

    Attributes:
        detections: of the class names.
        answers: one per question.
        caption: None unless requested.
    """

    detections: Prediction
    answers: list[Answer]
    caption: Caption | None


def _encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> COCO's compressed RLE, with its bytes as a string."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
