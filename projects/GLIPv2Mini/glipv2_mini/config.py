"""The config keys that the small model adds."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_mini_config(cfg: CfgNode) -> None:
    """Add the keys of the small model to ``cfg``, in place."""
    # Of MODEL.TEXT_TASKS.NAME RegionTextTasks: encodes image regions as tokens. A name in
    # REGION_ENCODER_REGISTRY: RegionEncoder or ClassifierRegionEncoder.
    cfg.MODEL.REGION_ENCODER = CfgNode()
    cfg.MODEL.REGION_ENCODER.NAME = "RegionEncoder"
    # The prompt that detects objects of unknown class, and the number of regions kept.
    cfg.MODEL.REGION_ENCODER.PROMPT = "an object"
    cfg.MODEL.REGION_ENCODER.NUM_REGIONS = 16
    # A file of class names, one per line, or "package:NAME/PATH". Regions are scored against these
    # names, and their tokens include the mean embedding of the names. "": no names.
    cfg.MODEL.REGION_ENCODER.NAMES_FILE = ""
    # IoU above which the lower-scoring of two regions is suppressed.
    cfg.MODEL.REGION_ENCODER.NMS_THRESH = 0.5
    cfg.MODEL.REGION_ENCODER.NUM_LAYERS = 2
    cfg.MODEL.REGION_ENCODER.HEADS = 12
    cfg.MODEL.REGION_ENCODER.FFN_DIM = 768
    cfg.MODEL.REGION_ENCODER.DROPOUT = 0.1
