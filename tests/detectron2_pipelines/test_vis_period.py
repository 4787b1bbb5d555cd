"""Pictures of VIS_PERIOD and scalars of a training step in Detectron2's EventStorage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.closed_set import NAMES as CLOSED
from helpers.closed_set import closed_set_cfg
from helpers.masks import LOWER_LEFT, MASKS, masked_input
from helpers.models import tiny_model, training_input
from torch import nn

from glipv2_d2.data.drawn import COLORS
from glipv2_d2.modeling.training_events import put_grounding_scalars, put_training_image
from glipv2_d2.structures import DensePredictions, DenseTargets, Prompt, Query, QueryKind

NAMES = ["cat", "dog"]
BOXES = [[4.0, 4.0, 30.0, 30.0], [20.0, 20.0, 60.0, 60.0]]


def step(model: nn.Module, x: dict[str, Any], iteration: int = 0) -> EventStorage:
    with EventStorage(iteration) as storage:
        model.train()([x])
    return storage


@pytest.mark.parametrize(
    ("period", "iteration", "drawn"), [(0, 0, 0), (10, 20, 1), (10, 21, 0), (1, 3, 1)]
)
def test_a_picture_is_drawn_every_period(period: int, iteration: int, drawn: int) -> None:
    model = tiny_model("VIS_PERIOD", period, "MODEL.GROUNDING.SCORE_THRESH", 0.0)
    storage = step(model, training_input(BOXES, [0, 1], classes=NAMES), iteration)
    assert len(storage._vis_data) == drawn
    for _, image, at in storage._vis_data:
        # Ground truth above predictions.
        assert image.shape == (3, 128, 64) and image.dtype == np.uint8
        assert at == iteration


def test_the_picture_has_the_boxes_in_the_colours_of_the_image() -> None:
    x = training_input([[8.0, 8.0, 40.0, 40.0]], [0])
    x["image"] = torch.zeros(3, 64, 64, dtype=torch.uint8)
    x["image"][0] = COLORS["blue"][2]  # channel 0 of BGR
    query = Query(
        0, QueryKind.DETECT, Prompt("cat", (((0, 3),),), (0,), True), gt_instances=x["instances"]
    )
    nothing = type(x["instances"])((64, 64))
    nothing.pred_boxes = x["instances"].gt_boxes[:0]
    nothing.scores, nothing.pred_classes = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    with EventStorage() as storage:
        put_training_image(x, query, nothing, "BGR")
    ((name, image, _),) = storage._vis_data
    assert name.startswith("Top: GT bounding boxes")
    truth, predictions = image[:, :64], image[:, 64:]
    assert np.unique(predictions[2]).tolist() == [COLORS["blue"][2]]
    assert not predictions[:2].any()
    # A border of the box, and nothing far from it.
    assert truth[:, 8, 20].tolist() != predictions[:, 8, 20].tolist()
    assert (truth[:, 50:, 50:] == predictions[:, 50:, 50:]).all()


@pytest.mark.parametrize("kind", ["class-specific", "RetinaNet"])
def test_closed_set_detectors_draw_pictures_too(kind: str) -> None:
    cfg = closed_set_cfg(kind, "VIS_PERIOD", 1, "MODEL.MASK_ON", False)
    x = training_input(BOXES, [0, 1], classes=CLOSED, height=64, width=64)
    assert len(step(build_model(cfg), x)._vis_data) >= 1


def test_masks_alone_in_training_draw_pictures() -> None:
    model = tiny_model(*MASKS, "VIS_PERIOD", 1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("roi_heads."))
    storage = step(model, masked_input([LOWER_LEFT], [0], classes=NAMES))
    assert len(storage._vis_data) == 1


def test_a_batch_without_boxes_draws_nothing() -> None:
    opts = ("MODEL.ANSWER.WEIGHT", 1.0, "MODEL.ANSWER.ANSWERS", ["yes", "no"], "VIS_PERIOD", 1)
    x = training_input([], [])
    del x["instances"]
    storage = step(tiny_model(*opts), {**x, "question": "is it?", "answers": {"yes": 1.0}})
    assert storage._vis_data == []


def test_training_without_an_event_storage_works() -> None:
    model = tiny_model("VIS_PERIOD", 1).train()
    assert model([training_input(BOXES, [0, 1], classes=NAMES)])["loss_token"] > 0


def test_scalars_are_the_share_and_the_score_of_positive_anchors() -> None:
    logits = torch.zeros(1, 4, 3)
    logits[0, 1] = torch.tensor([2.0, -2.0, 9.0])
    logits[0, 3, 2] = float("nan")  # padding
    predictions = DensePredictions(list(logits.split(2, dim=1)), [], [], [])
    targets = DenseTargets(
        torch.tensor([[-1, 0, -1, 1]]),
        torch.tensor([[[0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]]]).float(),
        torch.zeros(1, 4, 4),
    )
    with EventStorage() as storage:
        put_grounding_scalars(predictions, targets)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    # Both tokens of the first positive have a mean of 0.5, as has the token of the second.
    assert latest == pytest.approx(
        {"grounding/foreground_share": 0.5, "grounding/positive_score": 0.5}
    )


def test_training_writes_the_scalars() -> None:
    storage = step(tiny_model(), training_input(BOXES, [0, 1], classes=NAMES))
    share, score = (
        storage.latest()[f"grounding/{name}"][0] for name in ("foreground_share", "positive_score")
    )
    assert 0 < share < 1 and 0 < score < 1


def test_images_without_objects_have_no_score() -> None:
    storage = step(tiny_model(), training_input([], [], classes=NAMES))
    assert storage.latest()["grounding/foreground_share"][0] == 0
    assert "grounding/positive_score" not in storage.latest()
