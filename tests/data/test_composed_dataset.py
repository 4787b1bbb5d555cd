from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from glipv2_d2.data.composed_dataset import SceneSplit, write_split
from glipv2_d2.data.composition import PHOTO_STYLE, Cutout, Scene
from glipv2_d2.data.drawn import drawn_cutouts, write_drawn
from glipv2_d2.data.tinting import TINTS


def count_objects(scene: Scene, names: Sequence[str], rng: object) -> list[tuple[str, str]]:
    return [(f"how many {names[0]}s?", str(len(scene.objects)))]


def red_circles() -> list[Cutout]:
    return [cutout for cutout in drawn_cutouts() if cutout.name == "red circle"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawn(tmp_path_factory.mktemp("drawn"), split="val", num_images=6, size=96, seed=3)


def test_the_annotations_are_coco(drawn: Path) -> None:
    coco = COCO(str(drawn))
    assert len(coco.imgs) == 6
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"]
        assert mask_utils.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]


def test_spans_of_the_caption_name_the_category(drawn: Path) -> None:
    content = json.loads(drawn.read_text())
    captions = {image["id"]: image["caption"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    for annotation in content["annotations"]:
        ((start, end),) = annotation["tokens_positive"]
        phrase = captions[annotation["image_id"]][start:end]
        shape = names[annotation["category_id"]].split()[0]
        assert shape in phrase


def test_every_question_has_ten_answers(tmp_path: Path) -> None:
    split = SceneSplit(
        name="val",
        num_images=2,
        sizes=[(64, 64)],
        seed=0,
        category_names=["red circle"],
        load_cutouts=red_circles,
        make_questions=count_objects,
    )
    file = write_split(split, tmp_path)
    counts = Counter(a["image_id"] for a in json.loads(file.read_text())["annotations"])
    questions = json.loads(file.with_name("val_questions.json").read_text())["questions"]
    answers = json.loads(file.with_name("val_answers.json").read_text())["annotations"]
    assert [q["question_id"] for q in questions] == [a["question_id"] for a in answers]
    assert {len(a["answers"]) for a in answers} == {10}
    expected = {image_id: str(count) for image_id, count in counts.items()}
    assert {a["image_id"]: a["multiple_choice_answer"] for a in answers} == expected


def test_a_split_without_questions_has_no_question_files(drawn: Path) -> None:
    assert not list(drawn.parent.glob("*_questions.json"))


def test_a_complete_split_is_kept(drawn: Path) -> None:
    before = drawn.stat().st_mtime_ns
    write_drawn(drawn.parent, split="val", num_images=6, size=96, seed=3)
    assert drawn.stat().st_mtime_ns == before


def test_other_settings_rewrite_the_split(tmp_path: Path) -> None:
    file = write_drawn(tmp_path, split="val", num_images=2, size=64, seed=3)
    write_drawn(tmp_path, split="val", num_images=3, size=64, seed=3)
    assert len(json.loads(file.read_text())["images"]) == 3


def test_an_interrupted_split_is_rewritten(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "val.partial").mkdir()
    (tmp_path / "val.partial" / "000099.jpg").write_bytes(b"half")
    write_drawn(tmp_path, split="val", num_images=6, size=96, seed=3)
    assert sorted(p.name for p in (tmp_path / "val").iterdir())[-1] == "000005.jpg"
    first = np.asarray(Image.open(tmp_path / "val" / "000000.jpg"))
    assert np.array_equal(first, np.asarray(Image.open(drawn.parent / "val" / "000000.jpg")))


def test_workers_exit_in_a_process_that_handles_sigterm(tmp_path: Path) -> None:
    """As torchrun's agent does; workers inherit its handlers."""
    program = (
        "import pathlib, signal; from glipv2_d2.data.drawn import write_drawn; "
        "signal.signal(signal.SIGTERM, lambda *_: None); "
        f"write_drawn(pathlib.Path({str(tmp_path)!r}), split='val', num_images=2, size=64, seed=3)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert (tmp_path / "val.json").is_file()


@pytest.fixture(scope="module")
def photo_style(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of a split of tinted objects in two sizes of images."""
    split = SceneSplit(
        name="val",
        num_images=12,
        sizes=[(96, 64), (64, 96)],
        seed=0,
        category_names=["red circle"],
        load_cutouts=red_circles,
        style=replace(PHOTO_STYLE, tint_probability=0.5, min_visible_pixels=20),
    )
    return json.loads(write_split(split, tmp_path_factory.mktemp("photo")).read_text())


def test_images_have_the_sizes_of_the_split(photo_style: dict[str, Any]) -> None:
    sizes = {(image["width"], image["height"]) for image in photo_style["images"]}
    assert sizes == {(96, 64), (64, 96)}


def test_annotations_have_the_colours_of_tinted_objects(photo_style: dict[str, Any]) -> None:
    colors = {item.get("color", "none") for item in photo_style["annotations"]}
    assert len(colors) > 2
    assert colors <= {"none", *TINTS}


def test_the_annotations_of_an_image_are_ordered_by_area(photo_style: dict[str, Any]) -> None:
    areas: dict[int, list[int]] = {}
    for item in photo_style["annotations"]:
        areas.setdefault(item["image_id"], []).append(item["area"])
    assert max(map(len, areas.values())) > 2
    assert all(some == sorted(some, reverse=True) for some in areas.values())
