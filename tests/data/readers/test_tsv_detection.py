"""Detection datasets of VinVL and GLIP: TSV files with a label map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from helpers.tsv_data import jpeg, write_tsv

from glipv2_d2.data.build import build_test_loader, build_train_loader
from glipv2_d2.data.readers.tsv_detection import iterate_tsv_detection
from glipv2_d2.images import read_image

OBJECTS = [
    {"class": "Wine Glass", "rect": [1.5, 2, 20, 18], "conf": 1.0},
    {"class": "Person", "rect": [0, 9, 30, 22], "IsGroupOf": 1},
]
# Numbers of VinVL's vocabulary; as in its map of Objects365, two names may share one.
LABEL_MAP = {"Person": 40, "Wine Glass": 7, "Human": 40}


def write(folder: Path, annotations: list[Any], *, sizes: str = "json", **others: str) -> str:
    """One image per content of a row, which is JSON text or a value; the keys are 100, 101 ..."""
    folder.mkdir(exist_ok=True)
    texts = [a if isinstance(a, str) else json.dumps(a) for a in annotations]
    hw = {"json": '[{"height": 24, "width": 32}]', "dict": '{"height": 24, "width": 32}'}
    write_tsv(folder / "img.tsv", [[str(100 + i), jpeg(40 * i)] for i in range(len(texts))])
    write_tsv(folder / "train.label.tsv", [[str(100 + i), text] for i, text in enumerate(texts)])
    size = hw.get(sizes, sizes)
    write_tsv(folder / "train.hw.tsv", [[str(100 + i), size] for i in range(len(texts))])
    (folder / "class2ind.json").write_text(json.dumps(LABEL_MAP))
    names = {"img": "img.tsv", "label": "train.label.tsv", "labelmap": "class2ind.json"}
    names |= {"hw": "train.hw.tsv", **others}
    path = folder / "train.yaml"
    path.write_text("".join(f"{key}: {name}\n" for key, name in names.items() if name))
    return str(path)


def read(yaml_file: str, dataset_name: str) -> list[dict[str, Any]]:
    return list(iterate_tsv_detection(yaml_file, dataset_name))


@pytest.mark.parametrize("sizes", ["json", "dict", "24 32"])
@pytest.mark.parametrize("content", [OBJECTS, {"objects": OBJECTS}])
def test_records_have_the_boxes_and_size_of_a_row(
    content: Any, sizes: str, tmp_path: Path, dataset_name: str
) -> None:
    [record, empty] = read(write(tmp_path, [content, []], sizes=sizes), dataset_name)
    assert MetadataCatalog.get(dataset_name).thing_classes == ["Wine Glass", "Human"]
    assert (record["image_id"], record["height"], record["width"]) == (100, 24, 32)
    box = {"bbox": [1.5, 2, 20, 18], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    assert record["annotations"][0] == box
    assert (record["annotations"][1]["category_id"], record["annotations"][1]["iscrowd"]) == (1, 1)
    assert empty["annotations"] == []
    assert int(read_image(empty["file_name"])[0, 0, 0]) == 40


def test_lines_are_selected_and_repeated_by_a_list(tmp_path: Path, dataset_name: str) -> None:
    path = write(tmp_path, [OBJECTS, [], []], linelist="cas.tsv")
    (tmp_path / "cas.tsv").write_text("2\n0\n0\n")
    assert [r["image_id"] for r in read(path, dataset_name)] == [102, 100, 100]


def test_sizes_are_optional_and_a_label_map_may_be_called_jsondict(
    tmp_path: Path, dataset_name: str
) -> None:
    path = write(tmp_path, [OBJECTS], hw="", labelmap="", jsondict="class2ind.json")
    [record] = read(path, dataset_name)
    assert "height" not in record
    assert len(record["annotations"]) == 2


def test_boxes_of_unknown_classes_and_without_area_are_reported(
    tmp_path: Path, dataset_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    unusable = [{"class": "zebra", "rect": [1, 2, 3, 4]}, {**OBJECTS[0], "rect": [9, 2, 9, 8]}]
    [record] = read(write(tmp_path, [OBJECTS + unusable]), dataset_name)
    assert len(record["annotations"]) == 2
    assert "not in the label map" in caplog.text
    assert "no area" in caplog.text


BAD_ROWS = [
    '[{"class": "Per',
    "7",
    '[{"rect": [1, 2, 3, 4]}]',
    '[{"class": "Person", "rect": [1, 2, 3]}]',
    '[{"class": "Person", "rect": [1, 2, "a", NaN]}]',
    '[{"class": ["Person"], "rect": [1, 2, 3, 4]}]',
    "[7]",
    "[" * 100_000,
]


@pytest.mark.parametrize("bad", BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_broken_row_raises_with_its_file_and_number(
    bad: str, tmp_path: Path, dataset_name: str
) -> None:
    with pytest.raises(ValueError, match=r"train\.label\.tsv', row 2: .*linelist"):
        read(write(tmp_path, [OBJECTS, bad, OBJECTS]), dataset_name)


@pytest.mark.parametrize("sizes", ["24", "[]", '{"height": 24}', "0 32", "tall wide"])
def test_a_broken_size_raises_with_the_number_of_its_row(
    sizes: str, tmp_path: Path, dataset_name: str
) -> None:
    with pytest.raises(ValueError, match="row 1: "):
        read(write(tmp_path, [OBJECTS], sizes=sizes), dataset_name)


def test_rows_of_different_files_must_have_the_same_key(tmp_path: Path, dataset_name: str) -> None:
    path = write(tmp_path, [OBJECTS])
    write_tsv(tmp_path / "train.hw.tsv", [["7", "24 32"]])
    with pytest.raises(ValueError, match="row 1: .*the key '7', not '100'"):
        read(path, dataset_name)


def test_a_line_that_does_not_exist_raises(tmp_path: Path, dataset_name: str) -> None:
    path = write(tmp_path, [OBJECTS], linelist="lines.tsv")
    (tmp_path / "lines.tsv").write_text("3\n")
    with pytest.raises(ValueError, match="row 4: "):
        read(path, dataset_name)


def test_without_a_label_map_the_error_names_the_key(tmp_path: Path, dataset_name: str) -> None:
    with pytest.raises(ValueError, match=r"train\.yaml' names no label map.*labelmap"):
        read(write(tmp_path, [OBJECTS], labelmap=""), dataset_name)


@pytest.mark.parametrize("store", [False, True])
def test_tsv_files_train_and_evaluate(store: bool, cfg: CfgNode, tmp_path: Path) -> None:
    name = f"tsv_objects_{store}"
    path = write(tmp_path / "tsv", [OBJECTS] * 3)
    cfg.DATASETS.CUSTOM = [{"name": name, "format": "tsv_detection", "yaml": path}]
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATALOADER.RECORD_STORE = store
    [first, _] = next(iter(build_train_loader(cfg)))
    assert "Wine Glass" in first["prompt"].phrases
    # Crowds are left out.
    assert first["instances"].gt_classes.tolist() == [0]
    assert len(build_test_loader(cfg, name)) == 3
