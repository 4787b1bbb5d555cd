"""Keys of Detectron2's detectors that GLIPv2 has under other names."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode, get_cfg

logger = logging.getLogger(__name__)

# Detectron2's key -> the key that has its effect.
_READ_INSTEAD = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "MODEL.GROUNDING.SCORE_THRESH",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "MODEL.GROUNDING.SCORE_THRESH",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "MODEL.GROUNDING.NMS_THRESH",
    "MODEL.RETINANET.NMS_THRESH_TEST": "MODEL.GROUNDING.NMS_THRESH",
}


def warn_of_unread_keys(cfg: CfgNode) -> None:
    """Log one warning if keys that GLIPv2 does not read are set, with those that it reads."""
    defaults = get_cfg()
    changed = [
        f"{key} is {value}: set {other}"
        for key, other in _READ_INSTEAD.items()
        if (value := _value(cfg, key)) != _value(defaults, key)
    ]
    if changed:
        logger.warning(
            "%s %s (thresholds apply to a label's score before centerness)",
            f"{cfg.MODEL.META_ARCHITECTURE} does not read these keys:",
            "; ".join(changed),
        )


def _value(cfg: CfgNode, key: str) -> object:
    node: object = cfg
    for part in key.split("."):
        node = getattr(node, part)
    return node
