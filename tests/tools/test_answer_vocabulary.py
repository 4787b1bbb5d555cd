from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import answer_vocabulary
import pytest
from detectron2.data import DatasetCatalog

from glipv2_d2.data.text_tasks import soft_scores
from glipv2_d2.text.answers import load_answers


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
        "vqa_train": [("yes", "is it"), ("yes", "is it"), ("no", "is it"), ("2", "how many")],
        "vqa_test": [("no", "is it"), ("yes", "is it"), ("2", "how many"), ("5", "how many")],
    }
    for name, pairs in answers.items():
        records = [question(i, answer, kind) for i, (answer, kind) in enumerate(pairs)]
        DatasetCatalog.register(name, lambda records=records: records)
    yield
    for name in answers:
        DatasetCatalog.remove(name)


def test_vocabulary_has_the_answers_with_enough_occurrences(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    arguments = ["--dataset", "vqa_train", "--output", str(path), "--min-occurrences"]
    assert answer_vocabulary.main([*arguments, "1"]) == 0
    assert load_answers(str(path)) == ["yes", "2", "no"]
    assert answer_vocabulary.main([*arguments, "2"]) == 0
    assert load_answers(str(path)) == ["yes"]


def test_table_has_upper_bound_and_prior_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "answers.txt"
    arguments = ["--dataset", "vqa_train", "--output", str(path), "--min-occurrences", "1"]
    answer_vocabulary.main([*arguments, "--test", "vqa_test"])
    printed = capsys.readouterr().out
    rows = {tuple(line.split()) for line in printed.splitlines()}
    # The test answer "5" is not in the vocabulary; the priors are "yes" and "2".
    assert ("vqa_test", "all", "4", "75.00", "50.00") in rows
    assert ("vqa_test", "is", "it", "2", "100.00", "50.00") in rows
    assert ("vqa_train", "how", "many", "1", "100.00", "100.00") in rows
    assert f"3 answers are in {path}" in printed


def test_dataset_without_answers_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    unanswered = question(1, "no", "is it")
    del unanswered["human_answers"], unanswered["answers"]
    DatasetCatalog.register("vqa_unanswered", lambda: [unanswered])
    arguments = ["--dataset", "vqa_train", "--output", str(tmp_path / "answers.txt")]
    try:
        arguments += ["--min-occurrences", "1", "--test", "vqa_unanswered"]
        assert answer_vocabulary.main(arguments) == 1
    finally:
        DatasetCatalog.remove("vqa_unanswered")
    assert "'vqa_unanswered', question 1 of image '1.jpg'" in capsys.readouterr().err


def test_output_folder_is_created(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.txt"
    arguments = ["--dataset", "vqa_train", "--output", str(path), "--min-occurrences", "1"]
    assert answer_vocabulary.main(arguments) == 0
    assert load_answers(str(path)) == ["yes", "2", "no"]


def test_unknown_dataset_is_rejected_with_a_suggestion(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--dataset", "vqa_tran", "--output", str(tmp_path / "answers.txt")]
    assert answer_vocabulary.main(arguments) == 1
    assert "vqa_train" in capsys.readouterr().err
