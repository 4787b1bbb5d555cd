"""The model. Importing it registers its parts with Detectron2."""

from glipv2_d2.modeling import backbone, fusion, heads, language, two_stage
from glipv2_d2.modeling.meta_arch import GLIPv2

__all__ = ["GLIPv2", "backbone", "fusion", "heads", "language", "two_stage"]
