from glipv2_d2.modeling.heads.comparing_rpn import ComparingGroundingRPN
from glipv2_d2.modeling.heads.grounding_rpn import GroundingRPN
from glipv2_d2.modeling.heads.mask_heads import HourglassMaskHead
from glipv2_d2.modeling.heads.naming import NamingCaptionHead
from glipv2_d2.modeling.heads.pointing import PointingAnswerHead
from glipv2_d2.modeling.heads.region_word import DotProductScore
from glipv2_d2.modeling.heads.roi_heads import GroundingROIHeads

__all__ = [
    "ComparingGroundingRPN",
    "DotProductScore",
    "GroundingROIHeads",
    "GroundingRPN",
    "HourglassMaskHead",
    "NamingCaptionHead",
    "PointingAnswerHead",
]
