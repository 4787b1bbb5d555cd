"""Finds the defects of a dataset in its records, class names and image files.

This module only reports them; :mod:`glipv2_d2.data.sanitize` repairs records for training.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.data.coco_truth import MASK_LOSSES, REPAIRS
from glipv2_d2.data.faults import Faults
from glipv2_d2.data.record_tasks import LOCALIZATION_TASKS, record_tasks
from glipv2_d2.data.registration import Record
from glipv2_d2.data.sanitize import CLIP_TOLERANCE, question_fits, spans_within, to_xyxy
from glipv2_d2.data.text_tasks import describe_record, task_faults
from glipv2_d2.images import read_image
from glipv2_d2.messages import quote
from glipv2_d2.structures import QueryKind, fields
from glipv2_d2.text.names import clean_name
from glipv2_d2.text.prompts import class_prompts
from glipv2_d2.text.tokenizer import Tokenizer

# For every kind of defect, its meaning and its effect on training.
DEFECTS = {
    "does-not-load": "the dataset cannot be loaded",
    "left-out-by-reader": "file entries that the reader dropped",
    "broken-record": "records with fields of another type, or without a field: training fails",
    "trains-on-nothing": "datasets without a single box, question or caption to train on",
    "no-prompt": "images without class names and without a caption: there is no prompt for them",
    "no-annotations": "images without a list of annotations: training rejects them",
    "repeated-id": "records that share their image_id (or question_id) with another one: their "
    "results are confused",
    "empty-name": "empty class names: training rejects them",
    "untokenizable-name": "class names without a word known to the tokenizer",
    "long-name": "class names longer than a prompt: they are never part of one",
    "same-text": "class names with the same tokens as another one: they get equal scores",
    "unknown-class": "boxes with a class index out of range: training rejects them",
    "box-outside": "boxes that extend beyond their image: training clips them",
    "box-without-area": "boxes without area inside their image: training drops them",
    "box-in-fractions": "boxes within the first pixel of their image, as if in fractions of its "
    "size: training reads pixels",
    "repeated-box": "boxes that an image has twice with the same class",
    "empty-caption": "empty captions: training drops them",
    "span-outside": "boxes with a span outside of their caption: training drops them",
    "span-cuts-word": "spans that begin or end inside a word or at a space: not a phrase",
    "span-not-phrase": "spans whose text differs from the annotation's phrase",
    "empty-question": "empty questions: training and evaluation reject them",
    "no-question-id": "questions without question_id: training and evaluation reject them",
    "invalid-answer-scores": "answers that are not scores from 0 to 1 by answer: training and "
    "evaluation reject them",
    "invalid-caption-list": "target_captions that are not a list: training and evaluation reject "
    "them",
    "empty-target-caption": "empty target captions: training rejects them",
    "box-without-phrase": "boxes of a caption without a phrase: training drops them",
    "image-does-not-open": "images that are missing or broken: training skips them",
    "image-size": "images of another size than recorded: training skips them",
    "image-of-one-pixel": "images so narrow that they are resized to one pixel in a row or column",
}
# Properties that are worth knowing but not wrong.
NOTES = {
    "repaired-by-reader": "file entries in another form, which the reader understood",
    "mask-left-out": "masks, or parts of them, that are unusable: their boxes are kept",
    "crowd": "boxes marked by iscrowd or ignore: training drops them, evaluation ignores them",
    "no-answers": "questions with empty answers only: training drops them",
    "long-question": "questions longer than a prompt: training drops them",
    "needs-chunks": "lists of class names that need several prompts at inference; training samples "
    "them",
    "long-caption": "captions longer than a prompt: the rest is dropped",
    "no-boxes": "images without a box: their whole prompt is negative",
}

# Decoding an image releases the interpreter lock.
NUM_THREADS = 4

Progress = Callable[..., Iterable[Any]]


def no_progress(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items


@dataclass
class DatasetReport:
    """The size of a dataset and its defects.

    Attributes:
        num_captions: captions to ground and captions to generate.
        num_classes: 0 for captions and questions.
        num_targets: boxes without crowds, questions and captions to generate.
        num_prompts: prompts that the class names need at inference.
        faults: counts by the keys of :data:`DEFECTS` and :data:`NOTES`.
    """

    name: str
    num_images: int = 0
    num_boxes: int = 0
    num_captions: int = 0
    num_questions: int = 0
    num_classes: int = 0
    num_targets: int = 0
    num_prompts: int = 0
    faults: Faults = field(default_factory=Faults)

    @property
    def num_defects(self) -> int:
        return sum(count for kind, count in self.faults.counts.items() if kind in DEFECTS)


@dataclass(frozen=True)
class PromptLimits:
    """The limits of a prompt: tokens, separator and maximum number of class names."""

    tokenizer: Tokenizer
    separator: str
    max_classes: int


def check_dataset(
    name: str,
    limits: PromptLimits,
    *,
    open_images: bool,
    progress: Progress = no_progress,
    max_image_size: int = sys.maxsize,
) -> DatasetReport:
    """Load a registered dataset and check all of its records.

    Args:
        open_images: also decode every image file.
        progress: wraps long iterations, with tqdm's arguments.
        max_image_size: the maximum of the long side of a resized image, in pixels.
    """
    report = DatasetReport(name)
    try:
        with _collected_warnings(report.faults):
            records = list(DatasetCatalog.get(name))
    # A reader, also a third-party one, may raise any exception; each is a defect.
    except Exception as error:
        report.faults.add("does-not-load", f"{type(error).__name__}: {error}")
        return report
    names = list(MetadataCatalog.get(name).get("thing_classes") or ())
    report.num_classes = len(names)
    report.num_images = len(records)
    if names:
        report.num_prompts = check_class_names(names, limits, report.faults)
    check_ids(records, report.faults)
    own_lists: set[tuple[str, ...]] = set()
    for record in progress(records, desc=f"{name}, annotations"):
        # Records of other readers may have fields of any type.
        try:
            _count_targets(record, report)
            own = record.get(fields.CLASSES)
            if own is not None and tuple(own) not in own_lists:
                own_lists.add(tuple(own))
                check_class_names(own, limits, report.faults)
            check_record(record, names if own is None else own, limits.tokenizer, report.faults)
            size = record.get(fields.HEIGHT), record.get(fields.WIDTH)
            if None not in size:
                _check_narrowness(record, size, max_image_size, report.faults)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            where = record.get(fields.FILE_NAME) if isinstance(record, dict) else f"{record!r:.80}"
            report.faults.add("broken-record", f"{where} ({type(error).__name__}: {error})")
    if not report.num_targets:
        report.faults.add("trains-on-nothing", f"{report.num_images} images")
    if open_images:
        check_images(
            [record for record in records if isinstance(record, dict)],
            report.faults,
            progress=progress,
            label=f"{name}, images",
            max_image_size=max_image_size,
        )
    return report


def _count_targets(record: Record, report: DatasetReport) -> None:
    annotations = record.get("annotations") or ()
    num_captions = len(record.get(fields.TARGET_CAPTIONS) or ())
    report.num_boxes += len(annotations)
    report.num_captions += (fields.CAPTION in record) + num_captions
    report.num_questions += fields.QUESTION in record
    num_crowds = sum(bool(a.get("iscrowd", 0)) for a in annotations)
    report.faults.add("crowd", record.get(fields.FILE_NAME), num_crowds)
    # A test set has no answers; an empty dict of them is dropped.
    is_question = fields.QUESTION in record and record.get(fields.ANSWERS) != {}
    report.num_targets += len(annotations) - num_crowds + num_captions + is_question


def _check_narrowness(
    record: Record, size: tuple[Any, ...], max_image_size: int, faults: Faults
) -> None:
    """Check that the short side of an image keeps more than a pixel if its long side is resized."""
    short, long = sorted(size)
    # Rounded to the nearest pixel.
    if short * max_image_size < 1.5 * long:
        faults.add("image-of-one-pixel", f"{record.get(fields.FILE_NAME)} is {size}")


@contextlib.contextmanager
def _collected_warnings(faults: Faults) -> Iterator[None]:
    """Count the warnings of readers as dropped entries."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warned: Faults | None = getattr(record, "faults", None)
            if warned is None:
                faults.add("left-out-by-reader", record.getMessage())
                return
            for kind, count in warned.counts.items():
                places = ", ".join(warned.examples[kind])
                finding = "left-out-by-reader"
                if kind in MASK_LOSSES:
                    finding = "mask-left-out"
                elif kind in REPAIRS:
                    finding = "repaired-by-reader"
                faults.add(finding, f"{kind}: {places}", count)

    logger = logging.getLogger("glipv2_d2.data.readers")
    collector = Collector(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)


