"""GLIP's TSV files: images in base64, annotations as JSON, offsets of the lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from helpers.tsv_data import jpeg, write_tsv

from glipv2_d2.data.build import build_train_loader
from glipv2_d2.data.readers.tsv_captions import iterate_tsv_captions as iterate_tsv
from glipv2_d2.images import read_image

LABEL = {
    "img_h": 24,
    "img_w": 32,
    "caption": "a dog on a sofa",
    "bboxes": [[1.5, 2, 20, 18], [0, 9, 30, 22]],
    "tokens_positive": [[[0, 5]], [[9, 11], [11, 15]]],
    "scores": [0.9, 0.6],
}


def write(folder: Path, labels: list[Any], *, lineidx: bool = True, **others: str) -> str:
    """Write one image per label; a label is JSON text or a value. The image i is of grey 40 i."""
    folder.mkdir(exist_ok=True)
    texts = [label if isinstance(label, str) else json.dumps(label) for label in labels]
    images = [[f"key{i}", "old column", jpeg(40 * i)] for i in range(len(labels))]
    write_tsv(folder / "img.tsv", images, lineidx=lineidx)
    rows = [[f"key{i}", text] for i, text in enumerate(texts)]
    write_tsv(folder / "img.label.tsv", rows, lineidx=lineidx)
    names = {"img": "img.tsv", "label": "img.label.tsv", "hw": "img.hw.tsv", **others}
    path = folder / "train.yaml"
    path.write_text("".join(f"{key}: {name}\n" for key, name in names.items()))
    return str(path)


def values(records: list[dict[str, Any]]) -> list[int]:
    """The grey values of the images."""
    return [int(read_image(record["file_name"])[0, 0, 0]) for record in records]


@pytest.mark.parametrize("lineidx", [True, False])
def test_records_have_the_caption_boxes_and_image_of_a_line(lineidx: bool, tmp_path: Path) -> None:
    other = {**LABEL, "caption": "ein Hündchen", "bboxes": [[1, 2, 3, 4]], "scores": [0.7]}
    other["tokens_positive"] = [[[4, 12]]]
    records = list(iterate_tsv(write(tmp_path, [LABEL, other], lineidx=lineidx), "set"))
    assert [record["caption"] for record in records] == ["a dog on a sofa", "ein Hündchen"]
    assert (records[0]["height"], records[0]["width"], records[1]["image_id"]) == (24, 32, 1)
    first, second = records[0]["annotations"]
    assert first["bbox"] == [1.5, 2, 20, 18]
    assert second["tokens_positive"] == [[9, 11], [11, 15]]
    assert values(records) == [0, 40]


def test_the_second_version_has_boxes_per_phrase(tmp_path: Path) -> None:
    label = {
        **LABEL,
        "bboxes": [[[1, 2, 3, 4], [5, 6, 7, 8]], [], [[0, 9, 30, 22]]],
        "tokens_positive": [[[0, 5]], [[2, 5]], [[9, 15]]],
        "scores": [[0.9, 0.8], [], [0.7]],
    }
    [record] = iterate_tsv(write(tmp_path, [label]), "set")
    pairs = [(a["bbox"], a["tokens_positive"]) for a in record["annotations"]]
    assert pairs == [
        ([1, 2, 3, 4], [[0, 5]]),
        ([5, 6, 7, 8], [[0, 5]]),
        ([0, 9, 30, 22], [[9, 15]]),
    ]


def test_a_list_of_lines_selects_and_repeats(tmp_path: Path) -> None:
    labels = [{**LABEL, "caption": f"a dog {i}"} for i in range(3)]
    path = write(tmp_path, labels, linelist="lines.tsv")
    (tmp_path / "lines.tsv").write_text("2\n0\n7\n2\n-1\n")
    records = list(iterate_tsv(path, "set"))
    assert [record["caption"] for record in records] == ["a dog 2", "a dog 0", "a dog 2"]
    assert values(records) == [80, 0, 80]


def test_images_are_found_by_the_id_of_the_annotations(tmp_path: Path) -> None:
    labels = [{**LABEL, "img_id": f"id{i}"} for i in (1, 0, 1, 5)]
    path = write(tmp_path, labels, imageid2idx="ids.json")
    (tmp_path / "ids.json").write_text('{"id0": 0, "id1": 1}')
    assert values(list(iterate_tsv(path, "set"))) == [40, 0, 40]


@pytest.mark.parametrize(
    "bad",
    [
        '{"caption": "a d',
        "[]",
        {**LABEL, "scores": [0.9]},
        {**LABEL, "scores": [0.1, 0.5]},
        {**LABEL, "bboxes": [], "tokens_positive": [], "scores": []},
        {**LABEL, "bboxes": [[], []]},
        {**LABEL, "bboxes": 7},
        {**LABEL, "img_h": "tall"},
    ],
)
def test_an_unusable_line_is_reported_and_the_others_are_read(
    bad: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = list(iterate_tsv(write(tmp_path, [LABEL, bad, LABEL]), "set"))
    assert values(records) == [0, 80]
    assert "img.label.tsv:2" in caplog.text or "img.tsv@" in caplog.text


FILE_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "offsets of another file": (
        lambda f: (f / "img.lineidx").write_text("0\n99\n5\n"),
        "Delete it",
    ),
    "no numbers": (lambda f: (f / "img.lineidx").write_text("0\nx\n"), "whole number"),
    "no image file": (lambda f: (f / "img.tsv").unlink(), r"img\.tsv.*does not exist"),
    "no YAML": (lambda f: (f / "train.yaml").write_text("{img: ["), "not a YAML file"),
    "no label": (lambda f: (f / "train.yaml").write_text("img: img.tsv"), "should name"),
}


@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_a_damaged_file_raises_with_the_remedy(damage: str, tmp_path: Path) -> None:
    path = write(tmp_path, [LABEL, LABEL])
    change, message = FILE_DAMAGES[damage]
    change(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        list(iterate_tsv(path, "set"))


def test_an_image_at_a_place_without_a_line_raises(tmp_path: Path) -> None:
    [_, record] = iterate_tsv(write(tmp_path, [LABEL, LABEL]), "set")
    name, offset = record["file_name"].split("@")
    with pytest.raises(ValueError, match=r"no line .*img\.lineidx"):
        read_image(f"{name}@{int(offset.split('+')[0]) + 1}+40")
    (tmp_path / "img.tsv").write_text("key\t$$$\n")
    with pytest.raises(ValueError, match="cannot be opened"):
        read_image(f"{name}@0+8")


def test_tsv_files_train_from_a_store(cfg: CfgNode, tmp_path: Path) -> None:
    path = write(tmp_path / "tsv", [LABEL] * 3)
    cfg.DATASETS.CUSTOM = [{"name": "tsv_pairs", "format": "tsv", "yaml": path}]
    cfg.DATASETS.TRAIN = ("tsv_pairs",)
    cfg.DATALOADER.RECORD_STORE = True
    [first, second] = next(iter(build_train_loader(cfg)))
    assert first["caption"] == "a dog on a sofa"
    assert len(second["instances"]) == 2
