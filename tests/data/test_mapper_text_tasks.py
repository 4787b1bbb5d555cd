"""Input dicts of the mapper for questions and captions, and loaders that mix them with boxes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from helpers.tiny_coco import NAMES
from PIL import Image

from glipv2_d2.data.build import build_test_loader, build_train_loader
from glipv2_d2.data.mapper import GroundingMapper

CAPTIONS = ["a dog left of a cat", "two animals", "a cat, a dog"]


@pytest.fixture
def image_file(tmp_path: Path) -> str:
    """White on its left half."""
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[:, :50] = 255
    Image.fromarray(pixels).save(tmp_path / "left.png")
    return str(tmp_path / "left.png")


@pytest.fixture
def question(image_file: str) -> dict[str, Any]:
    return {
        "file_name": image_file,
        "image_id": 7,
        "question_id": 70,
        "question": "what is on the left side?",
        "human_answers": ["white", "white", "left"],
        "answers": {"white": 2 / 3, "left": 1 / 3},
        "answer_type": "other",
        "question_type": "what is",
    }


@pytest.fixture
def captioned(image_file: str) -> dict[str, Any]:
    return {"file_name": image_file, "image_id": 7, "target_captions": CAPTIONS}


def make_mapper(cfg: CfgNode, *, is_train: bool = True) -> GroundingMapper:
    return GroundingMapper(cfg, is_train=is_train, class_names={"tiny_coco": NAMES})


def is_flipped(x: dict[str, Any]) -> bool:
    return bool(x["image"][0, 0, 0] == 0)


@pytest.mark.parametrize("is_train", [True, False])
def test_question_input_has_no_prompt_or_instances(
    is_train: bool, cfg: CfgNode, question: dict[str, Any]
) -> None:
    cfg.INPUT.RANDOM_FLIP = "none"
    x = make_mapper(cfg, is_train=is_train)(question)
    assert x["image"].dtype == torch.uint8
    assert (x["height"], x["width"]) == (50, 100)
    assert (x["question"], x["question_id"]) == (question["question"], 70)
    assert x["answers"] == question["answers"]
    assert not {"prompt", "instances", "classes", "caption"} & x.keys()


@pytest.mark.parametrize("is_train", [True, False])
def test_evaluation_keys_are_removed(
    is_train: bool, cfg: CfgNode, question: dict[str, Any]
) -> None:
    x = make_mapper(cfg, is_train=is_train)(question)
    assert not {"human_answers", "answer_type", "question_type"} & x.keys()


def test_flip_applies_to_further_texts_of_the_image(cfg: CfgNode, question: dict[str, Any]) -> None:
    mapper = make_mapper(cfg)
    further = {key: question[key] for key in ("file_name", "question_id", "question", "answers")}
    record = {**question, "more": [further, {"target_captions": CAPTIONS[:1]}]}
    x = next(x for x in (mapper(record) for _ in range(50)) if is_flipped(x))
    first, second = x["more"]
    assert first["question"] == x["question"] == "what is on the right side?"
    assert first["answers"] == {"white": 2 / 3, "right": 1 / 3}
    assert second["target_captions"] == ["a dog right of a cat"]


def test_texts_per_image_merges_questions_of_one_image(
    cfg: CfgNode, question: dict[str, Any], register: Callable[..., str]
) -> None:
    records = [{**question, "question_id": i, "question": f"is it {i}?"} for i in range(5)]
    cfg.DATASETS.TRAIN = (register("joined_questions", lambda: records),)
    cfg.DATALOADER.TEXTS_PER_IMAGE = 3
    cfg.SOLVER.IMS_PER_BATCH = 2
    batch = next(iter(build_train_loader(cfg)))
    ids = sorted(text["question_id"] for x in batch for text in (x, *x["more"]))
    assert ids == [0, 1, 2, 3, 4]


def test_texts_per_image_below_one_raises(cfg: CfgNode) -> None:
    cfg.DATALOADER.TEXTS_PER_IMAGE = 0
    with pytest.raises(ValueError, match=r"TEXTS_PER_IMAGE is 0; it must be at least 1"):
        build_train_loader(cfg)


def test_flip_swaps_left_and_right_in_question_and_answers(
    cfg: CfgNode, question: dict[str, Any]
) -> None:
    mapper = make_mapper(cfg)
    by_flip = {is_flipped(x): x for x in (mapper(question) for _ in range(20))}
    assert by_flip[False]["question"] == "what is on the left side?"
    assert by_flip[False]["answers"] == {"white": 2 / 3, "left": 1 / 3}
    assert by_flip[True]["question"] == "what is on the right side?"
    assert by_flip[True]["answers"] == {"white": 2 / 3, "right": 1 / 3}


def test_training_samples_one_of_all_captions(cfg: CfgNode, captioned: dict[str, Any]) -> None:
    mapper = make_mapper(cfg)
    sampled = set()
    for _ in range(60):
        x = mapper(captioned)
        [caption] = x["target_captions"]
        sampled.add((is_flipped(x), caption))
    mirrored = ["a dog right of a cat", *CAPTIONS[1:]]
    assert sampled == {*itertools.product([False], CAPTIONS), *itertools.product([True], mirrored)}


def test_evaluation_keeps_all_captions(cfg: CfgNode, captioned: dict[str, Any]) -> None:
    assert make_mapper(cfg, is_train=False)(captioned)["target_captions"] == CAPTIONS


def test_question_with_boxes_keeps_both(cfg: CfgNode, question: dict[str, Any]) -> None:
    box = {"bbox": [0, 0, 50, 50], "bbox_mode": 0, "category_id": 1}
    x = make_mapper(cfg)({**question, "annotations": [box]})
    assert len(x["instances"]) == 1
    assert 1 in x["prompt"].classes
    assert x["answers"]


@pytest.mark.parametrize("is_train", [True, False])
def test_empty_question_raises(is_train: bool, cfg: CfgNode, question: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"question 70 of image '.*left\.png'.*empty"):
        make_mapper(cfg, is_train=is_train)({**question, "question": ""})


@pytest.fixture
def mixture(
    cfg: CfgNode,
    question: dict[str, Any],
    captioned: dict[str, Any],
    register: Callable[..., str],
) -> CfgNode:
    questions = [{**question, "question_id": i} for i in range(3)]
    cfg.DATASETS.TRAIN = (
        "tiny_coco",
        register("questions", lambda: questions),
        register("captions", lambda: [captioned]),
    )
    return cfg


def test_one_loader_mixes_boxes_questions_and_captions(mixture: CfgNode) -> None:
    mixture.DATALOADER.ASPECT_RATIO_GROUPING = True
    kinds = set()
    for batch in itertools.islice(build_train_loader(mixture), 20):
        for x in batch:
            kind = x["dataset_name"]
            assert ("instances" in x) == (kind == "tiny_coco")
            assert ("question" in x) == (kind == "questions")
            assert ("target_captions" in x) == (kind == "captions")
            kinds.add(kind)
    assert kinds == {"tiny_coco", "questions", "captions"}


def test_repeat_factor_applies_to_questions(mixture: CfgNode) -> None:
    mixture.DATASETS.TRAIN_REPEAT_FACTOR = [["questions", 4]]
    loader = build_train_loader(mixture)
    sampled = list(itertools.islice(loader.make_sampler(0), 1700))
    # Records 4 to 6 are questions: 12 of 17 draws.
    assert sum(4 <= i <= 6 for i in sampled) / len(sampled) == pytest.approx(12 / 17, abs=0.05)


def test_evaluation_has_every_question_once(mixture: CfgNode) -> None:
    loader = build_test_loader(mixture, "questions")
    assert [x["question_id"] for batch in loader for x in batch] == [0, 1, 2]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_loads_an_image_once_for_its_questions(
    mixture: CfgNode, num_workers: int
) -> None:
    mixture.DATALOADER.NUM_WORKERS = num_workers
    (batch,) = build_test_loader(mixture, "questions")
    assert batch[0]["image"] is batch[1]["image"] is batch[2]["image"]


def test_empty_question_raises_when_the_loader_is_built(
    cfg: CfgNode, question: dict[str, Any], register: Callable[..., str]
) -> None:
    cfg.DATASETS.TRAIN = (register("questions", lambda: [{**question, "question": " "}]),)
    with pytest.raises(ValueError, match="dataset 'questions', question 70 of image"):
        build_train_loader(cfg)


def test_question_with_empty_answers_is_dropped_and_logged(
    mixture: CfgNode,
    question: dict[str, Any],
    register: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    unanswered = {**question, "question_id": 9, "answers": {}}
    mixture.DATASETS.TRAIN = (register("some", lambda: [question, unanswered]),)
    assert len(build_train_loader(mixture).dataset) == 1
    assert "1 questions had only empty answers" in caplog.text
    assert "question 9" in caplog.text
