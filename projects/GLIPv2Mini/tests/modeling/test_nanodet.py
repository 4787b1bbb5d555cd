from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_backbone
from mini_models import mini_cfg
from torch import Tensor

from glipv2_d2.checkpoint import read_checkpoint, save_state
from glipv2_mini.modeling.nanodet import (
    NUM_CLASSES,
    PIXEL_MEAN,
    PIXEL_STD,
    NanoDet,
    NanoDetLevel,
    boxes_of,
    predict_level,
)

PROJECT = Path(__file__).parents[2]
# The part of a model's checkpoint that has the weights of NanoDet-g.
NANODET_WEIGHTS = "backbone.detector."
SHIPPED = Path(__file__).parents[2] / "glipv2_mini" / "assets" / "glipv2_mini.pth"
# A drawn stop sign and the levels of an independent implementation in float32 with the published
# weights: all of p4 and p5, and of p3 every fourth row and column.
REFERENCE = PROJECT / "tests" / "assets" / "nanodet_reference.npz"
P3_LOCATIONS = (..., slice(2, None, 4), slice(3, None, 4))


def make_backbone(frozen: bool = True) -> NanoDet:
    torch.manual_seed(0)
    return NanoDet(frozen=frozen)


def load_nanodet(path: Path) -> NanoDet:
    """The backbone with the weights of a model's checkpoint."""
    backbone = NanoDet()
    backbone.load_state_dict(
        {
            name.removeprefix(NANODET_WEIGHTS): value
            for name, value in read_checkpoint(path)["model"].items()
            if name.startswith(NANODET_WEIGHTS)
        }
    )
    return backbone


