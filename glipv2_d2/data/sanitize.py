"""What training data may have wrong, put right once, counted and told.

A *record* is one image's dict in Detectron2's format, boxes in pixels of the original image.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.text_tasks import (
    asks_words_only,
    check_text_task,
    is_text_task,
    place_of,
)
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.structures.text import Span
from glipv2_d2.text.prompts import caption_prompt
from glipv2_d2.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

BOXES_CLIPPED = "boxes reached out of their image and were clipped"
BOXES_WITHOUT_AREA = "boxes had no area inside their image and were dropped"
BOXES_WITHOUT_PHRASE = "boxes had no phrase in their caption and were dropped"
BOXES_OF_NO_CHARACTERS = "boxes had a span outside of their caption and were dropped"
EMPTY_CAPTIONS = "captions were empty and were left out with their image"
PHRASES_TOO_LONG = "phrases lay beyond the token limit and were dropped"
QUESTIONS_TOO_LONG = "questions were longer than the token limit and were left out"
NO_WORD_ANSWERED = "questions had no answer with words and were left out"
BOXES_OF_LONG_PHRASES = "boxes of phrases beyond the token limit were dropped"

# A box that is out by less is a rounding of the annotation, not worth a word. In pixels.
CLIP_TOLERANCE = 0.01


def sanitize_dataset(
    records: list[dict[str, Any]],
    *,
    name: str,
    class_names: Sequence[str],
    tokenizer: Tokenizer,
) -> list[dict[str, Any]]:
    """Copies of the records that a model can be trained on, with one report of what changed.

    The report counts every kind of change and names the first images. Crowd regions go without a
    word, as in Detectron2. An image whose boxes are all gone stays: it has nothing to find.

    Args:
        name: of the data set, for the report.
        class_names: of the data set, for records without ``classes`` or ``caption``.

    Raises:
        ValueError: a record has nothing to learn, a class that is not in its list, or a question
            or caption to be said without words.
    """
    faults = Faults()
    sane = []
    for record in records:
        if fields.CAPTION in record and not record[fields.CAPTION].strip():
            faults.add(EMPTY_CAPTIONS, record.get(fields.FILE_NAME))
        elif record.get(fields.ANSWERS) == {}:
            faults.add(NO_WORD_ANSWERED, place_of(record))
        elif fields.QUESTION in record and not _question_fits(record[fields.QUESTION], tokenizer):
            faults.add(QUESTIONS_TOO_LONG, place_of(record))
        else:
            sane.append(_sanitize_record(record, class_names, tokenizer, faults))
    faults.warn(logger, name)
    return sane


def _question_fits(question: Any, tokenizer: Tokenizer) -> bool:
    """Whether a question can be asked, with one token for its answer; of no text others tell."""
    # An ASCII character is at most one token: most questions need not be counted.
    room = tokenizer.max_tokens - tokenizer.num_special_tokens - 1
    if not isinstance(question, str) or (question.isascii() and len(question) <= room):
        return True
    return tokenizer.count(question.strip()) <= room


def _sanitize_record(
    record: dict[str, Any],
    class_names: Sequence[str],
    tokenizer: Tokenizer,
    faults: Faults,
) -> dict[str, Any]:
    file_name = record.get(fields.FILE_NAME)
    if is_text_task(record):
        check_text_task(record, is_train=True)
    if asks_words_only(record):
        return record
    if "annotations" not in record:
        raise ValueError(
            f"the training image {file_name!r} has no 'annotations'; an image with nothing to "
            "find has an empty list"
        )
    annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    if fields.HEIGHT in record and fields.WIDTH in record:
        size = (record[fields.HEIGHT], record[fields.WIDTH])
        annotations = _clip_boxes(annotations, size, file_name, faults)
    if fields.CAPTION in record:
        return _sanitize_caption({**record, "annotations": annotations}, tokenizer, faults)
    own_names = record.get(fields.CLASSES)
    num_classes = len(class_names if own_names is None else own_names)
    for annotation in annotations:
        if not 0 <= annotation["category_id"] < num_classes:
            raise ValueError(
                f"the image {file_name!r} has a box of class {annotation['category_id']}, but "
                f"its list has {num_classes} names: classes count from 0"
            )
    return {**record, "annotations": annotations}


def _clip_boxes(
    annotations: list[dict[str, Any]], size: tuple[int, int], file_name: str | None, faults: Faults
) -> list[dict[str, Any]]:
    """Annotations with XYXY boxes inside the image, without those that have no area there."""
    height, width = size
    kept = []
    for annotation in annotations:
        box = np.asarray(to_xyxy(annotation), dtype=float)
        clipped = box.clip(0, [width, height, width, height])
        x1, y1, x2, y2 = clipped.tolist()
        # Written so that a NaN counts as no area.
        if not (x2 > x1 and y2 > y1):
            faults.add(BOXES_WITHOUT_AREA, file_name)
            continue
        if np.abs(clipped - box).max() > CLIP_TOLERANCE:
            faults.add(BOXES_CLIPPED, file_name)
        kept.append({**annotation, "bbox": [x1, y1, x2, y2], "bbox_mode": BoxMode.XYXY_ABS})
    return kept


def to_xyxy(annotation: dict[str, Any]) -> list[float]:
    """The box of an annotation as XYXY, x2 = x + w."""
    box, mode = annotation["bbox"], annotation["bbox_mode"]
    if mode == BoxMode.XYWH_ABS:
        x, y, width, height = box
        return [x, y, x + width, y + height]
    return list(BoxMode.convert(box, mode, BoxMode.XYXY_ABS))


def _sanitize_caption(
    record: dict[str, Any], tokenizer: Tokenizer, faults: Faults
) -> dict[str, Any]:
    """Phrases and class indices in place of ``tokens_positive``, as far as the tokens reach."""
    file_name, length = record.get(fields.FILE_NAME), len(record[fields.CAPTION])
    within = [a for a in record["annotations"] if spans_are_within(a, length)]
    faults.add(BOXES_OF_NO_CHARACTERS, file_name, len(record["annotations"]) - len(within))
    record = {**record, "annotations": within}
    phrases, labels = caption_labels(record)
    for label in labels:
        if label is not None and not 0 <= label < len(phrases):
            raise ValueError(
                f"the image {record.get(fields.FILE_NAME)!r} has a box of phrase {label}, but its "
                f"caption has {len(phrases)} phrases: they count from 0"
            )
    prompt = fit_caption(record[fields.CAPTION], phrases, tokenizer)
    asked = set(prompt.classes)
    annotations = []
    for annotation, label in zip(record["annotations"], labels, strict=True):
        if label is None:
            faults.add(BOXES_WITHOUT_PHRASE, file_name)
        elif label not in asked:
            faults.add(BOXES_OF_LONG_PHRASES, file_name)
        else:
            annotations.append({**annotation, "category_id": label})
    faults.add(PHRASES_TOO_LONG, file_name, len(phrases) - len(asked))
    return {**record, fields.PHRASES: phrases, "annotations": annotations}


def spans_are_within(annotation: dict[str, Any], length: int) -> bool:
    """Whether all ``tokens_positive`` of an annotation are characters of a caption."""
    return all(0 <= begin < end <= length for begin, end in annotation.get("tokens_positive") or ())


def caption_labels(
    record: dict[str, Any],
) -> tuple[list[list[Span]], list[int | None]]:
    """The phrases of a caption, and for each annotation which one it shows.

    Annotations say it in MDETR's way, by ``tokens_positive`` ([[begin, end], ...]): every distinct
    list of spans is a phrase. Or the record lists ``phrases``, and ``category_id`` indexes them.

    Returns:
        phrases in order of appearance, and per annotation an index, or None for a box without one.
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
    """The caption's prompt, cut where the tokens end."""
    prompt = caption_prompt(caption, phrases)
    # An ASCII character is at most one token: most captions need not be counted.
    if caption.isascii() and len(caption) <= tokenizer.max_tokens - tokenizer.num_special_tokens:
        return prompt
    return tokenizer.fit(prompt)
