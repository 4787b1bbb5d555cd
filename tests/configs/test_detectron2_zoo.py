"""After add_glipv2_config, a config of Detectron2's model zoo builds what Detectron2 builds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from helpers.no_memory import parameters_without_memory
from torch import nn

from glipv2_d2 import add_glipv2_config, load_config
from glipv2_d2.engine.train import param_groups

ZOO = {
    "Mask R-CNN": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "RetinaNet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "Cascade Mask R-CNN": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "Panoptic FPN": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "Mask R-CNN C4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
}


SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
]


@pytest.fixture(scope="module", params=ZOO)
def name(request: pytest.FixtureRequest) -> str:
    return ZOO[request.param]


@pytest.fixture(scope="module")
def expected_cfg(name: str) -> CfgNode:
    return without_device(model_zoo.get_config(name))


@pytest.fixture(scope="module")
def cfg(name: str) -> CfgNode:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(name))
    return without_device(cfg)


@pytest.fixture(scope="module")
def expected_model(expected_cfg: CfgNode) -> nn.Module:
    return build(expected_cfg)


@pytest.fixture(scope="module")
def model(cfg: CfgNode) -> nn.Module:
    return build(cfg)


def without_device(cfg: CfgNode) -> CfgNode:
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.WEIGHTS = ""
    return cfg


def build(cfg: CfgNode) -> nn.Module:
    with parameters_without_memory():
        return build_model(cfg)


def flat(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def hyperparameters(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, ignored: str = ""
) -> dict[str, Any]:
    """The settings of every parameter that the optimizer updates."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: {k: v for k, v in group.items() if k not in ("params", ignored)}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_detectron2s_keys_have_the_values_of_the_zoo(
    cfg: CfgNode, expected_cfg: CfgNode, name: str
) -> None:
    expected, ours = dict(flat(expected_cfg)), dict(flat(cfg))
    assert {key: ours[key] for key in expected} == expected
    opts = ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""]
    loaded = dict(flat(load_config(model_zoo.get_config_file(name), opts)))
    assert {key: loaded[key] for key in ours} == ours


def test_the_model_is_the_same(model: nn.Module, expected_model: nn.Module) -> None:
    assert repr(model) == repr(expected_model)
    assert shapes(model) == shapes(expected_model)


@pytest.mark.parametrize("name", ["Mask R-CNN", "RetinaNet"], indirect=True)
def test_the_initial_weights_are_the_same(cfg: CfgNode, expected_cfg: CfgNode) -> None:
    states = []
    for zoo_cfg in (cfg, expected_cfg):
        small = zoo_cfg.clone()
        small.merge_from_list(SMALL)
        torch.manual_seed(0)
        states.append(build_model(small).state_dict())
    ours, expected = states
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], value) for key, value in expected.items())


@pytest.mark.parametrize("clip", [{}, {"ENABLED": True}, {"ENABLED": True, "CLIP_TYPE": "norm"}])
def test_detectron2s_optimizer_is_the_same(
    cfg: CfgNode,
    expected_cfg: CfgNode,
    model: nn.Module,
    expected_model: nn.Module,
    clip: dict[str, Any],
) -> None:
    opts = [item for key, value in clip.items() for item in (f"SOLVER.CLIP_GRADIENTS.{key}", value)]
    ours, expected = cfg.clone(), expected_cfg.clone()
    ours.merge_from_list(opts)
    expected.merge_from_list(opts)
    optimizer, theirs = build_optimizer(ours, model), build_optimizer(expected, expected_model)
    assert type(optimizer).__name__ == type(theirs).__name__
    assert optimizer.defaults == theirs.defaults
    assert hyperparameters(model, optimizer) == hyperparameters(expected_model, theirs)


def test_our_trainers_optimizer_has_the_same_settings(
    cfg: CfgNode, expected_cfg: CfgNode, model: nn.Module, expected_model: nn.Module
) -> None:
    optimizer = param_groups.build_optimizer(cfg, model)
    expected = build_optimizer(expected_cfg, expected_model)
    assert type(optimizer) is type(expected) is torch.optim.SGD
    # "foreach" selects an implementation of the same update.
    assert hyperparameters(model, optimizer, ignored="foreach") == hyperparameters(
        expected_model, expected, ignored="foreach"
    )
