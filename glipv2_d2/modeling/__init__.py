"""The model. Importing it registers its parts with Detectron2."""

from glipv2_d2.modeling import backbone, fusion, heads, language, two_stage
from glipv2_d2.modeling.meta_arch import GLIPv2
from glipv2_d2.modeling.open_vocabulary_retinanet import OpenVocabularyRetinaNet

__all__ = [
    "GLIPv2",
    "OpenVocabularyRetinaNet",
    "backbone",
    "fusion",
    "heads",
    "language",
    "two_stage",
]
