from __future__ import annotations

from pathlib import Path

import benchmark_records
import pytest
import store_records
from helpers.tiny_coco import write_coco

from glipv2_d2.data.readers.captions import read_captions
from glipv2_d2.data.record_store import RecordStore, write_store
from glipv2_d2.data.stored_datasets import FOLDER


def store(config: Path, name: str, json_file: Path, images: Path) -> int:
    config.write_text(
        f"""
DATASETS:
  CUSTOM:
    - {{name: {name}, json: {json_file}, images: {images}}}
  TRAIN: ("{name}",)
"""
    )
    return store_records.main(["--config-file", str(config)])


def test_the_stores_of_a_config_are_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, images = write_coco(tmp_path / "tiny")
    assert store(tmp_path / "config.yaml", "ahead_train", annotations, images) == 0
    [folder] = (path for path in (tmp_path / "tiny" / FOLDER).iterdir() if path.is_dir())
    assert len(RecordStore(folder)) == 4
    assert str(folder) in capsys.readouterr().out


def test_a_missing_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert store(tmp_path / "config.yaml", "ahead_lost", tmp_path / "no.json", tmp_path) == 2
    assert "no.json" in capsys.readouterr().err


def test_generated_captions_are_usable_and_repeated(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    benchmark_records.write_captions(path, 5)
    records = read_captions(str(path), str(tmp_path), "generated")
    assert [len(record["annotations"]) for record in records] == [2] * 5
    for record in records:
        begins = [
            record["caption"][s:] for a in record["annotations"] for s, _ in a["tokens_positive"]
        ]
        assert [text.split()[0] for text in begins] == ["a", "the"]
    write_store(tmp_path, records, dataset_name="generated", get_metadata=dict)
    benchmark_records.repeat(RecordStore(tmp_path), 3)
    assert [x["image_id"] for x in RecordStore(tmp_path)] == [0, 1, 2, 3, 4] * 3
