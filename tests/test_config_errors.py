"""Errors that name an argument also name its config key if the class was built from a config."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from detectron2.config import CfgNode

from glipv2_d2.config import Configurable, configurable


class Head(Configurable):
    config_keys: ClassVar[dict[str, str]] = {"topk": "MODEL.HEAD.TOPK", "width": "MODEL.HEAD.WIDTH"}

    @configurable
    def __init__(self, *, topk: int, width: int = 1) -> None:
        if topk < 1:
            raise ValueError(f"topk is {topk}; it must be at least 1")
        self.topk = topk

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"topk": cfg.TOPK}


def test_a_class_built_from_a_config_names_the_key():
    with pytest.raises(
        ValueError, match=r"^topk is 0; it must be at least 1 \(config: MODEL.HEAD.TOPK\)$"
    ):
        Head(CfgNode({"TOPK": 0}))


def test_a_class_built_from_arguments_names_the_argument_only():
    with pytest.raises(ValueError, match=r"^topk is 0; it must be at least 1$"):
        Head(topk=0)


def test_arguments_override_the_config():
    assert Head(CfgNode({"TOPK": 0}), topk=3).topk == 3
