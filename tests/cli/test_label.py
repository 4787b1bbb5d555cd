"""glipv2 label with class names and a predictor without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.fixed_predictor import FixedPredictor
from PIL import Image

import glipv2_d2.predictor
from glipv2_cli import main as cli
from glipv2_d2.data.readers.captions import read_captions
from glipv2_d2.structures import fields


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory has photos/ with five images, and names.txt."""
    monkeypatch.setattr(glipv2_d2, "Predictor", FixedPredictor)
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(5):
        Image.new("RGB", (32 + number, 20)).save(f"photos/{number}.png")
    Path("photos/clip.mp4").touch()
    Path("names.txt").write_text("cat\ndog: 0.8\n")


def label(*arguments: str) -> int:
    options = ("--images", "photos", "--output", "out", "--shard-size", "2")
    return cli.main(["label", *options, *arguments])


def outputs(folder: str) -> dict[str, bytes]:
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "log.txt"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def boxes_of(name: str) -> int:
    coco = json.loads(Path("out/coco.json").read_text())
    ids = {category["name"]: category["id"] for category in coco["categories"]}
    return sum(a["category_id"] == ids[name] for a in coco["annotations"])


def test_a_folder_becomes_a_coco_dataset_with_the_thresholds_of_the_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert label("--classes-file", "names.txt") == 0
    # Scores are 0.9 and 0.7.
    assert (boxes_of("cat"), boxes_of("dog")) == (5, 0)
    printed = capsys.readouterr()
    assert "5 images, 5 boxes" in printed.out and "out/coco.json" in printed.out
    assert "5/5" in printed.err and printed.err.count("\n") < 5


def test_thresholds_on_the_command_line_replace_those_of_the_file() -> None:
    assert label("--classes-file", "names.txt", "--threshold", "0.95, Dog=0.6") == 0
    assert (boxes_of("cat"), boxes_of("dog")) == (0, 5)


def test_the_default_threshold_is_that_of_the_model() -> None:
    # glipv2-mini's is 0.65; scores are 0.9, 0.7 and 0.5.
    assert label("--classes", "cat, dog, cow") == 0
    assert (boxes_of("cat"), boxes_of("dog"), boxes_of("cow")) == (5, 5, 0)
    own = ("--opts", "TEST.DISPLAY_SCORE_THRESH", "0.8")
    assert label("--classes", "cat, dog, cow", "--output", "own", *own) == 0
    coco = json.loads(Path("own/coco.json").read_text())
    assert len(coco["annotations"]) == 5
    everything = ("--classes", "cat, dog, cow", "--threshold", "0")
    assert label(*everything, "--output", "all") == 0
    coco = json.loads(Path("all/coco.json").read_text())
    assert len(coco["annotations"]) == 15


def test_parts_are_merged_by_a_run_of_the_whole_as_if_there_were_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--classes", "cat, dog", "--format", "coco", "yolo", "voc", "grounding")
    assert label(*arguments) == 0
    whole = outputs("out")
    capsys.readouterr()
    for part, folder in (("2/2", "two"), ("1/2", "one")):
        assert label(*arguments, "--part", part, "--output", folder) == 0
    assert "part 1/2 is complete; the folder has 2 of 3 shards" in capsys.readouterr().out
    assert not Path("one/coco.json").exists()
    for path in Path("two/shards").iterdir():
        path.rename(Path("one/shards") / path.name)
    assert label(*arguments, "--output", "one") == 0
    assert outputs("one") == whole


def test_a_complete_folder_is_merged_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert label("--classes", "cat") == 0

    def fail(*_args: Any, **_options: Any) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(FixedPredictor, "__init__", fail)
    assert label("--classes", "cat", "--format", "csv") == 0
    assert Path("out/detections.csv").is_file()


def test_ctrl_c_keeps_complete_shards(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        predict, calls = FixedPredictor.predict, []

        def interrupted(self: FixedPredictor, images: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return predict(self, images, **options)

        patch.setattr(FixedPredictor, "predict", interrupted)
        assert label("--classes", "cat") == cli.INTERRUPTED
    assert "the same command continues" in capsys.readouterr().out
    assert len(list(Path("out/shards").glob("*.jsonl"))) == 1
    assert label("--classes", "cat") == 0
    assert boxes_of("cat") == 5


def test_another_run_in_the_folder_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert label("--classes", "cat") == 0
    assert label("--classes", "cat", "--threshold", "0.5") == 2
    assert "was started with other settings: thresholds" in capsys.readouterr().err


def test_bad_images_are_left_out_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/1.png").write_bytes(b"<html>")
    assert label("--classes", "cat") == 1
    assert "left out: 'photos/1.png' is not a readable image" in capsys.readouterr().out
    (line,) = Path("out/left_out.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == "photos/1.png"
    assert boxes_of("cat") == 4


def test_grounding_labels_are_training_data() -> None:
    assert label("--classes", "coffee cup, dog", "--format", "grounding") == 0
    first, *others = read_captions("out/grounding.jsonl", "", "labelled")
    assert len(others) == 4 and first["file_name"] == "photos/0.png"
    assert first[fields.CAPTION] == "coffee cup. dog."
    found = [(a["phrase"], a["tokens_positive"]) for a in first["annotations"]]
    assert found == [("coffee cup", [[0, 10]]), ("dog", [[12, 15]])]


def test_remote_images_are_labelled() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.png", Path("photos/0.png").read_bytes())
    memory.pipe("/bucket/b.png", b"damaged")
    try:
        assert label("--classes", "cat", "--images", "memory://bucket/*.png") == 1
    finally:
        memory.rm("/bucket", recursive=True)
    coco = json.loads(Path("out/coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["memory:///bucket/a.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", "cat", "--part", "3/2"), "'3/2' is not a part"),
        (("--classes", "cat", "--processes", "0"), "--processes is 0"),
        (("--classes", "cat", "--threshold", "dgo=0.4"), "'dgo' is not a class name"),
        (("--classes", "cat", "--threshold", "cat=high"), "'cat=high' is neither"),
        (("--classes", "cat", "--images", "none/*.jpg"), "no image or video in 'none/*.jpg'"),
        ((), "what should be labelled? Pass --classes"),
        (("--captions", "c.jsonl", "--format", "coco"), "--format: only with --classes"),
        (("--captions", "c.jsonl", "--threshold", "cat=0.4"), "--captions has no class names"),
    ],
)
def test_invalid_arguments_are_one_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("out").exists()
