"""The model parts. Importing it puts them into the registries."""

from glipv2_mini.modeling.core_phrase_backbone import CorePhraseLanguageBackbone
from glipv2_mini.modeling.evidence_backbone import EvidenceBackbone, build_evidence_backbone
from glipv2_mini.modeling.evidence_fused_head import EvidenceFusedHead
from glipv2_mini.modeling.evidence_roi_heads import EvidenceROIHeads
from glipv2_mini.modeling.evidence_rpn import EvidenceRPN
from glipv2_mini.modeling.evidence_score import EvidenceScore
from glipv2_mini.modeling.nanodet import NanoDet, build_nanodet_backbone
from glipv2_mini.modeling.pointer_answer import PointerAnswerHead
from glipv2_mini.modeling.pointer_caption import PointerCaptionHead
from glipv2_mini.modeling.region_encoder import RegionEncoder
from glipv2_mini.modeling.region_text_tasks import RegionTextTasks
from glipv2_mini.modeling.unfused_head import UnfusedHead

__all__ = [
    "CorePhraseLanguageBackbone",
    "EvidenceBackbone",
    "EvidenceFusedHead",
    "EvidenceROIHeads",
    "EvidenceRPN",
    "EvidenceScore",
    "NanoDet",
    "PointerAnswerHead",
    "PointerCaptionHead",
    "RegionEncoder",
    "RegionTextTasks",
    "UnfusedHead",
    "build_evidence_backbone",
    "build_nanodet_backbone",
]
