"""Final detections equal the reference's under every stored setting, prompt and batch."""

from __future__ import annotations

import copy
import dataclasses
import re

import numpy as np
import pytest
import torch
from helpers import tolerances
from helpers.golden import Golden, golden_directories, load_golden
from helpers.queries import fuse

from glipv2_d2.modeling.postprocess import PostprocessSettings, to_instances
from glipv2_d2.structures import Prompt

GOLDENS = [load_golden(directory) for directory in golden_directories()]


def settings_cases() -> list:
    """(golden, prefix) for every stored set of detections on the one-image logits."""
    return [
        pytest.param(golden, key.removesuffix("det0/boxes"), id=f"{golden}-{key}")
        for golden in GOLDENS
        for key in golden.arrays
        if re.fullmatch(r"one/(agg|mdetr|th).*_det0/boxes", key)
    ]


def settings_of(prefix: str, default: PostprocessSettings) -> PostprocessSettings:
    """Parse ``aggMAX_``, ``mdetrPOWER_`` or ``th0.2_k1000_nms0.3_``."""
    if aggregation := re.search(r"(?:agg|mdetr)([A-Z]+)_", prefix):
        return dataclasses.replace(default, aggregation=aggregation[1].lower())
    threshold, kept, nms = re.search(r"th([\d.]+)_k(\d+)_nms([\d.]+)_", prefix).groups()
    return dataclasses.replace(
        default,
        score_thresh=float(threshold),
        detections_per_prompt=int(kept),
        nms_thresh=float(nms),
    )


def assert_same_detections(
    golden: Golden, key: str, boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor
) -> None:
    """As sets: the reference does not sort its detections. Its labels start at 1."""
    reference_boxes = golden.arrays[f"{key}/boxes"]
    reference_scores = golden.arrays[f"{key}/scores"]
    reference_labels = golden.arrays[f"{key}/labels"] - 1
    assert len(boxes) == len(reference_boxes)
    for label in np.unique(reference_labels):
        reference = np.flatnonzero(reference_labels == label)
        ours = np.flatnonzero(classes.numpy() == label)
        assert len(ours) == len(reference), f"label {label}"
        reference = reference[np.argsort(-reference_scores[reference])]
        ours = ours[np.argsort(-scores.numpy()[ours])]
        np.testing.assert_allclose(
            scores.numpy()[ours], reference_scores[reference], atol=tolerances.SCORES, rtol=0
        )
        np.testing.assert_allclose(
            boxes.numpy()[ours], reference_boxes[reference], atol=tolerances.BOXES_PX, rtol=0
        )


def detect_prompt(golden: Golden, prompt: Prompt, images: str = "one"):
    """Detections of one prompt in every image, in pixels of the network input."""
    inputs, head = golden.inputs(images), golden.model.proposal_generator
    with torch.no_grad():
        fused = fuse(golden.model, inputs, [prompt] * len(inputs))
        return head.detect(head.score_labels(head.predict(fused), fused), fused)


@pytest.mark.parametrize("golden", GOLDENS, ids=repr)
@pytest.mark.parametrize(("images", "index"), [("one", 0), ("two", 0), ("two", 1)])
def test_detections_of_class_names_are_the_references(
    golden: Golden, images: str, index: int
) -> None:
    found = detect_prompt(golden, golden.class_prompt, images)[index]
    assert_same_detections(golden, f"{images}/det{index}", found.boxes, found.scores, found.labels)


@pytest.mark.parametrize(("golden", "prefix"), settings_cases())
def test_detections_with_other_settings_are_the_references(golden: Golden, prefix: str) -> None:
    stages, head = golden.stages("one"), copy.copy(golden.model.proposal_generator)
    head.postprocess = settings_of(prefix, head.postprocess)
    scores = head.score_labels(stages["predictions"], stages["fused"])
    (found,) = head.detect(scores, stages["fused"])
    assert_same_detections(golden, f"{prefix}det0", found.boxes, found.scores, found.labels)


@pytest.mark.parametrize("golden", GOLDENS, ids=repr)
@pytest.mark.parametrize("name", ["free", "list"])
def test_detections_of_the_demos_prompts_are_the_references(golden: Golden, name: str) -> None:
    found = detect_prompt(golden, golden.demo_prompt(name))[0]
    assert_same_detections(golden, f"demo/{name}_det0", found.boxes, found.scores, found.labels)


@pytest.mark.parametrize("golden", GOLDENS, ids=repr)
def test_rescaled_detections_are_the_references(golden: Golden) -> None:
    found = detect_prompt(golden, golden.class_prompt)[0]
    width, height = golden.arrays["one/resized_det0/size_wh"].tolist()
    size = golden.stages("one")["images"].image_sizes[0]
    instances = to_instances(found, size, (height, width), golden.class_prompt.classes)
    # The reference stores inclusive corners and adds one when it writes COCO's width.
    inclusive = instances.pred_boxes.tensor - torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert_same_detections(
        golden, "one/resized_det0", inclusive, instances.scores, instances.pred_classes
    )


@pytest.mark.parametrize("golden", GOLDENS, ids=repr)
def test_detections_of_an_input_dict_are_the_references(golden: Golden) -> None:
    width, height = golden.arrays["one/resized_det0/size_wh"].tolist()
    x = golden.inputs("one")[0] | {
        "height": height,
        "width": width,
        "classes": golden.meta["categories"],
    }
    with torch.no_grad():
        instances = golden.model([x])[0]["instances"]
    inclusive = instances.pred_boxes.tensor - torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert_same_detections(
        golden, "one/resized_det0", inclusive, instances.scores, instances.pred_classes
    )
