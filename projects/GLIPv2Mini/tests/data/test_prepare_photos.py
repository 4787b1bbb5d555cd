"""Preparation of the dev photos, with two drawn photos in place of the packages' ones."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import prepare_photos
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image
from qt_files import qt_resource_file

from glipv2_d2.data.build import build_train_loader
from glipv2_d2.engine.setup import load_config
from glipv2_d2.projects import load_projects

PLAIN, IN_RESOURCES = "photos:street.png", "photos:animals.rcc:images/cow.png"


def png(color: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


STREET, COW = png("gray", (60, 40)), png("brown", (50, 50))
ANNOTATIONS = {
    "packages": {"photos": {"apt": "photos", "made_with": "1.2-3", "prefix": "usr/share/"}},
    "coco80": {"car": "car", "cow": "cow"},
    "also_true": {"van": ["car", "vehicle"]},
    "photos": [
        {
            "name": "street",
            "source": PLAIN,
            "sha256": hashlib.sha256(STREET).hexdigest()[:16],
            "caption": "two vans in a street with people",
            "boxes": [["van", [0, 10, 20, 30]], ["van", [30, 10, 60, 40]]],
            "crowd": [["person", [0, 0, 60, 10]]],
            "phrases": {"person": "people"},
            "questions": [["what is parked?", "van|car"]],
            "referring": [["the van on the right", 1]],
            "unsure": ["cow", "tree"],
        },
        {
            "name": "cow",
            "source": IN_RESOURCES,
            "sha256": hashlib.sha256(COW).hexdigest()[:16],
            "caption": "a scowl",
            "boxes": [["cow", [5, 5, 45, 45]], ["car", [0, 0, 5, 5]]],
            "questions": [],
        },
    ],
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of the package "photos", which a test may change."""
    annotations = tmp_path / "photos_dev.json"
    annotations.write_text(json.dumps(ANNOTATIONS))
    files = {
        "usr/share/street.png": STREET,
        "usr/share/animals.rcc": qt_resource_file({"cow.png": COW}),
    }
    monkeypatch.setattr(prepare_photos, "ANNOTATIONS", annotations)
    monkeypatch.setattr(prepare_photos, "find_package", lambda directory, name: directory / name)
    monkeypatch.setattr(
        prepare_photos,
        "read_package",
        lambda file, paths: {path: files[path] for path in paths if path in files},
    )
    return files


def prepare(output: Path) -> dict:
    prepare_photos.main(["--output", str(output)])
    return json.loads((output / "annotations.json").read_text())


def test_photos_of_packages_and_resource_files_are_written(
    package: dict[str, bytes], tmp_path: Path
) -> None:
    coco = prepare(tmp_path / "out")
    for entry, size in zip(coco["images"], [(60, 40), (50, 50)], strict=True):
        with Image.open(tmp_path / "out" / "images" / entry["file_name"]) as image:
            assert image.format == "JPEG"
            assert image.size == (entry["width"], entry["height"]) == size


def test_boxes_and_crowds_are_in_cocos_form(package: dict[str, bytes], tmp_path: Path) -> None:
    coco = prepare(tmp_path / "out")
    assert coco["categories"] == [
        {"id": 1, "name": "car", "coco80": "car"},
        {"id": 2, "name": "cow", "coco80": "cow"},
        {"id": 3, "name": "person"},
        {"id": 4, "name": "van"},
    ]
    annotations = coco["annotations"]
    assert [a["id"] for a in annotations] == [1, 2, 3, 4, 5]
    assert [a["image_id"] for a in annotations] == [1, 1, 1, 2, 2]
    assert [a["category_id"] for a in annotations] == [4, 4, 3, 2, 1]
    assert [a["iscrowd"] for a in annotations] == [0, 0, 1, 0, 0]
    assert annotations[1]["bbox"] == [30, 10, 30, 30]
    assert annotations[1]["area"] == 900


