from glipv2_d2.modeling.heads.grounding_rpn import GroundingRPN
from glipv2_d2.modeling.heads.mask_heads import HourglassMaskHead
from glipv2_d2.modeling.heads.region_word_score import CosineScore, DotProductScore
from glipv2_d2.modeling.heads.roi_heads import GroundingROIHeads

__all__ = [
    "CosineScore",
    "DotProductScore",
    "GroundingROIHeads",
    "GroundingRPN",
    "HourglassMaskHead",
]
