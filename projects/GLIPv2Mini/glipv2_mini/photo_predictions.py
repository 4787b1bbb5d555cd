"""Predictions of a model for photos with boxes, questions and phrases made by hand.

The photos are those of datasets/prepare_photos.py, whose fields are described there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from tqdm import tqdm

from glipv2_d2.data.annotation_file import read_annotation_file
from glipv2_d2.data.coco_truth import coco_api, read_truth
from glipv2_d2.prediction import Answer, Prediction
from glipv2_d2.predictor import Predictor
from glipv2_mini.data.questions import question_type
from glipv2_mini.text.articles import article_of

MIN_ABSENT_NAMES = 10
"""Absent names in the "is there a ...?" questions of a photo: 10 to 19, if it has as many."""


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question with the predicted answer in lower case.

    Attributes:
        kind: its first words, see :func:`~glipv2_mini.data.questions.question_type`.
        accepted: the correct answers.
    """

    photo: str
    question: str
    kind: str
    accepted: tuple[str, ...]
    answer: str

    def accepts(self, answer: str) -> bool:
        return answer.lower() in {accepted.lower() for accepted in self.accepted}


@dataclass(frozen=True)
class PresenceAnswer:
    """The answer to "is there a <name> in the picture?"."""

    photo: str
    name: str
    is_present: bool
    is_affirmed: bool


@dataclass(frozen=True)
class GroundedPhrase:
    """A phrase for one object.

    Attributes:
        iou: of the best predicted box with the true one; 0 without a prediction.
        largest_iou: of the largest annotated box of the photo with the true one.
    """

    photo: str
    phrase: str
    iou: float
    largest_iou: float


@dataclass(frozen=True)
class ScoredCaption:
    """A generated caption.

    Attributes:
        names: class names of the things in the photo.
    """

    photo: str
    caption: str
    names: tuple[str, ...]


@dataclass
class PhotoPredictions:
    """The predictions for all photos; a model without heads for text has only ``detections``.

    Attributes:
        detections: a COCO result list.
    """

    detections: list[dict[str, Any]] = field(default_factory=list)
    questions: list[AnsweredQuestion] = field(default_factory=list)
    presence: list[PresenceAnswer] = field(default_factory=list)
    phrases: list[GroundedPhrase] = field(default_factory=list)
    captions: list[ScoredCaption] = field(default_factory=list)


def load_photos(directory: Path) -> COCO:
    """The annotations of ``directory``.

    Raises:
        FileNotFoundError: the photos have not been prepared.
        ValueError: the file is not in COCO's format.
    """
    path = directory / "annotations.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: run projects/GLIPv2Mini/datasets/prepare_photos.py"
        )
    content = read_truth(str(path)).to_coco()
    # A field of prepare_photos.py, unknown to read_truth.
    listed = read_annotation_file(str(path)).categories
    coco_names = {entry.get("name"): entry["coco80"] for entry in listed if "coco80" in entry}
    for category in content["categories"]:
        category["coco80"] = coco_names.get(category["name"])
    return coco_api(content)


def predict_photos(
    predictor: Predictor, photos: COCO, folder: Path, *, text: bool = True
) -> PhotoPredictions:
    """The predictions of a model for all photos.

    Args:
        folder: of the image files.
        text: also questions, phrases and captions.

    Raises:
        FileNotFoundError, ValueError: an image is missing, or the model has no head for text.
    """
    predictions = PhotoPredictions()
    category_ids = sorted(photos.cats)
    class_names = [photos.cats[category_id]["name"] for category_id in category_ids]
    for image_id in tqdm(sorted(photos.imgs), desc="photos", disable=None):
        image = photos.imgs[image_id]
        file_name, path = image["file_name"], folder / image["file_name"]
        entries = image["questions"] if text else []
        presence = presence_questions(photos, image) if text else []
        results = predictor.run_tasks(
            path,
            classes=class_names,
            questions=[entry["question"] for entry in entries]
            + [presence_question(name) for name, _ in presence],
            describe=text,
            threshold=None,
        )
        predictions.detections += result_rows(results.detections, image_id, category_ids)
        predictions.questions += [
            answered_question(file_name, entry, answer)
            for entry, answer in zip(entries, results.answers, strict=False)
        ]
        predictions.presence += [
            PresenceAnswer(file_name, name, is_present, answer.answer.lower() == "yes")
            for (name, is_present), answer in zip(
                presence, results.answers[len(entries) :], strict=True
            )
        ]
        if results.caption is not None:
            predictions.phrases += ground_phrases(predictor, photos, image, path)
            names = tuple(sorted(present_names(photos, image_id)))
            predictions.captions.append(ScoredCaption(file_name, results.caption.caption, names))
    return predictions


def result_rows(
    prediction: Prediction, image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The boxes of a photo as rows of a COCO result list."""
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[row["category_id"]],
            "bbox": row["bbox"],
            "score": row["score"],
        }
        for row in prediction.to_coco(image_id)
    ]


def answered_question(file_name: str, entry: Mapping[str, Any], answer: Answer) -> AnsweredQuestion:
    return AnsweredQuestion(
        file_name,
        entry["question"],
        question_type(entry["question"]),
        tuple(dict.fromkeys(entry["answers"])),
        answer.answer.lower(),
    )


def presence_questions(photos: COCO, image: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Every name that is in a photo, and some of those that are not; whether it is present."""
    absent = sorted(image["neg_category_ids"])
    step = max(1, len(absent) // MIN_ABSENT_NAMES)
    names = [(name, True) for name in sorted(present_names(photos, image["id"]))]
    return names + [(photos.cats[category_id]["name"], False) for category_id in absent[::step]]


def presence_question(name: str) -> str:
    """Whether there is one in the picture.

    >>> presence_question("apple")
    'is there an apple in the picture?'
    """
    return f"is there {article_of(name)} {name} in the picture?"


def ground_phrases(
    predictor: Predictor, photos: COCO, image: Mapping[str, Any], path: Path
) -> list[GroundedPhrase]:
    largest = max(
        (a for a in photos.imgToAnns[image["id"]] if not a["iscrowd"]),
        key=lambda annotation: annotation["area"],
        default=None,
    )
    phrases = []
    for entry in image["referring"]:
        prediction = predictor.predict(
            path, caption=entry["phrase"], phrases=[entry["phrase"]], threshold=None
        )
        boxes = prediction.instances.pred_boxes.tensor[:1].tolist()
        predicted = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]
        phrases.append(
            GroundedPhrase(
                image["file_name"],
                entry["phrase"],
                box_iou(predicted[0], entry["bbox"]) if predicted else 0.0,
                box_iou(largest["bbox"], entry["bbox"]) if largest else 0.0,
            )
        )
    return phrases


def present_names(photos: COCO, image_id: int) -> set[str]:
    """The class names of the boxes and crowds of a photo."""
    return {photos.cats[a["category_id"]]["name"] for a in photos.imgToAnns[image_id]}


def box_iou(box: Sequence[float], other: Sequence[float]) -> float:
    """IoU of two boxes XYWH.

    >>> box_iou([0, 0, 10, 10], [5, 0, 10, 10]) == 50 / 150
    True
    """
    boxes = [np.array([b], dtype=np.float64) for b in (box, other)]
    return float(coco_mask.iou(*boxes, [0])[0, 0])
