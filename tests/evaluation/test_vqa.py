"""VQA accuracy of the challenge, and its evaluator."""

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

from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.train.distributed import torchrun_process_group
from glipv2_d2.evaluation import build_evaluator
from glipv2_d2.evaluation.vqa import VQAEvaluator, vqa_accuracy

HUMAN_ANSWERS = ["yes"] * 7 + ["no"] * 2 + ["maybe"]


@pytest.mark.parametrize(
    ("answer", "accuracy"), [("yes", 1.0), ("no", 0.6), ("maybe", 0.3), ("perhaps", 0.0)]
)
def test_a_worked_example(answer: str, accuracy: float) -> None:
    # "no": eight subsets have two matches (2/3), two subsets have one (1/3).
    assert vqa_accuracy(answer, HUMAN_ANSWERS) == pytest.approx(accuracy)


@given(
    st.sampled_from(("cat", "dog", "2")),
    st.lists(st.sampled_from(("cat", "dog", "2", "two")), min_size=2, max_size=10),
)
def test_accuracy_is_the_mean_over_leave_one_out_subsets(
    answer: str, human_answers: list[str]
) -> None:
    num = len(human_answers)
    if len(set(human_answers)) > 1:
        human_answers = ["2" if human == "two" else human for human in human_answers]
    subsets = list(itertools.combinations(range(num), num - 1))
    expected = [min(1.0, sum(human_answers[i] == answer for i in chosen) / 3) for chosen in subsets]
    assert vqa_accuracy(answer, human_answers) == pytest.approx(sum(expected) / len(subsets))


@pytest.mark.parametrize(
    ("answer", "human_answers", "accuracy"),
    [
        # Answers are normalised if the human ones differ ...
        ("t shirt", ["t-shirt"] * 9 + ["shirt"], 1.0),
        ("cat", ["a cat"] * 9 + ["dog"], 1.0),
        ("2", ["two"] * 9 + ["3"], 1.0),
        ("The Two.", ["2"] * 9 + ["3"], 1.0),
        # ... and compared as they are if all ten are the same.
        ("the dog", ["the dog"] * 10, 1.0),
        ("dog", ["the dog"] * 10, 0.0),
        ("dont know", ["don't know"] * 10, 0.0),
        ("t-shirt", ["t-shirt"] * 10, 1.0),
        (" yes\n", ["yes"] * 10, 1.0),
    ],
)
def test_normalisation_of_answers(answer: str, human_answers: list[str], accuracy: float) -> None:
    assert vqa_accuracy(answer, human_answers) == pytest.approx(accuracy)


@pytest.mark.parametrize(("answer", "accuracy"), [("A T-shirt", 1.0), ("shirt", 0.0)])
def test_a_single_reference_is_matched_exactly(answer: str, accuracy: float) -> None:
    assert vqa_accuracy(answer, ["t-shirt"]) == accuracy


def record(question_id: Any, human_answers: list[str] | None, **types: str) -> dict[str, Any]:
    truth = {} if human_answers is None else {"human_answers": human_answers}
    return {
        "file_name": f"{question_id}.jpg",
        "image_id": 1,
        "question_id": question_id,
        "question": "?",
        **truth,
        **types,
    }


RECORDS = [
    record(30, HUMAN_ANSWERS, answer_type="yes/no", question_type="is it"),
    record(10, ["2"] * 9 + ["3"], answer_type="number", question_type="how many"),
    record(20, HUMAN_ANSWERS, answer_type="yes/no", question_type="is there"),
]
ANSWERS = {10: "two", 20: "no", 30: "yes"}


@pytest.fixture
def vqa_dataset(request: pytest.FixtureRequest) -> Iterator[str]:
    records = getattr(request, "param", RECORDS)
    DatasetCatalog.register("vqa_dataset", lambda: records)
    MetadataCatalog.get("vqa_dataset").set(evaluator_type="vqa")
    yield "vqa_dataset"
    DatasetCatalog.remove("vqa_dataset")
    MetadataCatalog.remove("vqa_dataset")


def process(evaluator: Any, records: list[dict[str, Any]]) -> None:
    """One image at a time, without the human answers, which the mapper removes."""
    for x in records:
        inputs = {key: value for key, value in x.items() if key != "human_answers"}
        output = {"answer": ANSWERS[x["question_id"]], "answer_score": 0.5}
        evaluator.process([inputs], [output])


