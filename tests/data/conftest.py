from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from helpers.tiny_coco import write_coco

from glipv2_d2.engine.setup import load_config
from glipv2_d2.text import Tokenizer


@pytest.fixture(autouse=True)
def _seed_numpy() -> None:
    np.random.seed(0)  # noqa: NPY002


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer("bert-base-uncased", 256)


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    """Register a function of records, or (annotations, images), until the end of the test."""
    names = []

    def register_dataset(name: str, source: object, **metadata: object) -> str:
        if callable(source):
            DatasetCatalog.register(name, source)
            MetadataCatalog.get(name).set(**metadata)
        else:
            register_coco_instances(name, metadata, *map(str, source))
        names.append(name)
        return name

    yield register_dataset
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def tiny_coco(tmp_path: Path, register: Callable[..., str]) -> str:
    return register("tiny_coco", write_coco(tmp_path / "tiny"))


@pytest.fixture
def cfg(tiny_coco: str) -> CfgNode:
    cfg = load_config().clone()
    cfg.defrost()
    cfg.SEED = 1
    cfg.DATASETS.TRAIN = (tiny_coco,)
    cfg.DATASETS.TEST = (tiny_coco,)
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 64)
    cfg.INPUT.MIN_SIZE_TEST = 32
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = 2
    return cfg
