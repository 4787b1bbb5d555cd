"""Targets, losses and the gradient of every parameter equal the reference's."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers import tolerances
from helpers.golden import Golden, golden_directories, load_golden

from glipv2_d2.checkpoint import to_glip
from glipv2_d2.layers.box_coder import to_exclusive
from glipv2_d2.structures import DenseTargets
from glipv2_d2.text.prompts import caption_prompt

GOLDENS = [load_golden(directory) for directory in golden_directories()]
LOSS_NAMES = {
    "loss_reg": "loss_box",
    "loss_centerness": "loss_centerness",
    "loss_dot_product_token": "loss_token",
}


def is_grounding_only(case: dict[str, Any]) -> bool:
    """The masked-word and inter-image losses of the other cases belong to their own heads."""
    return not case["extra"]


TRAINING_CASES = [
    pytest.param(golden, name, id=f"{golden}-{name}")
    for golden in GOLDENS
    for name in golden.meta["train"]
    if is_grounding_only(golden.meta["train"][name])
]
ASSIGNED_IMAGES = [
    pytest.param(golden, name, i, id=f"{golden}-{name}-{i}")
    for golden in GOLDENS
    for name, case in golden.meta["train"].items()
    for i in range(len(case["images"]))
]


def training_inputs(golden: Golden, case: dict[str, Any]) -> list[dict[str, Any]]:
    """The images of a case with prompts whose labels are the ground truths, in order."""
    images = golden.inputs("two")
    inputs = []
    for i, (image, caption) in enumerate(zip(case["images"], case["captions"], strict=True)):
        boxes = to_exclusive(torch.tensor(case["gt"][i]["boxes"]))
        instances = Instances(tuple(images[image]["image"].shape[1:]))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.arange(len(boxes))
        spans = case["tokens_positive"][i]
        inputs.append(
            {
                "image": images[image]["image"],
                "prompt": caption_prompt(caption, spans),
                "instances": instances,
            }
        )
    return inputs


@functools.cache
def train_step(golden: Golden, name: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses, and gradients under the reference's names."""
    model = golden.build_model().train()
    model.language_backbone.eval()  # BERT's dropout was off, too
    losses = model(training_inputs(golden, golden.meta["train"][name]))
    sum(losses.values()).backward()
    gradients = {
        key: torch.zeros_like(p) if p.grad is None else p.grad
        for key, p in model.named_parameters()
    }
    buffers = {key: value for key, value in model.state_dict().items() if key not in gradients}
    by_glip_name = to_glip({**buffers, **gradients})
    return {k: v.item() for k, v in losses.items()}, by_glip_name


@functools.cache
def label_anchors(golden: Golden, name: str) -> DenseTargets:
    model, case = golden.model, golden.meta["train"][name]
    inputs = training_inputs(golden, case)
    tokens = golden.tokens([x["prompt"] for x in inputs])
    anchors = golden.stages("one")["predictions"].anchors_per_level
    return model.proposal_generator.label_anchors(anchors, tokens, [x["instances"] for x in inputs])


@pytest.mark.parametrize(("golden", "name"), TRAINING_CASES)
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_loss(golden: Golden, name: str, loss: str) -> None:
    ours, _ = train_step(golden, name)
    reference = golden.meta["train"][name]["losses"][loss]
    assert ours[LOSS_NAMES[loss]] == pytest.approx(reference, rel=tolerances.LOSSES_RELATIVE)


@pytest.mark.parametrize(("golden", "name"), TRAINING_CASES)
def test_gradient_norm_of_every_parameter(golden: Golden, name: str) -> None:
    _, gradients = train_step(golden, name)
    reference = golden.meta["train"][name]["grad_norm"]
    ours = {key: gradients[f"module.{key}"].norm().item() for key in reference}
    assert ours == pytest.approx(
        reference, rel=tolerances.GRAD_NORMS_RELATIVE, abs=tolerances.GRAD_NORMS_FLOOR
    )


@pytest.mark.parametrize(("golden", "name"), TRAINING_CASES)
def test_stored_gradients(golden: Golden, name: str) -> None:
    _, gradients = train_step(golden, name)
    prefix = f"{name}/grad/"
    stored = {k.removeprefix(prefix): v for k, v in golden.train_arrays.items() if prefix in k}
    for key, reference in stored.items():
        floor = tolerances.GRAD_NORMS_RELATIVE * np.linalg.norm(reference)
        np.testing.assert_allclose(
            gradients[f"module.{key}"].numpy(), reference, rtol=0, atol=floor, err_msg=key
        )


@pytest.mark.parametrize(("golden", "name", "image"), ASSIGNED_IMAGES)
def test_the_references_anchors_are_positive(golden: Golden, name: str, image: int) -> None:
    ours = label_anchors(golden, name).matched_idxs[image] >= 0
    reference = golden.train_arrays[f"{name}/assign{image}/labels"] > 0
    np.testing.assert_array_equal(ours.numpy(), reference)


@pytest.mark.parametrize(("golden", "name", "image"), ASSIGNED_IMAGES)
def test_positive_anchors_get_the_references_boxes(golden: Golden, name: str, image: int) -> None:
    targets = label_anchors(golden, name)
    ours = targets.box_deltas[image][targets.matched_idxs[image] >= 0]
    reference = golden.train_arrays[f"{name}/assign{image}/reg_targets_pos"]
    np.testing.assert_allclose(ours.numpy(), reference, atol=tolerances.BOX_DELTAS, rtol=0)


@pytest.mark.parametrize(("golden", "name", "image"), ASSIGNED_IMAGES)
def test_anchors_get_the_references_tokens(golden: Golden, name: str, image: int) -> None:
    token_targets = label_anchors(golden, name).token_targets[image]
    length = token_targets.shape[1]
    reference = golden.train_arrays[f"{name}/assign{image}/token_labels_argwhere"]
    # The reference marks "no object" on its last token, which is padding here.
    reference = reference[reference[:, 1] < length]
    assert token_targets.nonzero().tolist() == reference.tolist()
