"""What is wrong with a data set, looked for in its records, its names and its image files.

Nothing is changed here: :mod:`glipv2_d2.data.sanitize` is what training does about it.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.data.faults import Faults
from glipv2_d2.data.mapper import read_image
from glipv2_d2.data.registration import Record
from glipv2_d2.data.sanitize import CLIP_TOLERANCE, spans_are_within, to_xyxy
from glipv2_d2.data.text_tasks import asks_words_only, place_of, task_faults
from glipv2_d2.structures import fields
from glipv2_d2.text.prompts import class_prompts, clean_name
from glipv2_d2.text.tokenizer import Tokenizer

# Of every kind of defect, what it means and what becomes of it in training.
DEFECTS = {
    "does-not-load": "the data set cannot be read",
    "left-out-by-reader": "entries of the files that the reader left out",
    "no-question": "images without class names and without a caption: there is nothing to ask",
    "no-annotations": "images without a list of annotations: training refuses them",
    "repeated-id": "records whose image_id (or question_id) another record has: results cannot be "
    "told apart",
    "empty-name": "class names without words: training refuses them",
    "unreadable-name": "class names of which the tokenizer reads no character",
    "long-name": "class names that are longer than a prompt: they are never asked",
    "same-text": "class names that a prompt spells like another one: their scores are the same",
    "unknown-class": "boxes of a class that is not in the list: training refuses them",
    "box-outside": "boxes that reach out of their image: training clips them",
    "box-without-area": "boxes without area inside their image: training drops them",
    "repeated-box": "boxes that an image has twice with the same class",
    "empty-caption": "captions without words: training leaves them out",
    "span-outside": "boxes with a span outside of their caption: training drops them",
    "span-cuts-word": "spans that begin or end in a word or at a blank: not those of a phrase",
    "span-not-phrase": "spans whose characters are not the phrase that the annotation names",
    "empty-question": "questions without words: training and evaluation refuse them",
    "no-question-id": "questions without question_id: training and evaluation refuse them",
    "no-answer-scores": "answers that are no scores from 0 to 1 by answer: training and evaluation "
    "refuse them",
    "no-caption-list": "target_captions that are no list: training and evaluation refuse them",
    "empty-target-caption": "captions to be said, without words: training refuses them",
    "box-without-phrase": "boxes of a caption that say nothing they show: training drops them",
    "image-does-not-open": "images that are missing or broken: training skips them",
    "image-size": "images of another size than recorded: training skips them",
}
# What is worth knowing and not wrong.
NOTES = {
    "needs-chunks": "lists of names that need several prompts at inference; training samples",
    "long-caption": "captions longer than a prompt: what is beyond is dropped",
    "nothing-to-find": "images without a box: all of their prompt is negative",
}

# Images are decoded by libraries that let other threads run.
NUM_THREADS = 4

Progress = Callable[..., Iterable[Any]]


def no_progress(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items


@dataclass
class DatasetReport:
    """What one data set holds, and what is wrong with it.

    Attributes:
        num_captions: to be grounded, and to be said.
        num_classes: 0 for captions and questions.
        num_prompts: that its names take at inference.
        faults: keys are those of :data:`DEFECTS` and :data:`NOTES`.
    """

    name: str
    num_images: int = 0
    num_boxes: int = 0
    num_captions: int = 0
    num_questions: int = 0
    num_classes: int = 0
    num_prompts: int = 0
    faults: Faults = field(default_factory=Faults)

    @property
    def num_defects(self) -> int:
        return sum(count for kind, count in self.faults.counts.items() if kind in DEFECTS)


@dataclass(frozen=True)
class NameLimits:
    """What a list of names is measured by: the parts of ``MODEL.PROMPT``."""

    tokenizer: Tokenizer
    separator: str
    max_classes: int


def check_dataset(
    name: str, limits: NameLimits, *, open_images: bool, progress: Progress = no_progress
) -> DatasetReport:
    """Read a registered data set and look at all of it.

    Args:
        open_images: decode every image file; else only the annotations are looked at.
        progress: wraps what takes long, called as tqdm is.
    """
    report = DatasetReport(name)
    try:
        with _collected_warnings(report.faults):
            records = DatasetCatalog.get(name)
    # Whatever a reader raises, also a foreign one: that it does is the finding.
    except Exception as error:
        report.faults.add("does-not-load", f"{type(error).__name__}: {error}")
        return report
    names = list(MetadataCatalog.get(name).get("thing_classes") or ())
    report.num_classes = len(names)
    report.num_images = len(records)
    if names:
        report.num_prompts = check_names(names, limits, report.faults)
    check_ids(records, report.faults)
    own_lists: set[tuple[str, ...]] = set()
    for record in progress(records, desc=f"{name}, annotations"):
        report.num_boxes += len(record.get("annotations") or ())
        report.num_captions += fields.CAPTION in record
        report.num_captions += len(record.get(fields.TARGET_CAPTIONS) or ())
        report.num_questions += fields.QUESTION in record
        own = record.get(fields.CLASSES)
        if own is not None and tuple(own) not in own_lists:
            own_lists.add(tuple(own))
            check_names(own, limits, report.faults)
        check_record(record, names if own is None else own, limits.tokenizer, report.faults)
    if open_images:
        check_images(records, report.faults, progress=progress, label=f"{name}, images")
    return report


@contextlib.contextmanager
def _collected_warnings(faults: Faults) -> Iterator[None]:
    """What readers warn of counts as left out."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warned: Faults | None = getattr(record, "faults", None)
            if warned is None:
                faults.add("left-out-by-reader", record.getMessage())
                return
            for kind, count in warned.counts.items():
                places = ", ".join(warned.examples[kind])
                faults.add("left-out-by-reader", f"{kind}: {places}", count)

    logger = logging.getLogger("glipv2_d2.data.readers")
    collector = Collector(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)


