"""prepare_few_shot.py writes few-shot files beside an annotation file."""

from __future__ import annotations

import json
from pathlib import Path

import prepare_few_shot
import pytest
from helpers.tiny_coco import write_coco


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["prepare_few_shot", *arguments])
    prepare_few_shot.main()


def test_each_few_shot_file_has_none_of_the_skipped_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations, _ = write_coco(tmp_path / "tiny", num_images=12)
    options = ("--shots", "1", "2", "--seeds", "3", "30", "--skip-first", "4")
    run(monkeypatch, str(annotations), *options)
    files = sorted(annotations.parent.glob("*shot_*.json"))
    assert [file.stem.split("_", 1)[1] for file in files] == [
        "1shot_3",
        "1shot_30",
        "2shot_3",
        "2shot_30",
    ]
    for file in files:
        subset = json.loads(file.read_text())
        assert subset["images"]
        assert all(image["id"] >= 4 for image in subset["images"])
        assert {a["image_id"] for a in subset["annotations"]} == {i["id"] for i in subset["images"]}
