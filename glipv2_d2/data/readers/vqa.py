"""Questions about images with the answers of several people, in VQAv2's form.

A file of questions, ``{"questions": [{question_id, image_id, question}]}``, and one of answers,
``{"annotations": [{question_id, image_id, question_type, answer_type, multiple_choice_answer,
answers: [{answer, answer_confidence, answer_id}]}]}``. A test set has no answers.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from glipv2_d2.data.readers.coco import image_record, open_coco
from glipv2_d2.data.registration import Record, register
from glipv2_d2.data.text_tasks import check_text_task, soft_scores
from glipv2_d2.structures import fields

# Of each split the images and, in the names of the files, the questions and the answers.
VQAV2_SPLITS = {
    "train": ("train2014", "train2014", "train2014"),
    "val": ("val2014", "val2014", "val2014"),
    "test": ("test2015", "test2015", None),
    "test-dev": ("test2015", "test-dev2015", None),
}
NUM_NAMED = 5

ImageOf = Callable[[Any], Record]
"""An image id -> the keys of its record; KeyError where there is no such image."""


def register_vqav2(root: str) -> None:
    """``vqav2_{train,val,test,test-dev}`` below ``root``; images are COCO's of 2014 and 2015."""
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
    """The file that COCO gave an image; its size is not known from the questions."""
    return {"file_name": os.path.join(image_root, f"COCO_{folder}_{image_id:012d}.jpg")}


def register_listed_questions(
    name: str,
    json_file: str,
    image_root: str,
    questions_file: str,
    answers_file: str | None = None,
    question_type: Callable[[str], str] | None = None,
) -> None:
    """Register questions about the images that a file in COCO's format lists.

    Args:
        answers_file: None for a test set.
        question_type: a question -> its type, for files that do not name it.
    """

    def read() -> list[Record]:
        images = {
            image["id"]: image_record(image, image_root)
            for image in open_coco(json_file).dataset["images"]
        }
        records = read_questions(
            questions_file, answers_file, lambda image_id: _without_boxes(images[image_id])
        )
        for record in records:
            if question_type is not None:
                record.setdefault(fields.QUESTION_TYPE, question_type(record[fields.QUESTION]))
        return records

    files = [f for f in (json_file, image_root, questions_file, answers_file) if f is not None]
    register(name, read, source_files=files, evaluator_type="vqa")


def _without_boxes(record: Record) -> Record:
    return {key: value for key, value in record.items() if key != "annotations"}


def read_questions(
    questions_file: str, answers_file: str | None, image_of: ImageOf
) -> list[Record]:
    """One record per question, in the order of the file.

    Answers are matched to questions by ``question_id``. Nothing is left out: accuracy is over all
    questions.

    Args:
        answers_file: None for a test set; its records have no answers.

    Raises:
        ValueError: a file is not in VQAv2's form, the two are not of the same questions, a
            question is empty, has no image or is there twice, or has no answers.
    """
    questions = _read_list(questions_file, "questions", ("question_id", "image_id", "question"))
    answers = None
    if answers_file is not None:
        entries = _read_list(answers_file, "annotations", ("question_id", "image_id", "answers"))
        answers = {entry["question_id"]: entry for entry in entries}
        _check_same_questions(questions, answers, questions_file, answers_file)
    records = []
    for question in questions:
        place = f"{questions_file!r}: question {question['question_id']!r}"
        try:
            image = image_of(question["image_id"])
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{place} is about the image {question['image_id']!r}, which is not in the list "
                "of images (a number and a text are different ids)"
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
    """The entries of one of the files, each with these keys and an id of its own."""
    with open(path, encoding="utf-8") as file:
        try:
            entries = json.load(file)[key]
            missing = [(i, k) for i, entry in enumerate(entries) for k in keys if k not in entry]
            odd = [
                (i, k, entry[k])
                for i, entry in enumerate(entries)
                for k in keys
                if k in entry and not _is_sound(k, entry[k])
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path!r} is not in VQAv2's form ({type(error).__name__}: {error}): it should be "
                f"a JSON object with a list {key!r}"
            ) from error
    if missing:
        place, lacking = missing[0]
        raise ValueError(f"{path!r}: number {place} of {key!r} has no {lacking!r}")
    if odd:
        place, wrong, value = odd[0]
        expected = "a list" if wrong == "answers" else "a number or a text"
        raise ValueError(
            f"{path!r}: number {place} of {key!r} has the {wrong!r} {value!r}; it should be "
            f"{expected}"
        )
    counts = Counter(entry["question_id"] for entry in entries)
    repeated = [question_id for question_id, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"{path!r} has question ids more than once: {_some(repeated)}")
    return entries


def _is_sound(key: str, value: Any) -> bool:
    if key == "answers":
        return isinstance(value, list)
    # A question that is no text is told with its id.
    return key == "question" or (isinstance(value, int | str) and not isinstance(value, bool))


def _check_same_questions(
    questions: list[dict[str, Any]],
    answers: Mapping[Any, dict[str, Any]],
    questions_file: str,
    answers_file: str,
) -> None:
    ids = {question["question_id"] for question in questions}
    unanswered = [question_id for question_id in ids if question_id not in answers]
    unasked = [question_id for question_id in answers if question_id not in ids]
    if unanswered or unasked:
        types = [{type(x).__name__ for x in some} for some in (ids, answers)]
        hint = "are they of the same split?"
        if types[0] != types[1]:
            hint = f"ids are {' and '.join('/'.join(sorted(x)) for x in types)}, write them alike"
        raise ValueError(
            f"{questions_file!r} and {answers_file!r} are not of the same questions: "
            f"{len(unanswered)} have no answer ({_some(unanswered)}), {len(unasked)} answers have "
            f"no question ({_some(unasked)}): {hint}"
        )


def _some(ids: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(ids, key=str)[:NUM_NAMED])) or "none"


def _answer_keys(question: dict[str, Any], entry: dict[str, Any], answers_file: str) -> Record:
    place = f"{answers_file!r}: question {question['question_id']!r}"
    if entry["image_id"] != question["image_id"]:
        raise ValueError(
            f"{place} is about the image {entry['image_id']!r} there and about "
            f"{question['image_id']!r} in the file of questions"
        )
    human_answers = []
    for number, given in enumerate(entry["answers"]):
        answer = given.get("answer") if isinstance(given, dict) else None
        if not isinstance(answer, str | int | float) or isinstance(answer, bool):
            raise ValueError(
                f"{place}: number {number} of its answers is {given!r}; it should be an object "
                "with an 'answer' that is a text or a number"
            )
        # Few words are most of the answers: each is kept once.
        human_answers.append(sys.intern(str(answer)))
    if not human_answers:
        raise ValueError(f"{place} has an empty list of answers; in a test set, leave the file out")
    types = (fields.ANSWER_TYPE, fields.QUESTION_TYPE)
    return {
        fields.HUMAN_ANSWERS: human_answers,
        fields.ANSWERS: soft_scores(human_answers),
        **{key: entry[key] for key in types if key in entry},
    }
