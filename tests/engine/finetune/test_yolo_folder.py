"""YOLO's folders, as ultralytics and Roboflow write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from glipv2_d2.engine.finetune.dataset_folder import open_dataset_folder
from glipv2_d2.engine.finetune.splits import DatasetFolder

BOX = "1 0.5 0.5 0.5 0.25"


def write_image(path: Path, label: str | None = BOX) -> None:
    """20 pixels wide and 40 high, with its label file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 40)).save(path)
    if label is not None:
        file = Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(label)


def write(
    root: Path, yaml: str = "names: [cat, dog]", layout: str = "images/{}", label: str | None = BOX
) -> Path:
    root.mkdir(exist_ok=True)
    (root / "data.yaml").write_text(yaml)
    for split in ("train", "val"):
        write_image(root / layout.format(split) / "1.jpg", label if split == "train" else BOX)
    return root


def boxes(folder: DatasetFolder) -> list[list[float]]:
    return [a["bbox"] for a in folder.train.coco["annotations"]]


@pytest.mark.parametrize(
    ("yaml", "layout"),
    [
        ("names: [cat, dog]", "images/{}"),
        ("names: {0: cat, 1: dog}\ntrain: images/train\nval: images/val", "images/{}"),
        ("names: [cat, dog]\ntrain: ../train/images\nval: ../val/images", "{}/images"),
        ("path: /nowhere\nnames: [cat, dog]\ntrain: train/images\nval: val/images", "{}/images"),
        ("path: part\nnames: [cat, dog]\ntrain: [images/train]\nval: images/val", "part/images/{}"),
    ],
)
def test_layouts_and_paths_are_resolved(tmp_path: Path, yaml: str, layout: str) -> None:
    folder = open_dataset_folder(write(tmp_path / "my", yaml, layout))
    assert folder.train.class_names == ["cat", "dog"]
    assert boxes(folder) == [[5, 15, 10, 10]]
    (image,) = folder.train.coco["images"]
    assert (folder.train.images / image["file_name"]).is_file()
    assert (image["width"], image["height"]) == (20, 40)


def test_lists_of_images_are_read(tmp_path: Path) -> None:
    root = write(tmp_path / "my", "names: [cat, dog]\ntrain: train.txt\nval: images/val")
    (root / "train.txt").write_text("./images/train/1.jpg\n\n")
    assert boxes(open_dataset_folder(root)) == [[5, 15, 10, 10]]


def test_polygons_become_boxes_and_masks(tmp_path: Path) -> None:
    root = write(tmp_path / "my", label="0 0.1 0.5 0.6 0.25 0.5 0.75")
    (annotation,) = open_dataset_folder(root).train.coco["annotations"]
    assert annotation["bbox"] == pytest.approx([2, 10, 10, 20])
    assert annotation["segmentation"] == [pytest.approx([2, 20, 12, 10, 10, 30])]
    assert annotation["category_id"] == 1


def test_keypoints_are_left_out(tmp_path: Path) -> None:
    yaml = "names: [cat, dog]\nkpt_shape: [1, 2]"
    root = write(tmp_path / "my", yaml, label=f"{BOX} 0.1 0.2")
    assert boxes(open_dataset_folder(root)) == [[5, 15, 10, 10]]


def test_an_image_without_a_label_file_has_no_boxes_and_is_counted(tmp_path: Path) -> None:
    root = write(tmp_path / "my")
    write_image(root / "images/train/2.jpg", label=None)
    write_image(root / "images/train/3.jpg", label="")
    folder = open_dataset_folder(root)
    assert len(folder.train.coco["images"]) == 3
    assert folder.notes[0].startswith("1 images had no label file")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 cat 0.1 0.1", "no number"),
        ("0 0.5 0.5 0.1", "has 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "has 6 numbers"),
        ("0 12 30 5 5", "outside 0 to 1"),
        ("0 0.5 0.5 0 0.1", "without area"),
        ("0.5 0.5 0.5 0.1 0.1", "class id"),
        ("0 0.5 0.5 nan 0.1", "not finite"),
        ("0 0.5 0.5 inf 0.1", "not finite"),
    ],
)
def test_broken_lines_are_named_and_the_others_kept(tmp_path: Path, line: str, reason: str) -> None:
    folder = open_dataset_folder(write(tmp_path / "my", label=f"{BOX}\n\n{line}\n"))
    assert boxes(folder) == [[5, 15, 10, 10]]
    assert "line 3 of" in folder.notes[0] and reason in folder.notes[0]


@pytest.mark.parametrize("class_id", [2, -1, 10**9])
def test_a_class_id_without_a_name_is_an_error(tmp_path: Path, class_id: int) -> None:
    root = write(tmp_path / "my", label=f"{class_id} 0.5 0.5 0.5 0.25")
    with pytest.raises(ValueError, match=rf"line 1 .*1\.txt.* class id {class_id}, but .* 0 to 1"):
        open_dataset_folder(root)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/train", "has no class names"),
        ("names: []", "has no class names"),
        ("names: cat", "has no class names"),
        ("names: {1: cat, 2: dog}", "class ids from 0"),
        ("names: {cat: 0}", "class ids from 0"),
        ("names: [cat, '']", "should be text"),
        ("names: [cat, [dog]]", "should be text"),
        ("[cat]", "must be a mapping"),
        ("names: !!python/object/apply:os.getcwd []", "not plain YAML"),
        ("names: [cat", "not plain YAML"),
    ],
)
def test_an_invalid_data_yaml_is_named(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset_folder(write(tmp_path / "my", yaml))


def test_searched_folders_of_missing_images_are_listed(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: pictures")
    with pytest.raises(FileNotFoundError, match=r"'train'") as caught:
        open_dataset_folder(tmp_path)
    assert str(tmp_path / "pictures") in str(caught.value)
    assert str(tmp_path / "train/images") in str(caught.value)


def test_without_validation_images_those_for_training_are_divided(tmp_path: Path) -> None:
    root = write(tmp_path / "my")
    (root / "images/val/1.jpg").unlink()
    for number in range(2, 11):
        write_image(root / f"images/train/{number}.jpg")
    folder = open_dataset_folder(root)
    train, valid = (
        {i["file_name"] for i in x.coco["images"]} for x in (folder.train, folder.valid)
    )
    assert train and valid and not train & valid and len(train | valid) == 10
    assert "names no images for validation" in folder.notes[0]
