from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.engine.setup import load_config

Records = list[dict[str, Any]]
NAME = "evaluated_here"


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    """Not frozen."""
    cfg = load_config(opts=["OUTPUT_DIR", str(tmp_path / "output")]).clone()
    cfg.defrost()
    return cfg


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    """Registers records and metadata, returns the dataset name, and removes it afterwards."""

    def put(records: Records, **metadata: Any) -> str:
        if NAME in DatasetCatalog:
            DatasetCatalog.remove(NAME)
            MetadataCatalog.remove(NAME)
        DatasetCatalog.register(NAME, lambda: records)
        MetadataCatalog.get(NAME).set(**metadata)
        return NAME

    yield put
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME, None)
