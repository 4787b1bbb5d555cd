"""Backbones of transformers (AutoBackbone) with FPN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

from glipv2_d2.config import complete_config, with_config_keys
from glipv2_d2.modeling.backbone.fpn import GroundingFPN, build_grounding_fpn
from glipv2_d2.weight_files import require_state_dict

# Side of the image that strides are measured with; a multiple of all strides up to 256.
_PROBE_SIZE = 256

_CONFIG_KEYS = {
    "name": "MODEL.AUTO_BACKBONE.NAME",
    "pretrained": "MODEL.AUTO_BACKBONE.PRETRAINED",
    "out_features": "MODEL.AUTO_BACKBONE.OUT_FEATURES",
    "checkpointing": "MODEL.BACKBONE.ACTIVATION_CHECKPOINTING",
}


class TransformersBackbone(Backbone):
    """A backbone of transformers. Its features keep their names, such as "stage2"."""

    def __init__(self, *, model: nn.Module, in_channels: int = 3) -> None:
        """
        Args:
            model: from transformers' AutoBackbone; ``model.out_features`` lists the names of its
                features, finest first.
            in_channels: channels of the image.

        Raises:
            ValueError: a stride of the features is not a power of 2.
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
        """Compute features {name: (N, C, H / stride, W / stride)} of (N, 3, H, W) images."""
        feature_maps = self.model(image).feature_maps
        return dict(zip(self._out_features, feature_maps, strict=True))


def _measure_strides(model: nn.Module, names: Sequence[str], in_channels: int) -> dict[str, int]:
    """Measure strides on the features of an empty image; models do not provide them."""
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
            "choose a hierarchical model or other out_features"
        )
    return strides


@BACKBONE_REGISTRY.register()
def build_auto_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GroundingFPN:
    """Build the model of ``cfg.MODEL.AUTO_BACKBONE`` with the FPN of ``cfg.MODEL.FPN``.

    ``cfg.MODEL.FPN.IN_FEATURES`` are some of ``cfg.MODEL.AUTO_BACKBONE.OUT_FEATURES``.
    """
    cfg = complete_config(cfg)
    auto = cfg.MODEL.AUTO_BACKBONE
    try:
        model = build_auto_backbone(
            name=auto.NAME, pretrained=auto.PRETRAINED, out_features=auto.OUT_FEATURES
        )
        if cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING:
            checkpoint_activations(model)
        bottom_up = TransformersBackbone(model=model, in_channels=input_shape.channels)
    except ValueError as error:
        raise with_config_keys(error, _CONFIG_KEYS) from error
    return build_grounding_fpn(cfg, bottom_up)


def checkpoint_activations(model: Any) -> None:
    """Turn on activation checkpointing in a model of transformers.

    Raises:
        ValueError: the model does not support it.
    """
    if not model.supports_gradient_checkpointing:
        raise ValueError(
            f"transformers {transformers.__version__} does not support activation checkpointing "
            f"for {type(model).__name__}; turn it off"
        )
    # The second name is used by older versions.
    for method in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if hasattr(model, method):
            getattr(model, method)({"use_reentrant": False})
            return


def build_auto_backbone(*, name: str, pretrained: bool, out_features: Sequence[str]) -> nn.Module:
    """Build a backbone of transformers.

    Args:
        name: a local directory or a name on the Hugging Face hub.
        pretrained: load its weights; else only its config.json is loaded.
        out_features: names of the features to return, finest first.

    Raises:
        ValueError: the model cannot be loaded, is not a backbone or lacks one of the features.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"name {name!r} is not a model of transformers: {error}. Use a local directory with "
            "config.json, or a model of the Hugging Face hub if this machine can reach it"
        ) from error
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f"name {name!r} has the model type {config.model_type}, which AutoBackbone of "
            f"transformers {transformers.__version__} does not support"
        )
    unknown = [feature for feature in out_features if feature not in config.stage_names]
    if unknown:
        raise ValueError(
            f"out_features contains {unknown}, but {name!r} has the features "
            f"{list(config.stage_names)}"
        )
    config.out_features = list(out_features)
    if not pretrained:
        return AutoBackbone.from_config(config)
    # AutoBackbone.from_pretrained contacts the hub even for a local directory; the class does not.
    model_class: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    try:
        model = model_class.from_pretrained(name, config=config)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"name {name!r} has no weights: {error}. To start from random weights, set pretrained "
            "to False"
        ) from error
    require_state_dict(model.state_dict(), name, key="MODEL.AUTO_BACKBONE.NAME")
    return model
