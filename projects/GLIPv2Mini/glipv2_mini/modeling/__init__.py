"""The model parts. Importing it puts them into the registries."""

from glipv2_mini.modeling.classifier_backbone import (
    ClassifierBackbone,
    build_timm_classifier_fpn_backbone,
)
from glipv2_mini.modeling.classifier_fused_head import (
    ClassifierFusedDynamicHead,
    ClassifierFusedHead,
    PositionalClassifierFusedHead,
)
from glipv2_mini.modeling.classifier_score import ClassifierScore
from glipv2_mini.modeling.image_fused_head import ImageFusedDynamicHead
from glipv2_mini.modeling.nanodet import NanoDet, build_nanodet_backbone
from glipv2_mini.modeling.pointer_answer import PointerAnswerHead
from glipv2_mini.modeling.pointer_caption import PointerCaptionHead
from glipv2_mini.modeling.region_encoder import ClassifierRegionEncoder, RegionEncoder
from glipv2_mini.modeling.region_text_tasks import RegionTextTasks
from glipv2_mini.modeling.relational_rpn import RelationalGroundingRPN

__all__ = [
    "ClassifierBackbone",
    "ClassifierFusedDynamicHead",
    "ClassifierFusedHead",
    "ClassifierRegionEncoder",
    "ClassifierScore",
    "ImageFusedDynamicHead",
    "NanoDet",
    "PointerAnswerHead",
    "PointerCaptionHead",
    "PositionalClassifierFusedHead",
    "RegionEncoder",
    "RegionTextTasks",
    "RelationalGroundingRPN",
    "build_nanodet_backbone",
    "build_timm_classifier_fpn_backbone",
]
