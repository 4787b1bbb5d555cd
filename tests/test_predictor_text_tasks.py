"""Answering, captioning and grounding with a tiny model with random weights."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from helpers.models import tiny_cfg
from helpers.text_tasks import ANSWERS, TEXT_TASKS

from glipv2_d2 import Answer, Caption, Prediction, Predictor

QUESTION = "what is on the mat?"
ALL = ("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 20)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_cfg(*TEXT_TASKS, *ALL), device="cpu")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(3)]


def test_one_image_gives_an_answer_and_several_a_list(
    predictor: Predictor, images: list[np.ndarray]
) -> None:
    one = predictor.answer(images[0], QUESTION, channel_order="RGB")
    several = predictor.answer(images, QUESTION, channel_order="RGB", batch_size=2)
    assert isinstance(one, Answer) and one.answer in ANSWERS and 0 < one.score < 1
    assert (one.question, one.grounding) == (QUESTION, None)
    assert len(several) == 3
    assert several[0].answer == one.answer
    assert several[0].score == pytest.approx(one.score, abs=1e-5)
    with pytest.raises(FrozenInstanceError):
        one.answer = "another"


def test_each_image_may_have_its_own_question(
    predictor: Predictor, images: list[np.ndarray]
) -> None:
    questions = ["is it red?", "how many are there?", "why?"]
    answers = predictor.answer(images, questions, channel_order="RGB")
    assert [answer.question for answer in answers] == questions


def test_a_grounded_answer_has_boxes_of_its_phrases(
    predictor: Predictor, images: list[np.ndarray]
) -> None:
    answer = predictor.answer(images[0], QUESTION, ground=True, channel_order="RGB")
    found = answer.grounding
    assert found.names == ["the mat", answer.answer]
    assert found.text == f"{QUESTION} {answer.answer}"
    assert [found.text[a:b] for ((a, b),) in found.spans] == found.names
    assert set(found.labels) == set(found.names)
    assert found.image_size == (40, 60)


def test_the_answer_is_one_of_the_choices(predictor: Predictor, images: list[np.ndarray]) -> None:
    answer = predictor.answer(images[0], QUESTION, choices=["2", "dog"], channel_order="RGB")
    assert answer.answer in ("2", "dog")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ("yes", "choices: 'yes' is not a list"),
        ([], r"choices: \[\] is not a list"),
        (["a", ""], "index 1"),
    ],
)
def test_invalid_choices_raise_an_error(
    predictor: Predictor, images: list[np.ndarray], choices: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.answer(images[0], QUESTION, choices=choices, channel_order="RGB")


def test_no_images_give_an_empty_list(predictor: Predictor) -> None:
    assert predictor.answer([], QUESTION) == predictor.caption([]) == []
    assert predictor.class_scores([], classes=["cat", "dog"]).shape == (0, 2)


def test_a_caption_follows_the_generation_arguments(
    predictor: Predictor, images: list[np.ndarray]
) -> None:
    result = predictor.caption(
        images[0], prefix="a dog on", beam_size=1, max_length=4, channel_order="RGB"
    )
    assert isinstance(result, Caption) and result.grounding is None
    assert result.caption.startswith("a dog on")
    assert len(predictor.model.text_tasks.caption.tokenizer.encode([result.caption])[0]) <= 4
    many = predictor.caption(images, channel_order="RGB", batch_size=3)
    assert many[1] == predictor.caption(images[1], channel_order="RGB")


def test_a_grounded_caption_has_boxes_of_its_noun_phrases(
    predictor: Predictor, images: list[np.ndarray]
) -> None:
    result = predictor.caption(
        images[0], ground=True, prefix="a dog on the mat", channel_order="RGB"
    )
    assert result.grounding.text == result.caption
    assert result.grounding.names[0] == "a dog"
    assert len(result.grounding) > 0


def test_each_image_may_have_its_own_caption(
    predictor: Predictor, images: list[np.ndarray]
) -> None:
    captions = ["a dog on a mat", "two cats", "a red car"]
    found = predictor.ground(images, captions, channel_order="RGB")
    assert [p.names for p in found] == [["a dog", "a mat"], ["two cats"], ["a red car"]] or [
        p.text for p in found
    ] == captions
    one = predictor.ground(images[1], "a red car", channel_order="RGB")
    expected = predictor.predict(images[1], caption="a red car", channel_order="RGB")
    assert isinstance(one, Prediction)
    assert one.text == expected.text == "a red car"
    assert one.instances.scores.tolist() == expected.instances.scores.tolist()


def test_an_unreadable_file_is_skipped_on_request(
    predictor: Predictor, images: list[np.ndarray], tmp_path: Path
) -> None:
    sources = [tmp_path / "none.png", images[0]]
    answers = predictor.answer(sources, QUESTION, on_error="skip", channel_order="RGB")
    assert [answer is None for answer in answers] == [True, False]


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (["is it red?"], "1 questions for 3 images"),
        (["is it red?", "", "why?"], "image 1 of 3 has the question ''"),
        (["is it red?", None, "why?"], "image 1 of 3 has the question None"),
        (" ", "image 0 of 3 has the question ' '"),
    ],
)
def test_an_image_without_a_question_raises_an_error(
    predictor: Predictor, images: list[np.ndarray], questions: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.answer(images, questions, channel_order="RGB")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"beam_size": 40_000}, "only 30522 tokens"),
        ({"prefix": "one two three four five six"}, "has 6 tokens, but max_length is 6"),
        ({"max_length": 300}, "max_length is 300.*254"),
    ],
)
def test_invalid_generation_arguments_raise_an_error(
    predictor: Predictor, images: list[np.ndarray], arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.caption(images[0], channel_order="RGB", **arguments)


def test_a_model_without_the_heads_raises_an_error(images: list[np.ndarray]) -> None:
    plain = Predictor(tiny_cfg(), device="cpu")
    with pytest.raises(ValueError, match="no answer head"):
        plain.answer(images[0], QUESTION, channel_order="RGB")
    with pytest.raises(ValueError, match="no caption head"):
        plain.caption(images[0], channel_order="RGB")


def test_all_tasks_of_an_image_in_one_pass_equal_those_one_by_one(
    predictor: Predictor, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, names, questions = images[0], ["cat", "mat"], [QUESTION, "is it red?"]
    boxes = predictor.predict(image, classes=names, channel_order="RGB")
    answers = predictor.answer([image] * 2, questions, channel_order="RGB")
    caption = predictor.caption(image, ground=True, channel_order="RGB")

    sizes = []
    backbone = predictor.model.backbone
    monkeypatch.setattr(
        backbone,
        "forward",
        lambda x, forward=backbone.forward: (sizes.append(len(x)), forward(x))[1],
    )
    results = predictor.run_tasks(
        image,
        classes=names,
        questions=questions,
        describe=True,
        ground_caption=True,
        channel_order="RGB",
    )
    assert sizes == [1], "the image is encoded once"
    assert [answer.answer for answer in results.answers] == [answer.answer for answer in answers]
    assert [answer.score for answer in results.answers] == pytest.approx(
        [answer.score for answer in answers], abs=1e-5
    )
    assert results.answers[0].grounding is None
    assert results.caption.caption == caption.caption
    for found, expected in (
        (results.detections, boxes),
        (results.caption.grounding, caption.grounding),
    ):
        assert found.labels == expected.labels
        np.testing.assert_allclose(
            found.instances.scores, expected.instances.scores, rtol=1e-4, atol=1e-5
        )


def test_without_questions_and_caption_only_classes_are_detected(
    predictor: Predictor, images: list[np.ndarray]
) -> None:
    results = predictor.run_tasks(images[0], classes=["cat"], channel_order="RGB")
    assert results.detections.names == ["cat"]
    assert (results.answers, results.caption) == ([], None)
