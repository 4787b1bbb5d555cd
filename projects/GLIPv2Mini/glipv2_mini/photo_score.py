"""Scores of a model on photos with boxes, questions and phrases made by hand.

The photos are those of datasets/prepare_photos.py, whose fields are described there. Every value
has a baseline that a model reaches without the image or without understanding names:

    boxes AP, AP50        every name of the set is detected in every photo.
                          Baseline: the same boxes with wrong names, each the next one of the set.
    any name AP50, AR100  the same boxes without their names.
                          Baseline: the boxes of the next photo, scaled to the size of this one.
    questions             the answer is one of the accepted ones.
                          Baseline: the most common answer of each kind of question in this set.
    referring P@0.5       the best box of the phrase has an IoU of at least 0.5.
                          Baseline: the largest annotated box of the photo.
    captions              the caption has the name of a thing that is there.
                          Baseline: the captions of the other photos, mean over all of them.
    things affirmed       "is there a ...?" is answered with yes, for names that are there (present)
                          and names that are not (absent).
                          Baseline of both: the share of yes over all these questions.

As in LVIS, unmatched detections of a name that a photo does not annotate exhaustively are ignored;
crowds are treated as in COCO. COCO's names and the others also have their own values, as the small
model starts from a detector of COCO. The baseline of the questions is an upper bound of guessing,
because it is chosen with the answers known.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from glipv2_d2.data.annotation_file import read_annotation_file
from glipv2_d2.data.coco_truth import coco_api, read_truth
from glipv2_d2.evaluation.random_baseline import shift_categories
from glipv2_d2.predictor import Predictor
from glipv2_mini.data.questions import question_type
from glipv2_mini.text.articles import article_of

MIN_IOU = 0.5
MIN_ABSENT_NAMES = 10
"""Absent names in the "is there a ...?" questions of a photo: 10 to 19, if it has as many."""
PERCENT = 100.0


@dataclass(frozen=True)
class PhotoMetric:
    """A value in percent beside its baseline.

    Attributes:
        baseline_name: what the baseline is, in a few words.
        count: number of boxes, questions, phrases or photos.
    """

    name: str
    value: float
    baseline: float
    baseline_name: str
    count: int


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


class BoxScores(NamedTuple):
    """COCO's metrics of boxes in percent."""

    ap: float
    ap50: float
    ar100: float


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
    for image_id in tqdm(sorted(photos.imgs), desc="photos", disable=None):
        image = photos.imgs[image_id]
        path = folder / image["file_name"]
        predictions.detections += detect_all_names(predictor, photos, image, path)
        if text:
            predictions.questions += answer_questions(predictor, image, path)
            predictions.presence += answer_presence(predictor, photos, image, path)
            predictions.phrases += ground_phrases(predictor, photos, image, path)
            caption = predictor.caption(path).caption
            names = tuple(sorted(present_names(photos, image_id)))
            predictions.captions.append(ScoredCaption(image["file_name"], caption, names))
    return predictions


