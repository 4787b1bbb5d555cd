"""The keys that this project adds to Detectron2's configuration."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

import glipv2_d2
from glipv2_d2.config import add_glipv2_config

PACKAGE = Path(glipv2_d2.__file__).parent


def added_keys() -> list[str]:
    """``A.B.C`` of every value that Detectron2 does not have."""
    cfg = get_cfg()
    theirs = set(walk(cfg))
    add_glipv2_config(cfg)
    return sorted(set(walk(cfg)) - theirs)


def walk(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.fixture(scope="module")
def attributes() -> set[str]:
    """Every name that the package reads behind a dot, config.py aside."""
    return {
        node.attr
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "config.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.parametrize("key", added_keys())
def test_every_added_key_is_read(key: str, attributes: set[str]) -> None:
    assert set(key.split(".")) <= attributes


def test_new_groups_of_keys_are_a_decision() -> None:
    groups = {key.rpartition(".")[0] for key in added_keys()}
    assert groups == {
        "DATALOADER",
        "DATALOADER.PROMPT",
        "DATASETS",
        "INPUT",
        "MODEL.ANSWER",
        "MODEL.AUTO_BACKBONE",
        "MODEL.BACKBONE",
        "MODEL.CAPTION",
        "MODEL.FPN",
        "MODEL.FUSED_HEAD",
        "MODEL.GROUNDING",
        "MODEL.INTER_IMAGE",
        "MODEL.LANGUAGE_BACKBONE",
        "MODEL.MLM",
        "MODEL.PROMPT",
        "MODEL.REGION_READER",
        "MODEL.ROI_MASK_HEAD",
        "MODEL.SWIN",
        "MODEL.TIMM",
        "MODEL.TUNING",
        "MODEL.TUNING.LORA",
        "MODEL.TUNING.PROMPT",
        "SOLVER",
        "SOLVER.AMP",
        "TEST",
    }
