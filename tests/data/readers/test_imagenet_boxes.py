"""ImageNet's Pascal VOC files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from helpers.published_entries import IMAGENET_XML

from glipv2_d2.data.readers.imagenet_boxes import class_of_synset, read_imagenet_boxes


def write(folder: Path, name: str, text: str) -> None:
    (folder / "n01440764").mkdir(exist_ok=True)
    (folder / "n01440764" / name).write_text(text)


def read(folder: Path, dataset_name: str) -> list[dict]:
    return list(read_imagenet_boxes(str(folder), "images", dataset_name))


def test_corners_from_1_become_boxes_in_pixels(tmp_path: Path, dataset_name: str) -> None:
    write(tmp_path, "n01440764_10026.xml", IMAGENET_XML.format(synset="n01440764", xmin=11))
    assert read(tmp_path, dataset_name) == [
        {
            "file_name": "images/n01440764/n01440764_10026.JPEG",
            "image_id": 0,
            "height": 375,
            "width": 500,
            "annotations": [
                {
                    "bbox": [10.0, 0.0, 190.0, 375.0],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": 0,
                }
            ],
        }
    ]
    assert MetadataCatalog.get(dataset_name).thing_classes[0] == "tench"


def test_names_are_the_first_of_a_synset_unless_another_synset_has_it() -> None:
    index_of, names = class_of_synset()
    assert len(index_of) == 1000 and len(set(names)) == len(names)
    # Two cranes, which have one name only.
    assert index_of["n02012849"] == index_of["n03126707"] == names.index("crane")
    assert {"cardigan", "Cardigan Welsh corgi"} <= set(names)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<annotation>", "annotation files were not readable"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + IMAGENET_XML, "annotation files were not readable"),
        (IMAGENET_XML.format(synset="n01440764", xmin="x"), "annotation files were not readable"),
        (IMAGENET_XML.format(synset="n99999999", xmin=1), "boxes had a synset"),
        (IMAGENET_XML.format(synset="n01440764", xmin=300), "boxes had no area"),
    ],
)
def test_a_broken_file_or_box_is_reported_and_the_others_are_read(
    tmp_path: Path, dataset_name: str, caplog: pytest.LogCaptureFixture, text: str, fault: str
) -> None:
    write(tmp_path, "a.xml", text)
    write(tmp_path, "b.xml", IMAGENET_XML.format(synset="n01440764", xmin=1))
    with caplog.at_level(logging.WARNING):
        records = read(tmp_path, dataset_name)
    assert [len(r["annotations"]) for r in records if r["file_name"].endswith("b.JPEG")] == [1]
    assert f"1 {fault}" in caplog.text