def test_objects_have_their_mentions_in_the_caption(
    package: dict[str, bytes], tmp_path: Path
) -> None:
    coco = prepare(tmp_path / "out")
    captions = {image["id"]: image["caption"] for image in coco["images"]}
    mentions = [
        [captions[a["image_id"]][slice(*span)] for span in a["tokens_positive"]]
        for a in coco["annotations"]
    ]
    assert mentions == [["vans"], ["vans"], ["people"], [], []]


def test_implied_and_uncertain_names_are_not_exhaustive_and_the_others_absent(
    package: dict[str, bytes], tmp_path: Path
) -> None:
    street, cow = prepare(tmp_path / "out")["images"]
    # A van is a car, and the street may have a cow; trees and vehicles are not names of the set.
    assert (street["not_exhaustive_category_ids"], street["neg_category_ids"]) == ([1, 2], [])
    assert (cow["not_exhaustive_category_ids"], cow["neg_category_ids"]) == ([], [3, 4])


def test_questions_have_ten_answers_and_phrases_their_box(
    package: dict[str, bytes], tmp_path: Path
) -> None:
    street, cow = prepare(tmp_path / "out")["images"]
    assert street["questions"] == [{"question": "what is parked?", "answers": ["van", "car"] * 5}]
    assert street["referring"] == [
        {"phrase": "the van on the right", "bbox": [30, 10, 30, 30], "annotation_id": 2}
    ]
    assert cow["questions"] == cow["referring"] == []


def test_questions_are_also_in_vqav2s_files(package: dict[str, bytes], tmp_path: Path) -> None:
    prepare(tmp_path / "out")
    questions, answers = (
        json.loads((tmp_path / "out" / f"annotations_{name}.json").read_text())
        for name in ("questions", "answers")
    )
    ids = {"question_id": 1, "image_id": 1}
    assert questions == {"questions": [{**ids, "question": "what is parked?"}]}
    (annotation,) = answers["annotations"]
    assert annotation | ids == annotation
    assert (annotation["answer_type"], annotation["multiple_choice_answer"]) == ("other", "van")
    assert [answer["answer"] for answer in annotation["answers"]] == ["van", "car"] * 5


@pytest.mark.parametrize(
    ("file", "content", "refused"),
    [
        ("usr/share/street.png", png("white", (60, 40)), r"photos: street \(changed\)\. .*1\.2-3"),
        ("usr/share/street.png", None, r"photos: street \(missing\)"),
        ("usr/share/animals.rcc", qt_resource_file({"cow.png": STREET}), r"cow \(changed\)"),
        ("usr/share/animals.rcc", qt_resource_file({"cow.png": COW})[:-1], "Qt resource file"),
    ],
)
def test_a_changed_photo_is_refused(
    package: dict[str, bytes], tmp_path: Path, file: str, content: bytes | None, refused: str
) -> None:
    if content is None:
        del package[file]
    else:
        package[file] = content
    with pytest.raises(SystemExit, match=refused):
        prepare(tmp_path / "out")
    assert not (tmp_path / "out" / "annotations.json").exists()


def test_the_annotations_are_complete() -> None:
    source = json.loads(prepare_photos.ANNOTATIONS.read_text(encoding="utf-8"))
    assert len(source["photos"]) == 14
    sizes = {photo["name"]: (1, 1) for photo in source["photos"]}
    coco = prepare_photos.build_coco(source, sizes)
    assert len(coco["annotations"]) == 53
    assert all(len(photo["sha256"]) >= 16 for photo in source["photos"])


def test_no_config_can_train_on_the_photos() -> None:
    load_projects()
    names = [name for name in DatasetCatalog.list() if "mini_photos" in name]
    assert names == ["mini_photos_dev", "mini_photos_dev_vqa"]
    for name in names:
        cfg = load_config(opts=["DATASETS.TRAIN", (name,)])
        with pytest.raises(ValueError, match=rf"{name}', which is for evaluation only"):
            build_train_loader(cfg)
