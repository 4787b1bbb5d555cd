"""Metrics of answers and captions with the boxes of their phrases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from helpers.phrase_data import model_output

from glipv2_d2.evaluation.grounded_text import GroundedCaptionEvaluator, GroundedVQAEvaluator
from glipv2_d2.text.prompts import caption_prompt
from glipv2_d2.text.questions import answered_prompt

MAT, DOG, ELSEWHERE = [1, 2, 9, 8], [12, 4, 20, 16], [22, 1, 30, 9]
QUESTION = "what is on the mat?"


def box(place: Sequence[float], *span: int) -> dict[str, Any]:
    return {"bbox": list(place), "bbox_mode": BoxMode.XYXY_ABS, "tokens_positive": [list(span)]}


@pytest.fixture
def register() -> Iterator[Callable[[list[dict[str, Any]]], str]]:
    def register_records(records: list[dict[str, Any]]) -> str:
        DatasetCatalog.register("grounded_text_set", lambda: records)
        return "grounded_text_set"

    yield register_records
    DatasetCatalog.remove("grounded_text_set")


def question(**more: Any) -> dict[str, Any]:
    record = {"file_name": "1.jpg", "question": QUESTION, "question_id": "7"}
    record |= {"human_answers": ["dog"], "caption": f"{QUESTION} dog"}
    return {**record, "annotations": [box(MAT, 11, 18), box(DOG, 20, 23)], **more}


def evaluate(
    evaluator: Any, records: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    evaluator.reset()
    evaluator.process(records, outputs)
    return evaluator.evaluate()


@pytest.mark.parametrize(
    ("boxes", "scores", "recall", "answer_recall"),
    [
        ([MAT, DOG], [0.9, 0.8], {"R@1": 100, "R@5": 100}, 100),
        # A better box elsewhere.
        ([MAT, ELSEWHERE], [0.9, 0.8], {"R@1": 100, "R@5": 100}, 0),
        ([DOG, MAT], [0.9, 0.8], {"R@1": 0, "R@5": 0}, 0),
    ],
)
def test_answers_and_their_boxes_are_measured(
    boxes: list[list[float]],
    scores: list[float],
    recall: dict[str, float],
    answer_recall: float,
    register: Any,
    tmp_path: Path,
) -> None:
    records = [question()]
    evaluator = GroundedVQAEvaluator(register(records), str(tmp_path))
    # The parser of the model includes the article, or more.
    prompt = answered_prompt(QUESTION, "cat", [[(8, 18)]])
    output = {**model_output(boxes, scores, [0, 1]), "answer": "cat", "prompt": prompt}
    results = evaluate(evaluator, records, [output])
    assert results["vqa"]["accuracy"] == 0
    assert {key: results["grounding"][key] for key in recall} == recall
    assert results["grounding"]["answer-R@1"] == answer_recall


def test_a_second_box_counts_for_recall_at_5(register: Any, tmp_path: Path) -> None:
    records = [question(annotations=[box(MAT, 11, 18)])]
    evaluator = GroundedVQAEvaluator(register(records), str(tmp_path))
    prompt = answered_prompt(QUESTION, "dog", [[(11, 18)]])
    output = model_output([MAT, ELSEWHERE], [0.5, 0.8], [0, 0])
    metrics = evaluate(evaluator, records, [{**output, "answer": "dog", "prompt": prompt}])
    assert (metrics["grounding"]["R@1"], metrics["grounding"]["R@5"]) == (0, 100)
    assert "answer-R@1" not in metrics["grounding"]
    assert metrics["vqa"]["accuracy"] == 100


def test_a_phrase_that_the_model_does_not_find_is_missed(register: Any, tmp_path: Path) -> None:
    records = [question()]
    evaluator = GroundedVQAEvaluator(register(records), str(tmp_path))
    output = {**model_output([DOG], [0.5], [0]), "prompt": answered_prompt(QUESTION, "dog", [])}
    metrics = evaluate(evaluator, records, [{**output, "answer": "dog"}])["grounding"]
    assert (metrics["R@10"], metrics["answer-R@1"]) == (0, 100)


def test_questions_without_boxes_count_for_the_accuracy_alone(
    register: Any, tmp_path: Path
) -> None:
    plain = {k: v for k, v in question().items() if k not in ("caption", "annotations")}
    evaluator = GroundedVQAEvaluator(register([plain]), str(tmp_path))
    assert evaluate(evaluator, [plain], [{"answer": "dog"}]) == {"vqa": {"accuracy": 100}}


def test_an_output_without_boxes_of_its_text_raises(register: Any, tmp_path: Path) -> None:
    evaluator = GroundedVQAEvaluator(register([question()]), str(tmp_path))
    with pytest.raises(ValueError, match="'7' has no boxes of its text.*'ground'"):
        evaluate(evaluator, [question()], [{"answer": "dog"}])


def test_generated_phrases_are_compared_with_those_of_all_references(
    register: Any, tmp_path: Path
) -> None:
    captions = ["a small dog on a mat", "one dog"]
    record = {"file_name": "1.jpg", "image_id": 1, "caption": " ".join(captions)}
    record["target_captions"] = captions
    record["annotations"] = [box(DOG, 0, 11), box(MAT, 15, 20), box(DOG, 21, 28)]
    evaluator = GroundedCaptionEvaluator(register([record]), str(tmp_path))
    caption = "two dogs on a mat near a tree"
    prompt = caption_prompt(caption, [[(0, 8)], [(12, 17)], [(23, 29)]])
    output = model_output([DOG, ELSEWHERE, MAT], [0.9, 0.8, 0.7], [0, 1, 2])
    results = evaluate(evaluator, [record], [{**output, "caption": caption, "prompt": prompt}])
    # One of three phrases is correct, one of two nouns found; the tree is not known.
    assert results["grounding"] == {"F1_all": pytest.approx(40), "F1_loc": 50}
    assert "CIDEr" in results["captions"]
