"""Questions about images with several human answers each, in VQAv2's format.

A questions file ``{"questions": [{question_id, image_id, question}]}`` and an answers file
``{"annotations": [{question_id, image_id, question_type, answer_type, multiple_choice_answer,
answers: [{answer, answer_confidence, answer_id}]}]}``. A test set has no answers.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from glipv2_d2.data.annotation_file import read_annotation_file
from glipv2_d2.data.json_files import load_json
from glipv2_d2.data.readers.coco import image_record
from glipv2_d2.data.registration import Record, register
from glipv2_d2.data.text_tasks import check_text_task, soft_scores
from glipv2_d2.structures import fields

# For each split, the parts of the image folder, questions file and answers file names.
VQAV2_SPLITS = {
    "train": ("train2014", "train2014", "train2014"),
    "val": ("val2014", "val2014", "val2014"),
    "test": ("test2015", "test2015", None),
    "test-dev": ("test2015", "test-dev2015", None),
}
MAX_EXAMPLES = 5

ImageOf = Callable[[Any], Record]
"""image id -> its record without text fields; raises KeyError for an unknown image."""


def register_vqav2(root: str) -> None:
    """Register ``vqav2_{train,val,test,test-dev}`` below ``root``, on COCO's 2014/2015 images."""
    folder = os.path.join(root, "vqa")
    for split, (images, questions, answers) in VQAV2_SPLITS.items():
        name = f"vqav2_{split}"
        questions_file = os.path.join(folder, f"v2_OpenEnded_mscoco_{questions}_questions.json")
        answers_file = answers and os.path.join(folder, f"v2_mscoco_{answers}_annotations.json")
        image_root = os.path.join(root, "coco", images)
        image_of = functools.partial(coco_image, image_root, images)
        register(
            name,
            functools.partial(read_questions, questions_file, answers_file, image_of),
            source_files=[f for f in (questions_file, answers_file, image_root) if f],
            evaluator_type="vqa",
        )


def coco_image(image_root: str, folder: str, image_id: int) -> Record:
    """The record of a COCO image, without its size, which VQAv2's files lack."""
    return {"file_name": os.path.join(image_root, f"COCO_{folder}_{image_id:012d}.jpg")}


def register_questions(
    name: str,
    json_file: str,
    image_root: str,
    questions_file: str,
    answers_file: str | None = None,
    question_type: Callable[[str], str] | None = None,
) -> None:
    """Register questions about the images of a file in COCO's format.

    Args:
        answers_file: None for a test set.
        question_type: question -> its type, for files without question types.
    """

    def load() -> list[Record]:
        file = read_annotation_file(json_file)

        def image_of(image_id: Any) -> Record:
            image = file.find_image(image_id)
            if image is None:
                raise KeyError(image_id)
            return image_record(image, image_root)

        records = read_questions(questions_file, answers_file, image_of)
        for record in records:
            if question_type is not None:
                record.setdefault(fields.QUESTION_TYPE, question_type(record[fields.QUESTION]))
        return records

    files = [f for f in (json_file, image_root, questions_file, answers_file) if f is not None]
    register(name, load, source_files=files, evaluator_type="vqa")


def read_questions(
    questions_file: str, answers_file: str | None, image_of: ImageOf
) -> list[Record]:
    """One record per question, in the order of the file.

    Answers are matched to questions by ``question_id``. No question is dropped, because accuracy
    is over all questions.

    Args:
        answers_file: None for a test set; its records have no answers.

    Raises:
        ValueError: a file is not in VQAv2's format, the two files have different questions, or a
            question is empty, repeated, or has no image or answers.
    """
    questions = _read_list(questions_file, "questions", ("question_id", "image_id", "question"))
    answers = None
    if answers_file is not None:
        entries = _read_list(answers_file, "annotations", ("question_id", "image_id", "answers"))
        answers = {entry["question_id"]: entry for entry in entries}
        _check_same_questions(questions, answers, questions_file, answers_file)
    records = []
    for question in questions:
        try:
            image = image_of(question["image_id"])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{questions_file!r}: question {question['question_id']!r} is about the image "
                f"{question['image_id']!r}, which is not in the list of images"
            ) from error
        record = {
            **image,
            "image_id": question["image_id"],
            fields.QUESTION_ID: question["question_id"],
            fields.QUESTION: question["question"],
        }
        if answers is not None:
            record |= _answer_keys(question, answers[question["question_id"]], str(answers_file))
        check_text_task(record, is_train=False)
        records.append(record)
    return records


