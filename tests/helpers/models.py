"""A GLIPv2 of a few thousand parameters, with BERT's vocabulary and random weights."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from glipv2_d2 import add_glipv2_config, get_config
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.text import resolve_model

OPTIMIZER_KEYS = (
    *("OPTIMIZER", "BASE_LR", "BIAS_LR_FACTOR", "CLIP_GRADIENTS"),
    *("WEIGHT_DECAY", "WEIGHT_DECAY_BIAS", "WEIGHT_DECAY_NORM"),
)

# Those of the text encoder are in its files.
TINY_SIZES = (
    *("MODEL.SWIN.EMBED_DIM", 8, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1]),
    *("MODEL.SWIN.NUM_HEADS", [1, 2, 2, 4], "MODEL.SWIN.WINDOW_SIZE", 4),
    *("MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.FUSED_HEAD.NUM_BLOCKS", 1, "MODEL.FUSED_HEAD.GROUP_NORM_GROUPS", 4),
    *("MODEL.FUSED_HEAD.FUSION_DIM", 16, "MODEL.FUSED_HEAD.FUSION_HEADS", 2),
    *("MODEL.FUSED_HEAD.LANGUAGE_HEADS", 2, "MODEL.FUSED_HEAD.LANGUAGE_FFN_DIM", 32),
)

# torch.export takes a third of the time with the levels p5 to p7 only.
COARSE_LEVELS = (
    *("MODEL.FPN.IN_FEATURES", ["p3"]),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128]]),
)


@functools.cache
def tiny_bert_directory() -> str:
    """A BERT of width 16 without weights, with bert-base-uncased's tokenizer."""
    directory = Path(tempfile.mkdtemp(prefix="tiny_bert_"))
    shutil.copytree(resolve_model("bert-base-uncased"), directory, dirs_exist_ok=True)
    path = directory / "config.json"
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | sizes))
    return str(directory)


def glip_cfg(*opts: Any) -> CfgNode:
    """GLIP-T's model and optimizer with Detectron2's schedule, data and precision, on the CPU.

    ``opts`` alternate between keys and values.
    """
    cfg = get_cfg()
    add_glipv2_config(cfg)
    glip = get_config("glip-t")
    cfg.MODEL = glip.MODEL
    cfg.MODEL.DEVICE = "cpu"
    # Limits of an image are set by the tests of them.
    cfg.TEST.DETECTIONS_PER_IMAGE = -1
    # Scores of random weights are low.
    cfg.TEST.DISPLAY_SCORE_THRESH = 0.0
    for key in OPTIMIZER_KEYS:
        cfg.SOLVER[key] = glip.SOLVER[key]
    cfg.merge_from_list(list(opts))
    return cfg


def tiny_cfg(*opts: Any) -> CfgNode:
    """A config of the tiny model, on the CPU; ``opts`` alternate between keys and values."""
    return glip_cfg(
        *TINY_SIZES,
        *("MODEL.LANGUAGE_BACKBONE.MODEL", tiny_bert_directory()),
        *("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96),
        *opts,
    )


def tiny_model(*opts: Any) -> GLIPv2:
    """The tiny model in evaluation mode; random weights from a fixed seed."""
    torch.manual_seed(0)
    return build_model(tiny_cfg(*opts)).eval()


def random_image(height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    """(3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def training_input(
    gt_boxes: list[list[float]], gt_classes: list[int], **fields: Any
) -> dict[str, Any]:
    """An input dict with ground truth in XYXY pixels of a random 64 x 64 image."""
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor(gt_boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(gt_classes, dtype=torch.int64)
    return {"image": random_image(), "instances": instances, **fields}
