"""Losses: grounding (which words), localization (where), between images, and of masked words."""

from glipv2_d2.modeling.losses.dense import grounding_losses
from glipv2_d2.modeling.losses.grounding import token_focal_loss, token_targets
from glipv2_d2.modeling.losses.inter_image import NamedVectors, inter_image_loss
from glipv2_d2.modeling.losses.localization import box_loss, centerness_targets, giou_loss
from glipv2_d2.modeling.losses.masked_language import masked_language_loss

__all__ = [
    "NamedVectors",
    "box_loss",
    "centerness_targets",
    "giou_loss",
    "grounding_losses",
    "inter_image_loss",
    "masked_language_loss",
    "token_focal_loss",
    "token_targets",
]