def check_class_names(names: Sequence[str], limits: PromptLimits, faults: Faults) -> int:
    """Check a list of class names; returns the number of prompts it needs at inference."""
    tokenizer = limits.tokenizer
    texts = [clean_name(name) if isinstance(name, str) else "" for name in names]
    ids_per_name = [tuple(ids) for ids in tokenizer.encode(texts)]
    room = tokenizer.max_tokens - tokenizer.num_special_tokens
    usable = []
    places_of = defaultdict(list)
    for i, (name, text, ids) in enumerate(zip(names, texts, ids_per_name, strict=True)):
        if not text.replace(limits.separator.strip(), "").strip():
            faults.add("empty-name", f"{quote(name)} (class {i})")
        elif not tokenizer.has_words(ids):
            faults.add("untokenizable-name", f"{quote(name)} (class {i})")
        elif len(ids) > room:
            faults.add("long-name", f"{quote(name)} (class {i}, {len(ids)} tokens)")
        else:
            usable.append(name)
            places_of[ids].append(f"{quote(name)} (class {i})")
    for places in places_of.values():
        faults.add("same-text", " = ".join(places), len(places) - 1)
    if not usable:
        return 0
    prompts = class_prompts(
        usable,
        tokenizer,
        separator=limits.separator,
        max_tokens=tokenizer.max_tokens,
        max_classes=limits.max_classes,
    )
    if len(prompts) > 1:
        faults.add("needs-chunks", f"{len(usable)} names in {len(prompts)} prompts")
    return len(prompts)


