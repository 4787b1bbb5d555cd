"""GQA: questions generated from scene graphs, with one answer each.

``<split>_balanced_questions.json`` is ``{question_id: {imageId, question, answer, fullAnswer,
types: {semantic, structural, detailed}}}``; the images are Visual Genome's in one folder.

The words of training and validation questions have boxes: ``annotations`` of a question has
``question``, ``{"3": "4242", "5:7": "17"}``, the objects of word 3 and of words 5 and 6 (separated
by blanks, from 0), and ``answer``, the objects of the answer. ``<split>_sceneGraphs.json`` is
``{image_id: {width, height, objects: {"4242": {name, x, y, w, h}}}}``. Sources: GQA's download
page; ashkamath/mdetr, scripts/fine-tuning/gqa_coco_format.py.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from detectron2.structures import BoxMode

from glipv2_d2.data.coco_fields import has_area, parse_box, parse_size
from glipv2_d2.data.faults import Faults
from glipv2_d2.data.json_files import load_json
from glipv2_d2.data.registration import Record, register
from glipv2_d2.data.text_tasks import check_text_task, soft_scores
from glipv2_d2.structures import fields

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "testdev", "test")
GROUNDED_SPLITS = ("train", "val")

UNKNOWN_OBJECT = "words had an object without a box in the scene graph and have none"
WRONG_WORDS = "boxes belonged to words that the question does not have and were dropped"


def register_gqa(root: str) -> None:
    """Register ``gqa_balanced_{train,val,testdev,test}`` below ``root``/gqa.

    ``gqa_grounded_{train,val}`` are the same questions with boxes.
    """
    folder = os.path.join(root, "gqa")
    image_root = os.path.join(folder, "images")
    for split in SPLITS:
        questions_file = os.path.join(folder, f"{split}_balanced_questions.json")
        register(
            f"gqa_balanced_{split}",
            functools.partial(read_gqa, questions_file, image_root),
            source_files=(questions_file, image_root),
            evaluator_type="vqa",
            # Keys of the file that GQA's evaluation server accepts.
            result_keys=("questionId", "prediction"),
        )
    for split in GROUNDED_SPLITS:
        questions_file = os.path.join(folder, f"{split}_balanced_questions.json")
        graphs_file = os.path.join(folder, f"{split}_sceneGraphs.json")
        name = f"gqa_grounded_{split}"
        register(
            name,
            functools.partial(read_grounded_gqa, questions_file, graphs_file, image_root, name),
            source_files=(questions_file, graphs_file, image_root),
            evaluator_type="grounded_vqa",
            result_keys=("questionId", "prediction"),
        )


def read_gqa(questions_file: str, image_root: str) -> list[Record]:
    """One record per question, with string ids and without image sizes, which the file lacks.

    ``question_type`` is GQA's structural type (verify, query, choose, logical, compare);
    ``answer_type`` is "open" for the type query and "binary" otherwise, as in GQA (from memory).

    Raises:
        ValueError: the file is not in this format, or a question is empty.
    """
    return [record for record, _ in _read_questions(questions_file, image_root)]


def read_grounded_gqa(
    questions_file: str, graphs_file: str, image_root: str, dataset_name: str
) -> list[Record]:
    """The records of :func:`read_gqa` with boxes of the words of the question and of its answer.

    The caption is question and answer; a question without boxes has none.

    Raises:
        ValueError: a file is not in this format, or a question is empty.
    """
    graphs = load_json(graphs_file)
    if not isinstance(graphs, dict):
        raise ValueError(
            f"{graphs_file!r} has no scene graphs: it should be a JSON object of them by image"
        )
    faults = Faults()
    records = []
    for record, entry in _read_questions(questions_file, image_root):
        try:
            boxes = list(_word_boxes(record, entry, graphs.get(entry["imageId"]) or {}, faults))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"the boxes of question {record[fields.QUESTION_ID]!r} in {questions_file!r}, or "
                f"the scene graph of its image {entry['imageId']!r} in {graphs_file!r}, are not in "
                f"GQA's format ({type(error).__name__}: {error})"
            ) from error
        if boxes:
            record[fields.CAPTION] = f"{record[fields.QUESTION].strip()} {entry['answer']}"
            record["annotations"] = boxes
        records.append(record)
    faults.warn(logger, dataset_name)
    return records


def _word_boxes(
    record: Record, entry: dict[str, Any], graph: dict[str, Any], faults: Faults
) -> Iterator[dict[str, Any]]:
    """The boxes of a question; with the first, the size of the image is set in the record."""
    pointers = entry.get("annotations", {})
    question = entry["question"].strip()
    spans = [(_word_span(question, words), o) for words, o in pointers.get("question", {}).items()]
    if entry.get("answer"):
        end = len(question) + 1 + len(entry["answer"])
        spans += [((len(question) + 1, end), o) for o in pointers.get("answer", {}).values()]
    size = parse_size(graph)
    for span, object_id in spans:
        found = graph.get("objects", {}).get(object_id)
        box = found and parse_box([found[key] for key in ("x", "y", "w", "h")])
        if span is None:
            faults.add(WRONG_WORDS, record[fields.QUESTION_ID])
        elif size is None or not box or not has_area(box, size):
            faults.add(UNKNOWN_OBJECT, f"{object_id} of question {record[fields.QUESTION_ID]}")
        else:
            record[fields.HEIGHT], record[fields.WIDTH] = size
            yield {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "tokens_positive": [list(span)]}


def _word_span(question: str, words: str) -> tuple[int, int] | None:
    """The characters of words ("3", or "5:7" without the last), without punctuation at their end.

    >>> _word_span("Is there a red apple?", "3:5")
    (11, 20)
    """
    first, _, stop = words.partition(":")
    begin, end = int(first), int(stop or int(first) + 1)
    ends = [match.end() for match in re.finditer(r"\S+", question)]
    begins = [match.start() for match in re.finditer(r"\S+", question)]
    if not 0 <= begin < end <= len(ends):
        return None
    text = question[: ends[end - 1]].rstrip("?,.!;:")
    return (begins[begin], len(text)) if len(text) > begins[begin] else None


def _read_questions(
    questions_file: str, image_root: str
) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Each question as a record, and as it is in the file."""
    entries = load_json(questions_file)
    if not isinstance(entries, dict):
        raise ValueError(
            f"{questions_file!r} is not in GQA's format: it should be a JSON object of questions "
            f"by their ids, not {entries!r:.80}"
        )
    for question_id, entry in entries.items():
        try:
            yield _record(question_id, entry, image_root), entry
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{questions_file!r}: question {question_id!r} is not in GQA's format "
                f"({type(error).__name__}: {error}): {entry!r:.200}"
            ) from error


def _record(question_id: str, entry: dict[str, Any], image_root: str) -> Record:
    record = {
        "file_name": os.path.join(image_root, f"{entry['imageId']}.jpg"),
        "image_id": entry["imageId"],
        fields.QUESTION_ID: question_id,
        fields.QUESTION: entry["question"],
    }
    if "answer" in entry:
        human_answers = [entry["answer"]]
        record |= {fields.HUMAN_ANSWERS: human_answers, fields.ANSWERS: soft_scores(human_answers)}
    if "types" in entry:
        structural = entry["types"]["structural"]
        record[fields.QUESTION_TYPE] = structural
        record[fields.ANSWER_TYPE] = "open" if structural == "query" else "binary"
    check_text_task(record, is_train=False)
    return record