def _read_list(path: str, key: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """Load a list of entries; each must have all ``keys`` and a unique ``question_id``."""
    content = load_json(path)
    try:
        entries = list(content[key])
        missing = [(i, k) for i, entry in enumerate(entries) for k in keys if k not in entry]
        invalid = [
            (i, k, entry[k])
            for i, entry in enumerate(entries)
            for k in keys
            if k in entry and not _is_valid(k, entry[k])
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path!r} is not in VQAv2's format ({type(error).__name__}: {error}): it should "
            f"be a JSON object with a list {key!r}"
        ) from error
    if missing:
        number, missing_key = missing[0]
        raise ValueError(f"{path!r}: number {number} of {key!r} has no {missing_key!r}")
    if invalid:
        number, invalid_key, value = invalid[0]
        expected = "a list" if invalid_key == "answers" else "a number or a string"
        raise ValueError(
            f"{path!r}: number {number} of {key!r} has the {invalid_key!r} {value!r}; it should be "
            f"{expected}"
        )
    counts = Counter(entry["question_id"] for entry in entries)
    repeated = [question_id for question_id, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"{path!r} has repeated question ids: {_first_ids(repeated)}")
    return entries


def _is_valid(key: str, value: Any) -> bool:
    if key == "answers":
        return isinstance(value, list)
    # check_text_task reports an invalid question, with its id.
    return key == "question" or (isinstance(value, int | str) and not isinstance(value, bool))


def _check_same_questions(
    questions: list[dict[str, Any]],
    answers: Mapping[Any, dict[str, Any]],
    questions_file: str,
    answers_file: str,
) -> None:
    ids = {question["question_id"] for question in questions}
    unanswered = [question_id for question_id in ids if question_id not in answers]
    unmatched = [question_id for question_id in answers if question_id not in ids]
    if unanswered or unmatched:
        types = [{type(x).__name__ for x in keys} for keys in (ids, answers)]
        hint = "are they of the same split?"
        if types[0] != types[1]:
            names = " and ".join("/".join(sorted(x)) for x in types)
            hint = f"their ids have the types {names}, use one type"
        raise ValueError(
            f"{questions_file!r} and {answers_file!r} have different questions: "
            f"{len(unanswered)} have no answer ({_first_ids(unanswered)}), {len(unmatched)} "
            f"answers have no question ({_first_ids(unmatched)}): {hint}"
        )


def _first_ids(ids: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(ids, key=str)[:MAX_EXAMPLES])) or "none"


def _answer_keys(question: dict[str, Any], entry: dict[str, Any], answers_file: str) -> Record:
    place = f"{answers_file!r}: question {question['question_id']!r}"
    if entry["image_id"] != question["image_id"]:
        raise ValueError(
            f"{place} is about the image {entry['image_id']!r}, but in the questions file it is "
            f"about {question['image_id']!r}"
        )
    human_answers = []
    for number, given in enumerate(entry["answers"]):
        answer = given.get("answer") if isinstance(given, dict) else None
        if not isinstance(answer, str | int | float) or isinstance(answer, bool):
            raise ValueError(
                f"{place}: number {number} of its answers is {given!r}; it should be an object "
                "with an 'answer' that is a string or a number"
            )
        # Most answers repeat, so equal strings share their memory.
        human_answers.append(sys.intern(str(answer)))
    if not human_answers:
        raise ValueError(f"{place} has an empty list of answers; for a test set, omit the file")
    types = (fields.MOST_COMMON_ANSWER, fields.ANSWER_TYPE, fields.QUESTION_TYPE)
    return {
        fields.HUMAN_ANSWERS: human_answers,
        fields.ANSWERS: soft_scores(human_answers),
        **{key: entry[key] for key in types if key in entry},
    }
