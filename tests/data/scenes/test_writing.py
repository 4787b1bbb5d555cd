from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from glipv2_d2.data.scenes import write_drawn


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


def test_every_question_has_ten_answers(drawn: Path) -> None:
    questions = json.loads(drawn.with_name("val_questions.json").read_text())["questions"]
    answers = json.loads(drawn.with_name("val_answers.json").read_text())["annotations"]
    assert [q["question_id"] for q in questions] == [a["question_id"] for a in answers]
    assert {len(a["answers"]) for a in answers} == {10}


def test_a_second_run_leaves_a_complete_split_as_it_is(drawn: Path) -> None:
    before = drawn.stat().st_mtime_ns
    write_drawn(drawn.parent, split="val", num_images=6, size=96, seed=3)
    assert drawn.stat().st_mtime_ns == before


def test_other_settings_make_the_split_anew(tmp_path: Path) -> None:
    file = write_drawn(tmp_path, split="val", num_images=2, size=64, seed=3)
    write_drawn(tmp_path, split="val", num_images=3, size=64, seed=3)
    assert len(json.loads(file.read_text())["images"]) == 3


def test_an_interrupted_split_is_made_anew(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "val.partial").mkdir()
    (tmp_path / "val.partial" / "000099.jpg").write_bytes(b"half")
    write_drawn(tmp_path, split="val", num_images=6, size=96, seed=3)
    assert sorted(p.name for p in (tmp_path / "val").iterdir())[-1] == "000005.jpg"
    first = np.asarray(Image.open(tmp_path / "val" / "000000.jpg"))
    assert np.array_equal(first, np.asarray(Image.open(drawn.parent / "val" / "000000.jpg")))


def test_workers_end_where_a_process_handles_sigterm(tmp_path: Path) -> None:
    """As torchrun's agent does; workers inherit its handlers."""
    program = (
        "import pathlib, signal; from glipv2_d2.data.scenes import write_drawn; "
        "signal.signal(signal.SIGTERM, lambda *_: None); "
        f"write_drawn(pathlib.Path({str(tmp_path)!r}), split='val', num_images=2, size=64, seed=3)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert (tmp_path / "val.json").is_file()
