"""A split of composed scenes with all derived files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mini_scenes import write_drawn_scenes

from glipv2_mini.data.questions import question_type
from glipv2_mini.data.scene_dataset import DERIVED


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawn_scenes(tmp_path_factory.mktemp("scenes"), num_images=4, size=96, seed=0)


def read(file: Path, ending: str) -> dict:
    return json.loads(file.with_name(f"{file.stem}{ending}.json").read_text())


@pytest.mark.parametrize("prefix", ["", "_augmented"])
def test_questions_have_a_type_and_an_answer(file: Path, prefix: str) -> None:
    questions = read(file, f"{prefix}_questions")["questions"]
    answers = read(file, f"{prefix}_answers")["annotations"]
    assert questions and [q["question_id"] for q in questions] == [
        a["question_id"] for a in answers
    ]
    assert "other" not in {question_type(q["question"]) for q in questions}


def test_derived_files_are_kept_until_the_annotations_change(tmp_path: Path) -> None:
    settings = {"size": 64, "seed": 0}
    file = write_drawn_scenes(tmp_path, num_images=2, **settings)
    paths = [file.with_name(f"val{ending}.json") for ending in DERIVED]
    before = [path.stat().st_mtime_ns for path in paths]
    write_drawn_scenes(tmp_path, num_images=2, **settings)
    assert [path.stat().st_mtime_ns for path in paths] == before
    write_drawn_scenes(tmp_path, num_images=3, **settings)
    assert all(path.stat().st_mtime_ns > old for path, old in zip(paths, before, strict=True))
