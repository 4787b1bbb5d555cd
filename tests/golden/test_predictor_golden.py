"""From an image file to boxes in its own pixels, with weights in GLIP's layout."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.config import CfgNode
from helpers import tolerances
from helpers.golden import ASSETS, PHOTO, Golden, load_golden

from glipv2_d2 import Predictor


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden(ASSETS / "tiny_T_s0")


@pytest.fixture(scope="module")
def cfg(golden: Golden) -> CfgNode:
    return golden.cfg


@pytest.fixture(scope="module")
def predictor(cfg: CfgNode) -> Predictor:
    return Predictor(cfg)


def test_a_photo_gives_the_references_scores_and_boxes(golden, predictor):
    prediction = predictor.predict(PHOTO, classes=golden.meta["categories"], threshold=None)
    best_first = np.argsort(-golden.arrays["one/resized_det0/scores"], kind="stable")
    scores = golden.arrays["one/resized_det0/scores"][best_first]
    np.testing.assert_allclose(prediction.instances.scores, scores, atol=tolerances.SCORES, rtol=0)
    # The reference's corners are inclusive. Equal scores may come in another order, hence sorted.
    boxes = prediction.instances.pred_boxes.tensor.numpy() - np.array([0, 0, 1, 1])
    np.testing.assert_allclose(
        np.sort(boxes, axis=0),
        np.sort(golden.arrays["one/resized_det0/boxes"], axis=0),
        atol=tolerances.BOXES_PX,
        rtol=0,
    )


def test_images_of_a_batch_have_labels_of_their_own_lists(predictor):
    lists = [["cat", "dog"], ["traffic light", "cat", "cell phone"]]
    together = predictor.predict([PHOTO, PHOTO], classes=lists, batch_size=2, threshold=None)
    for prediction, names in zip(together, lists, strict=True):
        alone = predictor.predict(PHOTO, classes=names, threshold=None)
        assert set(prediction.labels) <= set(names)
        assert prediction.labels[:20] == alone.labels[:20]


def test_the_noun_phrases_of_a_caption_are_grounded(predictor):
    prediction = predictor.predict(PHOTO, caption="A cat runs from the dog.", threshold=None)
    assert prediction.names == ["A cat", "the dog"]
    assert set(prediction.labels) <= set(prediction.names)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"classes": ["cat", ""]}, r"class name '' \(index 1"),
        ({"classes": [". . ", "cat"]}, r"class name '\. \. ' \(index 0"),
        ({"caption": "a cat " * 200, "phrases": ["cat"]}, "402.*256|256.*402"),
        ({"caption": "a cat", "phrases": [[(2, 50)]]}, r"\[2, 50\)"),
        ({"caption": "a cat", "phrases": [[]]}, "no span"),
        ({"caption": "quickly and slowly"}, "no noun phrase .*'quickly and slowly'"),
    ],
)
def test_an_invalid_prompt_is_an_error_with_its_value(predictor, prompt, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(PHOTO, **prompt)


def test_an_invalid_or_missing_weights_file_is_named(cfg, tmp_path):
    page = tmp_path / "model.pth"
    page.write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(ValueError, match="model.pth"):
        Predictor(cfg, page)
    with pytest.raises(FileNotFoundError, match="gone.pth"):
        Predictor(cfg, tmp_path / "gone.pth")


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1)])
def test_images_of_one_row_or_column_are_accepted(predictor, size):
    image = np.zeros((*size, 3), dtype=np.uint8)
    prediction = predictor.predict(image, classes=["cat"], channel_order="RGB", threshold=None)
    # Adding one pixel after scaling, as the reference does, may reach a pixel past the edge.
    corners = prediction.instances.pred_boxes.tensor.view(-1, 2, 2)
    assert (corners >= 0).all() and (corners <= corners.new_tensor(size[::-1]) + 1).all()
