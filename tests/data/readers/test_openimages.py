"""OpenImages' CSV files."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

from glipv2_d2.data.readers.openimages import read_openimages

COLUMNS = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
BOXES = f"""{COLUMNS}
aa,xclick,/m/2,1,0.1,0.5,0.25,0.75,0,0,0,0,0
aa,xclick,/m/1,1,0,1,0,1,0,0,1,0,0
aa,xclick,/m/9,1,0,1,0,1,0,0,0,0,0
bb,xclick,/m/1,1,0,1,0,1,0,0,0,0,0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "train" / "aa.jpg")
    (tmp_path / "train-annotations-bbox.csv").write_text(BOXES)
    (tmp_path / "names.csv").write_text('/m/1,Tree\n/m/2,"Cat, small"\n')
    return tmp_path


def read(folder: Path, dataset_name: str) -> list[dict]:
    boxes, names = folder / "train-annotations-bbox.csv", folder / "names.csv"
    return read_openimages(str(boxes), str(names), str(folder / "train"), dataset_name)


def test_relative_boxes_become_pixels(folder: Path, dataset_name: str) -> None:
    [record] = read(folder, dataset_name)
    assert MetadataCatalog.get(dataset_name).thing_classes == ["Tree", "Cat, small"]
    assert (record["height"], record["width"]) == (20, 40)
    assert [a["bbox"] for a in record["annotations"]] == [[4, 5, 20, 15], [0, 0, 40, 20]]
    assert [a["category_id"] for a in record["annotations"]] == [1, 0]


def test_group_is_a_crowd(folder: Path, dataset_name: str) -> None:
    [record] = read(folder, dataset_name)
    assert [a["iscrowd"] for a in record["annotations"]] == [0, 1]


def test_unknown_labels_and_missing_images_are_logged(
    folder: Path, dataset_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    read(folder, dataset_name)
    assert "/m/9" in caplog.text
    assert "bb" in caplog.text


def test_sizes_are_read_once(folder: Path, dataset_name: str) -> None:
    first = read(folder, dataset_name)
    (folder / "train" / "aa.jpg").unlink()
    assert read(folder, dataset_name) == first