def check_names(names: Sequence[str], limits: NameLimits, faults: Faults) -> int:
    """Look at a list of class names; returns the prompts that it takes at inference."""
    tokenizer = limits.tokenizer
    words = [clean_name(name) if isinstance(name, str) else "" for name in names]
    costs = tokenizer.counts(words)
    room = tokenizer.max_tokens - tokenizer.num_special_tokens
    sound = []
    places_of = defaultdict(list)
    for i, (name, text, cost) in enumerate(zip(names, words, costs, strict=True)):
        if not text.replace(limits.separator.strip(), "").strip():
            faults.add("empty-name", f"{name!r} (class {i})")
        elif cost == 0:
            faults.add("unreadable-name", f"{name!r} (class {i})")
        elif cost > room:
            faults.add("long-name", f"{name!r} (class {i}, {cost} tokens)")
        else:
            sound.append(name)
            places_of[" ".join(text.split()).casefold()].append(f"{name!r} (class {i})")
    for places in places_of.values():
        faults.add("same-text", " = ".join(places), len(places) - 1)
    if not sound:
        return 0
    prompts = class_prompts(
        sound,
        tokenizer,
        separator=limits.separator,
        max_tokens=tokenizer.max_tokens,
        max_classes=limits.max_classes,
    )
    if len(prompts) > 1:
        faults.add("needs-chunks", f"{len(sound)} names in {len(prompts)} prompts")
    return len(prompts)


def check_ids(records: Sequence[Record], faults: Faults) -> None:
    """Results are matched to images by ``image_id``, to questions by ``question_id``."""
    keys = [fields.QUESTION_ID if fields.QUESTION in record else "image_id" for record in records]
    counts = Counter(
        record[key] for key, record in zip(keys, records, strict=True) if key in record
    )
    for image_id, count in counts.items():
        faults.add("repeated-id", image_id, count - 1)


