"""Questions with answers, and captions, for pseudo-labelling, and the way back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from glipv2_d2.data.answer_vocabulary import majority_answer
from glipv2_d2.data.registration import Record
from glipv2_d2.data.text_tasks import describe_record
from glipv2_d2.structures import fields

ImageCaption = tuple[str, str]
"""Image file and caption."""

_NO_LABELS: dict[str, Any] = {"boxes": [], "spans": [], "scores": [], "phrases": []}


def question_answer_caption(record: Record) -> ImageCaption:
    """The image file and the caption "question answer", with the most common answer.

    Raises:
        ValueError: the record has no question or no answer.
    """
    if fields.QUESTION not in record or fields.HUMAN_ANSWERS not in record:
        raise ValueError(
            f"{describe_record(record)} has neither a question with answers nor captions"
        )
    question = record[fields.QUESTION].strip()
    return record["file_name"], f"{question} {majority_answer(record)}".strip()


def texts_to_label(record: Record) -> list[ImageCaption]:
    """The texts of a record that get boxes: question and answer, or each target caption.

    Raises:
        ValueError: the record has neither.
    """
    if fields.QUESTION not in record and record.get(fields.TARGET_CAPTIONS):
        return [(record["file_name"], caption) for caption in record[fields.TARGET_CAPTIONS]]
    return [question_answer_caption(record)]


def read_pseudo_labels(paths: Sequence[Path]) -> dict[ImageCaption, dict[str, Any]]:
    """Read output files of ``glipv2 label --captions``, by image file and caption.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a line has another format.
    """
    labels = {}
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    label = json.loads(line)
                    labels[label["image"], label["caption"]] = label
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{path}:{number} is not a line of glipv2 label --captions "
                        f"({type(error).__name__}: {error}): remove it, or label again"
                    ) from error
    return labels


def grounded_questions(
    records: Iterable[Record], labels: dict[ImageCaption, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Records of the format ``grounded_text``: questions with answers and pseudo-labelled boxes.

    Questions without a label have no boxes.
    """
    for record in records:
        image, caption = question_answer_caption(record)
        yield {
            **labels.get((image, caption), _NO_LABELS),
            "image": image,
            "caption": caption,
            fields.QUESTION: record[fields.QUESTION],
            fields.QUESTION_ID: record[fields.QUESTION_ID],
            fields.ANSWERS: record[fields.ANSWERS],
        }
