from glipv2_d2.modeling.fusion.base import FusedHead
from glipv2_d2.modeling.fusion.build import FUSED_HEAD_REGISTRY, build_fused_head
from glipv2_d2.modeling.fusion.fused_head import (
    ClipFusedDynamicHead,
    DynamicHead,
    FusedDynamicHead,
)

__all__ = [
    "FUSED_HEAD_REGISTRY",
    "ClipFusedDynamicHead",
    "DynamicHead",
    "FusedDynamicHead",
    "FusedHead",
    "build_fused_head",
]