def detect_all_names(
    predictor: Predictor, photos: COCO, image: Mapping[str, Any], path: Path
) -> list[dict[str, Any]]:
    """Detections of every name of the set in one photo, as rows of a COCO result list."""
    category_ids = sorted(photos.cats)
    names = [photos.cats[category_id]["name"] for category_id in category_ids]
    instances = predictor.predict(path, classes=names).instances
    rows = zip(
        instances.pred_boxes.tensor.tolist(),
        instances.scores.tolist(),
        instances.pred_classes.tolist(),
        strict=True,
    )
    return [
        {
            "image_id": image["id"],
            "category_id": category_ids[class_index],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, class_index in rows
    ]


def answer_questions(
    predictor: Predictor, image: Mapping[str, Any], path: Path
) -> list[AnsweredQuestion]:
    return [
        AnsweredQuestion(
            image["file_name"],
            entry["question"],
            question_type(entry["question"]),
            tuple(dict.fromkeys(entry["answers"])),
            predictor.answer(path, entry["question"]).answer.lower(),
        )
        for entry in image["questions"]
    ]


def answer_presence(
    predictor: Predictor, photos: COCO, image: Mapping[str, Any], path: Path
) -> list[PresenceAnswer]:
    """Questions for every name that is in a photo and for some of those that are not."""
    absent = sorted(image["neg_category_ids"])
    step = max(1, len(absent) // MIN_ABSENT_NAMES)
    names = [(name, True) for name in sorted(present_names(photos, image["id"]))]
    names += [(photos.cats[category_id]["name"], False) for category_id in absent[::step]]
    answers = []
    for name, is_present in names:
        question = f"is there {article_of(name)} {name} in the picture?"
        is_affirmed = predictor.answer(path, question).answer.lower() == "yes"
        answers.append(PresenceAnswer(image["file_name"], name, is_present, is_affirmed))
    return answers


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
        prediction = predictor.predict(path, caption=entry["phrase"], phrases=[entry["phrase"]])
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


def photo_metrics(photos: COCO, predictions: PhotoPredictions) -> list[PhotoMetric]:
    """All metrics; those of tasks without predictions are left out."""
    metrics = box_metrics(photos, predictions.detections)
    if predictions.questions:
        metrics += question_metrics(predictions.questions)
    if predictions.phrases:
        metrics.append(
            PhotoMetric(
                "referring P@0.5",
                percentage(phrase.iou >= MIN_IOU for phrase in predictions.phrases),
                percentage(phrase.largest_iou >= MIN_IOU for phrase in predictions.phrases),
                "largest annotated box",
                len(predictions.phrases),
            )
        )
    if predictions.captions:
        metrics.append(caption_metric(predictions.captions))
    return metrics + presence_metrics(predictions.presence)


def box_metrics(photos: COCO, detections: Sequence[dict[str, Any]]) -> list[PhotoMetric]:
    """AP of all names, of COCO's and of the others, and metrics without names."""
    category_ids = sorted(photos.cats)
    of_coco = [i for i in category_ids if photos.cats[i].get("coco80")]
    others = [i for i in category_ids if not photos.cats[i].get("coco80")]
    wrong_names = shift_categories(detections, category_ids, 1)
    boxes = [a for a in photos.anns.values() if not a["iscrowd"]]
    metrics = []
    for group, ids in (("boxes", category_ids), ("COCO names", of_coco), ("other names", others)):
        count = sum(box["category_id"] in ids for box in boxes)
        if count:
            own = score_boxes(photos, detections, ids)
            wrong = score_boxes(photos, wrong_names, ids)
            metrics += [
                PhotoMetric(f"{group} AP", own.ap, wrong.ap, "wrong names", count),
                PhotoMetric(f"{group} AP50", own.ap50, wrong.ap50, "wrong names", count),
            ]
    own = score_boxes(photos, detections)
    other = score_boxes(photos, boxes_of_next_photo(photos, detections))
    name = "boxes of the next photo"
    return [
        *metrics,
        PhotoMetric("any name AP50", own.ap50, other.ap50, name, len(boxes)),
        PhotoMetric("any name AR100", own.ar100, other.ar100, name, len(boxes)),
    ]


def score_boxes(
    photos: COCO, detections: Sequence[dict[str, Any]], category_ids: Collection[int] | None = None
) -> BoxScores:
    """COCO's metrics of boxes, with LVIS's rule for names that are not annotated exhaustively.

    Args:
        category_ids: the evaluated categories; None: boxes match whatever their category is, and
            no detection is ignored because of its name.
    """
    if not detections:
        return BoxScores(0.0, 0.0, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes adds keys to the rows.
        results = photos.loadRes([dict(detection) for detection in detections])
        evaluation = PartlyExhaustiveCOCOeval(photos, results, "bbox")
        if category_ids is None:
            evaluation.params.useCats = 0
        else:
            evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # pycocotools' list: AP, AP50, ...; AR with 1, 10 and 100 detections per image from 6 on.
    return BoxScores(*(PERCENT * float(evaluation.stats[index]) for index in (0, 1, 8)))


class PartlyExhaustiveCOCOeval(COCOeval):
    """Ignores unmatched detections of the ``not_exhaustive_category_ids`` of an image."""

    def evaluateImg(
        self, image_id: int, category_id: int, area_range: Sequence[float], max_detections: int
    ) -> dict[str, Any] | None:
        result = super().evaluateImg(image_id, category_id, area_range, max_detections)
        image = self.cocoGt.imgs[image_id]
        if result is not None and category_id in image["not_exhaustive_category_ids"]:
            result["dtIgnore"] = np.logical_or(result["dtIgnore"], result["dtMatches"] == 0)
        return result


def boxes_of_next_photo(photos: COCO, detections: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every photo with the boxes of the next one, scaled to its size; the last with the first's."""
    image_ids = sorted(photos.imgs)
    target_of = dict(zip(image_ids[1:] + image_ids[:1], image_ids, strict=True))
    moved = []
    for detection in detections:
        source = photos.imgs[detection["image_id"]]
        target = photos.imgs[target_of[source["id"]]]
        scale_x, scale_y = (target[side] / source[side] for side in ("width", "height"))
        x, y, width, height = detection["bbox"]
        box = [x * scale_x, y * scale_y, width * scale_x, height * scale_y]
        moved.append({**detection, "image_id": target["id"], "bbox": box})
    return moved


def question_metrics(questions: Sequence[AnsweredQuestion]) -> list[PhotoMetric]:
    """Correct answers of all questions and of each kind, the most frequent kind first."""
    by_kind: dict[str, list[AnsweredQuestion]] = {}
    for question in questions:
        by_kind.setdefault(question.kind, []).append(question)
    guesses = {kind: most_common_answer(group) for kind, group in by_kind.items()}
    groups = [("questions", list(questions))]
    groups += [
        (f"questions: {kind}", group)
        for kind, group in sorted(by_kind.items(), key=lambda item: -len(item[1]))
    ]
    return [
        PhotoMetric(
            name,
            percentage(question.accepts(question.answer) for question in group),
            percentage(question.accepts(guesses[question.kind]) for question in group),
            "most common answer" if name == "questions" else guesses[group[0].kind],
            len(group),
        )
        for name, group in groups
    ]


def most_common_answer(questions: Sequence[AnsweredQuestion]) -> str:
    """The answer that most of the questions accept; of several the first one."""
    answers = dict.fromkeys(answer for question in questions for answer in question.accepted)
    return max(answers, key=lambda answer: sum(q.accepts(answer) for q in questions))


def caption_metric(captions: Sequence[ScoredCaption]) -> PhotoMetric:
    """Captions with a name of a thing that is there."""
    return PhotoMetric(
        "captions that name a thing that is there",
        percentage(names_one_of(entry.caption, entry.names) for entry in captions),
        percentage(
            names_one_of(other.caption, entry.names)
            for entry in captions
            for other in captions
            if other is not entry
        ),
        "captions of the other photos",
        len(captions),
    )


def names_one_of(caption: str, names: Iterable[str]) -> bool:
    """Whether a caption has one of the class names, also with the ending s or es.

    >>> names_one_of("Two buses in a street", ["bus"]), names_one_of("a caravan", ["car"])
    (True, False)
    """
    return any(re.search(rf"\b{re.escape(name)}(s|es)?\b", caption.lower()) for name in names)


def presence_metrics(answers: Sequence[PresenceAnswer]) -> list[PhotoMetric]:
    """How often the presence of names is affirmed that are there, and of those that are not.

    The baseline of both is the share of all these questions that is affirmed.
    """
    rate = percentage(answer.is_affirmed for answer in answers)
    metrics = []
    for name, is_present in (("present things affirmed", True), ("absent things affirmed", False)):
        affirmed = [answer.is_affirmed for answer in answers if answer.is_present == is_present]
        if affirmed:
            metrics.append(
                PhotoMetric(name, percentage(affirmed), rate, "affirmed of all", len(affirmed))
            )
    return metrics


def percentage(flags: Iterable[bool]) -> float:
    """The share of True, in percent; 0 of no flags."""
    values = list(flags)
    return PERCENT * sum(values) / len(values) if values else 0.0
