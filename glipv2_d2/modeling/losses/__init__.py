"""Losses: grounding (which words), localization (where), between images, of words and answers."""

from glipv2_d2.modeling.losses.answers import answer_loss
from glipv2_d2.modeling.losses.dense import grounding_losses
from glipv2_d2.modeling.losses.grounding import token_focal_loss, token_targets
from glipv2_d2.modeling.losses.inter_image import NamedVectors, inter_image_loss
from glipv2_d2.modeling.losses.localization import box_loss, centerness_targets, giou_loss
from glipv2_d2.modeling.losses.mask import mask_loss
from glipv2_d2.modeling.losses.words import word_loss

__all__ = [
    "NamedVectors",
    "answer_loss",
    "box_loss",
    "centerness_targets",
    "giou_loss",
    "grounding_losses",
    "inter_image_loss",
    "mask_loss",
    "token_focal_loss",
    "token_targets",
    "word_loss",
]
