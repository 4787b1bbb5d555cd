from glipv2_d2.modeling.language.base import LanguageBackbone
from glipv2_d2.modeling.language.bert import BertLanguageBackbone
from glipv2_d2.modeling.language.build import LANGUAGE_BACKBONE_REGISTRY, build_language_backbone
from glipv2_d2.modeling.language.cache import LanguageCache
from glipv2_d2.modeling.language.clip import ClipLanguageBackbone
from glipv2_d2.modeling.language.phrase import PhraseLanguageBackbone

__all__ = [
    "LANGUAGE_BACKBONE_REGISTRY",
    "BertLanguageBackbone",
    "ClipLanguageBackbone",
    "LanguageBackbone",
    "LanguageCache",
    "PhraseLanguageBackbone",
    "build_language_backbone",
]
