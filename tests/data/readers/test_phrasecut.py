"""PhraseCut's own files and MDETR's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from helpers.published_entries import phrasecut_task, visual_genome_image

from glipv2_d2.data.readers.phrasecut import read_phrasecut
from glipv2_d2.evaluation.mask_iou import union_of_segmentations
from glipv2_d2.evaluation.phrase_evaluator import phrase_truths

Write = Callable[[str, Any], str]


def test_a_polygon_of_two_points_does_not_remove_a_phrase(
    write_json: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """PhraseCut's refer_*.json: Polygons per instance, each a list of [x, y] points."""
    square = [[10, 10], [20, 10], [20, 20], [10, 20]]
    images = [visual_genome_image(2, width=40, height=30)]
    boxes = [[10, 10, 10, 10], [0, 0, 4, 4]]
    tasks = [phrasecut_task(2, "two squares", boxes, [[square], [[[0, 0], [4, 4]]]])]
    image_data = write_json("image_data.json", images)
    with caplog.at_level(logging.WARNING):
        [record] = read_phrasecut(write_json("refer_val.json", tasks), image_data, "set")
    assert [("segmentation" in a) for a in record["annotations"]] == [True, False]
    [truth] = phrase_truths(record)
    union = union_of_segmentations(truth.segmentations, truth.image_size)
    expected = np.zeros((30, 40), dtype=bool)
    expected[10:20, 10:20] = True
    assert union is not None and (union == expected).all()
    assert "1 annotations had a mask with unusable parts" in caplog.text


def test_every_split_of_phrasecut_is_registered() -> None:
    for split in ("train", "val", "test", "miniv"):
        [json_file, _] = MetadataCatalog.get(f"phrasecut_mdetr_{split}").source_files
        assert json_file.endswith(f"finetune_phrasecut_{split}.json")