def test_accuracy_overall_and_per_type(vqa_dataset: str, tmp_path: Path) -> None:
    cfg = load_config(opts=["OUTPUT_DIR", str(tmp_path)])
    evaluator = build_evaluator(cfg, vqa_dataset)
    evaluator.reset()
    process(evaluator, RECORDS)
    results = evaluator.evaluate()["vqa"]
    assert results == {
        "accuracy": pytest.approx((100 + 100 + 60) / 3),
        "accuracy-number": 100,
        "accuracy-yes/no": pytest.approx(80),
    }
    folder = tmp_path / "inference" / vqa_dataset
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


@pytest.mark.parametrize("vqa_dataset", [[record(i, None) for i in (10, 20)]], indirect=True)
def test_a_test_set_has_a_result_file_and_no_accuracy(vqa_dataset: str, tmp_path: Path) -> None:
    MetadataCatalog.get(vqa_dataset).set(result_keys=("questionId", "prediction"))
    evaluator = VQAEvaluator(vqa_dataset, str(tmp_path))
    evaluator.reset()
    process(evaluator, DatasetCatalog.get(vqa_dataset))
    assert evaluator.evaluate() == {}
    assert json.loads((tmp_path / "vqa_results.json").read_text()) == [
        {"questionId": 10, "prediction": "two"},
        {"questionId": 20, "prediction": "no"},
    ]


def test_a_warning_reports_missing_questions(
    vqa_dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = VQAEvaluator(vqa_dataset, str(tmp_path))
    evaluator.reset()
    process(evaluator, RECORDS[:2])
    with caplog.at_level(logging.WARNING):
        assert evaluator.evaluate()["vqa"]["accuracy"] == 100
    assert "2 of 3" in caplog.text


@pytest.mark.parametrize(
    ("x", "output", "message"),
    [
        ({"file_name": "a.jpg"}, {"answer": "x"}, r"no question_id None \(image 'a\.jpg'\)"),
        ({**RECORDS[0], "question_id": 9}, {"answer": "x"}, "no question_id 9"),
        (RECORDS[0], {"instances": []}, r"no 'answer' for question_id 30 of image '30\.jpg'"),
    ],
)
def test_an_unexpected_output_raises_an_error(
    x: dict[str, Any], output: dict[str, Any], message: str, vqa_dataset: str, tmp_path: Path
) -> None:
    evaluator = VQAEvaluator(vqa_dataset, str(tmp_path))
    with pytest.raises(ValueError, match=message):
        evaluator.process([x], [output])


def evaluate_half(folder: str) -> Any:
    """One of two processes: the first has one question, the second the others."""
    from detectron2.utils import comm

    with torchrun_process_group():
        evaluator = VQAEvaluator("vqa_dataset", folder)
        evaluator.reset()
        process(evaluator, RECORDS[:1] if comm.is_main_process() else RECORDS[1:])
        return evaluator.evaluate()


def test_two_processes_give_the_result_of_one(vqa_dataset: str, tmp_path: Path) -> None:
    alone = VQAEvaluator(vqa_dataset, str(tmp_path))
    process(alone, RECORDS)
    expected = alone.evaluate()
    written = (tmp_path / "vqa_results.json").read_text()
    (tmp_path / "two").mkdir()
    assert torchrun(evaluate_half, str(tmp_path / "two"), start_method="fork") == [expected, {}]
    assert (tmp_path / "two" / "vqa_results.json").read_text() == written


UNTYPED = [
    record(30, HUMAN_ANSWERS, answer_type=None),
    record(20, HUMAN_ANSWERS, answer_type="yes/no"),
]


@pytest.mark.parametrize("vqa_dataset", [UNTYPED], indirect=True)
def test_a_question_without_a_type_counts_only_overall(vqa_dataset: str, tmp_path: Path) -> None:
    evaluator = VQAEvaluator(vqa_dataset, str(tmp_path))
    process(evaluator, UNTYPED)
    assert evaluator.evaluate()["vqa"] == {
        "accuracy": pytest.approx(80),
        "accuracy-yes/no": pytest.approx(60),
    }
