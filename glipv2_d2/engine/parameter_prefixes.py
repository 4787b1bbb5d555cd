"""Prefixes of GLIPv2's parameter names, by which the engine selects parts of the model."""

LANGUAGE_BACKBONE = "language_backbone."
IMAGE_BACKBONE = "backbone.bottom_up."
"""Below the FPN."""

FUSED_HEAD = "fused_head."

PREDICTION_LAYERS = (
    "proposal_generator.bbox_pred.",
    "proposal_generator.centerness.",
    "proposal_generator.region_word.",
)
"""The last layers of detection; the released code's list (glip_reference.md 17)."""

ROI_HEADS = "roi_heads."

TEXT_HEADS = ("text_tasks.",)
"""The heads that answer questions and generate captions."""