def reference_input() -> Tensor:
    """(1, 3, 64, 96), the reference's image, normalised."""
    with np.load(REFERENCE) as reference:
        image = torch.from_numpy(reference["image"])
    normalized = (image - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    return normalized.permute(2, 0, 1)[None]


def assert_equals_prototype(backbone: NanoDet) -> None:
    """Compare the levels of the reference's image with those of the independent implementation."""
    levels = backbone(reference_input())
    levels["p3"] = levels["p3"][P3_LOCATIONS]
    with np.load(REFERENCE) as reference:
        for name, level in levels.items():
            ours = NanoDetLevel.split(level)
            expected = NanoDetLevel.split(torch.from_numpy(reference[name])[None])
            for part, atol in (("features", 1e-4), ("class_probs", 1e-5), ("distances", 1e-3)):
                torch.testing.assert_close(
                    getattr(ours, part),
                    getattr(expected, part),
                    atol=atol,
                    rtol=0,
                    msg=lambda text, where=f"{name} {part}": f"{where}: {text}",
                )


def test_a_model_checkpoint_gives_the_backbone_its_weights(tmp_path: Path) -> None:
    backbone = make_backbone()
    weights = {NANODET_WEIGHTS + name: value for name, value in backbone.state_dict().items()}
    save_state({**weights, "fused_head.bias": torch.zeros(1)}, tmp_path / "model.pth")
    image = torch.randn(1, 3, 32, 32)
    loaded = load_nanodet(tmp_path / "model.pth")(image)
    torch.testing.assert_close(loaded, backbone(image), atol=0, rtol=0)


def test_random_weights_differ_from_the_reference() -> None:
    with pytest.raises(AssertionError, match="p3 features"):
        assert_equals_prototype(make_backbone())


def test_the_reference_is_confident_in_the_stop_sign() -> None:
    with np.load(REFERENCE) as reference:
        level = NanoDetLevel.split(torch.from_numpy(reference["p3"])[None])
    names = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    best = level.class_probs.amax(dim=(0, 2, 3)).argmax()
    assert names[best] == "stop sign"
    assert level.class_probs.max() > 0.5


def test_it_has_the_parameters_of_nanodet_g() -> None:
    backbone = make_backbone()
    assert sum(p.numel() for p in backbone.parameters()) == 3_786_068


def test_output_shape_matches_the_levels() -> None:
    backbone = make_backbone()
    levels = backbone(torch.randn(2, 3, 64, 96))
    shapes = backbone.output_shape()
    assert list(levels) == list(shapes) == ["p3", "p4", "p5"]
    assert [shape.stride for shape in shapes.values()] == [8, 16, 32]
    for name, shape in shapes.items():
        size = (64 // shape.stride, 96 // shape.stride)
        assert levels[name].shape == (2, shape.channels, *size) == (2, 128 + 80 + 4, *size)
    assert backbone.size_divisibility == 32


def test_the_parts_of_a_level_are_in_order() -> None:
    channels = torch.arange(128.0 + 80 + 4)[None, :, None, None].expand(2, -1, 3, 5)
    level = NanoDetLevel.split(channels)
    assert level.features.shape == (2, 128, 3, 5)
    assert level.class_probs[1, :, 2, 4].tolist() == list(range(128, 208))
    assert level.distances[0, :, 0, 0].tolist() == [208, 209, 210, 211]


def test_class_probabilities_and_distances_are_in_range() -> None:
    levels = make_backbone()(torch.randn(1, 3, 64, 64) * 3)
    for name, stride in (("p3", 8), ("p4", 16), ("p5", 32)):
        level = NanoDetLevel.split(levels[name])
        assert level.class_probs.min() > 0 and level.class_probs.max() < 1
        assert level.distances.min() > 0 and level.distances.max() < 10 * stride


def test_a_distance_is_the_expectation_over_the_bins() -> None:
    predictor = torch.nn.Conv2d(128, NUM_CLASSES + 4 * 11, 1)
    torch.nn.init.zeros_(predictor.weight)
    logits = torch.full((4, 11), -1e4)
    logits[0, 3] = 0.0  # Left: 3 strides.
    logits[1, [2, 5]] = 0.0  # Top: 2 or 5 strides with equal probability.
    logits[2] = 0.0  # Right: uniform.
    logits[3, 9], logits[3, 10] = 0.0, torch.tensor(3.0).log()  # Bottom: 9 or 10, 1 to 3.
    with torch.no_grad():
        predictor.bias.copy_(torch.cat([torch.zeros(NUM_CLASSES), logits.flatten()]))
        level = NanoDetLevel.split(predict_level(torch.zeros(1, 128, 1, 1), predictor, 16))
    assert level.distances.flatten().tolist() == pytest.approx([48.0, 56.0, 80.0, 156.0])
    assert level.class_probs.unique().tolist() == [0.5]


def test_boxes_extend_from_the_centre_of_their_location() -> None:
    distances = torch.zeros(2, 4, 3, 4)
    distances[1, :, 2, 1] = torch.tensor([5.0, 6.0, 7.0, 8.0])
    boxes = boxes_of(distances, stride=16)
    assert boxes.shape == (2, 3 * 4, 4)
    # The centre of x = 1, y = 2 is (24, 40).
    assert boxes[1, 2 * 4 + 1].tolist() == [19.0, 34.0, 31.0, 48.0]
    assert boxes[0, 3].tolist() == [56.0, 8.0, 56.0, 8.0]


def test_an_image_of_a_batch_has_the_levels_that_it_has_alone() -> None:
    backbone = make_backbone()
    images = torch.randn(3, 3, 64, 96)
    batch = backbone(images)
    alone = backbone(images[1:2])
    for name, level in alone.items():
        torch.testing.assert_close(batch[name][1:2], level)


def test_the_backbone_is_frozen_by_default() -> None:
    model = torch.nn.Sequential(make_backbone()).train()
    assert not any(module.training for module in model[0].modules())
    assert not any(p.requires_grad for p in model.parameters())
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    assert not any(level.requires_grad for level in model(image).values())


def test_an_unfrozen_backbone_receives_gradients_in_every_weight() -> None:
    backbone = make_backbone(frozen=False).train()
    assert backbone.training
    levels = backbone(torch.randn(1, 3, 64, 64))
    sum(level.sum() for level in levels.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in backbone.parameters())


def test_the_first_stages_of_an_unfrozen_backbone_are_those_that_detectron2_freezes() -> None:
    opts = ("MODEL.EVIDENCE.FREEZE_DETECTOR", False, "MODEL.BACKBONE.FREEZE_AT", 2)
    backbone = build_backbone(nanodet_cfg(*opts))
    frozen = {name.split(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad}
    first_block = all(not p.requires_grad for p in backbone.blocks[0].parameters())
    others = all(p.requires_grad for block in backbone.blocks[1:] for p in block.parameters())
    assert (frozen, first_block, others) == ({"stem", "blocks"}, True, True)


@pytest.mark.parametrize("stages", [-1, 6])
def test_stages_that_do_not_exist_are_an_error_with_the_key(stages: int) -> None:
    opts = ("MODEL.EVIDENCE.FREEZE_DETECTOR", False, "MODEL.BACKBONE.FREEZE_AT", stages)
    with pytest.raises(ValueError, match=rf"FREEZE_AT is {stages}, but NanoDet has stages 1 to 5"):
        build_backbone(nanodet_cfg(*opts))


def test_predictions_of_a_half_precision_network_are_float32() -> None:
    levels = make_backbone().to(torch.bfloat16)(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16))
    assert {level.dtype for level in levels.values()} == {torch.float32}


def nanodet_cfg(*opts: object):
    return mini_cfg(
        *("MODEL.BACKBONE.NAME", "build_nanodet_backbone", "INPUT.FORMAT", "BGR"),
        *("MODEL.PIXEL_MEAN", list(PIXEL_MEAN), "MODEL.PIXEL_STD", list(PIXEL_STD), *opts),
    )


def test_the_backbone_is_built_by_its_name() -> None:
    backbone = build_backbone(nanodet_cfg())
    assert isinstance(backbone, NanoDet)
    assert backbone.frozen


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.FORMAT", "RGB"),
        ("MODEL.PIXEL_MEAN", [127.0, 127.0, 127.0]),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
    ],
)
def test_another_normalisation_raises(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key} is .*build_nanodet_backbone needs"):
        build_backbone(nanodet_cfg(key, value))


def test_the_shipped_trunk_equals_the_prototype() -> None:
    assert_equals_prototype(load_nanodet(SHIPPED))
