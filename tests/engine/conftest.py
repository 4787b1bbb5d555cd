from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from helpers.stand_in import configure
from helpers.tiny_coco import write_coco

from glipv2_d2.engine.setup import load_config


@pytest.fixture
def tiny_coco(tmp_path: Path) -> Iterator[str]:
    register_coco_instances("engine_coco", {}, *map(str, write_coco(tmp_path / "tiny")))
    yield "engine_coco"
    DatasetCatalog.remove("engine_coco")
    MetadataCatalog.remove("engine_coco")


@pytest.fixture
def cfg(tiny_coco: str, tmp_path: Path) -> CfgNode:
    cfg = load_config().clone()
    cfg.defrost()
    configure(cfg, tiny_coco, str(tmp_path / "output"))
    return cfg
