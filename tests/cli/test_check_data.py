"""Datasets with planted defects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.tiny_coco import write_coco
from PIL import Image

from glipv2_cli import main as cli
from glipv2_d2.data.checks import PromptLimits, check_dataset
from glipv2_d2.text.tokenizer import Tokenizer

CAPTION = "a dog on the sofa"


@pytest.fixture(autouse=True)
def _unregister(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def sound(tmp_path: Path) -> tuple[Path, Path]:
    return write_coco(tmp_path / "set", num_images=6, names=("cat", "traffic light"))


def write_config(folder: Path, *entries: str) -> list[str]:
    path = folder / "check.yaml"
    lines = "".join(f"    - {{{entry}}}\n" for entry in entries)
    path.write_text(f"DATASETS:\n  CUSTOM:\n{lines}")
    return ["--config", str(path)]


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs the tool on one dataset; returns its exit status and its findings by kind."""

    def run(entry: str, *arguments: str) -> tuple[int, dict[str, Any]]:
        target = tmp_path / "report.json"
        config = write_config(tmp_path, f"name: checked, {entry}")
        status = cli.main(
            ["check-data", *config, "--dataset", "checked", "--json", str(target), *arguments]
        )
        [report] = json.loads(target.read_text())
        return status, {finding["kind"]: finding for finding in report["findings"]}

    return run


def plant(annotations: Path, images: Path) -> None:
    """Eight defects in a COCO file and its images; the caption file has two more."""
    content = json.loads(annotations.read_text())
    boxes = content["annotations"]
    boxes[0]["bbox"] = [40, 6, 20, 16]  # 1: exceeds the image width of 48
    boxes[1]["bbox"] = [4, 6, 0, 16]  # 2: no area
    boxes[2]["category_id"] = 99  # 3: not among the categories
    boxes.append({**boxes[3], "id": 100})  # 4: the same box twice
    content["categories"] += [
        {"id": 40, "name": "(_)"},  # 5: no words
        {"id": 50, "name": "Cat_(animal)"},  # 6: spelled "cat" in a prompt, like class 0
    ]
    annotations.write_text(json.dumps(content))
    broken = images / "4.png"
    broken.write_bytes(broken.read_bytes()[:80])  # 7: does not open
    Image.new("RGB", (20, 20)).save(images / "5.png")  # 8: another size than recorded


def write_captions(path: Path, *boxes: tuple[list[int], str]) -> None:
    pair = {
        "image": "0.png",
        "caption": CAPTION,
        "boxes": [[1, 1, 20 + i, 20] for i in range(len(boxes))],
        "spans": [[span] for span, _ in boxes],
        "phrases": [phrase for _, phrase in boxes],
        "height": 48,
        "width": 48,
    }
    path.write_text(json.dumps(pair))


