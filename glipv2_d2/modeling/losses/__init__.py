"""Losses: grounding (L_intra), localization (L_loc), L_inter, L_mlm, masks and answers."""

from glipv2_d2.modeling.losses.answers import answer_loss
from glipv2_d2.modeling.losses.dense import grounding_losses
from glipv2_d2.modeling.losses.grounding import token_focal_loss, token_targets
from glipv2_d2.modeling.losses.inter_image import NamedVectors, inter_image_loss
from glipv2_d2.modeling.losses.language_modeling import token_prediction_loss
from glipv2_d2.modeling.losses.localization import box_loss, centerness_targets, giou_loss
from glipv2_d2.modeling.losses.mask import mask_loss

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
    "token_prediction_loss",
    "token_targets",
]
