"""Folders as Roboflow, CVAT and Label Studio export them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glipv2_d2.engine.finetune.dataset_folder import open_dataset_folder


def write(annotations: Path, images: Path, count: int, prefix: str = "") -> None:
    """COCO's format with one box per image."""
    for folder in (annotations.parent, images):
        folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i}.jpg" for i in range(count)]
    for name in names:
        (images / name).write_bytes(b"")
    size = {"height": 9, "width": 9}
    box = {"category_id": 1, "bbox": [1, 1, 5, 5]}
    content = {
        "images": [{"id": i, "file_name": prefix + n, **size} for i, n in enumerate(names)],
        "annotations": [{"id": i + 1, "image_id": i, **box} for i in range(count)],
        "categories": [{"id": 1, "name": "fish"}],
    }
    annotations.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("annotations", "images", "prefix"),
    [
        ("annotations/instances_default.json", "images/default", ""),  # CVAT
        ("annotations/instances_default.json", "images", ""),
        ("result.json", "images", "images/"),  # Label Studio
    ],
)
def test_a_file_without_splits_is_divided(
    tmp_path: Path, annotations: str, images: str, prefix: str
) -> None:
    write(tmp_path / annotations, tmp_path / images, 20, prefix)
    folder = open_dataset_folder(tmp_path)
    train, valid = (
        {i["file_name"] for i in x.coco["images"]} for x in (folder.train, folder.valid)
    )
    assert len(train | valid) == 20 and not train & valid
    assert 1 <= len(valid) <= 8
    assert f"{len(valid)} of its 20 images" in folder.notes[0]
    for split in (folder.train, folder.valid):
        assert len(split.coco["annotations"]) == len(split.coco["images"])
        assert (split.images / split.coco["images"][0]["file_name"]).is_file()


def test_the_division_stays_when_images_are_added(tmp_path: Path) -> None:
    divisions = []
    for count in (20, 25):
        write(tmp_path / "result.json", tmp_path / "images", count, "images/")
        valid = open_dataset_folder(tmp_path).valid.coco["images"]
        divisions.append({i["file_name"] for i in valid if i["id"] < 20})
    assert divisions[0] == divisions[1]


def test_two_images_are_divided_and_one_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "result.json", tmp_path / "images", 2, "images/")
    folder = open_dataset_folder(tmp_path)
    assert [len(x.coco["images"]) for x in (folder.train, folder.valid)] == [1, 1]
    write(tmp_path / "result.json", tmp_path / "images", 1, "images/")
    with pytest.raises(ValueError, match="at least two"):
        open_dataset_folder(tmp_path)


def test_the_splits_of_cvat_are_found(tmp_path: Path) -> None:
    for split in ("Train", "Validation"):
        write(tmp_path / f"annotations/instances_{split}.json", tmp_path / "images" / split, 2)
    folder = open_dataset_folder(tmp_path)
    assert folder.valid.images == tmp_path / "images" / "Validation"


def test_a_file_or_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
        open_dataset_folder(tmp_path / "nowhere")
    (tmp_path / "data.yaml").write_text("")
    with pytest.raises(FileNotFoundError, match="pass the folder that has it"):
        open_dataset_folder(tmp_path / "data.yaml")
