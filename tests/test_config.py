"""The keys that this project adds to Detectron2's configuration, and the named configs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg

import glipv2_d2
from glipv2_d2.config import NAMED_CONFIGS, add_glipv2_config, get_config
from glipv2_d2.engine.setup import load_config

PACKAGE = Path(glipv2_d2.__file__).parent
CONFIGS = PACKAGE.parent / "configs"


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


def value_of(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.fixture(scope="module")
def attributes() -> set[str]:
    """Every attribute name that the package loads, config.py aside."""
    return {
        node.attr
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "config.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.mark.parametrize("key", added_keys())
def test_every_added_key_is_used(key: str, attributes: set[str]) -> None:
    assert set(key.split(".")) <= attributes


def test_keys_of_detectron2_keep_their_values() -> None:
    theirs, ours = get_cfg(), get_cfg()
    add_glipv2_config(ours)
    assert {k: value_of(ours, k) for k in walk(theirs)} == {
        k: value_of(theirs, k) for k in walk(theirs)
    }


def test_new_groups_of_keys_are_a_decision() -> None:
    groups = {key.rpartition(".")[0] for key in added_keys()}
    assert groups == {
        "",  # WRITERS
        "DATALOADER",
        "DATALOADER.PROMPT",
        "DATASETS",
        "INPUT",
        "INPUT.LARGE_SCALE_JITTER",
        "MODEL.ANSWER",
        "MODEL.AUTO_BACKBONE",
        "MODEL.BACKBONE",
        "MODEL.CAPTION",
        "MODEL.CLOSED_SET",
        "MODEL.FPN",
        "MODEL.FUSED_HEAD",
        "MODEL.GROUNDING",
        "MODEL.INTER_IMAGE",
        "MODEL.LANGUAGE_BACKBONE",
        "MODEL.MLM",
        "MODEL.PROMPT",
        "MODEL.ROI_MASK_HEAD",
        "MODEL.SWIN",
        "MODEL.TEXT_TASKS",
        "MODEL.TIMM",
        "MODEL.TUNING",
        "MODEL.TUNING.LORA",
        "MODEL.TUNING.PROMPT",
        "SOLVER",
        "SOLVER.AMP",
        "TEST",
    }


@pytest.mark.parametrize(("name", "file"), NAMED_CONFIGS.items())
def test_a_named_config_is_that_of_its_file(name: str, file: str) -> None:
    cfg = get_config(name)
    assert not cfg.is_frozen()
    cfg.MODEL.DEVICE = "cpu"
    assert cfg == load_config(CONFIGS / file, ["MODEL.DEVICE", "cpu"])


def test_an_unknown_name_lists_the_nearest_or_all() -> None:
    with pytest.raises(ValueError, match=r"'glip-xl'; did you mean glip-l or .*glip-t\?"):
        get_config("glip-xl")
    with pytest.raises(ValueError, match=r"'yolo'; .*'glip-l', 'glip-t', .*'glipv2-t'"):
        get_config("yolo")


def test_an_installed_package_uses_its_own_configs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a wheel configs/ is inside the package."""
    file = tmp_path / "configs" / NAMED_CONFIGS["glip-t"]
    file.parent.mkdir(parents=True)
    file.write_text("SEED: 7\n")
    monkeypatch.setattr("glipv2_d2.config.__file__", str(tmp_path / "config.py"))
    assert get_config("glip-t").SEED == 7
