"""Repairs the records of a training dataset, and reports the changes.

A *record* is one image's dict in Detectron2's format, with boxes in pixels of the original image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.record_tasks import LOCALIZATION_TASKS, TEXT_TASKS, record_tasks
from glipv2_d2.data.text_tasks import check_text_task, describe_record
from glipv2_d2.messages import quote
from glipv2_d2.structures import Prompt, QueryKind, fields
from glipv2_d2.structures.text import Span
from glipv2_d2.text.names import check_names, clean_name
from glipv2_d2.text.prompts import caption_prompt, none_known, without_unknown_labels
from glipv2_d2.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

BOXES_CLIPPED = "boxes extended beyond their image and were clipped"
BOXES_WITHOUT_AREA = "boxes had no area inside their image and were dropped"
BOXES_WITHOUT_PHRASE = "boxes had no phrase in their caption and were dropped"
SPANS_OUTSIDE_CAPTION = "boxes had a span outside of their caption and were dropped"
EMPTY_CAPTIONS = "captions were empty and were dropped with their image"
PHRASES_TOO_LONG = "phrases were beyond the token limit and were dropped"
QUESTIONS_TOO_LONG = "questions were longer than the token limit and were dropped"
EMPTY_ANSWERS = "questions had only empty answers and were dropped"
UNKNOWN_NAMES = "class names had no word in the tokenizer's vocabulary: they are in no prompt"
UNKNOWN_PHRASES = "phrases had no word in the tokenizer's vocabulary and were dropped"
BOXES_OF_UNKNOWN_NAMES = "boxes of names without a word in the vocabulary were dropped"
BOXES_OF_LONG_PHRASES = "boxes of phrases beyond the token limit were dropped"

# Boxes that extend beyond the image by less, in pixels, are clipped without a report.
CLIP_TOLERANCE = 0.01


def sanitize_dataset(
    records: list[dict[str, Any]],
    *,
    name: str,
    class_names: Sequence[str],
    tokenizer: Tokenizer,
) -> list[dict[str, Any]]:
    """Copies of the usable records, repaired, with one logged report of all changes.

    The report counts every kind of change and names the first images. Crowd regions are dropped
    without a report, as in Detectron2. An image that loses all boxes is kept as a negative.

    Args:
        name: name of the dataset, for the report.
        class_names: class names of records without ``classes`` or ``caption``; of a dataset with
            custom prompt texts, the names in them.

    Raises:
        ValueError: a record has no training target, a class index out of range, class names
            without any known word, or an empty question or target caption.
    """
    return list(iterate_sanitized(records, name=name, class_names=class_names, tokenizer=tokenizer))


def iterate_sanitized(
    records: Iterable[dict[str, Any]],
    *,
    name: str,
    class_names: Sequence[str],
    tokenizer: Tokenizer,
) -> Iterator[dict[str, Any]]:
    """The records of :func:`sanitize_dataset`, one by one; the report follows the last."""
    faults = Faults()
    known_classes = _KnownClasses(tokenizer, faults)
    for record in records:
        if fields.CAPTION in record and not record[fields.CAPTION].strip():
            faults.add(EMPTY_CAPTIONS, record.get(fields.FILE_NAME))
        elif record.get(fields.ANSWERS) == {}:
            faults.add(EMPTY_ANSWERS, describe_record(record))
        elif fields.QUESTION in record and not question_fits(record[fields.QUESTION], tokenizer):
            faults.add(QUESTIONS_TOO_LONG, describe_record(record))
        else:
            yield _sanitize_record(record, class_names, known_classes, faults)
    faults.warn(logger, name)


def question_fits(question: Any, tokenizer: Tokenizer) -> bool:
    """Whether a question fits the token limit with one token for its answer.

    True for values of other types, which :func:`check_text_task` reports.
    """
    # An ASCII character is at most one token, so most questions need no tokenization.
    room = tokenizer.max_tokens - tokenizer.num_special_tokens - 1
    if not isinstance(question, str) or (question.isascii() and len(question) <= room):
        return True
    return tokenizer.count(question.strip()) <= room


def _sanitize_record(
    record: dict[str, Any],
    class_names: Sequence[str],
    known_classes: _KnownClasses,
    faults: Faults,
) -> dict[str, Any]:
    file_name = record.get(fields.FILE_NAME)
    tasks = record_tasks(record)
    if tasks & TEXT_TASKS:
        check_text_task(record, is_train=True)
    if not tasks & LOCALIZATION_TASKS:
        return record
    if "annotations" not in record:
        raise ValueError(
            f"the training image {file_name!r} has no 'annotations'; use an empty list for an "
            "image without objects"
        )
    annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    if fields.HEIGHT in record and fields.WIDTH in record:
        size = (record[fields.HEIGHT], record[fields.WIDTH])
        annotations = _clip_boxes(annotations, size, file_name, faults)
    if QueryKind.GROUND in tasks:
        record = {**record, "annotations": annotations}
        return _sanitize_caption(record, known_classes.tokenizer, faults)
    own_names = record.get(fields.CLASSES)
    names = class_names if own_names is None else own_names
    num_classes = len(names)
    for annotation in annotations:
        if not 0 <= annotation["category_id"] < num_classes:
            raise ValueError(
                f"the image {file_name!r} has a box of class {annotation['category_id']}, but "
                f"its list has {num_classes} class names: indices start at 0"
            )
    try:
        known = known_classes(names)
    except ValueError as error:
        raise ValueError(f"{describe_record(record)}: {error}") from error
    kept = [a for a in annotations if a["category_id"] in known]
    faults.add(BOXES_OF_UNKNOWN_NAMES, file_name, len(annotations) - len(kept))
    return {**record, "annotations": kept}


class _KnownClasses:
    """The indices of class names with a word in the tokenizer's vocabulary.

    A model cannot distinguish the others; at inference nothing is detected for them.
    """

    def __init__(self, tokenizer: Tokenizer, faults: Faults) -> None:
        self.tokenizer = tokenizer
        self.faults = faults
        self._known_of: dict[tuple[str, ...], frozenset[int]] = {}

    def __call__(self, names: Sequence[str]) -> frozenset[int]:
        """
        Raises:
            ValueError: no name is known, or one is no name.
        """
        key = tuple(names)
        if key not in self._known_of:
            names = check_names(names) if names else []
            is_known = self.tokenizer.are_known([clean_name(name) for name in names])
            if names and not any(is_known):
                raise ValueError(none_known(names))
            for name, known in zip(names, is_known, strict=True):
                self.faults.add(UNKNOWN_NAMES, quote(name), int(not known))
            self._known_of[key] = frozenset(i for i, known in enumerate(is_known) if known)
        return self._known_of[key]


def _clip_boxes(
    annotations: list[dict[str, Any]], size: tuple[int, int], file_name: str | None, faults: Faults
) -> list[dict[str, Any]]:
    """Annotations with XYXY boxes clipped to the image; those without area are dropped."""
    height, width = size
    kept = []
    for annotation in annotations:
        x1, y1, x2, y2 = to_xyxy(annotation)
        # Most boxes, in a fraction of the time that arrays take.
        if 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height:
            box_within = [float(x1), float(y1), float(x2), float(y2)]
            kept.append({**annotation, "bbox": box_within, "bbox_mode": BoxMode.XYXY_ABS})
            continue
        box = np.array([x1, y1, x2, y2], dtype=float)
        clipped = box.clip(0, [width, height, width, height])
        x1, y1, x2, y2 = clipped.tolist()
        # Also true for NaN.
        if not (x2 > x1 and y2 > y1):
            faults.add(BOXES_WITHOUT_AREA, file_name)
            continue
        if np.abs(clipped - box).max() > CLIP_TOLERANCE:
            faults.add(BOXES_CLIPPED, file_name)
        kept.append({**annotation, "bbox": [x1, y1, x2, y2], "bbox_mode": BoxMode.XYXY_ABS})
    return kept


def to_xyxy(annotation: dict[str, Any]) -> list[float]:
    """The box of an annotation in XYXY, with x2 = x + w."""
    box, mode = annotation["bbox"], annotation["bbox_mode"]
    if mode == BoxMode.XYWH_ABS:
        x, y, width, height = box
        return [x, y, x + width, y + height]
    return list(BoxMode.convert(box, mode, BoxMode.XYXY_ABS))


def _sanitize_caption(
    record: dict[str, Any], tokenizer: Tokenizer, faults: Faults
) -> dict[str, Any]:
    """Replace ``tokens_positive`` by phrases and class indices, within the token limit."""
    file_name, length = record.get(fields.FILE_NAME), len(record[fields.CAPTION])
    within = [a for a in record["annotations"] if spans_within(a, length)]
    faults.add(SPANS_OUTSIDE_CAPTION, file_name, len(record["annotations"]) - len(within))
    record = _with_boxes_of_all_phrases({**record, "annotations": within})
    phrases, labels = caption_labels(record)
    for label in labels:
        if label is not None and not 0 <= label < len(phrases):
            raise ValueError(
                f"the image {record.get(fields.FILE_NAME)!r} has a box of phrase {label}, but its "
                f"caption has {len(phrases)} phrases: indices start at 0"
            )
    prompt = without_unknown_labels(caption_prompt(record[fields.CAPTION], phrases), tokenizer)
    known = set(prompt.classes)
    in_prompt = set(_fit(prompt, tokenizer).classes)
    annotations = []
    for annotation, label in zip(record["annotations"], labels, strict=True):
        if label is None:
            faults.add(BOXES_WITHOUT_PHRASE, file_name)
        elif label not in known:
            faults.add(BOXES_OF_UNKNOWN_NAMES, file_name)
        elif label not in in_prompt:
            faults.add(BOXES_OF_LONG_PHRASES, file_name)
        else:
            annotations.append({**annotation, "category_id": label})
    faults.add(UNKNOWN_PHRASES, file_name, len(phrases) - len(known))
    faults.add(PHRASES_TOO_LONG, file_name, len(known) - len(in_prompt))
    return {**record, fields.PHRASES: phrases, "annotations": annotations}


def _with_boxes_of_all_phrases(record: dict[str, Any]) -> dict[str, Any]:
    """The record with each box once, with the spans of all its phrases, as GLIP trains on them.

    Records for evaluation have a box once per phrase; an anchor is assigned to one box only, so the
    words of its other phrases would be negatives. Without spans the record is left as it is.
    """
    annotations = record["annotations"]
    if fields.PHRASES not in record or not all(a.get("tokens_positive") for a in annotations):
        return record
    by_box: dict[tuple[float, ...], dict[str, Any]] = {}
    for annotation in annotations:
        box = by_box.setdefault(tuple(annotation["bbox"]), {**annotation, "tokens_positive": []})
        new = [s for s in annotation["tokens_positive"] if s not in box["tokens_positive"]]
        box["tokens_positive"] += new
    rest = {key: value for key, value in record.items() if key != fields.PHRASES}
    return {**rest, "annotations": list(by_box.values())}


def spans_within(annotation: dict[str, Any], length: int) -> bool:
    """Whether all ``tokens_positive`` of an annotation lie within a caption of this length."""
    return all(0 <= begin < end <= length for begin, end in annotation.get("tokens_positive") or ())


def caption_labels(
    record: dict[str, Any],
) -> tuple[list[list[Span]], list[int | None]]:
    """The phrases of a caption, and the phrase index of each annotation.

    If the record lists ``phrases``, ``category_id`` indexes them. Otherwise every distinct
    ``tokens_positive`` ([[begin, end], ...], MDETR's format) of its annotations is a phrase.

    Returns:
        phrases in order of appearance, and one index per annotation, None for a box without spans.
    """
    if fields.PHRASES in record:
        return record[fields.PHRASES], [a["category_id"] for a in record["annotations"]]
    index_of: dict[tuple[Span, ...], int] = {}
    labels: list[int | None] = []
    for annotation in record["annotations"]:
        spans = tuple((begin, end) for begin, end in annotation.get("tokens_positive") or ())
        labels.append(index_of.setdefault(spans, len(index_of)) if spans else None)
    return [list(spans) for spans in index_of], labels


def fit_caption(caption: str, phrases: Sequence[Sequence[Span]], tokenizer: Tokenizer) -> Prompt:
    """The prompt of a caption, truncated to the token limit.

    Phrases without a word in the tokenizer's vocabulary are no labels, as at inference.
    """
    return _fit(without_unknown_labels(caption_prompt(caption, phrases), tokenizer), tokenizer)


def _fit(prompt: Prompt, tokenizer: Tokenizer) -> Prompt:
    # An ASCII character is at most one token, so most captions need no tokenization.
    room = tokenizer.max_tokens - tokenizer.num_special_tokens
    return prompt if prompt.text.isascii() and len(prompt.text) <= room else tokenizer.fit(prompt)
