"""Subsets of registered datasets."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.tiny_coco import write_coco

from glipv2_d2.data.readers.coco import register_coco
from glipv2_d2.data.registration import register_first


@pytest.fixture
def registered(tmp_path: Path):
    json_file, images = write_coco(tmp_path / "tiny")
    register_coco("first_of", str(json_file), str(images))
    register_first("first_of", 2)
    yield "first_of"
    for name in ("first_of", "first_of_2"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_first_images_are_a_dataset_with_the_same_class_names(registered: str) -> None:
    records = DatasetCatalog.get(registered)
    assert DatasetCatalog.get("first_of_2") == records[:2] != records
    metadata = MetadataCatalog.get("first_of_2")
    assert metadata.thing_classes == MetadataCatalog.get(registered).thing_classes
    assert metadata.evaluator_type == "coco"


def test_subset_has_no_annotation_file(registered: str) -> None:
    assert not hasattr(MetadataCatalog.get(f"{registered}_2"), "json_file")
