from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import visualize_data
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from helpers.tiny_coco import write_coco
from PIL import Image

from glipv2_d2.data_visualization import MIN_WIDTH


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Path]:
    annotations, images = write_coco(tmp_path / "tiny")
    register_coco_instances("drawn_coco", {}, str(annotations), str(images))
    caption: dict[str, Any] = {
        "file_name": str(images / "1.png"),
        "height": 48,
        "width": 49,
        "caption": "a cat costs $5 or $6",
        "annotations": [
            {"bbox": [4, 6, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "tokens_positive": [[0, 20]]},
            {"bbox": [4, 6, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "tokens_positive": []},
        ],
    }
    text: dict[str, Any] = {
        "file_name": str(images / "1.png"),
        "question": "is it red?",
        "question_id": 1,
        "answers": {"no": 1.0},
        "target_captions": ["noise"],
    }
    DatasetCatalog.register("drawn_captions", lambda: [caption])
    DatasetCatalog.register("drawn_text", lambda: [text])
    yield images
    for name in ("drawn_coco", "drawn_captions", "drawn_text"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
@pytest.mark.parametrize("dataset", ["drawn_coco", "drawn_captions", "drawn_text"])
def test_every_kind_of_data_is_drawn(
    source: str, dataset: str, images: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"DATASETS:\n  TRAIN: ('{dataset}',)\nSOLVER:\n  IMS_PER_BATCH: 1\n")
    output = tmp_path / "drawings"
    arguments = ["--config-file", str(config), "--source", source, "--output", str(output)]
    visualize_data.main([*arguments, "--num", "1", "INPUT.MIN_SIZE_TRAIN", "(48,)"])
    [drawing] = output.iterdir()
    assert drawing.suffix == ".jpg"
    with Image.open(drawing) as page:
        assert page.width >= MIN_WIDTH


def draw(dataset: str, output: Path, *arguments: object) -> int:
    config = output.with_name("config.yaml")
    config.write_text(f"DATASETS:\n  TRAIN: ('{dataset}',)\n")
    options = ["--config-file", str(config), "--source", "annotation", "--output", str(output)]
    return visualize_data.main([*options, *map(str, arguments)])


def test_unreadable_images_are_logged_and_the_others_drawn(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "1.png").write_bytes(b"%PDF-1.7")
    (images / "2.png").unlink()
    with caplog.at_level(logging.WARNING, logger="glipv2_d2.data_visualization"):
        assert draw("drawn_coco", tmp_path / "drawings") == 0
    assert len(list((tmp_path / "drawings").iterdir())) == 2
    assert "1.png' is not a readable image (a PDF document)" in caplog.text
    assert "2.png' does not exist" in caplog.text


def test_a_drawing_that_cannot_be_written_is_named_and_the_others_drawn(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "drawings" / "0001_1.jpg").mkdir(parents=True)
    assert draw("drawn_coco", tmp_path / "drawings") == 1
    assert sum(path.is_file() for path in (tmp_path / "drawings").iterdir()) == 3
    assert "0001_1.jpg' cannot be drawn or written" in capsys.readouterr().out


def test_an_output_folder_that_is_a_file_fails_the_command(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw("drawn_coco", images / "0.png") == 2
    assert "it is a file" in capsys.readouterr().err
