"""VQA accuracy: the challenge's protocol, and the evaluator around it."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.torchrun import torchrun
from hypothesis import given
from hypothesis import strategies as st

from glipv2_d2.engine.processes import torchrun_process_group
from glipv2_d2.engine.setup import load_config
from glipv2_d2.evaluation import build_evaluator
from glipv2_d2.evaluation.vqa import VQAEvaluator, vqa_accuracy

PEOPLE = ["yes"] * 7 + ["no"] * 2 + ["maybe"]


@pytest.mark.parametrize(
    ("answer", "accuracy"), [("yes", 1.0), ("no", 0.6), ("maybe", 0.3), ("perhaps", 0.0)]
)
def test_a_worked_example(answer: str, accuracy: float) -> None:
    # "no": eight times two of the nine others agree (2/3), twice only one does (1/3).
    assert vqa_accuracy(answer, PEOPLE) == pytest.approx(accuracy)


@given(
    st.sampled_from(("cat", "dog", "2")),
    st.lists(st.sampled_from(("cat", "dog", "2", "two")), min_size=2, max_size=10),
)
def test_it_is_the_mean_over_all_sets_that_lack_one_person(answer: str, people: list[str]) -> None:
    sets = list(itertools.combinations(range(len(people)), len(people) - 1))
    expected = [min(1.0, sum(people[i] == answer for i in chosen) / 3) for chosen in sets]
    assert vqa_accuracy(answer, people) == pytest.approx(sum(expected) / len(sets))


@pytest.mark.parametrize(
    ("answer", "people", "accuracy"),
    [
        # The model's answer is normalized ...
        ("The Two.", ["2"] * 10, 1.0),
        ("dont know", ["don't know"] * 10, 1.0),
        # ... people's lose their punctuation where they disagree ...
        ("t shirt", ["t-shirt"] * 9 + ["shirt"], 1.0),
        # ... and not where they agree, an oddity of the challenge's script.
        ("t-shirt", ["t-shirt"] * 10, 0.0),
        # Number words of people stay as they are: VQAv2 has none.
        ("two", ["two"] * 9 + ["2"], 0.3),
    ],
)
def test_what_is_normalized(answer: str, people: list[str], accuracy: float) -> None:
    assert vqa_accuracy(answer, people) == pytest.approx(accuracy)


@pytest.mark.parametrize(("answer", "accuracy"), [("A T-shirt", 1.0), ("shirt", 0.0)])
def test_one_known_answer_is_hit_or_missed(answer: str, accuracy: float) -> None:
    assert vqa_accuracy(answer, ["t-shirt"]) == accuracy


def record(question_id: Any, people: list[str] | None, **types: str) -> dict[str, Any]:
    truth = {} if people is None else {"human_answers": people}
    return {
        "file_name": f"{question_id}.jpg",
        "image_id": 1,
        "question_id": question_id,
        "question": "?",
        **truth,
        **types,
    }


RECORDS = [
    record(30, PEOPLE, answer_type="yes/no", question_type="is it"),
    record(10, ["2"] * 10, answer_type="number", question_type="how many"),
    record(20, PEOPLE, answer_type="yes/no", question_type="is there"),
]
ANSWERS = {10: "two", 20: "no", 30: "yes"}


@pytest.fixture
def asked(request: pytest.FixtureRequest) -> Iterator[str]:
    records = getattr(request, "param", RECORDS)
    DatasetCatalog.register("asked", lambda: records)
    MetadataCatalog.get("asked").set(evaluator_type="vqa")
    yield "asked"
    DatasetCatalog.remove("asked")
    MetadataCatalog.remove("asked")


def process(evaluator: Any, records: list[dict[str, Any]]) -> None:
    """As inference does, one image at a time; the mapper leaves people's answers behind."""
    for x in records:
        inputs = {key: value for key, value in x.items() if key != "human_answers"}
        output = {"answer": ANSWERS[x["question_id"]], "answer_score": 0.5}
        evaluator.process([inputs], [output])


