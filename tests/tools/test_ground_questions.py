"""Questions and answers with pseudo-labelled boxes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ground_questions
import pytest
from detectron2.data import DatasetCatalog
from helpers.models import random_image, tiny_cfg, tiny_model

from glipv2_d2.data.custom import FORMATS
from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.data.question_grounding import read_pseudo_labels
from glipv2_d2.data.readers.grounded_text import read_grounded_text
from glipv2_d2.data.sanitize import sanitize_dataset
from glipv2_d2.data.text_tasks import soft_scores


def question(number: int, text: str, answers: list[str]) -> dict[str, Any]:
    return {
        "file_name": f"{number // 10}.jpg",
        "image_id": number // 10,
        "question_id": number,
        "question": text,
        "human_answers": answers,
        "answers": soft_scores(answers),
    }


RECORDS = [
    question(10, "what is on the mat?", ["dog"] * 7 + ["cat"] * 3),
    question(11, "is it red? ", ["yes"] * 10),
]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    DatasetCatalog.register("ground_questions", lambda: [dict(record) for record in RECORDS])
    yield
    DatasetCatalog.remove("ground_questions")


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    """The joined file; the mat and the dog have pseudo-labels."""
    pairs, labels = tmp_path / "vqa" / "pairs.jsonl", tmp_path / "labels.jsonl"
    arguments = ["--dataset", "ground_questions", "--output"]
    assert ground_questions.main(["pairs", *arguments, str(pairs)]) == 0
    lines = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert lines == [
        {"image": "1.jpg", "caption": "what is on the mat? dog"},
        {"image": "1.jpg", "caption": "is it red? yes"},
    ]
    detections = {"boxes": [[1, 2, 9, 8], [3, 4, 7, 6]], "spans": [[[20, 23]], [[11, 18]]]}
    labels.write_text(
        json.dumps({**lines[0], **detections, "scores": [0.9, 0.6], "height": 10, "width": 12})
    )
    target = tmp_path / "train.jsonl"
    assert ground_questions.main(["join", *arguments, str(target), "--labels", str(labels)]) == 0
    return target


def test_joined_questions_have_boxes_and_answers(joined: Path) -> None:
    grounded, plain = read_grounded_text(str(joined), "images", "vqa")
    assert grounded["question"] == "what is on the mat?" and grounded["question_id"] == 10
    assert grounded["answers"] == {"dog": 1.0, "cat": 0.9}
    assert [a["tokens_positive"] for a in grounded["annotations"]] == [[[20, 23]], [[11, 18]]]
    assert plain.keys() == {"image_id", "file_name", "question", "question_id", "answers"}


def test_boxes_of_the_answer_become_those_of_the_mask_token(
    joined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = read_grounded_text(str(joined), str(tmp_path), "vqa")
    for record in records:
        record |= {"height": 64, "width": 64}
    answering = ("MODEL.ANSWER.WEIGHT", 1.0, "MODEL.ANSWER.ANSWERS", ["dog", "yes"])
    model = tiny_model(*answering)
    sanitized = sanitize_dataset(
        records, name="vqa", class_names=(), tokenizer=model.query_builder.tokenizer
    )
    monkeypatch.setattr(
        "glipv2_d2.data.mapper.read_image", lambda *_: random_image().permute(1, 2, 0).numpy()
    )
    mapper = GroundingMapper(tiny_cfg("INPUT.MIN_SIZE_TRAIN", (64,)), is_train=True, class_names={})
    grounded, question = model.query_builder.for_training([mapper(record) for record in sanitized])
    assert grounded.prompt.text == "what is on the mat? [MASK]"
    assert grounded.prompt.phrases == ["[MASK]", "the mat"]
    assert grounded.gt_instances is not None and question.gt_instances is None
    assert question.prompt.text == "is it red? [MASK]"


def test_pseudo_labelled_captions_are_also_caption_targets(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    line = {"image": "1.jpg", "caption": "a dog", "boxes": [[1, 2, 9, 8]], "spans": [[[0, 5]]]}
    path.write_text(json.dumps(line))
    (record,) = read_grounded_text(str(path), "images", "captions")
    assert record["caption"] == "a dog" and record["target_captions"] == ["a dog"]


def test_line_with_a_caption_of_another_question_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "bad.jsonl"
    line = {"image": "1.jpg", "caption": "a dog", "boxes": [], "spans": [], "question": "why?"}
    path.write_text(json.dumps(line))
    assert read_grounded_text(str(path), "images", "bad") == []
    assert f"{path}:1" in caplog.text


def test_line_of_another_format_is_reported_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mixed.jsonl"
    valid = {"image": "1.jpg", "caption": "why? no", "boxes": [], "spans": [], "question": "why?"}
    valid |= {"question_id": 1, "answers": {"no": 1.0}}
    invalid = ({**valid, "answers": ["no"]}, {**valid, "question": 5})
    path.write_text("\n".join(map(json.dumps, (*invalid, valid))))
    (record,) = read_grounded_text(str(path), "images", "mixed")
    assert record["answers"] == {"no": 1.0}
    assert f"{path}:1" in caplog.text and f"{path}:2" in caplog.text


def test_grounded_text_is_a_custom_format() -> None:
    assert FORMATS["grounded_text"][1] == ("json", "images")


def test_pseudo_labels_may_have_blank_lines_and_any_characters(tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    # JSON lines end at newlines only, not at this line separator.
    line = {"image": "1.jpg", "caption": "what is on the mat?\u2028dog", "boxes": []}
    labels.write_text(f"{json.dumps(line, ensure_ascii=False)}\n\n", encoding="utf-8")
    assert read_pseudo_labels([labels]) == {("1.jpg", line["caption"]): line}


@pytest.mark.parametrize("line", ['{"image": "1.jpg", "capt', '{"image": "1.jpg"}', "[]"])
def test_invalid_pseudo_label_is_reported(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    labels = tmp_path / "labels.jsonl"
    valid = {"image": "1.jpg", "caption": "a dog", "boxes": []}
    labels.write_text(f"{json.dumps(valid)}\n{line}\n")
    arguments = ["join", "--dataset", "ground_questions", "--output", str(tmp_path / "x.jsonl")]
    assert ground_questions.main([*arguments, "--labels", str(labels)]) == 1
    assert f"{labels}:2" in capsys.readouterr().err


def test_join_without_labels_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["join", "--dataset", "ground_questions", "--output", str(tmp_path / "x.jsonl")]
    assert ground_questions.main(arguments) == 1
    assert "join needs --labels" in capsys.readouterr().err
