"""The list of answers, written from questions with answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import answer_vocabulary
import pytest
from detectron2.data import DatasetCatalog

from glipv2_d2.data.text_tasks import soft_scores
from glipv2_d2.text.answers import read_answers


def question(number: int, answer: str, kind: str) -> dict[str, Any]:
    return {
        "file_name": "1.jpg",
        "image_id": 1,
        "question_id": number,
        "question": "?",
        "question_type": kind,
        "human_answers": [answer] * 10,
        "answers": soft_scores([answer] * 10),
    }


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    answers = {
        "asked_train": [("yes", "is it"), ("yes", "is it"), ("no", "is it"), ("2", "how many")],
        "asked_test": [("no", "is it"), ("yes", "is it"), ("2", "how many"), ("5", "how many")],
    }
    for name, pairs in answers.items():
        records = [question(i, answer, kind) for i, (answer, kind) in enumerate(pairs)]
        DatasetCatalog.register(name, lambda records=records: records)
    yield
    for name in answers:
        DatasetCatalog.remove(name)


def test_the_file_has_the_answers_that_occur_often_enough(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    arguments = ["--dataset", "asked_train", "--output", str(path), "--min-occurrences"]
    assert answer_vocabulary.main([*arguments, "1"]) == 0
    assert read_answers(str(path)) == ["yes", "2", "no"]
    assert answer_vocabulary.main([*arguments, "2"]) == 0
    assert read_answers(str(path)) == ["yes"]


def test_the_table_tells_what_is_reached_by_the_list_and_without_looking(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "answers.txt"
    arguments = ["--dataset", "asked_train", "--output", str(path), "--min-occurrences", "1"]
    answer_vocabulary.main([*arguments, "--test", "asked_test"])
    printed = capsys.readouterr().out
    rows = {tuple(line.split()) for line in printed.splitlines()}
    # Of the test questions, "5" is not in the list; the prior says "yes" and "2".
    assert ("asked_test", "all", "4", "75.00", "50.00") in rows
    assert ("asked_test", "is", "it", "2", "100.00", "50.00") in rows
    assert ("asked_train", "how", "many", "1", "100.00", "100.00") in rows
    assert f"3 answers are in {path}" in printed


def test_a_test_set_whose_answers_nobody_knows_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = question(1, "no", "is it")
    del bare["human_answers"], bare["answers"]
    DatasetCatalog.register("asked_bare", lambda: [bare])
    arguments = ["--dataset", "asked_train", "--output", str(tmp_path / "answers.txt")]
    try:
        arguments += ["--min-occurrences", "1", "--test", "asked_bare"]
        assert answer_vocabulary.main(arguments) == 1
    finally:
        DatasetCatalog.remove("asked_bare")
    assert "'asked_bare', question 1 of image '1.jpg'" in capsys.readouterr().err


def test_the_folder_of_the_list_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.txt"
    arguments = ["--dataset", "asked_train", "--output", str(path), "--min-occurrences", "1"]
    assert answer_vocabulary.main(arguments) == 0
    assert read_answers(str(path)) == ["yes", "2", "no"]


def test_an_unknown_data_set_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--dataset", "asked_tran", "--output", str(tmp_path / "answers.txt")]
    assert answer_vocabulary.main(arguments) == 1
    assert "asked_train" in capsys.readouterr().err
