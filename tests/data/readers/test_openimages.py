"""OpenImages' CSV files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from helpers.published_entries import OPENIMAGES_COLUMNS
from PIL import Image

from glipv2_d2.data.readers.openimages import (
    VerifiedLabels,
    absent_classes,
    read_descriptions,
    read_hierarchy,
    read_openimages,
    register_openimages,
)
from glipv2_d2.structures import fields

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


ROW_OF_6 = "000002b66c9c498e,xclick,/m/01g317,1,0.25,0.5,0.2,0.6,0,1,0,0,0,.1,.1,.1,.1,.1,.1,.1,.1"


def test_openimages_of_version_7_have_a_header_and_another_name(
    tmp_path: Path, dataset_name: str
) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "train" / "000002b66c9c498e.jpg")
    boxes = tmp_path / "oidv6-train-annotations-bbox.csv"
    boxes.write_text(f"{OPENIMAGES_COLUMNS}\n{ROW_OF_6}\n")
    names = tmp_path / "oidv7-class-descriptions-boxable.csv"
    names.write_text("LabelName,DisplayName\n/m/011k07,Tortoise\n/m/01g317,Person\n")
    [record] = read_openimages(str(boxes), str(names), str(tmp_path / "train"), dataset_name)
    assert MetadataCatalog.get(dataset_name).thing_classes == ["Tortoise", "Person"]
    assert record["annotations"] == [
        {"bbox": [10, 4, 20, 12], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 0}
    ]


def test_openimages_of_every_version_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    monkeypatch.setattr(
        "glipv2_d2.data.readers.openimages.register",
        lambda name, _, source_files, **__: found.update({name: source_files}),
    )
    folder = tmp_path / "openimages"
    folder.mkdir()
    (folder / "oidv6-train-annotations-bbox.csv").touch()
    (folder / "oidv7-class-descriptions-boxable.csv").touch()
    register_openimages(str(tmp_path))
    names = [Path(path).name for path in found["openimages_train"]]
    assert names[:2] == ["oidv6-train-annotations-bbox.csv", "oidv7-class-descriptions-boxable.csv"]
    names = [Path(path).name for path in found["openimages_validation"]]
    assert names[0] == "validation-annotations-bbox.csv"


def test_other_csv_files_are_refused_by_name(tmp_path: Path, dataset_name: str) -> None:
    (tmp_path / "boxes.csv").write_text("image,x\n1,2\n")
    (tmp_path / "names.csv").write_text("/m/1,Tree\n")
    with pytest.raises(ValueError, match=r"boxes\.csv.*LabelName"):
        read_openimages(str(tmp_path / "boxes.csv"), str(tmp_path / "names.csv"), "", dataset_name)
    (tmp_path / "names.csv").write_text("/m/1\n")
    with pytest.raises(ValueError, match=r"names\.csv"):
        read_descriptions(str(tmp_path / "names.csv"))


HIERARCHY = {
    "LabelName": "/m/0bl9f",
    "Subcategory": [
        {"LabelName": "/m/animal", "Subcategory": [{"LabelName": "/m/2"}, {"LabelName": "/m/dog"}]},
        {"LabelName": "/m/1", "Part": [{"LabelName": "/m/leaf"}]},
        {"LabelName": "/m/vehicle", "Subcategory": [{"LabelName": "/m/car"}]},
    ],
}
LABELS = """ImageID,Source,LabelName,Confidence
aa,verification,/m/vehicle,0
aa,verification,/m/animal,0
aa,verification,/m/dog,0
aa,crowdsource-verification,/m/leaf,1
bb,verification,/m/car,1
zz,verification,/m/car,0
"""
INDEX_OF = {
    label: i
    for i, label in enumerate(
        ("/m/1", "/m/2", "/m/animal", "/m/dog", "/m/vehicle", "/m/car", "/m/leaf")
    )
}


def verified_labels(folder: Path) -> VerifiedLabels:
    (folder / "labels.csv").write_text(LABELS)
    (folder / "hierarchy.json").write_text(json.dumps(HIERARCHY))
    return VerifiedLabels(str(folder / "labels.csv"), str(folder / "hierarchy.json"))


def test_absent_are_verified_classes_with_their_subclasses_without_present_ones(
    tmp_path: Path,
) -> None:
    """The cat has a box, so that it and the animal are present, whatever was verified."""
    boxed = {"aa": {"/m/1", "/m/2"}, "bb": {"/m/1"}}
    absent = absent_classes(verified_labels(tmp_path), boxed, INDEX_OF)
    names = {i: label for label, i in INDEX_OF.items()}
    assert [names[i] for i in absent["aa"]] == ["/m/dog", "/m/vehicle", "/m/car"]
    assert absent["bb"] == []


def test_records_have_their_absent_classes(folder: Path, dataset_name: str) -> None:
    boxes, names = folder / "train-annotations-bbox.csv", folder / "names.csv"
    names.write_text("/m/1,Tree\n/m/2,Cat\n/m/dog,Dog\n/m/car,Car\n")
    [record] = read_openimages(
        str(boxes), str(names), str(folder / "train"), dataset_name, verified_labels(folder)
    )
    assert record[fields.ABSENT_CLASSES] == [2, 3]


@pytest.mark.parametrize(
    "content", ["[]", '{"LabelName": 3}', '{"LabelName": "a", "Subcategory": [1]}']
)
def test_another_hierarchy_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "hierarchy.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="it should have LabelName and Subcategory"):
        read_hierarchy(str(path))
