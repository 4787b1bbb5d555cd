"""The number formats that a config may ask for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from detectron2.config import CfgNode

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def inference_precision(cfg: CfgNode) -> AbstractContextManager[object]:
    """The context in which a model of ``TEST.PRECISION`` is asked.

    Raises:
        ValueError: there is no such precision.
    """
    name = cfg.TEST.PRECISION
    if name == "fp32":
        return nullcontext()
    if name not in PRECISIONS:
        raise ValueError(f"TEST.PRECISION is {name!r}; use one of {['fp32', *PRECISIONS]}")
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, dtype=PRECISIONS[name])
