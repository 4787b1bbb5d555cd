from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from helpers.masks import ELL, found, masked_input, masked_model
from helpers.models import random_image
from torch import Tensor, nn

from glipv2_d2.modeling.heads.roi_heads import (
    GroundingROIHeads,
    crop_masks,
    has_masks,
    mean_text,
)

NAMES = ["cat", "traffic light"]


@pytest.fixture(scope="module")
def heads() -> GroundingROIHeads:
    return masked_model().roi_heads


def ground_truth(boxes: list[list[float]], has_mask: list[bool]) -> Instances:
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    instances.gt_has_mask = torch.tensor(has_mask, dtype=torch.bool)
    return instances


def test_ground_truth_and_detections_that_overlap_it_are_sampled(
    heads: GroundingROIHeads,
) -> None:
    instances = ground_truth([[0, 0, 20, 20], [30, 30, 50, 50]], [True, False])
    # Corners are inclusive: IoUs of 0.5 and less with the first; the second has no mask.
    detections = found([[0, 0, 19, 9], [0, 0, 19, 8], [30, 30, 49, 49]], [1, 0, 0])
    boxes, matched = heads.sample_regions(detections, instances)
    assert boxes.tolist() == [[0, 0, 20, 20], [0, 0, 20, 10]]
    assert matched.tolist() == [0, 0]


def test_an_image_without_masks_has_no_samples(heads: GroundingROIHeads) -> None:
    boxes, matched = heads.sample_regions(
        found([[0, 0, 19, 19]], [0]), ground_truth([[0, 0, 20, 20]], [False])
    )
    assert (len(boxes), len(matched)) == (0, 0)


def test_ground_truth_is_sampled_first() -> None:
    heads = masked_model("MODEL.ROI_MASK_HEAD.MAX_REGIONS_PER_IMAGE", 3).roi_heads
    gt_boxes = [[0.0, 0.0, 20.0, 20.0], [30.0, 30.0, 50.0, 50.0]]
    boxes, matched = heads.sample_regions(
        found([[0, 0, 19, 18 - i] for i in range(8)], [0] * 8), ground_truth(gt_boxes, [True, True])
    )
    assert sorted(boxes[:2].tolist()) == gt_boxes
    assert sorted(matched.tolist()) == [0, 0, 1]


def test_without_gt_has_mask_all_masks_are_used() -> None:
    instances = masked_input([ELL], [0])["instances"]
    assert has_masks(instances).tolist() == [True]
    instances.remove("gt_masks")
    assert has_masks(instances).tolist() == [False]


def test_the_tokens_of_a_label_are_averaged() -> None:
    text = torch.tensor([[1.0, 0.0], [0.0, 3.0], [5.0, 5.0]])
    positive_map = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_text(text, positive_map).tolist() == [[0.5, 1.5], [0, 0]]


def test_mean_text_ignores_padding() -> None:
    text = torch.tensor([[1.0], [float("nan")]])
    assert mean_text(text, torch.tensor([[True, False]])).tolist() == [[1.0]]


def test_polygons_and_bitmasks_of_one_shape_have_the_same_target() -> None:
    box = torch.tensor([[4.0, 8.0, 32.0, 36.0]])
    polygons = PolygonMasks([[torch.tensor(ELL).numpy()]])
    bitmasks = BitMasks.from_polygon_masks(polygons, 64, 64)
    first = torch.zeros(1, dtype=torch.int64)
    ell = torch.ones(28, 28, dtype=torch.bool)
    ell[:14, 14:] = False
    assert torch.equal(crop_masks(polygons, first, box, 28)[0], ell)
    assert torch.equal(crop_masks(bitmasks, first, box, 28)[0], ell)


def test_bitmasks_are_cropped_as_by_detectron2_with_a_copy_per_box() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = BitMasks(torch.rand(3, 40, 50, generator=generator) > 0.5)
    corners = torch.rand(6, 2, 2, generator=generator).sort(dim=1).values
    boxes = (corners * torch.tensor([50.0, 40.0])).flatten(1)
    matched = torch.tensor([2, 0, 0, 1, 2, 2])
    expected = masks[matched].crop_and_resize(boxes, 28)
    assert torch.equal(crop_masks(masks, matched, boxes, 28), expected)


