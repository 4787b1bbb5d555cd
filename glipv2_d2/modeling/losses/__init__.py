"""Losses: grounding (which words) and localization (where)."""

from glipv2_d2.modeling.losses.dense import grounding_losses
from glipv2_d2.modeling.losses.grounding import token_focal_loss, token_targets
from glipv2_d2.modeling.losses.localization import box_loss, centerness_targets, giou_loss

__all__ = [
    "box_loss",
    "centerness_targets",
    "giou_loss",
    "grounding_losses",
    "token_focal_loss",
    "token_targets",
]