def test_accuracy_of_all_and_of_each_type(asked: str, tmp_path: Path) -> None:
    cfg = load_config(opts=["OUTPUT_DIR", str(tmp_path)])
    evaluator = build_evaluator(cfg, asked)
    evaluator.reset()
    process(evaluator, RECORDS)
    results = evaluator.evaluate()["vqa"]
    assert results == {
        "accuracy": pytest.approx((100 + 100 + 60) / 3),
        "accuracy-number": 100,
        "accuracy-yes/no": pytest.approx(80),
    }
    folder = tmp_path / "inference" / asked
    written = json.loads((folder / "vqa_accuracy.json").read_text())
    assert written["per_question_type"] == {
        "how many": 100,
        "is it": 100,
        "is there": pytest.approx(60),
    }
    assert json.loads((folder / "vqa_results.json").read_text()) == [
        {"question_id": 30, "answer": "yes"},
        {"question_id": 10, "answer": "two"},
        {"question_id": 20, "answer": "no"},
    ]


@pytest.mark.parametrize("asked", [[record(i, None) for i in (10, 20)]], indirect=True)
def test_a_test_set_has_a_file_for_the_server_and_no_accuracy(asked: str, tmp_path: Path) -> None:
    MetadataCatalog.get(asked).set(result_keys=("questionId", "prediction"))
    evaluator = VQAEvaluator(asked, str(tmp_path))
    evaluator.reset()
    process(evaluator, DatasetCatalog.get(asked))
    assert evaluator.evaluate() == {}
    assert json.loads((tmp_path / "vqa_results.json").read_text()) == [
        {"questionId": 10, "prediction": "two"},
        {"questionId": 20, "prediction": "no"},
    ]


def test_missing_questions_are_told(
    asked: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = VQAEvaluator(asked, str(tmp_path))
    evaluator.reset()
    process(evaluator, RECORDS[:2])
    with caplog.at_level(logging.WARNING):
        assert evaluator.evaluate()["vqa"]["accuracy"] == 100
    assert "2 of 3" in caplog.text


@pytest.mark.parametrize(
    ("x", "output", "message"),
    [
        ({"file_name": "a.jpg"}, {"answer": "x"}, r"no question_id None \(of image 'a\.jpg'\)"),
        ({**RECORDS[0], "question_id": 9}, {"answer": "x"}, "no question_id 9"),
        (RECORDS[0], {"instances": []}, r"no 'answer' for question_id 30 of image '30\.jpg'"),
    ],
)
def test_what_does_not_fit_is_named(
    x: dict[str, Any], output: dict[str, Any], message: str, asked: str, tmp_path: Path
) -> None:
    evaluator = VQAEvaluator(asked, str(tmp_path))
    with pytest.raises(ValueError, match=message):
        evaluator.process([x], [output])


def evaluate_half(folder: str) -> Any:
    """What one of two processes does: the first has one question, the second the others."""
    from detectron2.utils import comm

    with torchrun_process_group():
        evaluator = VQAEvaluator("asked", folder)
        evaluator.reset()
        process(evaluator, RECORDS[:1] if comm.is_main_process() else RECORDS[1:])
        return evaluator.evaluate()


def test_two_processes_measure_as_one(asked: str, tmp_path: Path) -> None:
    alone = VQAEvaluator(asked, str(tmp_path))
    process(alone, RECORDS)
    expected = alone.evaluate()
    written = (tmp_path / "vqa_results.json").read_text()
    (tmp_path / "two").mkdir()
    assert torchrun(evaluate_half, str(tmp_path / "two"), start_method="fork") == [expected, {}]
    assert (tmp_path / "two" / "vqa_results.json").read_text() == written


UNTYPED = [record(30, PEOPLE, answer_type=None), record(20, PEOPLE, answer_type="yes/no")]


@pytest.mark.parametrize("asked", [UNTYPED], indirect=True)
def test_a_question_of_no_type_counts_among_all_only(asked: str, tmp_path: Path) -> None:
    evaluator = VQAEvaluator(asked, str(tmp_path))
    process(evaluator, UNTYPED)
    assert evaluator.evaluate()["vqa"] == {
        "accuracy": pytest.approx(80),
        "accuracy-yes/no": pytest.approx(60),
    }