def test_eight_defects_of_a_coco_dataset_are_found(
    sound: tuple[Path, Path], check: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    annotations, images = sound
    plant(annotations, images)
    status, findings = check(f"json: {annotations}, images: {images}")
    assert status == 1
    first = {kind: f["examples"][0] for kind, f in findings.items() if f["is_defect"]}
    places = {
        "box-outside": "0.png",
        "left-out-by-reader": "1.png",
        "repeated-box": "3.png",
        "empty-name": "'(_)' (class 2)",
        "same-text": "'cat' (class 0) = 'Cat_(animal)' (class 3)",
        "image-does-not-open": "4.png",
        "image-size": "5.png",
    }
    assert first.keys() == places.keys()
    for kind, place in places.items():
        assert place in first[kind]
        assert findings[kind]["count"] == (2 if kind == "left-out-by-reader" else 1)
    assert "2.png" in findings["left-out-by-reader"]["examples"][1]


def test_two_defects_of_captions_are_found(
    sound: tuple[Path, Path],
    tmp_path: Path,
    check: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    lines = tmp_path / "captions.jsonl"
    write_captions(
        lines,
        ([0, 5], "a dog"),
        ([0, 5], "a cat"),  # 9: another phrase
        ([10, 99], "sofa"),  # 10: beyond the end
    )
    status, findings = check(f"format: captions, json: {lines}, images: {sound[1]}")
    assert status == 1
    assert findings.keys() == {"span-not-phrase", "span-outside"}
    assert "named 'a cat'" in findings["span-not-phrase"]["examples"][0]


@pytest.mark.parametrize("span", [[0, 4], [1, 5], [3, 5]])
def test_span_that_cuts_a_word_is_found(
    span: list[int],
    sound: tuple[Path, Path],
    tmp_path: Path,
    check: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    lines = tmp_path / "captions.jsonl"
    write_captions(lines, (span, CAPTION[slice(*span)]))
    _, findings = check(f"format: captions, json: {lines}, images: {sound[1]}", "--no-images")
    assert findings.keys() == {"span-cuts-word"}


def test_sound_dataset_has_no_defects(
    sound: tuple[Path, Path],
    check: Callable[..., tuple[int, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    annotations, images = sound
    status, findings = check(f"json: {annotations}, images: {images}")
    assert (status, findings) == (0, {})
    printed = capsys.readouterr().out
    assert "checked: 6 images, 6 boxes, 2 classes in 1 prompts, 0 captions" in printed
    assert "no defects" in printed


def test_questions_of_one_image_are_distinguished_by_question_id(
    sound: tuple[Path, Path],
    tmp_path: Path,
    check: Callable[..., tuple[int, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    annotations, images = sound
    ids = [{"question_id": number, "image_id": 0} for number in (1, 2)]
    questions, answers = tmp_path / "questions.json", tmp_path / "answers.json"
    questions.write_text(json.dumps({"questions": [{**x, "question": "why?"} for x in ids]}))
    human_answers = [{"answer": "yes", "answer_id": 1}]
    answers.write_text(json.dumps({"annotations": [{**x, "answers": human_answers} for x in ids]}))
    entry = f"format: vqa, json: {annotations}, images: {images}"
    status, findings = check(f"{entry}, questions: {questions}, answers: {answers}")
    assert (status, findings) == (0, {})
    assert "2 questions" in capsys.readouterr().out


def test_empty_questions_and_captions_are_found(
    sound: tuple[Path, Path], check: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    file_name = str(sound[1] / "0.png")
    records = [
        {"file_name": file_name, "question": " ", "question_id": 4},
        {"file_name": file_name, "question": "why?"},
        {"file_name": file_name, "target_captions": ["a cat", ""]},
    ]
    DatasetCatalog.register("without_text", lambda: records)
    limits = PromptLimits(Tokenizer("bert-base-uncased", 256), ". ", 0)
    report = check_dataset("without_text", limits, open_images=True)
    assert report.faults.counts == dict.fromkeys(
        ("empty-question", "no-question-id", "empty-target-caption"), 1
    )
    assert report.faults.examples["empty-question"] == [f"question 4 of image {file_name!r}"]


def test_prompt_chunks_are_a_note_and_not_a_defect(
    sound: tuple[Path, Path], check: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    annotations, images = sound
    status, findings = check(
        f"json: {annotations}, images: {images}", "--opts", "MODEL.PROMPT.MAX_CLASSES", "1"
    )
    assert status == 0
    assert findings["needs-chunks"]["examples"] == ["2 names in 2 prompts"]


def test_unreadable_annotations_are_a_finding(
    sound: tuple[Path, Path], check: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    annotations, images = sound
    annotations.write_text("{")
    status, findings = check(f"json: {annotations}, images: {images}")
    assert status == 1
    assert "annotations.json" in findings["does-not-load"]["examples"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "coco_2017_trian"], "did you mean coco_2017_train"),
        ([], "no dataset is given"),
        (["--config", "no.yaml"], "no.yaml"),
    ],
)
def test_invalid_arguments_have_their_own_exit_status(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check-data", *arguments]) == 2
    assert message in capsys.readouterr().err
