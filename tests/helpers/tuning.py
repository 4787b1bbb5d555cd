"""The tiny model, fine-tuned for a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.masks import ELL, masked_input
from helpers.models import random_image, tiny_cfg
from torch import Tensor, nn

from glipv2_d2.engine.finetune.tuning import apply_tuning
from glipv2_d2.engine.train.param_groups import build_optimizer

CLASSES = ["cat", "traffic light"]


def tuned_cfg(base: str, policy: str, *opts: Any) -> CfgNode:
    """The tiny model's config with a policy.

    Args:
        base: the file of the base's weights.
    """
    return tiny_cfg("MODEL.WEIGHTS", base, "MODEL.TUNING.NAME", policy, *opts)


def build_tuned_model(cfg: CfgNode) -> nn.Module:
    model = build_model(cfg)
    apply_tuning(cfg, model)
    return model


def detection_inputs() -> list[dict[str, Any]]:
    return [masked_input([ELL], [1], classes=CLASSES)]


def train_steps(
    cfg: CfgNode, model: nn.Module, inputs: Sequence[dict[str, Any]], count: int = 3
) -> None:
    torch.manual_seed(0)
    optimizer = build_optimizer(cfg, model)
    model.train()
    for _ in range(count):
        losses = model(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()


def changed_tensors(
    cfg: CfgNode, inputs: Sequence[dict[str, Any]] | None = None
) -> tuple[set[str], set[str]]:
    """Names of the tensors that training changes, and of all tensors.

    Args:
        inputs: of every training step; None: :func:`detection_inputs`.
    """
    model = build_tuned_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_steps(cfg, model, detection_inputs() if inputs is None else inputs)
    after = model.state_dict()
    return {name for name in after if not torch.equal(after[name], before[name])}, set(after)


def detections(model: nn.Module) -> list[Tensor]:
    """Boxes and scores on one image."""
    with torch.no_grad():
        (output,) = model.eval()([{"image": random_image(), "classes": CLASSES}])
    instances = output["instances"]
    return [instances.pred_boxes.tensor, instances.scores]
