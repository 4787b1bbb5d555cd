"""Names through a whole tiny model, from a picture to detections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.models import random_image, tiny_cfg, tiny_model
from helpers.word_scores import first_indices
from torchvision.ops import box_iou

from glipv2_d2 import Predictor
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.name_scores import best_scores
from glipv2_d2.modeling.prompting import InputPrompts

# Every box is detected, so that random weights give something for every name.
ALL = (
    *("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.PRE_NMS_TOPK", 5000),
    *("MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 5000, "TEST.DETECTIONS_PER_IMAGE", -1),
)
# Names are read one by one, and neither image nor names change each other: a name has the same
# score whatever else is asked.
ONE_BY_ONE = (
    *("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone"),
    *("MODEL.FUSED_HEAD.NAME", "DynamicHead"),
    *("MODEL.GROUNDING.LOG_SCALE", -3.0),  # random weights tell names apart a little, only
)
LISTS = {
    "containing each other": ["hot dog", "dog", "hot", "dog house", "hot dog stand", "house"],
    "duplicates": ["cat", "traffic_light", "Cat", "dog", "traffic light", "cat"],
    "scripts and signs": ["café", "犬小屋", "собака", "t-shirt", "rock'n'roll", "3.5mm jack", "🦊"],
    "one": ["a very long name of one thing"],
    "many": [f"{colour} thing {i}" for i in range(25) for colour in ("red", "dark blue")],
}


@pytest.fixture(scope="module")
def one_by_one() -> GLIPv2:
    return tiny_model(*ALL, *ONE_BY_ONE, "MODEL.PROMPT.MAX_CLASSES", 3)


@torch.no_grad()
def scores_of(model: GLIPv2, names: list[str], **fields) -> dict[int, float]:
    """The best score of each class that is detected."""
    (result,) = model([{"image": random_image(), "classes": names, **fields}])
    found = result["instances"]
    return {
        c: found.scores[found.pred_classes == c].max().item()
        for c in found.pred_classes.unique().tolist()
    }


@pytest.mark.parametrize("names", LISTS.values(), ids=LISTS.keys())
def test_a_class_of_a_list_scores_as_its_name_alone(one_by_one: GLIPv2, names: list[str]) -> None:
    scores = scores_of(one_by_one, names)
    alone = {i: scores_of(one_by_one, [names[i]])[0] for i in first_indices(names)}
    assert scores == pytest.approx(alone, abs=1e-5)
    assert len(names) == 1 or max(alone.values()) - min(alone.values()) > 1e-3


@pytest.mark.parametrize("names", LISTS.values(), ids=LISTS.keys())
def test_a_fused_model_answers_every_name_under_its_first_index(names: list[str]) -> None:
    model = tiny_model(*ALL, "MODEL.PROMPT.MAX_CLASSES", 7)
    assert sorted(scores_of(model, names)) == first_indices(names)


def test_averaging_over_orders_makes_a_fused_model_forget_the_callers() -> None:
    # Words of strong influence on each other, as random weights of this size have not.
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


def test_images_of_a_batch_with_fewer_orders_are_not_changed_by_those_with_more() -> None:
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


def test_orders_need_a_proposal_generator_that_can_be_averaged() -> None:
    parts = GLIPv2.from_config(tiny_cfg("MODEL.PROMPT.NUM_ORDERS", 2))
    parts["proposal_generator"] = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"NUM_ORDERS is 2.*Identity.*set it to 0"):
        GLIPv2(**parts)


def test_a_negative_number_of_orders_is_refused() -> None:
    with pytest.raises(ValueError, match="NUM_ORDERS is -1"):
        tiny_model("MODEL.PROMPT.NUM_ORDERS", -1)


@torch.no_grad()
def test_best_scores_are_those_of_detections() -> None:
    model = tiny_model(*ALL, "MODEL.PROMPT.MAX_CLASSES", 2)
    names = ["cat", "hot dog", "dog", "Cat", "bat_(animal)"]
    detected = scores_of(model, names)
    detected[3] = detected[0]
    (best,) = best_scores(model, [{"image": random_image(), "classes": names}])
    assert dict(enumerate(best.tolist())) == pytest.approx(detected, abs=1e-6)


@torch.no_grad()
def test_a_negative_drops_what_it_scores_higher() -> None:
    """Each name alone gives all boxes that there are: what is left of one is found by hand."""
    model = tiny_model(*ALL, *ONE_BY_ONE)
    everything = tiny_model(*ALL, *ONE_BY_ONE, "MODEL.GROUNDING.NMS_THRESH", 1.0)
    image = {"image": random_image()}
    (found,) = model([image | {"classes": ["hot dog"]}])
    (rivals,) = everything([image | {"classes": ["red car"]}])
    (left,) = model([image | {"classes": ["hot dog"], "negatives": ["red car"]}])
    found, rivals, left = found["instances"], rivals["instances"], left["instances"]
    shows = box_iou(found.pred_boxes.tensor, rivals.pred_boxes.tensor) >= 0.6
    is_beaten = (shows & (rivals.scores > found.scores[:, None])).any(dim=1)
    assert 0 < is_beaten.sum() < len(found)
    torch.testing.assert_close(left.scores, found.scores[~is_beaten], atol=1e-6, rtol=0)
    assert set(left.pred_classes.tolist()) == {0}


def test_a_model_without_a_use_for_negatives_refuses_them() -> None:
    prompts = InputPrompts(
        tokenizer=tiny_model().tokenizer,
        separator=". ",
        max_tokens=256,
        max_classes=0,
        default_classes=lambda training: [],
    )
    with pytest.raises(ValueError, match=r"no use for negatives, \['wolf'\]"):
        prompts.for_inference({"classes": ["dog"], "negatives": ["wolf"]})


def test_scores_of_names_come_in_the_callers_order() -> None:
    predictor = Predictor(tiny_cfg(*ALL))
    images = [
        np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8) for seed in (0, 1)
    ]
    names = ["cat", "hot dog", "dog"]
    scores = predictor.name_scores(images, classes=names, channel_order="RGB")
    assert scores.shape == (2, 3)
    for image, of_image in zip(images, scores, strict=True):
        found = predictor.predict(image, classes=names, channel_order="RGB").instances
        best = [found.scores[found.pred_classes == i].max().item() for i in range(3)]
        np.testing.assert_allclose(of_image, best, atol=1e-5)
