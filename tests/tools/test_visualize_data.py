"""Pictures of training data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import visualize_data
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from helpers.tiny_coco import write_coco
from PIL import Image

from glipv2_d2.structures import Prompt


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
    words: dict[str, Any] = {
        "file_name": str(images / "1.png"),
        "question": "is it red?",
        "question_id": 1,
        "answers": {"no": 1.0},
        "target_captions": ["noise"],
    }
    DatasetCatalog.register("drawn_captions", lambda: [caption])
    DatasetCatalog.register("drawn_words", lambda: [words])
    yield images
    for name in ("drawn_coco", "drawn_captions", "drawn_words"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
@pytest.mark.parametrize("dataset", ["drawn_coco", "drawn_captions", "drawn_words"])
def test_pictures_of_every_kind_of_data(
    source: str, dataset: str, images: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"DATASETS:\n  TRAIN: ('{dataset}',)\nSOLVER:\n  IMS_PER_BATCH: 1\n")
    output = tmp_path / "pictures"
    arguments = ["--config-file", str(config), "--source", source, "--output", str(output)]
    visualize_data.main([*arguments, "--num", "1", "INPUT.MIN_SIZE_TRAIN", "(48,)"])
    [picture] = output.iterdir()
    assert picture.suffix == ".jpg"
    with Image.open(picture) as page:
        assert page.width >= visualize_data.MIN_WIDTH


def test_present_names_are_coloured_absent_ones_grey_and_separators_bare() -> None:
    prompt = Prompt("cat. dog", (((0, 3),), ((5, 8),)), (0, 1))
    colors = [visualize_data._color_at(prompt, position, {0}) for position in (1, 3, 6)]
    assert colors[0] not in (None, visualize_data.NEGATIVE_COLOR)
    assert colors[1:] == [None, visualize_data.NEGATIVE_COLOR]


def test_long_prompts_are_wrapped() -> None:
    short = visualize_data.draw_prompt(Prompt("cat", (), ()), set(), 480)
    long = visualize_data.draw_prompt(Prompt("cat " * 100, (), ()), set(), 480)
    assert long.width == short.width == 480
    assert long.height > 3 * short.height
    assert (np.asarray(long)[:, -visualize_data.MARGIN :] == 255).all()
