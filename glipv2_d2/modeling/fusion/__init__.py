from glipv2_d2.modeling.fusion.build import FUSED_HEAD_REGISTRY, build_fused_head
from glipv2_d2.modeling.fusion.classifier_head import (
    ClassifierFusedDynamicHead,
    ClassifierFusedHead,
)
from glipv2_d2.modeling.fusion.fused_head import DynamicHead, FusedDynamicHead

__all__ = [
    "FUSED_HEAD_REGISTRY",
    "ClassifierFusedDynamicHead",
    "ClassifierFusedHead",
    "DynamicHead",
    "FusedDynamicHead",
    "build_fused_head",
]
