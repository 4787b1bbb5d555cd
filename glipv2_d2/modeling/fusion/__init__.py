from glipv2_d2.modeling.fusion.build import FUSED_HEAD_REGISTRY, build_fused_head
from glipv2_d2.modeling.fusion.fused_head import DynamicHead, FusedDynamicHead

__all__ = ["FUSED_HEAD_REGISTRY", "DynamicHead", "FusedDynamicHead", "build_fused_head"]
