"""Every stage of the data path, on CUDA and in half precision, against the CPU in fp32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.device_stages import (
    DEVICES,
    GRADIENT_TOLERANCES,
    STAGES,
    TOLERANCES,
    cpu_state,
    model_on,
    relative_difference,
    run_stage,
    train_step_on,
    training_inputs,
)
from helpers.models import random_image

Record = Callable[[str, object], None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_gives_the_numbers_of_the_cpu_in_fp32(
    stage: str, precision: str, device: str, record_property: Record
) -> None:
    expected = run_stage(stage, "cpu", "fp32")
    ours = run_stage(stage, device, precision)
    differences = [relative_difference(*x) for x in zip(ours, expected, strict=True)]
    record_property("relative difference", max(differences))
    assert max(differences) <= TOLERANCES[precision]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("kind", training_inputs())
def test_a_training_step_gives_the_losses_and_gradients_of_the_cpu_in_fp32(
    kind: str, precision: str, device: str, record_property: Record
) -> None:
    losses, gradients = train_step_on(device, precision, kind)
    expected, expected_gradients = train_step_on("cpu", "fp32", kind)
    difference = relative_difference(gradients, expected_gradients)
    record_property("relative difference of gradients", difference)
    assert losses == pytest.approx(expected, rel=TOLERANCES[precision])
    assert difference <= GRADIENT_TOLERANCES[precision]


@pytest.mark.parametrize("device", DEVICES)
def test_detections_are_those_of_the_cpu(device: str) -> None:
    inputs = cpu_state().inputs
    with torch.no_grad():
        ours, expected = model_on(device)(inputs), model_on("cpu")(inputs)
    for x, y in zip(ours, expected, strict=True):
        found, reference = x["instances"].to("cpu"), y["instances"]
        assert found.pred_classes.tolist() == reference.pred_classes.tolist()
        torch.testing.assert_close(found.scores, reference.scores, atol=1e-4, rtol=0)
        boxes, expected_boxes = found.pred_boxes.tensor, reference.pred_boxes.tensor
        torch.testing.assert_close(boxes, expected_boxes, atol=1e-2, rtol=0)
        agreement = (found.pred_masks == reference.pred_masks).float().mean()
        assert agreement > 0.999


@pytest.mark.parametrize("device", DEVICES)
def test_answers_and_captions_are_those_of_the_cpu(device: str) -> None:
    inputs = [
        {"image": random_image(), "question": "is there a dog?"},
        {"image": random_image(seed=1), "describe": True},
    ]
    with torch.no_grad():
        ours, expected = model_on(device)(inputs), model_on("cpu")(inputs)
    assert ours[0].pop("answer_score") == pytest.approx(expected[0].pop("answer_score"), rel=1e-3)
    assert ours == expected
    assert ours[0]["answer"] and ours[1]["caption"]
