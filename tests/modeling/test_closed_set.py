"""Detectron2's detectors with class names in place of a closed list of classes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from helpers.closed_set import KINDS, NAMES, ONE_OF_EACH, TWO_STAGE, plain_detector, text_prompted
from helpers.models import random_image, training_input
from helpers.two_stage import two_stage_model
from torch import Tensor, nn

from glipv2_d2.checkpoint import GLIPv2Checkpointer
from glipv2_d2.layers.checkpoint_prefixes import excluded_prefixes

IMAGES = [random_image(seed=1), random_image(64, 96, seed=2)]


def detect(model: nn.Module, *inputs: dict[str, Any]) -> list[Instances]:
    with torch.no_grad():
        return [result["instances"] for result in model(list(inputs))]


def detect_names(model: nn.Module, names: list[str]) -> list[Instances]:
    return detect(model, *({"image": image, "classes": names} for image in IMAGES))


def assert_equal(ours: Instances, theirs: Instances) -> None:
    assert set(ours.get_fields()) == set(theirs.get_fields())
    assert torch.equal(ours.pred_classes, theirs.pred_classes)
    torch.testing.assert_close(ours.scores, theirs.scores, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(
        ours.pred_boxes.tensor, theirs.pred_boxes.tensor, atol=1e-3, rtol=1e-5
    )
    if theirs.has("pred_masks"):
        assert torch.equal(ours.pred_masks, theirs.pred_masks)


def with_masks(x: dict[str, Any]) -> dict[str, Any]:
    masks = torch.zeros(len(x["instances"]), 64, 64, dtype=torch.bool)
    masks[:, 10:40, 20:50] = True
    x["instances"].gt_masks = BitMasks(masks)
    return x


def street(*names: str) -> dict[str, Any]:
    return with_masks(
        training_input([[5, 5, 50, 60], [20, 10, 40, 30]], [0, len(names) - 1], classes=[*names])
    )


def losses(model: nn.Module, *inputs: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    with EventStorage():
        return model.train()(list(inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_the_closed_class_names_have_the_detections_of_detectron2s_detector(kind: str) -> None:
    plain = plain_detector(kind)
    expected = detect(plain, *({"image": image} for image in IMAGES))
    found = detect_names(text_prompted(kind, plain=plain), NAMES)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(theirs.pred_classes.unique()) > 2
        assert_equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_does_not_depend_on_the_other_names(kind: str) -> None:
    """Some of the closed class names, in another order, have the detections of the classes."""
    no_limit = ("TEST.DETECTIONS_PER_IMAGE", 9999, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 9999)
    plain = plain_detector(kind, *no_limit)
    names = ["dog", "cat", "umbrella"]
    expected = detect(plain, *({"image": image} for image in IMAGES))
    found = detect_names(text_prompted(kind, *no_limit, plain=plain), names)
    for ours, theirs in zip(found, expected, strict=True):
        for c, name in enumerate(names):
            of_class = theirs[theirs.pred_classes == NAMES.index(name)]
            of_class.pred_classes = torch.full_like(of_class.pred_classes, c)
            assert_equal(ours[ours.pred_classes == c], of_class)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_synonym_of_a_class_has_its_detections(kind: str) -> None:
    plain = plain_detector(kind)
    names = ["cat|tabby", "traffic light", "zebra", "umbrella, parasol", "dog", "tennis racket"]
    model = text_prompted(kind, "MODEL.CLOSED_SET.CLASS_NAMES", names, plain=plain)
    synonyms = ["tabby", "traffic light", "zebra", "parasol", "dog", "tennis racket"]
    for ours, theirs in zip(detect_names(model, synonyms), detect_names(model, NAMES), strict=True):
        assert_equal(ours, theirs)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_images_of_a_batch_may_have_different_names(kind: str) -> None:
    model = text_prompted(kind, plain=plain_detector(kind))
    inputs = [
        {"image": random_image(seed=1), "classes": ["cat", "dog"]},
        {
            "image": random_image(seed=2),
            "caption": "a dog, a zebra and a cat",
            "phrases": [[[9, 14]], [[21, 24]], [[2, 5]]],
        },
    ]
    for together, x in zip(detect(model, *inputs), inputs, strict=True):
        (alone,) = detect(model, x)
        assert len(alone) > 0
        assert_equal(together, alone)
    with torch.no_grad():
        assert model([inputs[1]])[0]["phrases"] == ["zebra", "cat", "dog"]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_name_that_is_like_no_class_is_not_detected(kind: str) -> None:
    model = text_prompted(
        kind, "MODEL.CLOSED_SET.MIN_SIMILARITY", 0.998, plain=plain_detector(kind)
    )
    assert all((x.pred_classes == 1).all() for x in detect_names(model, ["teapot", "dog"]))


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("name", ["trained.pth", "zoo.pkl"])
def test_files_of_detectron2_can_be_loaded(kind: str, name: str, tmp_path: Path) -> None:
    plain = plain_detector(kind)
    if name == "trained.pth":
        torch.save({"model": plain.state_dict(), "iteration": 5}, tmp_path / name)
    else:
        arrays = {key: value.numpy() for key, value in plain.state_dict().items()}
        content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
        (tmp_path / name).write_bytes(pickle.dumps(content))
    model = text_prompted(kind)
    GLIPv2Checkpointer(model).load(str(tmp_path / name))
    expected = detect(plain, *({"image": image} for image in IMAGES))
    for ours, theirs in zip(detect_names(model, NAMES), expected, strict=True):
        assert_equal(ours, theirs)
    assert excluded_prefixes(model) == ("language_backbone.bert.",)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trainable_part_gets_gradients_by_the_second_step(kind: str) -> None:
    model = text_prompted(kind, plain=plain_detector(kind))
    inputs = (street("cat", "teapot", "dog"), street("kitten", "zebra"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        found = losses(model, *inputs)
        assert all(torch.isfinite(loss) for loss in found.values())
        sum(found.values()).backward()
        optimizer.step()
    unused = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    # No region of these small images is on the coarsest level.
    assert [name for name in unused if not name.startswith("backbone.")] == []


def test_the_vocabulary_of_training_may_be_longer_than_the_closed_list() -> None:
    names = [f"{adjective} {name}" for adjective in ("old", "new") for name in NAMES]
    for kind in ONE_OF_EACH:
        limits = ("MODEL.ROI_HEADS.NUM_CLASSES", 12, "MODEL.RETINANET.NUM_CLASSES", 12)
        model = text_prompted(kind, *limits)
        assert all(torch.isfinite(loss) for loss in losses(model, street(*names)).values())
        with pytest.raises(
            ValueError, match="num_classes is 12, but class_embeddings has class 12"
        ):
            losses(model, street(*names, "lamp"))


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_ground_truth_of_classes_outside_the_prompt_is_rejected(kind: str) -> None:
    x = with_masks(training_input([[5, 5, 50, 60]], [4], classes=["cat", "dog"]))
    with pytest.raises(ValueError, match=r"gt_classes \[4\]"):
        losses(text_prompted(kind), x)


@pytest.mark.parametrize("kind", TWO_STAGE)
def test_masks_of_given_boxes(kind: str) -> None:
    model = text_prompted(kind, plain=plain_detector(kind))
    x = {"image": IMAGES[0], "classes": ["dog", "cat"]}
    with torch.no_grad():
        (found,) = model.inference([x], do_postprocess=False)
        given = Instances(found.image_size)
        given.pred_boxes, given.pred_classes = found.pred_boxes, found.pred_classes
        (masks,) = model.inference([x], detected_instances=[given], do_postprocess=False)
    assert torch.equal(masks.pred_masks, found.pred_masks)


@pytest.mark.parametrize("kind", TWO_STAGE)
def test_images_without_detections_have_empty_masks(kind: str) -> None:
    model = text_prompted(kind, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 2.0)
    assert [len(x) for x in detect_names(model, ["cat"])] == [0, 0]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_class_names_may_come_from_a_dataset(kind: str) -> None:
    MetadataCatalog.get("test_closed_set").thing_classes = NAMES
    plain = plain_detector(kind)
    from_dataset = ("MODEL.CLOSED_SET.CLASS_NAMES", [], "MODEL.CLOSED_SET.DATASET")
    model = text_prompted(kind, *from_dataset, "test_closed_set", plain=plain)
    assert model.class_evidence.num_classes == len(NAMES)
    with pytest.raises(ValueError, match="6 CLASS_NAMES and the DATASET 'test_closed_set'"):
        text_prompted(kind, "MODEL.CLOSED_SET.DATASET", "test_closed_set")


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_missing_class_names_are_an_error(kind: str) -> None:
    with pytest.raises(ValueError, match="set CLASS_NAMES or DATASET"):
        text_prompted(kind, "MODEL.CLOSED_SET.CLASS_NAMES", [])


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.LANGUAGE_BACKBONE.FREEZE", False), ("MODEL.LANGUAGE_BACKBONE.WEIGHTS", "")],
)
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_text_encoder_that_may_change_is_an_error(kind: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match="embedded when the model is built: set MODEL.LANGUAGE_"):
        text_prompted(kind, key, value)


def test_heads_that_score_text_alone_have_no_closed_set() -> None:
    with pytest.raises(ValueError, match=r"roi_heads is a OpenVocabularyROIHeads.*CLASS_NAMES"):
        text_prompted("class-agnostic, sigmoid", "MODEL.ROI_HEADS.NAME", "OpenVocabularyROIHeads")
    assert two_stage_model().class_evidence is None
