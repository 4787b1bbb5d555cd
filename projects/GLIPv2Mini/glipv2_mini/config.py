"""The config keys that the small model adds."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_mini_config(cfg: CfgNode) -> None:
    """Add the keys of the small model to ``cfg``, in place."""
    # Boxes that are cut out and shown to the ImageNet classifier, the most probable ones; 0: none,
    # which is several times as fast and knows fewer names. The second number is for training.
    cfg.MODEL.EVIDENCE = CfgNode()
    cfg.MODEL.EVIDENCE.NUM_CUTOUTS = 24
    cfg.MODEL.EVIDENCE.NUM_CUTOUTS_TRAIN = 6
    # On an x86 CPU the classifier computes in 8-bit integers, in about half the time; scores above
    # 0.3 change by 0.015 on average.
    cfg.MODEL.EVIDENCE.INT8_CLASSIFIER = True
    # Keep the weights of NanoDet as they are; else only those of its first stages, as many as
    # Detectron2's MODEL.BACKBONE.FREEZE_AT.
    cfg.MODEL.EVIDENCE.FREEZE_DETECTOR = True
    # Train box deltas, centerness and region-word products; else boxes are the evidence's.
    cfg.MODEL.EVIDENCE.LEARNS_BOXES = True
    # The file of tools/convert_nanodet.py, to train without MODEL.WEIGHTS; "": random weights.
    cfg.MODEL.EVIDENCE.DETECTOR_WEIGHTS = ""
    # Of MODEL.TEXT_TASKS.NAME RegionTextTasks: encodes image regions as tokens.
    cfg.MODEL.REGION_ENCODER = CfgNode()
    # The prompt that the maps of the regions are fused with, and the number of regions kept.
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
