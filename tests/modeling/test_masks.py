"""Masks through the whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.masks import (
    ELL,
    LOWER_LEFT,
    MASKS,
    UPPER_RIGHT,
    box_of,
    found,
    iou,
    masked_input,
    masked_model,
)
from helpers.models import random_image, tiny_model, training_input
from helpers.two_processes import DETERMINISTIC

from glipv2_d2.checkpoint.loading import load_weights
from glipv2_d2.modeling import GLIPv2

NAMES = ["cat", "traffic light", "bat_(animal)", "café", "dog"]
# Every candidate passes, so that random weights give detections to compare.
ALL = ("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 40)
# Neither text nor maps depend on the other class names.
NO_CONTEXT = (
    *("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone"),
    *("MODEL.FUSED_HEAD.NAME", "DynamicHead"),
)


def detect(model: GLIPv2, *inputs: dict) -> list:
    with torch.no_grad():
        return [result["instances"] for result in model(list(inputs))]


def trainable(*opts: Any) -> GLIPv2:
    """In training mode, without dropout."""
    model = masked_model(*DETERMINISTIC, *opts).train()
    model.language_backbone.eval()  # BERT's dropout
    return model


def test_a_model_without_masks_has_no_mask_weights_results_or_loss() -> None:
    model = tiny_model(*ALL)
    assert [name for name in model.state_dict() if name.startswith("roi_heads.")] == []
    (instances,) = detect(model, {"image": random_image(), "classes": NAMES})
    assert not instances.has("pred_masks")
    assert "loss_mask" not in model.train()([masked_input([ELL], [0], classes=NAMES)])


def test_masks_change_neither_boxes_nor_other_losses() -> None:
    plain, masked = tiny_model(*ALL, *DETERMINISTIC), masked_model(*ALL, *DETERMINISTIC)
    # The mask head is initialised last, so that all other random weights are the same.
    for name, value in plain.state_dict().items():
        assert torch.equal(value, masked.state_dict()[name])
    x = masked_input([ELL], [0], classes=NAMES)
    without, with_masks = detect(plain, x)[0], detect(masked, x)[0]
    assert torch.equal(without.pred_boxes.tensor, with_masks.pred_boxes.tensor)
    assert torch.equal(without.scores, with_masks.scores)
    plain.train().language_backbone.eval()
    masked.train().language_backbone.eval()
    losses, more_losses = plain([x]), masked([x])
    assert more_losses.keys() - losses.keys() == {"loss_mask"}
    assert all(torch.equal(loss, more_losses[name]) for name, loss in losses.items())


def test_every_detection_has_a_mask_of_the_requested_size() -> None:
    (instances,) = detect(
        masked_model(*ALL),
        {"image": random_image(48, 64), "classes": NAMES, "height": 96, "width": 160},
    )
    assert len(instances) > 0
    assert instances.pred_masks.shape == (len(instances), 96, 160)
    assert instances.pred_masks.dtype == torch.bool


@pytest.mark.parametrize("max_classes", [0, 2])
def test_without_detections_there_are_no_masks(max_classes: int) -> None:
    model = masked_model(
        *("MODEL.GROUNDING.SCORE_THRESH", 1.0, "MODEL.PROMPT.MAX_CLASSES", max_classes)
    )
    (instances,) = detect(model, {"image": random_image(48, 64), "classes": NAMES})
    assert instances.pred_masks.shape == (0, 48, 64)
    assert instances.pred_masks.dtype == torch.bool


def test_the_masks_of_an_image_do_not_depend_on_its_batch() -> None:
    model = masked_model(*ALL)
    first = {"image": random_image(seed=1), "classes": ["cat", "dog"]}
    second = {"image": random_image(seed=2), "classes": NAMES}
    together = detect(model, first, second)
    for batched, x in zip(together, (first, second), strict=True):
        (alone,) = detect(model, x)
        # Rounding may move a pixel across the threshold.
        assert (batched.pred_masks != alone.pred_masks).float().mean() < 1e-3


def sorted_masks(instances: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and masks by class, the best first."""
    order = sorted(
        range(len(instances)), key=lambda i: (instances.pred_classes[i], -instances.scores[i])
    )
    return instances.scores[order], instances.pred_masks[order]


