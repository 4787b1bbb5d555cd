"""LVIS minival, the subset on which zero-shot results are reported."""

from __future__ import annotations

import json
from pathlib import Path

import prepare_lvis_minival
import pytest
from detectron2.data import MetadataCatalog


def test_minival_has_the_images_of_coco_val2017(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://images.cocodataset.org/{}/1.jpg"
    val = {
        "images": [
            {"id": 1, "coco_url": url.format("val2017")},
            {"id": 2, "coco_url": url.format("train2017")},
        ],
        "annotations": [{"id": 1, "image_id": 1}, {"id": 2, "image_id": 2}],
        "categories": [{"id": 1, "name": "aerosol_can"}],
    }
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "lvis").mkdir()
    (tmp_path / "lvis" / "lvis_v1_val.json").write_text(json.dumps(val))
    prepare_lvis_minival.main([])
    minival = json.loads((tmp_path / "lvis" / "lvis_v1_minival.json").read_text())
    assert [image["id"] for image in minival["images"]] == [1]
    assert [annotation["id"] for annotation in minival["annotations"]] == [1]
    assert minival["categories"] == val["categories"]


def test_minival_uses_the_lvis_evaluator() -> None:
    metadata = MetadataCatalog.get("lvis_v1_minival")
    assert metadata.evaluator_type == "lvis"
    assert len(metadata.thing_classes) == 1203
