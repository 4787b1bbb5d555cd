"""Metrics of :mod:`glipv2_mini.photo_predictions`, each with a baseline.

Every value has a baseline that a model reaches without the image or without understanding names:

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
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glipv2_d2.evaluation.random_baseline import shift_categories
from glipv2_mini.photo_predictions import (
    AnsweredQuestion,
    PhotoPredictions,
    PresenceAnswer,
    ScoredCaption,
)

MIN_IOU = 0.5
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


class BoxScores(NamedTuple):
    """COCO's metrics of boxes in percent."""

    ap: float
    ap50: float
    ar100: float


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
