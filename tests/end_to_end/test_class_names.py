"""Class names in a whole tiny model, from image to detections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import random_image, tiny_cfg, tiny_model
from helpers.word_scores import first_indices
from torchvision.ops import box_iou

from glipv2_d2 import Predictor
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.class_scores import best_class_scores
from glipv2_d2.modeling.prompt_builder import PromptBuilder
from glipv2_d2.text.tokenizer import Tokenizer

# All boxes are kept, so that a model with random weights detects every class.
ALL = (
    *("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.PRE_NMS_TOPK", 5000),
    *("MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 5000, "TEST.DETECTIONS_PER_IMAGE", -1),
)
# Class names are encoded separately, and neither image nor text is fused: the score of a class does
# not depend on the other classes.
INDEPENDENT = (
    *("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone"),
    *("MODEL.FUSED_HEAD.NAME", "DynamicHead"),
    *("MODEL.GROUNDING.LOG_SCALE", -3.0),  # with random weights the classes have similar scores
)
LISTS = {
    "containing each other": ["hot dog", "dog", "hot", "dog house", "hot dog stand", "house"],
    "duplicates": ["cat", "traffic_light", "Cat", "dog", "traffic light", "cat"],
    "scripts and signs": ["café", "犬小屋", "собака", "t-shirt", "rock'n'roll", "3.5mm", "한국"],
    "one": ["a very long name of one thing"],
    "many": [f"{colour} thing {i}" for i in range(25) for colour in ("red", "dark blue")],
}


@pytest.fixture(scope="module")
def independent() -> GLIPv2:
    return tiny_model(*ALL, *INDEPENDENT, "MODEL.PROMPT.MAX_CLASSES", 3)


@torch.no_grad()
def scores_of(model: GLIPv2, names: list[str], **fields) -> dict[int, float]:
    """The best score of each detected class."""
    (result,) = model([{"image": random_image(), "classes": names, **fields}])
    found = result["instances"]
    return {
        c: found.scores[found.pred_classes == c].max().item()
        for c in found.pred_classes.unique().tolist()
    }


@pytest.mark.parametrize("names", LISTS.values(), ids=LISTS.keys())
def test_a_class_has_the_same_score_in_a_list_as_alone(
    independent: GLIPv2, names: list[str]
) -> None:
    scores = scores_of(independent, names)
    alone = {i: scores_of(independent, [names[i]])[0] for i in first_indices(names)}
    assert scores == pytest.approx(alone, abs=1e-5)
    assert len(names) == 1 or max(alone.values()) - min(alone.values()) > 1e-3


@pytest.mark.parametrize("names", LISTS.values(), ids=LISTS.keys())
def test_a_fused_model_detects_every_class_under_its_first_index(names: list[str]) -> None:
    model = tiny_model(*ALL, "MODEL.PROMPT.MAX_CLASSES", 7)
    assert sorted(scores_of(model, names)) == first_indices(names)


def test_averaging_over_orders_makes_scores_independent_of_the_order() -> None:
    # Scaled weights, so that the class names strongly affect each other.
    def fused(*opts) -> GLIPv2:
        model = tiny_model(*ALL, "MODEL.GROUNDING.LOG_SCALE", -3.0, *opts)
        with torch.no_grad():
            for p in model.language_backbone.parameters():
                p.mul_(20)
        return model

    names = ["cat", "hot dog", "red car", "dog", "bat"]
    order = [3, 0, 4, 2, 1]

    def difference(model: GLIPv2) -> float:
        found = scores_of(model, names)
        shuffled = scores_of(model, [names[i] for i in order])
        return max(abs(shuffled[k] - found[order[k]]) for k in range(len(names)))

    assert difference(fused()) > 1e-4
    assert difference(fused("MODEL.PROMPT.NUM_ORDERS", 1)) < 1e-6
    assert difference(fused("MODEL.PROMPT.NUM_ORDERS", 3, "MODEL.PROMPT.MAX_CLASSES", 2)) < 1e-6


def test_images_of_a_batch_may_have_different_numbers_of_orders() -> None:
    model = tiny_model(*ALL, "MODEL.PROMPT.NUM_ORDERS", 4)
    lists = [["cat"], ["cat", "dog", "red car", "bat"], ["dog", "cow"]]
    inputs = [{"image": random_image(seed=i), "classes": names} for i, names in enumerate(lists)]
    with torch.no_grad():
        together = model(inputs)
        alone = [model([x])[0] for x in inputs]
    for ours, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(
            ours["instances"].scores, expected["instances"].scores, atol=1e-5, rtol=0
        )


def test_a_negative_number_of_orders_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_orders is -1.*NUM_ORDERS"):
        tiny_model("MODEL.PROMPT.NUM_ORDERS", -1)


@torch.no_grad()
def test_best_scores_equal_those_of_detections() -> None:
    model = tiny_model(*ALL, "MODEL.PROMPT.MAX_CLASSES", 2)
    names = ["cat", "hot dog", "dog", "Cat", "bat_(animal)"]
    detected = scores_of(model, names)
    detected[3] = detected[0]
    (best,) = best_class_scores(model, [{"image": random_image(), "classes": names}])
    assert dict(enumerate(best.tolist())) == pytest.approx(detected, abs=1e-6)


@torch.no_grad()
def test_a_box_is_dropped_if_a_negative_class_scores_higher() -> None:
    """The expected boxes follow from separate detections of both classes."""
    model = tiny_model(*ALL, *INDEPENDENT)
    without_nms = tiny_model(*ALL, *INDEPENDENT, "MODEL.GROUNDING.NMS_THRESH", 1.0)
    image = {"image": random_image()}
    (found,) = model([image | {"classes": ["hot dog"]}])
    (negatives,) = without_nms([image | {"classes": ["red car"]}])
    (left,) = model([image | {"classes": ["hot dog"], "negatives": ["red car"]}])
    found, negatives, left = (x["instances"] for x in (found, negatives, left))
    overlaps = box_iou(found.pred_boxes.tensor, negatives.pred_boxes.tensor) >= 0.6
    is_dropped = (overlaps & (negatives.scores > found.scores[:, None])).any(dim=1)
    assert 0 < is_dropped.sum() < len(found)
    torch.testing.assert_close(left.scores, found.scores[~is_dropped], atol=1e-6, rtol=0)
    assert set(left.pred_classes.tolist()) == {0}


def test_negatives_are_an_error_for_a_model_that_does_not_use_them() -> None:
    prompts = PromptBuilder(
        tokenizer=Tokenizer(),
        separator=". ",
        max_classes=0,
        default_classes=lambda x, training: [],
    )
    with pytest.raises(ValueError, match=r"does not support negatives, \['wolf'\]"):
        prompts.for_inference({"classes": ["dog"], "negatives": ["wolf"]})


def test_name_scores_are_in_the_order_of_the_class_names() -> None:
    predictor = Predictor(tiny_cfg(*ALL))
    images = [
        np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8) for seed in (0, 1)
    ]
    names = ["cat", "hot dog", "dog"]
    scores = predictor.class_scores(images, classes=names, channel_order="RGB")
    assert scores.shape == (2, 3)
    for image, of_image in zip(images, scores, strict=True):
        found = predictor.predict(image, classes=names, channel_order="RGB").instances
        best = [found.scores[found.pred_classes == i].max().item() for i in range(3)]
        np.testing.assert_allclose(of_image, best, atol=1e-5)