def test_maps_are_projected_to_the_width_of_a_region() -> None:
    """With the result of projecting every region."""
    heads = masked_model().roi_heads
    maps = {
        name: torch.randn(1, 16, 64 // stride, 64 // stride)
        for name, stride in (("p3", 8), ("p4", 16), ("p5", 32))
    }
    boxes, inputs = [torch.tensor([[8.0, 8.0, 40.0, 40.0]])], []
    heads.mask_head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        heads.mask_logits(maps, boxes, [torch.randn(1, 16)])
        expected = heads.entry(heads.pooler(list(maps.values()), [Boxes(boxes[0])]))
    assert inputs[0].shape == (1, 8, 14, 14)
    torch.testing.assert_close(inputs[0], expected)


def test_boxes_are_pooled_in_full_precision_from_half_precision_maps() -> None:
    """333 has no neighbour closer than 2 in bfloat16."""
    heads = masked_model("MODEL.ROI_MASK_HEAD.CONV_DIM", 16).roi_heads
    generator = torch.Generator().manual_seed(0)
    maps = {
        name: torch.randn(1, 16, 512 // stride, 512 // stride, generator=generator).bfloat16()
        for name, stride in (("p3", 8), ("p4", 16), ("p5", 32))
    }
    boxes, text = [torch.tensor([[333.0, 335.0, 379.0, 371.0]])], [torch.randn(1, 16)]
    with torch.no_grad():
        half = heads.mask_logits(maps, boxes, text)
        full = heads.mask_logits({k: v.float() for k, v in maps.items()}, boxes, text)
    assert torch.equal(half, full)


@pytest.mark.parametrize("maps", ["fused", "fpn"])
def test_boxes_are_pooled_from_the_maps_of_the_config(maps: str) -> None:
    model = masked_model("MODEL.ROI_MASK_HEAD.FEATURES", maps)
    model.proposal_generator.detect = lambda *_: [found([[4, 4, 40, 40]], [0])]
    outputs: dict[str, Any] = {"entry": []}
    model.backbone.register_forward_hook(lambda *args: outputs.update(fpn=args[-1]))
    model.fused_head.register_forward_hook(lambda *args: outputs.update(fused=args[-1][0]))
    model.roi_heads.entry.register_forward_pre_hook(
        lambda _, args: outputs["entry"].append(args[0])
    )
    with torch.no_grad():
        model([{"image": random_image(), "classes": NAMES}])
    assert len(outputs["entry"]) == 3
    for name, level in zip(("p3", "p4", "p5"), outputs["entry"], strict=True):
        assert torch.equal(level, outputs[maps][name])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.ROI_MASK_HEAD.FEATURES", "both"),
        ("MODEL.ROI_MASK_HEAD.MAX_REGIONS_PER_IMAGE", 0),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["p3", "res4"]),
    ],
)
def test_an_invalid_value_is_named_with_its_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{'res4' if 'IN_' in key else value}.*{key}"):
        masked_model(key, value)


@ROI_MASK_HEAD_REGISTRY.register()
class FullBoxes(nn.Module):
    """A mask head that fills every box."""

    def __init__(self, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()
        self.shapes = input_shape

    def forward(self, regions: Tensor, text: Tensor) -> Tensor:
        assert regions.shape[1:] == (self.shapes["region"].channels, 14, 14)
        assert text.shape[1] == self.shapes["text"].channels
        return regions.new_full((len(regions), 28, 28), 9.0)


def test_another_mask_head_is_selected_by_its_name() -> None:
    model = masked_model("MODEL.ROI_MASK_HEAD.NAME", "FullBoxes")
    model.proposal_generator.detect = lambda *_: [found([[4, 8, 39, 31]], [0])]
    with torch.no_grad():
        (output,) = model([{"image": random_image(), "classes": NAMES}])
    full_box = torch.zeros(64, 64, dtype=torch.bool)
    full_box[8:32, 4:40] = True
    assert torch.equal(output["instances"].pred_masks[0], full_box)