def check_ids(records: Sequence[Record], faults: Faults) -> None:
    """Check that ids are unique: ``image_id`` of images, ``question_id`` of questions."""
    counts: Counter[Any] = Counter()
    for record in records:
        if isinstance(record, dict):
            value = record.get(fields.QUESTION_ID if fields.QUESTION in record else fields.IMAGE_ID)
            # Records of other readers may have ids of any type.
            counts[value if isinstance(value, int | str) else repr(value)] += 1
    counts.pop(repr(None), None)
    for image_id, count in counts.items():
        faults.add("repeated-id", image_id, count - 1)


def check_record(
    record: Record, names: Sequence[str], tokenizer: Tokenizer, faults: Faults
) -> None:
    """Check the annotations of one record.

    Args:
        names: class names that its class indices refer to; empty for captions.
    """
    where = record.get(fields.FILE_NAME)
    _check_text_fields(record, tokenizer, faults)
    tasks = record_tasks(record)
    if not tasks & LOCALIZATION_TASKS:
        return
    if record.get("annotations") is None:
        faults.add("no-annotations", where)
        return
    annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    if not annotations:
        faults.add("no-boxes", where)
    if fields.HEIGHT in record and fields.WIDTH in record:
        _check_boxes(annotations, record, faults)
    if QueryKind.GROUND in tasks:
        _check_caption(record, annotations, tokenizer, faults)
    elif not names:
        faults.add("no-prompt", where)
    else:
        for annotation in annotations:
            if not 0 <= annotation["category_id"] < len(names):
                faults.add("unknown-class", f"{where} (class {annotation['category_id']})")


def _check_text_fields(record: Record, tokenizer: Tokenizer, faults: Faults) -> None:
    for fault in task_faults(record):
        faults.add(fault, describe_record(record))
    if record.get(fields.ANSWERS) == {}:
        faults.add("no-answers", describe_record(record))
    if fields.QUESTION in record and not question_fits(record[fields.QUESTION], tokenizer):
        faults.add("long-question", describe_record(record))


