from __future__ import annotations

import json
from pathlib import Path

import chance_level
import pytest

BOX = [10.0, 10.0, 20.0, 20.0]


def write(path: Path, content: object) -> str:
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Three images with one object of a different class each, all detected correctly."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 64} for i in (1, 2, 3)]
    annotations = [
        {"id": i, "image_id": i, "category_id": i, "bbox": BOX, "area": 400.0, "iscrowd": 0}
        for i in (1, 2, 3)
    ]
    truth = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": f"thing {i}"} for i in (1, 2, 3)],
    }
    results = [{"image_id": i, "category_id": i, "bbox": BOX, "score": 0.9} for i in (1, 2, 3)]
    return [
        *("--annotations", write(tmp_path / "truth.json", truth)),
        *("--results", write(tmp_path / "results.json", results)),
    ]


def test_ap_is_100_with_own_and_0_with_wrong_class_names(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chance_level.main(files)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "bbox" in line]
    values = [float(cell) for cell in row.strip("|").split("|")[1:]]
    assert values == pytest.approx([100, 100, 0, 0])


def test_captions_of_other_images_have_lower_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    references = {i: [f"a {name} on a mat"] for i, name in enumerate(["dog", "cat", "bus"])}
    records = [{"image_id": i, "target_captions": texts} for i, texts in references.items()]
    monkeypatch.setattr(chance_level, "load_dataset", lambda *_, **__: records)
    # The order differs from that of the dataset.
    captions = [{"image_id": i, "caption": references[i][0]} for i in (2, 0, 1)]
    results = write(tmp_path / "captions_results.json", captions)
    chance_level.main(["--dataset", "described", "--results", results])
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:4] for line in lines}
    own, others = map(float, cells["ROUGE-L"])
    # Four of five words are shared with the other captions.
    assert (own, others) == pytest.approx((100, 80))


def test_captions_of_another_dataset_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"image_id": i, "target_captions": ["a dog"]} for i in (1, 2)]
    monkeypatch.setattr(chance_level, "load_dataset", lambda *_, **__: records)
    results = write(tmp_path / "captions_results.json", [{"image_id": 3, "caption": "a dog"}])
    with pytest.raises(SystemExit, match="of another dataset"):
        chance_level.main(["--dataset", "described", "--results", results])


def test_detections_of_another_dataset_are_rejected(files: list[str]) -> None:
    results = Path(files[3])
    other = json.loads(results.read_text())
    other[0]["category_id"] = 77
    results.write_text(json.dumps(other))
    with pytest.raises(SystemExit, match=r"\[77\]"):
        chance_level.main(files)
