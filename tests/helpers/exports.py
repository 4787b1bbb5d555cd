"""Predictors of tiny models for exports."""

from __future__ import annotations

import torch
from helpers.models import COARSE_LEVELS, tiny_cfg

from glipv2_d2 import Predictor

SIZE = (64, 96)
OPTS = (
    *(*COARSE_LEVELS, "MODEL.GROUNDING.SCORE_THRESH", 0.01, "MODEL.PROMPT.MAX_CLASSES", 2),
    *("TEST.DETECTIONS_PER_IMAGE", 12, "MODEL.GROUNDING.PRE_NMS_TOPK", 9),
    *("MODEL.GROUNDING.NMS_THRESH", 0.8),
)


def tiny_predictor(*opts: object) -> Predictor:
    """Of random weights, of which the box deltas are not zero."""
    torch.manual_seed(0)
    predictor = Predictor(tiny_cfg(*OPTS, *opts), device="cpu")
    torch.nn.init.normal_(predictor.model.proposal_generator.bbox_pred.weight)
    return predictor
