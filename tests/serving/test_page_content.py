from __future__ import annotations

import json
from dataclasses import replace

import pytest
from helpers.serving import StandIn, detect, encode

from glipv2_d2.prediction import Answer, Caption
from glipv2_d2.serving.page_content import (
    CAPTION,
    CLASSES,
    DESCRIBE,
    QUESTION,
    PageResult,
    phrases_in_text,
    rows_of,
    run_task,
    write_result,
)


class OneImage(StandIn):
    """Methods for one image, as the page calls them."""

    def predict(self, image, *, classes, threshold, one_name_per_box, channel_order):
        assert one_name_per_box and channel_order == "RGB"
        return detect(image, classes).above(threshold)

    def ground(self, image, caption, *, threshold, channel_order):
        spans = (((0, 5),), ((10, 15),))
        prediction = replace(detect(image, ["a cat", "a dog"]), text=caption, spans=spans)
        return prediction.above(threshold)

    def answer(self, image, question, *, ground, threshold, channel_order):
        return Answer(question, "yes", 0.97, detect(image, ["a cat"])).above(threshold)

    def caption(self, image, *, ground, threshold, channel_order):
        return Caption("a cat", detect(image, ["a cat"])).above(threshold)


@pytest.fixture
def image_path(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode())
    return str(path)


@pytest.mark.parametrize(
    ("task", "prompt", "text", "names"),
    [
        (CLASSES, "cat, dog", "", ["cat", "dog"]),
        (CAPTION, "a cat and a dog", "", ["a cat", "a dog"]),
        (QUESTION, "is there a cat?", "yes (97%)", ["a cat"]),
        (DESCRIBE, "", "a cat", ["a cat"]),
    ],
)
def test_every_task_has_a_text_and_detections(image_path, task, prompt, text, names):
    image, result = run_task(OneImage(), image_path, task, prompt, 0.5)
    assert image.shape == (40, 60, 3)
    assert (result.text, result.prediction.labels) == (text, names)


@pytest.mark.parametrize("task", [CLASSES, CAPTION, QUESTION, DESCRIBE])
def test_boxes_below_the_threshold_are_left_out(image_path, task):
    _, result = run_task(OneImage(), image_path, task, "a cat and a dog", 0.95)
    assert not result.prediction.labels


@pytest.mark.parametrize("task", [CLASSES, CAPTION, QUESTION])
def test_an_empty_prompt_is_an_error_with_an_example(image_path, task):
    with pytest.raises(ValueError, match=f"write something under '{task}', such as: "):
        run_task(OneImage(), image_path, task, " ", 0.5)


def test_a_fine_tuned_model_detects_its_own_names_if_the_prompt_is_empty(image_path):
    model = OneImage()
    model.class_names = ("hen", "egg")
    _, result = run_task(model, image_path, CLASSES, " ", 0.5)
    assert result.prediction.labels == ["hen", "egg"]


def test_an_error_names_the_file_without_its_folder(tmp_path):
    path = tmp_path / "page.png"
    path.write_text("<html></html>")
    with pytest.raises(ValueError, match="^'page.png' is not a readable image"):
        run_task(OneImage(), str(path), CLASSES, "cat", 0.5)


def test_found_phrases_are_parts_of_the_caption(image_path):
    _, result = run_task(OneImage(), image_path, CAPTION, "a cat and a dog too", 0.8)
    assert phrases_in_text(result.prediction) == [("a cat", "a cat"), (" and a dog too", None)]


def test_found_class_names_are_listed_once(image_path):
    _, result = run_task(OneImage(), image_path, CLASSES, "cat, dog", 0.5)
    assert phrases_in_text(result.prediction) == [("cat", "cat"), ("dog", "dog")]
    assert rows_of(result.prediction) == [["cat", 0.9, 0, 0, 8, 6], ["dog", 0.7, 10, 10, 8, 6]]


def test_the_json_file_has_the_detections(image_path, tmp_path):
    _, result = run_task(OneImage(), image_path, QUESTION, "is there a cat?", 0.5)
    with open(write_result(tmp_path, PageResult("yes", result.prediction))) as file:
        content = json.load(file)
    assert (content["width"], content["height"], content["text"]) == (60, 40, "yes")
    assert content["detections"][0]["category_name"] == "a cat"
