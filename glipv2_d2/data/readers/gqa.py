"""GQA: questions generated from scene graphs, with one answer each.

``<split>_balanced_questions.json`` is ``{question_id: {imageId, question, answer, fullAnswer,
types: {semantic, structural, detailed}}}``; the images are Visual Genome's in one folder.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from glipv2_d2.data.json_files import load_json
from glipv2_d2.data.registration import Record, register
from glipv2_d2.data.text_tasks import check_text_task, soft_scores
from glipv2_d2.structures import fields

SPLITS = ("train", "val", "testdev", "test")


def register_gqa(root: str) -> None:
    """Register ``gqa_balanced_{train,val,testdev,test}`` below ``root``/gqa."""
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


def read_gqa(questions_file: str, image_root: str) -> list[Record]:
    """One record per question, with string ids and without image sizes, which the file lacks.

    ``question_type`` is GQA's structural type (verify, query, choose, logical, compare);
    ``answer_type`` is "open" for the type query and "binary" otherwise, as in GQA (from memory).

    Raises:
        ValueError: the file is not in this format, or a question is empty.
    """
    entries = load_json(questions_file)
    if not isinstance(entries, dict):
        raise ValueError(
            f"{questions_file!r} is not in GQA's format: it should be a JSON object of questions "
            f"by their ids, not {entries!r:.80}"
        )
    records = []
    for question_id, entry in entries.items():
        try:
            records.append(_record(question_id, entry, image_root))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{questions_file!r}: question {question_id!r} is not in GQA's format "
                f"({type(error).__name__}: {error}): {entry!r:.200}"
            ) from error
    return records


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