def test_a_list_in_chunks_has_the_masks_of_one_prompt() -> None:
    opts = (*ALL, *NO_CONTEXT, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 2000)
    x = {"image": random_image(32, 32), "classes": NAMES}
    (whole,) = detect(masked_model(*opts), x)
    (chunked,) = detect(
        masked_model(*opts, "MODEL.PROMPT.MAX_CLASSES", 2, "TEST.DETECTIONS_PER_IMAGE", -1), x
    )
    (scores, masks), (chunked_scores, chunked_masks) = map(sorted_masks, (whole, chunked))
    torch.testing.assert_close(chunked_scores, scores, atol=1e-6, rtol=0)
    assert (masks != chunked_masks).float().mean() < 1e-3


def test_only_detections_that_may_be_kept_get_a_mask() -> None:
    opts = (*ALL, "MODEL.PROMPT.MAX_CLASSES", 2)
    x = {"image": random_image(), "classes": NAMES}
    (everything,) = detect(masked_model(*opts, "TEST.DETECTIONS_PER_IMAGE", -1), x)
    model = masked_model(*opts, "TEST.DETECTIONS_PER_IMAGE", 7)
    counts = []
    model.roi_heads.mask_head.register_forward_hook(lambda *args: counts.append(len(args[-1])))
    (capped,) = detect(model, x)
    best = everything.scores.topk(7).indices
    assert len(everything) > 3 * 7
    assert torch.equal(capped.scores, everything.scores[best])
    assert torch.equal(capped.pred_masks, everything.pred_masks[best])
    assert len(counts) == 3 and max(counts) <= 7


@pytest.mark.parametrize("as_bitmasks", [False, True], ids=["polygons", "bitmasks"])
def test_the_loss_of_a_batch_is_the_mean_over_its_masks(as_bitmasks: bool) -> None:
    """One image has one mask, the other two."""
    model = trainable()
    one = masked_input([ELL], [0], classes=NAMES, as_bitmasks=as_bitmasks)
    two = masked_input([LOWER_LEFT, UPPER_RIGHT], [1, 4], classes=NAMES, as_bitmasks=as_bitmasks)
    together, first, second = (model(x)["loss_mask"] for x in ([one, two], [one], [two]))
    torch.testing.assert_close(together, (first + 2 * second) / 3)


def test_bitmasks_and_polygons_of_the_same_shape_have_the_same_loss() -> None:
    model = trainable()
    losses = [
        model([masked_input([ELL], [0], classes=NAMES, as_bitmasks=kind)])["loss_mask"]
        for kind in (False, True)
    ]
    assert torch.equal(*losses)


def test_the_placeholder_of_a_missing_mask_adds_no_loss() -> None:
    model = trainable()
    both = masked_input([ELL, UPPER_RIGHT], [0, 1], has_mask=[True, False], classes=NAMES)
    alone = masked_input([ELL], [0], classes=NAMES)
    assert torch.equal(model([both])["loss_mask"], model([alone])["loss_mask"])


def test_a_phrase_and_a_class_name_have_the_same_loss() -> None:
    model = trainable("MODEL.LANGUAGE_BACKBONE.NAME", "PhraseLanguageBackbone", *NO_CONTEXT)
    as_class = masked_input([ELL], [0], classes=["dog"])
    as_phrase = masked_input([ELL], [0], caption="a dog on a mat", phrases=[[[2, 5]]])
    torch.testing.assert_close(
        model([as_phrase])["loss_mask"], model([as_class])["loss_mask"], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    "batch",
    [
        [training_input([], [], classes=["cat", "dog"])],
        [training_input([[8, 8, 40, 40]], [0], classes=["cat"])],
        [masked_input([ELL], [0], has_mask=[False], classes=["cat"])],
        [training_input([], [], caption="an empty street", phrases=[])],
    ],
    ids=["no boxes", "no masks", "only a placeholder", "no phrases"],
)
def test_every_parameter_gets_a_finite_gradient_without_any_mask(batch: list) -> None:
    """Distributed training waits for all of them."""
    model = masked_model().train()
    losses = model(batch)
    assert losses["loss_mask"] == 0
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [n for n, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []


def test_the_mask_loss_has_gradients_in_all_backbones_and_the_fused_head() -> None:
    model = trainable()
    model([masked_input([ELL], [0], classes=NAMES)])["loss_mask"].backward()
    for part in (model.backbone, model.language_backbone, model.fused_head):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())


