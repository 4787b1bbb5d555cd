"""Finding the splits of dataset folders in common COCO layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glipv2_d2.engine.finetune.coco_folder import open_coco_folder

FISH = {"id": 1, "name": "fish", "supercategory": "creatures"}


def write_split(annotations: Path, images: Path, categories: list[dict[str, Any]] | None = None):
    for folder in (annotations.parent, images):
        folder.mkdir(parents=True, exist_ok=True)
    coco = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 9, "width": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
        "categories": categories or [FISH],
    }
    annotations.write_text(json.dumps(coco))
    (images / "1.jpg").write_bytes(b"")


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("{valid}/_annotations.coco.json", "{valid}"),  # Roboflow
        ("annotations/instances_{val}2017.json", "{val}2017"),  # COCO
        ("annotations/instances_{val}2017.json", "images/{val}2017"),
        ("annotations/{val}.json", "images/{val}"),
        ("annotations/instances_{val}.json", "images"),
        ("{val}.json", "{val}"),
        ("{valid}/labels.json", "{valid}/images"),
        ("{valid}/annotations_without_background.json", "{valid}"),  # ODinW
        ("{val}_annotations_without_background.json", "."),
    ],
)
def test_splits_of_each_supported_layout_are_found(
    tmp_path: Path, annotations: str, images: str
) -> None:
    for names in ({"val": "train", "valid": "train"}, {"val": "val", "valid": "valid"}):
        write_split(tmp_path / annotations.format(**names), tmp_path / images.format(**names))
    folder = open_coco_folder(tmp_path)
    names = {"val": "val", "valid": "valid"}
    assert folder.valid.annotations == tmp_path / annotations.format(**names)
    assert folder.valid.images == tmp_path / images.format(**names)
    assert folder.test is None


@pytest.mark.parametrize("own", ["annotations_without_background.json", "labels.json"])
def test_files_of_few_shot_splits_are_not_taken_for_the_split(tmp_path: Path, own: str) -> None:
    for split in ("train", "valid"):
        for name in (own, "fewshot_train_shot1_seed3.json", "fewshot_train_shot1_seed30.json"):
            write_split(tmp_path / split / name, tmp_path / split)
    write_split(tmp_path / "train/_annotations.coco.json", tmp_path / "train")
    folder = open_coco_folder(tmp_path)
    expected = "_annotations.coco.json" if own == "labels.json" else own
    assert folder.train.annotations.name == expected
    assert folder.valid.annotations.name == own


def roboflow(root: Path, **categories: list[dict[str, Any]]) -> Path:
    for split in ("train", "valid", "test"):
        path = root / split / "_annotations.coco.json"
        write_split(path, root / split, categories.get(split))
    return root


def test_an_optional_test_split_is_found(tmp_path: Path) -> None:
    assert open_coco_folder(roboflow(tmp_path)).test is not None


def test_group_categories_are_removed(tmp_path: Path) -> None:
    group = {"id": 0, "name": "creatures", "supercategory": "none"}
    splits = {split: [group, FISH] for split in ("train", "valid", "test")}
    assert open_coco_folder(roboflow(tmp_path, **splits)).train.class_names == ["fish"]


def test_the_error_for_a_missing_split_lists_the_searched_paths(tmp_path: Path) -> None:
    write_split(tmp_path / "train/_annotations.coco.json", tmp_path / "train")
    with pytest.raises(FileNotFoundError) as caught:
        open_coco_folder(tmp_path)
    for pattern in ("'valid'", "val/_annotations.coco.json", "annotations/instances_val.json"):
        assert pattern in str(caught.value)


def test_the_error_for_missing_images_lists_the_searched_folders(tmp_path: Path) -> None:
    (roboflow(tmp_path) / "train/1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"(?s)'1\.jpg'.*images/train"):
        open_coco_folder(tmp_path)


def test_splits_with_different_classes_are_an_error(tmp_path: Path) -> None:
    other = [{"id": 1, "name": "bird", "supercategory": "creatures"}]
    with pytest.raises(ValueError, match=r"(?s)bird.*fish"):
        open_coco_folder(roboflow(tmp_path, valid=other))


def test_two_annotation_files_for_one_split_are_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_split(tmp_path / f"train/{name}.json", tmp_path / "train")
    with pytest.raises(ValueError, match=r"a\.json.*b\.json"):
        open_coco_folder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}'])
def test_a_file_in_another_format_is_an_error(tmp_path: Path, text: str) -> None:
    (roboflow(tmp_path) / "train/_annotations.coco.json").write_text(text)
    with pytest.raises(ValueError, match=r"train/_annotations\.coco\.json"):
        open_coco_folder(tmp_path)
