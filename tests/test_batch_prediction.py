from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from helpers.fixed_predictor import FixedPredictor
from PIL import Image
from rich.console import Console

from glipv2_d2.batch_prediction import (
    FilePrompts,
    ImageBatches,
    output_paths,
    predict_files,
    write_json,
)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Two images with a missing file between them."""
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (32, 20)).save(tmp_path / name)
    return [tmp_path / name for name in ("a.jpg", "missing.png", "b.png")]


def test_output_paths_are_distinct_and_do_not_overwrite_an_input(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    paths = [one / "a.jpg", one / "a.png", two / "a.jpg", one / "b.jpg"]
    names = [output.name for output in output_paths(paths, one)]
    assert names == ["one_a.jpg", "one_a_2.jpg", "two_a.jpg", "b_2.jpg"]


def test_batches_keep_the_index_of_each_file_and_skip_unreadable_ones(paths: list[Path]) -> None:
    steps: list[int] = []
    batches = ImageBatches(paths, 2, steps.append)
    assert [list(images) for images in batches] == [[0], [2]]
    assert batches.loaded == [paths[0], paths[2]]
    assert len(batches.skipped) == 1 and "missing.png" in batches.skipped[0]
    assert steps == [2, 1]


@pytest.mark.parametrize(
    ("prompts", "names"),
    [
        (FilePrompts(classes=[["cat"], ["bird"], ["dog"]]), ["cat", "dog"]),
        (FilePrompts(question=["red sky?", "sky?", "blue sky?"]), ["red sky?", "blue sky?"]),
    ],
)
def test_prompts_may_differ_per_file(
    prompts: FilePrompts, names: list[str], paths: list[Path], tmp_path: Path
) -> None:
    results = predict_files(
        FixedPredictor(),
        paths,
        prompts,
        output_dir=tmp_path / "out",
        console=Console(file=io.StringIO()),
        threshold=0.0,
        batch_size=2,
    )
    key = "question" if prompts.question else "category_name"
    assert [row[key] for row in results.rows] == names
    assert [path.name for path in results.annotated_images] == ["a.jpg", "b.jpg"]
    assert len(results.skipped) == 1


def test_result_file_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("before")
    with pytest.raises(TypeError):
        write_json([{"score": object()}], path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["results.json"]
