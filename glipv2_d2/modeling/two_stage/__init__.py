"""Detectron2's two-stage detectors with words in place of their table of classes."""

from glipv2_d2.modeling.two_stage.box_predictor import RegionWordOutputLayers
from glipv2_d2.modeling.two_stage.meta_arch import OpenVocabularyRCNN
from glipv2_d2.modeling.two_stage.roi_heads import (
    OpenVocabularyCascadeROIHeads,
    OpenVocabularyROIHeads,
)

__all__ = [
    "OpenVocabularyCascadeROIHeads",
    "OpenVocabularyRCNN",
    "OpenVocabularyROIHeads",
    "RegionWordOutputLayers",
]