def _check_boxes(annotations: Sequence[dict[str, Any]], record: Record, faults: Faults) -> None:
    width, height = record[fields.WIDTH], record[fields.HEIGHT]
    seen = set()
    for annotation in annotations:
        box = np.asarray(to_xyxy(annotation), dtype=float)
        where = f"{record.get(fields.FILE_NAME)} {np.round(box, 1).tolist()}"
        clipped = box.clip(0, [width, height, width, height])
        # Also true for NaN.
        if not (clipped[2:] > clipped[:2]).all():
            faults.add("box-without-area", where)
        elif np.abs(clipped - box).max() > CLIP_TOLERANCE:
            faults.add("box-outside", where)
        if (box >= 0).all() and box.max() <= 1 < min(width, height):
            faults.add("box-in-fractions", where)
        label = annotation.get("category_id"), str(annotation.get("tokens_positive"))
        key = (*box.tolist(), *label)
        faults.add("repeated-box", where, int(key in seen))
        seen.add(key)


def _check_caption(
    record: Record, annotations: Sequence[dict[str, Any]], tokenizer: Tokenizer, faults: Faults
) -> None:
    caption, where = record[fields.CAPTION], record.get(fields.FILE_NAME)
    if not caption.strip():
        faults.add("empty-caption", where)
        return
    room = tokenizer.max_tokens - tokenizer.num_special_tokens
    # An ASCII character is at most one token.
    if not (caption.isascii() and len(caption) <= room) and tokenizer.count(caption) > room:
        faults.add("long-caption", where)
    for annotation in annotations:
        spans = annotation.get("tokens_positive") or ()
        texts = [caption[begin:end] for begin, end in spans]
        if not spans and fields.PHRASES not in record:
            faults.add("box-without-phrase", where)
        elif not spans_within(annotation, len(caption)):
            faults.add("span-outside", f"{where} {spans} of {len(caption)} characters")
        elif any(_cuts_word(caption, begin, end) for begin, end in spans):
            faults.add("span-cuts-word", f"{where} {texts} of {quote(caption)}")
        elif "phrase" in annotation and annotation["phrase"] != " ".join(texts):
            faults.add("span-not-phrase", f"{where} {texts}, named {quote(annotation['phrase'])}")


def _cuts_word(text: str, begin: int, end: int) -> bool:
    if text[begin].isspace() or text[end - 1].isspace():
        return True
    return _is_within_word(text, begin) or _is_within_word(text, end)


def _is_within_word(text: str, position: int) -> bool:
    """Whether the characters before and after a position belong to one word."""
    return 0 < position < len(text) and text[position - 1 : position + 1].isalnum()


def check_images(
    records: Sequence[Record],
    faults: Faults,
    *,
    progress: Progress,
    label: str,
    max_image_size: int,
) -> None:
    """Decode every image file once and compare its size with the recorded one."""
    record_of: dict[str, Record] = {}
    for record in records:
        file_name = record.get(fields.FILE_NAME)
        if isinstance(file_name, str):
            record_of[file_name] = record
        else:
            faults.add("image-does-not-open", f"a record has the file_name {file_name!r:.80}")
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(_size_or_fault, record_of)
        for (path, record), outcome in zip(
            record_of.items(), progress(found, desc=label, total=len(record_of)), strict=True
        ):
            if isinstance(outcome, str):
                faults.add("image-does-not-open", outcome)
                continue
            recorded = record.get(fields.HEIGHT), record.get(fields.WIDTH)
            if None in recorded:
                _check_narrowness(record, outcome, max_image_size, faults)
            elif recorded != outcome:
                faults.add("image-size", f"{path} is {outcome}, recorded {recorded}")


def _size_or_fault(path: str) -> tuple[int, int] | str:
    """The (height, width) of an image, or the message of the error that decoding it raises."""
    try:
        height, width = read_image(path).shape[:2]
    except (OSError, ValueError) as error:
        return str(error)
    return height, width
