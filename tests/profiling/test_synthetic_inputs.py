from __future__ import annotations

import pytest
import torch
from helpers.models import tiny_model

from glipv2_d2.profiling.synthetic_inputs import benchmark_class_names, random_inputs


def test_masks_fill_the_boxes_and_give_a_loss() -> None:
    model = tiny_model("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NUM_HOURGLASSES", 1).train()
    (x,) = random_inputs(1, (64, 96), ["cat"], with_masks=True)
    assert model([x])["loss_mask"] > 0
    for mask, box in zip(x["instances"].gt_masks, x["instances"].gt_boxes, strict=True):
        y_pixels, x_pixels = mask.nonzero(as_tuple=True)
        extent = torch.stack([x_pixels.min(), y_pixels.min(), x_pixels.max(), y_pixels.max()])
        assert (extent - box).abs().max() <= 1


@pytest.mark.parametrize("count", [1, 80, 81, 1203, 13231])
def test_class_names_are_distinct(count: int) -> None:
    names = benchmark_class_names(count)
    assert len(names) == len(set(names)) == count
