"""Detectron2's two-stage detectors with text embeddings in place of a fixed classifier."""

from glipv2_d2.modeling.two_stage.box_predictor import RegionWordOutputLayers
from glipv2_d2.modeling.two_stage.closed_set_predictor import ClosedSetOutputLayers
from glipv2_d2.modeling.two_stage.closed_set_roi_heads import (
    ClosedSetCascadeROIHeads,
    ClosedSetROIHeads,
)
from glipv2_d2.modeling.two_stage.meta_arch import OpenVocabularyRCNN
from glipv2_d2.modeling.two_stage.roi_heads import (
    OpenVocabularyCascadeROIHeads,
    OpenVocabularyROIHeads,
)

__all__ = [
    "ClosedSetCascadeROIHeads",
    "ClosedSetOutputLayers",
    "ClosedSetROIHeads",
    "OpenVocabularyCascadeROIHeads",
    "OpenVocabularyRCNN",
    "OpenVocabularyROIHeads",
    "RegionWordOutputLayers",
]
