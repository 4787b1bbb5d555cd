"""The HTML report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_coco import write_coco

from glipv2_d2.engine.finetune.finetune_report import Comparison, FinetuneReport
from glipv2_d2.engine.finetune.report_figures import MAX_LABELS, DrawnBox, picture
from glipv2_d2.engine.finetune.report_html import ReportFiles, render_html

HOSTILE = "<script>alert(1)</script> $x_$ & \u202e"


@pytest.fixture
def files(tmp_path: Path) -> ReportFiles:
    """Three images, the last of which is missing; one detection."""
    truth, images = write_coco(tmp_path, num_images=3, names=[HOSTILE, "dog"])
    (images / "2.png").unlink()
    found = [{"image_id": 0, "category_id": 10, "bbox": [4, 6, 20, 16], "score": 0.7}]
    (tmp_path / "after.json").write_text(json.dumps(found))
    (tmp_path / "metrics.json").write_text('{"iteration": 4, "total_loss": 1.5, "bbox/AP": 40}\n')
    return ReportFiles(
        truth,
        images,
        tmp_path / "none.json",
        tmp_path / "after.json",
        tmp_path / "metrics.json",
        threshold=0.5,
    )


def make_report() -> FinetuneReport:
    target = Comparison("pets", {"AP": 10.0}, {"AP": 40.0, f"AP-{HOSTILE}": float("nan")})
    return FinetuneReport({"data": HOSTILE}, target, [], ["lvis_val"], ["a note"])


def test_the_file_has_no_references_to_others(files: ReportFiles) -> None:
    html = render_html(make_report(), files)
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert sources and all(source.startswith("data:image/") for source in sources)
    # Truth and detections of the two images that can be read.
    assert sum(source.startswith("data:image/jpeg") for source in sources) == 4
    assert "2.png" in html and "does not exist" in html


def test_results_and_notes_are_shown(files: ReportFiles) -> None:
    html = render_html(make_report(), files)
    notes = ("a note", "not on this machine: lvis_val", "missed objects and false detections")
    for text in ("from 10.0", "+30.0", *notes):
        assert text in html


def test_labels_do_not_hide_an_image_with_many_boxes() -> None:
    image = np.full((60, 60, 3), 128, np.uint8)
    few = [DrawnBox([20, 30, 10, 10], "a label", is_right=True)]
    without = [DrawnBox([20, 30, 10, 10], "", is_right=True)]
    assert picture(image, few) != picture(image, without)
    assert picture(image, few * (MAX_LABELS + 1)) == picture(image, without)
    assert picture(image, without) != picture(image, [replace(without[0], is_right=False)])


def test_names_are_no_markup(files: ReportFiles) -> None:
    assert "<script>" not in render_html(make_report(), files)