def test_detections_have_a_mask_loss_besides_the_ground_truth() -> None:
    model = trainable()
    gt_box = box_of(ELL)
    x = masked_input([ELL], [0], classes=NAMES)
    alone = model([x])["loss_mask"]
    pooled = []
    model.roi_heads.pooler.register_forward_pre_hook(lambda _, args: pooled.extend(args[1]))
    shifted = found([[6, 8, 33, 35], [40, 40, 60, 60]], [2, 0])
    model.proposal_generator.detect = lambda *_: [shifted]
    more = model([x])["loss_mask"]
    assert pooled[0].tensor.tolist() == [gt_box, [6, 8, 34, 36]]
    assert more != alone


def test_bfloat16_autocast_gives_a_finite_loss_in_float32() -> None:
    model = masked_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model([masked_input([ELL], [0], classes=NAMES)])["loss_mask"]
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_if_all_but_the_masks_is_frozen_no_other_loss_is_computed() -> None:
    model = trainable()
    model.requires_grad_(False)
    model.roi_heads.requires_grad_(True)
    model.proposal_generator.losses = None  # calling it would fail
    losses = model([masked_input([ELL], [0], classes=NAMES)])
    assert set(losses) == {"loss_mask"}


def test_weights_without_masks_are_loaded_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    weights = tiny_model().state_dict()
    load_weights(model := masked_model(), weights, source="'boxes.pth'")
    assert "'boxes.pth' has no weights of these parts" in caplog.text
    assert "roi_heads.mask_head.deconv.{bias, weight}" in caplog.text
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


def test_weights_with_masks_are_loaded_into_a_model_without() -> None:
    report = load_weights(tiny_model(), masked_model().state_dict(), source="'masks.pth'")
    assert all(name.startswith("roi_heads.") for name in report.ignored)
    assert report.ignored


def draw(polygon: list[float]) -> dict[str, Any]:
    """A training input with a shape that is brighter than the noise around it."""
    x = masked_input([polygon], [0], classes=["triangle", "dog"], as_bitmasks=True)
    shape = x["instances"].gt_masks.tensor[0]
    x["image"] = torch.where(shape, 200 + x["image"] // 8, x["image"] // 8)
    return x


def test_training_overfits_the_masks_of_two_images() -> None:
    """Each is a triangle in the half of its box that the other leaves free."""
    inputs = [draw(LOWER_LEFT), draw(UPPER_RIGHT)]
    model = trainable(*MASKS)
    model.requires_grad_(False)
    model.roi_heads.requires_grad_(True)
    model.proposal_generator.detect = lambda *_: [found([], []), found([], [])]
    optimizer = torch.optim.Adam(model.roi_heads.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        model(inputs)["loss_mask"].backward()
        optimizer.step()

    boxes = [[x1, y1, x2 - 1, y2 - 1] for x1, y1, x2, y2 in map(box_of, (LOWER_LEFT, UPPER_RIGHT))]
    model.proposal_generator.detect = lambda *_: [found([box], [0]) for box in boxes]
    outputs = detect(model.eval(), *({**x, "height": 128, "width": 128} for x in inputs))
    for x, instances, (x1, y1, x2, y2) in zip(inputs, outputs, boxes, strict=True):
        truth = x["instances"].gt_masks.tensor.repeat_interleave(2, 1).repeat_interleave(2, 2)
        rectangle = torch.zeros_like(truth)
        rectangle[:, 2 * int(y1) : 2 * int(y2) + 2, 2 * int(x1) : 2 * int(x2) + 2] = True
        assert iou(rectangle, truth).item() < 0.6
        assert iou(instances.pred_masks, truth).item() > 0.85
