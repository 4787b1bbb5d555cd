"""Any AutoBackbone of transformers, with FPN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from glipv2_d2.modeling.backbone.fpn import GroundingFPN, build_grounding_fpn

# Side of the image that strides are measured with: its features have whole sizes up to stride 64.
_PROBE_SIZE = 256


class TransformersBackbone(Backbone):
    """A backbone of transformers; its features keep their names, such as "stage2"."""

    def __init__(self, *, model: nn.Module, in_channels: int = 3) -> None:
        """
        Args:
            model: from transformers' AutoBackbone; ``model.out_features`` names its features,
                finest first.
            in_channels: channels of the image.
        """
        super().__init__()
        self.model = model
        description: Any = model
        self._out_features = list(description.out_features)
        self._out_feature_channels = dict(
            zip(self._out_features, description.channels, strict=True)
        )
        self._out_feature_strides = _measure_strides(model, self._out_features, in_channels)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {name: (N, C, H / stride, W / stride)}."""
        feature_maps = self.model(image).feature_maps
        return dict(zip(self._out_features, feature_maps, strict=True))


def _measure_strides(model: nn.Module, names: Sequence[str], in_channels: int) -> dict[str, int]:
    """A model tells its channels but not its strides: look at the features of an empty image."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, in_channels, _PROBE_SIZE, _PROBE_SIZE)).feature_maps
    model.train(was_training)
    strides = {
        name: _PROBE_SIZE // features.shape[-1] for name, features in zip(names, maps, strict=True)
    }
    if any(not math.log2(stride).is_integer() for stride in strides.values()):
        raise ValueError(
            f"{type(model).__name__} has features of strides {strides}; an FPN needs powers of 2: "
            "choose a hierarchical model or other MODEL.AUTO_BACKBONE.OUT_FEATURES"
        )
    return strides


@BACKBONE_REGISTRY.register()
def build_auto_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GroundingFPN:
    """Build the model of ``cfg.MODEL.AUTO_BACKBONE`` with the FPN of ``cfg.MODEL.FPN``.

    ``cfg.MODEL.FPN.IN_FEATURES`` names features of ``cfg.MODEL.AUTO_BACKBONE.OUT_FEATURES``.
    """
    spec = cfg.MODEL.AUTO_BACKBONE
    model = build_auto_backbone(
        name=spec.NAME, pretrained=spec.PRETRAINED, out_features=spec.OUT_FEATURES
    )
    if cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING:
        checkpoint_activations(model)
    bottom_up = TransformersBackbone(model=model, in_channels=input_shape.channels)
    return build_grounding_fpn(cfg, bottom_up)


def checkpoint_activations(model: Any) -> None:
    """Let transformers recompute a model's layers in the backward pass.

    Raises:
        ValueError: transformers cannot do it for this model.
    """
    if not model.supports_gradient_checkpointing:
        raise ValueError(
            f"MODEL.BACKBONE.ACTIVATION_CHECKPOINTING: transformers {transformers.__version__} "
            f"has none for {type(model).__name__}; set it to False"
        )
    # The second name is that of older versions.
    for method in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if hasattr(model, method):
            getattr(model, method)({"use_reentrant": False})
            return


def build_auto_backbone(*, name: str, pretrained: bool, out_features: Sequence[str]) -> nn.Module:
    """Build a backbone of transformers.

    Args:
        name: a local directory or a hub name.
        pretrained: load the weights found there; else only its config.json is read.
        out_features: names of the features to give, finest first.

    Raises:
        ValueError: nothing usable is there, or it has no such features.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no model of transformers at MODEL.AUTO_BACKBONE.NAME {name!r}: {error}. Give a local "
            "directory with config.json, or a name that the Hugging Face hub can be asked for "
            "from this machine"
        ) from error
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f"MODEL.AUTO_BACKBONE.NAME {name!r} is a {config.model_type}, of which transformers "
            f"{transformers.__version__} makes no backbone; choose a model that AutoBackbone knows"
        )
    unknown = [feature for feature in out_features if feature not in config.stage_names]
    if unknown:
        raise ValueError(
            f"MODEL.AUTO_BACKBONE.OUT_FEATURES {unknown}: {name!r} has the features "
            f"{list(config.stage_names)}"
        )
    config.out_features = list(out_features)
    if not pretrained:
        return AutoBackbone.from_config(config)
    # AutoBackbone.from_pretrained asks the hub even about a local directory; the class does not.
    model_class: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    try:
        return model_class.from_pretrained(name, config=config)
    except OSError as error:
        raise ValueError(
            f"no weights at MODEL.AUTO_BACKBONE.NAME {name!r}: {error}. Set "
            "MODEL.AUTO_BACKBONE.PRETRAINED to False to start from random ones"
        ) from error
