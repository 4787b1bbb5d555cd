"""Tracing and export of a model with fixed class names, and its count of operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.structures import ImageList, Instances
from detectron2.utils.analysis import FlopCountAnalysis
from helpers.masks import MASKS
from helpers.models import COARSE_LEVELS, random_image, tiny_model
from helpers.two_stage import two_stage_model
from torch import nn

from glipv2_d2.layers import deform_conv
from glipv2_d2.modeling.heads import roi_heads
from glipv2_d2.modeling.meta_arch import pad_images

NAMES = ["cat", "traffic light", "zebra"]

MODELS: dict[str, list[Any]] = {
    "masks": [*MASKS, "TEST.DETECTIONS_PER_IMAGE", 12],
    "two chunks": [
        *(*COARSE_LEVELS, "MODEL.PROMPT.MAX_CLASSES", 2, "TEST.DETECTIONS_PER_IMAGE", 12)
    ],
}


def with_names(model: nn.Module, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A model with fixed class names, as an inference_func of Detectron2's TracingAdapter."""
    return model([{**x, "classes": NAMES, "negatives": ["dog"]} for x in inputs])


def adapted(*opts: Any) -> TracingAdapter:
    """An adapter of the tiny model for images of 64 x 64 pixels."""
    # The threshold leaves different numbers of candidates in different images.
    model = tiny_model("MODEL.GROUNDING.SCORE_THRESH", 0.01, *opts)
    return TracingAdapter(model, [{"image": random_image()}], with_names)


def assert_right_on_other_images(adapter: TracingAdapter, graph: Any) -> None:
    recorded = adapter._create_wrapper(graph)
    numbers = set()
    for seed in (0, 1, 3, 4):
        inputs = [{"image": random_image(seed=seed)}]
        (expected,), (found,) = with_names(adapter.model, inputs), recorded(inputs)
        expected, found = expected["instances"], found["instances"]
        numbers.add(len(expected))
        assert torch.equal(found.pred_classes, expected.pred_classes)
        torch.testing.assert_close(found.scores, expected.scores)
        torch.testing.assert_close(
            found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-3
        )
        assert found.has("pred_masks") == expected.has("pred_masks")
        if expected.has("pred_masks"):
            assert torch.equal(found.pred_masks, expected.pred_masks)
    assert len(numbers) > 1, numbers


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MODELS)
@torch.jit.optimized_execution(False)
@torch.no_grad()
def test_a_traced_model_is_right_on_other_images_of_its_size_and_refuses_others(kind: str) -> None:
    adapter = adapted(*MODELS[kind])
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    assert_right_on_other_images(adapter, traced)
    for height, width in ((64, 80), (32, 128), (80, 64)):
        with pytest.raises(torch.jit.Error, match=f"this one has {height} x {width}: resize it"):
            traced(random_image(height, width))


def without_postprocessing(model: Any, inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
    """As Detectron2's tools/deploy/export_model.py calls a GeneralizedRCNN."""
    (instances,) = model.inference([{**x, "classes": NAMES} for x in inputs], do_postprocess=False)
    return [{"instances": instances}]


@pytest.mark.filterwarnings("ignore")
@torch.jit.optimized_execution(False)
@torch.no_grad()
def test_a_traced_two_stage_model_is_right_on_images_of_any_size() -> None:
    model = two_stage_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    adapter = TracingAdapter(model, [{"image": random_image()}], without_postprocessing)
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    for image in (random_image(seed=1), random_image(64, 96, seed=2)):
        (expected,) = without_postprocessing(model, [{"image": image}])
        (found,) = adapter.outputs_schema(traced(image))
        assert len(expected["instances"]) > 0
        torch.testing.assert_close(
            found["instances"].pred_boxes.tensor,
            expected["instances"].pred_boxes.tensor,
            rtol=1e-4,
            atol=1e-3,
        )


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_an_exported_model_is_right_on_other_images_of_its_size_and_refuses_others() -> None:
    adapter = adapted(*COARSE_LEVELS, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 12)
    exported = torch.export.export(adapter, adapter.flattened_inputs, strict=False).module()
    assert_right_on_other_images(adapter, exported)
    with pytest.raises((AssertionError, RuntimeError), match=r"size\(\)|shape"):
        exported(random_image(64, 80))


def test_export_of_masks_is_an_error_that_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = adapted(*MODELS["masks"])
    monkeypatch.setattr(roi_heads, "is_exporting", lambda: True)
    with pytest.raises(ValueError, match="set MODEL.MASK_ON to False, or use torch.jit.trace"):
        adapter(*adapter.flattened_inputs)


@pytest.mark.filterwarnings("ignore")
def test_detectron2_counts_the_operations_of_a_model() -> None:
    inputs = [{"image": random_image(64, 64), "classes": NAMES}]
    model = tiny_model(*COARSE_LEVELS)
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
