"""Tracing of a model with fixed class names, and its count of operations."""

from __future__ import annotations

import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.structures import ImageList
from detectron2.utils.analysis import FlopCountAnalysis
from helpers.models import random_image, tiny_model
from torch import Tensor, nn

from glipv2_d2.layers import deform_conv
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.meta_arch import pad_images

NAMES = ["cat", "traffic light"]


class FixedNames(nn.Module):
    """(3, H, W) image -> boxes, scores and classes."""

    def __init__(self, model: GLIPv2) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (result,) = self.model([{"image": image, "classes": NAMES}])
        found = result["instances"]
        return found.pred_boxes.tensor, found.scores, found.pred_classes


@pytest.mark.filterwarnings("ignore")
def test_a_traced_model_is_right_on_other_images_of_the_same_size() -> None:
    # The threshold leaves different numbers of candidates in the two images.
    detector = FixedNames(tiny_model("MODEL.GROUNDING.SCORE_THRESH", 0.01))
    first, other = random_image(64, 64), random_image(64, 64, seed=3)
    with torch.no_grad():
        adapter = TracingAdapter(detector, first)
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        expected, found = detector(other), adapter.outputs_schema(traced(other))
        assert len(expected[0]) != len(detector(first)[0])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_detectron2_counts_the_operations_of_a_model() -> None:
    inputs = [{"image": random_image(64, 64), "classes": NAMES}]
    model = tiny_model()
    by_part = FlopCountAnalysis(model, inputs).by_module()
    parts = [f"model.{x}" for x in ("backbone", "language_backbone", "fused_head")]
    assert all(by_part[part] > 0 for part in parts)


@pytest.mark.parametrize("stride", [1, 2])
def test_deformable_convolution_in_plain_operations_is_the_same(stride: int) -> None:
    torch.manual_seed(0)
    size = (4, 5) if stride == 1 else (2, 3)
    arguments = (
        torch.randn(2, 3, 4, 5),
        3 * torch.randn(2, 18, *size),
        torch.rand(2, 9, *size),
        torch.randn(6, 3, 3, 3),
        torch.randn(6),
        stride,
    )
    torch.testing.assert_close(
        deform_conv._gather_at_once(*arguments), deform_conv._gather_and_multiply(*arguments)
    )


@pytest.mark.parametrize(("divisibility", "square"), [(0, 0), (32, 0), (32, 70)])
def test_padding_is_that_of_detectron2(divisibility: int, square: int) -> None:
    images = [torch.rand(3, 20, 30), torch.rand(3, 40, 10)]
    ours = pad_images(images, divisibility, square)
    theirs = ImageList.from_tensors(
        images, divisibility, padding_constraints={"square_size": square}
    )
    assert torch.equal(ours.tensor, theirs.tensor)
    assert ours.image_sizes == [tuple(size) for size in theirs.image_sizes]
