"""Drawn scenes in Detectron2's catalogs, and configs of the tiny model that train on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from helpers.models import tiny_cfg
from helpers.pipelines import TRAIN, VAL, for_two_steps
from helpers.two_stage import two_stage_cfg

from glipv2_d2.data.drawn import base_cutouts, write_drawn


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two drawn datasets with the same class names, registered as a tutorial of Detectron2 does."""
    root = tmp_path_factory.mktemp("drawn")
    for seed, name in enumerate((TRAIN, VAL)):
        file = write_drawn(
            root, split=name, num_images=3, size=64, seed=seed, load_cutouts=base_cutouts
        )
        register_coco_instances(name, {}, str(file), str(root / name))
    yield root
    for name in (TRAIN, VAL):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg(drawn: Path, tmp_path: Path) -> CfgNode:
    del drawn
    return for_two_steps(tiny_cfg(), tmp_path / "output")


@pytest.fixture
def two_stage(drawn: Path, tmp_path: Path) -> CfgNode:
    del drawn
    return for_two_steps(two_stage_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 20), tmp_path / "output")


@pytest.fixture
def registered() -> Iterator[Callable[..., str]]:
    """Registers records under a name, with metadata, for one test."""
    names: list[str] = []

    def register(name: str, records: list[dict[str, Any]], **metadata: Any) -> str:
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
