from glipv2_d2.modeling.heads.grounding_rpn import GroundingRPN
from glipv2_d2.modeling.heads.region_word import RegionWordScore

__all__ = ["GroundingRPN", "RegionWordScore"]
