"""Conversion of easy-VQA's package to a dataset in VQAv2's format."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import prepare_easy_vqa
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from glipv2_d2.projects import load_projects
from glipv2_mini.data.builtin import register_easy_vqa

QUESTION_FIELDS = {"image_id", "question", "question_id"}
ANSWER_FIELDS = {
    *("question_type", "multiple_choice_answer", "answers", "image_id", "answer_type"),
    "question_id",
}

load_projects()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for easy-VQA's package with one image per split."""
    paths = {}
    for number, split in enumerate(("train", "test")):
        paths[split] = {number: str(tmp_path / f"{number}.png")}
        Image.new("RGB", (64, 64), "red").save(paths[split][number])
    texts = ["what shape is in the image?", "what color is the shape?", "is there a red shape?"]
    contents = (texts, ["circle", "red", "yes"])
    module = SimpleNamespace(
        get_train_questions=lambda: (*contents, [0, 0, 0]),
        get_test_questions=lambda: (*contents, [1, 1, 1]),
        get_train_image_paths=lambda: paths["train"],
        get_test_image_paths=lambda: paths["test"],
    )
    monkeypatch.setitem(sys.modules, "easy_vqa", module)
    digests = {
        split: prepare_easy_vqa.sha256_of((*contents, [image_id] * 3), paths[split])
        for image_id, split in enumerate(paths)
    }
    monkeypatch.setattr(prepare_easy_vqa, "SHA256", digests)


def test_the_converted_files_are_loaded(
    package: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    prepare_easy_vqa.main(["--output", str(tmp_path / "easy_vqa")])
    assert "test: 1 images" in capsys.readouterr().out
    for name in ("easy_vqa_train", "easy_vqa_test"):
        monkeypatch.delitem(DatasetCatalog.data, name)
        monkeypatch.delitem(MetadataCatalog.data, name)
    register_easy_vqa(str(tmp_path))
    records = DatasetCatalog.get("easy_vqa_test")
    assert [record["answers"] for record in records] == [
        {"circle": 1.0},
        {"red": 1.0},
        {"yes": 1.0},
    ]
    assert [r["question_type"] for r in records] == ["shape", "color", "presence"]
    assert [r["answer_type"] for r in records] == ["other", "other", "yes/no"]
    assert records[0]["image_id"] == 1
    assert (records[0]["height"], records[0]["width"]) == (64, 64)
    with Image.open(records[0]["file_name"]) as image:
        assert image.size == (64, 64)
    assert "annotations" not in records[0]


def test_changed_images_are_refused(package: None, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "1.png")
    with pytest.raises(SystemExit, match=r"the test split .* is not that of version 1\.0"):
        prepare_easy_vqa.main(["--output", str(tmp_path / "easy_vqa")])


def test_the_installed_package_has_the_expected_files() -> None:
    import easy_vqa

    found = prepare_easy_vqa.sha256_of(
        easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    )
    assert found == prepare_easy_vqa.SHA256["test"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(SystemExit, match="pip install easy-vqa"):
        prepare_easy_vqa.main(["--output", str(tmp_path)])


def test_files_of_easy_vqa_have_vqav2s_fields() -> None:
    [answer] = prepare_easy_vqa.answers_file(["teal"], [4])["annotations"]
    assert answer.keys() == ANSWER_FIELDS
    [question] = prepare_easy_vqa.questions_file(["what?"], [4])["questions"]
    assert question.keys() == QUESTION_FIELDS