def check_record(
    record: Record, names: Sequence[str], tokenizer: Tokenizer, faults: Faults
) -> None:
    """Look at one record's annotations.

    Args:
        names: the list that its classes index; empty for captions.
    """
    where = record.get(fields.FILE_NAME)
    for fault in task_faults(record):
        faults.add(fault, place_of(record))
    if asks_words_only(record):
        return
    if record.get("annotations") is None:
        faults.add("no-annotations", where)
        return
    annotations = [a for a in record["annotations"] if not a.get("iscrowd", 0)]
    if not annotations:
        faults.add("nothing-to-find", where)
    if fields.HEIGHT in record and fields.WIDTH in record:
        _check_boxes(annotations, record, faults)
    if fields.CAPTION in record:
        _check_caption(record, annotations, tokenizer, faults)
    elif not names:
        faults.add("no-question", where)
    else:
        for annotation in annotations:
            if not 0 <= annotation["category_id"] < len(names):
                faults.add("unknown-class", f"{where} (class {annotation['category_id']})")


def _check_boxes(annotations: Sequence[dict[str, Any]], record: Record, faults: Faults) -> None:
    width, height = record[fields.WIDTH], record[fields.HEIGHT]
    seen = set()
    for annotation in annotations:
        box = np.asarray(to_xyxy(annotation), dtype=float)
        where = f"{record.get(fields.FILE_NAME)} {np.round(box, 1).tolist()}"
        clipped = box.clip(0, [width, height, width, height])
        # Written so that a NaN counts as no area.
        if not (clipped[2:] > clipped[:2]).all():
            faults.add("box-without-area", where)
        elif np.abs(clipped - box).max() > CLIP_TOLERANCE:
            faults.add("box-outside", where)
        shown = annotation.get("category_id"), str(annotation.get("tokens_positive"))
        key = (*box.tolist(), *shown)
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
        if not spans and fields.PHRASES not in record:
            faults.add("box-without-phrase", where)
        elif not spans_are_within(annotation, len(caption)):
            faults.add("span-outside", f"{where} {spans} of {len(caption)} characters")
        elif any(_cuts_word(caption, begin, end) for begin, end in spans):
            faults.add("span-cuts-word", f"{where} {_texts(caption, spans)} of {caption!r}")
        elif "phrase" in annotation and annotation["phrase"] != " ".join(_texts(caption, spans)):
            faults.add(
                "span-not-phrase",
                f"{where} {_texts(caption, spans)}, named {annotation['phrase']!r}",
            )


def _texts(caption: str, spans: Iterable[Sequence[int]]) -> list[str]:
    return [caption[begin:end] for begin, end in spans]


def _cuts_word(text: str, begin: int, end: int) -> bool:
    if text[begin].isspace() or text[end - 1].isspace():
        return True
    return _is_within_word(text, begin) or _is_within_word(text, end)


def _is_within_word(text: str, position: int) -> bool:
    """Whether the characters on both sides of a position are of one word."""
    return 0 < position < len(text) and text[position - 1 : position + 1].isalnum()


def check_images(
    records: Sequence[Record], faults: Faults, *, progress: Progress, label: str
) -> None:
    """Decode every image file once and compare its size."""
    record_of = {record[fields.FILE_NAME]: record for record in records}
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(_size_or_fault, record_of)
        for (path, record), outcome in zip(
            record_of.items(), progress(found, desc=label, total=len(record_of)), strict=True
        ):
            if isinstance(outcome, str):
                faults.add("image-does-not-open", outcome)
                continue
            recorded = record.get(fields.HEIGHT), record.get(fields.WIDTH)
            if None not in recorded and recorded != outcome:
                faults.add("image-size", f"{path} is {outcome}, recorded {recorded}")


def _size_or_fault(path: str) -> tuple[int, int] | str:
    """The (height, width) of an image, or why there is none."""
    try:
        height, width = read_image(path, "RGB").shape[:2]
    except (OSError, ValueError) as error:
        return str(error)
    return height, width
