"""COCO's format: bad entries are dropped and logged, the others are loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask

from glipv2_d2.data.coco_fields import parse_segmentation
from glipv2_d2.data.readers.coco import read_coco
from glipv2_d2.data.readers.objects365 import path_in_patch

Write = Callable[[str, Any], str]

POLYGON = [1.0, 1.0, 9.0, 1.0, 9.0, 9.0]


def content(*annotations: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": [{"id": 5, "file_name": "a.jpg", "height": 40, "width": 30}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, **a}
            for i, a in enumerate(annotations)
        ],
    }


def test_categories_are_ordered_by_id(write_json: Write, dataset_name: str) -> None:
    [record] = read_coco(write_json("a.json", content({})), "images", dataset_name)
    assert MetadataCatalog.get(dataset_name).thing_classes == ["cat", "dog"]
    assert record == {
        "file_name": "images/a.jpg",
        "image_id": 5,
        "height": 40,
        "width": 30,
        "annotations": [
            {
                "bbox": [1, 2, 3, 4],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 1,
                "iscrowd": 0,
            }
        ],
    }


@pytest.mark.parametrize("bad", [{"category_id": 99}, {"bbox": []}, {"bbox": [1, 2, None, 4]}])
def test_unusable_annotation_is_dropped_and_logged(
    bad: dict[str, Any],
    write_json: Write,
    dataset_name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write_json("a.json", content({}, bad))
    with caplog.at_level(logging.WARNING):
        [record] = read_coco(path, "images", dataset_name)
    assert len(record["annotations"]) == 1
    assert "1 annotations had" in caplog.text
    assert f"annotation 1 of image 5 ('a.jpg') in {path!r}" in caplog.text


def test_ignored_annotation_is_a_crowd(write_json: Write, dataset_name: str) -> None:
    path = write_json("a.json", content({"ignore": 1}, {"iscrowd": 1}))
    [record] = read_coco(path, "images", dataset_name)
    assert [a["iscrowd"] for a in record["annotations"]] == [1, 1]


def test_box_with_an_invalid_polygon_is_kept_without_mask(
    write_json: Write, dataset_name: str
) -> None:
    path = write_json("a.json", content({"segmentation": [[1, 2, 3, 4]]}))
    [record] = read_coco(path, "images", dataset_name)
    assert "segmentation" not in record["annotations"][0]


def test_polygons_of_three_points_are_kept() -> None:
    assert parse_segmentation([POLYGON, POLYGON[:4]], (40, 30)) == ([POLYGON], 1)


def test_an_uncompressed_rle_is_compressed() -> None:
    rle, _ = parse_segmentation({"size": [2, 3], "counts": [1, 3, 2]}, (2, 3))
    assert coco_mask.decode(rle).T.reshape(-1).tolist() == [0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("wrong", [[], {"images": []}, {"images": [], "annotations": []}])
def test_other_format_raises(wrong: Any, write_json: Write, dataset_name: str) -> None:
    path = write_json("wrong.json", wrong)
    with pytest.raises(ValueError, match="wrong.json"):
        read_coco(path, "images", dataset_name)


def test_objects365_images_are_in_patch_folders() -> None:
    assert path_in_patch("train", "images/v2/patch16/b.jpg") == "train/patch16/b.jpg"
