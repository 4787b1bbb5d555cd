from glipv2_d2.modeling.backbone.auto_backbone import build_auto_fpn_backbone
from glipv2_d2.modeling.backbone.fpn import GroundingFPN, build_grounding_fpn
from glipv2_d2.modeling.backbone.swin import Swin, build_swin_fpn_backbone
from glipv2_d2.modeling.backbone.timm_backbone import TimmBackbone, build_timm_fpn_backbone

__all__ = [
    "GroundingFPN",
    "Swin",
    "TimmBackbone",
    "build_auto_fpn_backbone",
    "build_grounding_fpn",
    "build_swin_fpn_backbone",
    "build_timm_fpn_backbone",
]
