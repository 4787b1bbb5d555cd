"""Classes of several detection datasets that are one, in prompts and across images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from glipv2_d2.data.build import build_train_loader
from glipv2_d2.data.class_alignment import class_keys
from glipv2_d2.data.label_map import read_label_map
from glipv2_d2.modeling.heads.inter_image import name_ids
from glipv2_d2.modeling.losses.inter_image import propagate_labels
from glipv2_d2.text.tokenizer import Tokenizer

# Two maps of VinVL: the numbers are those of one vocabulary.
OPENIMAGES_MAP = {"Wine glass": 7, "Mobile phone": 9, "Mouse": 20}
OBJECTS365_MAP = {"Cup": 3, "Cell Phone": 9, "Mouse": 21}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Wine glass", "wineglass"),
        ("Traffic_light", "traffic-light"),
        ("skis", "Ski"),
        ("bow_(weapon)", "Bow"),
        ("Knives", "knife"),
    ],
)
def test_names_of_one_spelling_are_one_class(name: str, other: str) -> None:
    keys = class_keys({"a": [name, "cat"], "b": ["dog", other]}, {})
    assert keys["a"][0] == keys["b"][1]


@pytest.mark.parametrize(
    ("name", "other"),
    [("glass", "Glasses"), ("lens", "len"), ("Wine glass", "glass"), ("कि", "का"), ("C#", "C")],
)
def test_names_of_two_things_are_two_classes(name: str, other: str) -> None:
    keys = class_keys({"a": [name], "b": [other]}, {})
    assert keys["a"] != keys["b"]


def test_a_dataset_with_both_forms_keeps_them_apart_everywhere() -> None:
    keys = class_keys({"a": ["man", "men", "boot"], "b": ["Men"], "c": ["boots"]}, {})
    assert keys["b"][0] == keys["a"][1] != keys["a"][0]
    assert keys["c"][0] == keys["a"][2]


def test_names_of_one_number_are_one_class() -> None:
    names = {"oi": list(OPENIMAGES_MAP), "o365": ["Cell Phone", "Mouse"], "in": ["wineglass"]}
    keys = class_keys(names, {"oi": OPENIMAGES_MAP, "o365": OBJECTS365_MAP})
    assert keys["oi"][1] == keys["o365"][0]
    assert keys["oi"][0] == keys["in"][0]
    # The animal, and that of a computer.
    assert keys["oi"][2] != keys["o365"][1]


@given(st.lists(st.text(max_size=8), max_size=6), st.lists(st.text(max_size=8), max_size=6))
def test_equal_names_of_two_datasets_have_equal_keys(first: list[str], second: list[str]) -> None:
    keys = class_keys({"a": first, "b": second}, {})
    for name, key in zip(first, keys["a"], strict=True):
        for other, other_key in zip(second, keys["b"], strict=True):
            assert name != other or key == other_key


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.json", '{"__background__": 0, "cat": 2, "wine glass": 1}'),
        (
            "dict.json",
            '{"label_to_idx": {"cat": 2, "wine glass": 1}, "idx_to_label": {"2": "cat"}}',
        ),
        ("train.labelmap.tsv", "wine glass\ncat\n"),
    ],
)
def test_label_maps_are_read_in_their_published_forms(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert read_label_map(str(tmp_path / name)) == {"cat": 2, "wine glass": 1}


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"cat": "2"}', '{"cat": true}', '{"": 1}', '{"label_to_idx": 3}', "{"]
)
def test_a_file_that_is_no_label_map_raises_with_its_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(ValueError, match=r"map\.json"):
        read_label_map(str(tmp_path / "map.json"))


def write_dataset(folder: Path, name: str, class_names: list[str]) -> dict[str, str]:
    """A dataset in COCO's format with one image, which has a box of the first class."""
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(folder / f"{name}.png")
    content = {
        "images": [{"id": 1, "file_name": f"{name}.png", "height": 32, "width": 48}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20]}],
        "categories": [{"id": i, "name": n} for i, n in enumerate(class_names, start=1)],
    }
    (folder / f"{name}.json").write_text(json.dumps(content))
    return {"name": name, "json": str(folder / f"{name}.json"), "images": str(folder)}


@pytest.fixture
def joint(cfg: CfgNode, tmp_path: Path) -> Iterator[CfgNode]:
    """Joint training on two datasets that write a class apart."""
    cfg.DATASETS.CUSTOM = [
        write_dataset(tmp_path / "a", "align_oi", ["Wine glass", "wineglass", "Mobile phone"]),
        write_dataset(tmp_path / "b", "align_vg", ["wineglass", "cell phone", "table"]),
    ]
    cfg.DATASETS.TRAIN = ("align_oi", "align_vg")
    cfg.DATALOADER.PROMPT.FULL_NEGATIVES_PROB = 1.0
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.INPUT.RANDOM_FLIP = "none"
    yield cfg
    for entry in cfg.DATASETS.CUSTOM:
        if entry["name"] in DatasetCatalog:
            DatasetCatalog.remove(entry["name"])
            MetadataCatalog.remove(entry["name"])


def batch_with_both(cfg: CfgNode) -> list[dict[str, Any]]:
    for batch in build_train_loader(cfg):
        if {x["dataset_name"] for x in batch} == {"align_oi", "align_vg"}:
            return batch
    raise AssertionError


@pytest.mark.parametrize("store", [False, True])
def test_another_spelling_of_an_object_is_no_negative_in_a_joint_training(
    store: bool, joint: CfgNode
) -> None:
    joint.DATALOADER.RECORD_STORE = store
    batch = batch_with_both(joint)
    prompts = [x["prompt"] for x in batch]
    tokens = Tokenizer()(prompts)
    gt_names, token_names = name_ids(tokens, [x["instances"] for x in batch])
    for x, names in zip(batch, gt_names, strict=True):
        assert len(x["instances"]) == 1
        # One spelling alone is in the prompt of the image, as the label of its box.
        [label] = [i for i, p in enumerate(x["prompt"].phrases) if "glass" in p.lower()]
        assert x["prompt"].classes[label] == x["instances"].gt_classes.item()
        for i, prompt in enumerate(prompts):
            [other] = [k for k, p in enumerate(prompt.phrases) if "glass" in p.lower()]
            is_positive = propagate_labels(names, token_names[i : i + 1].flatten())[0]
            assert is_positive.tolist() == tokens.positive_maps[i][other].bool().tolist()


def test_label_maps_make_synonyms_one_class(joint: CfgNode, tmp_path: Path) -> None:
    (tmp_path / "oi.json").write_text(json.dumps({"Wine glass": 7, "Mobile phone": 9}))
    (tmp_path / "vg.json").write_text(json.dumps({"wineglass": 7, "cell phone": 9, "table": 1}))
    joint.DATASETS.LABEL_MAPS = [
        ["align_oi", str(tmp_path / "oi.json")],
        ["align_vg", str(tmp_path / "vg.json")],
    ]
    keys: dict[str, set[str]] = {}
    for x in batch_with_both(joint):
        for phrase, key in zip(x["prompt"].phrases, x["prompt"].label_keys, strict=True):
            keys.setdefault(key, set()).add(phrase)
    assert {"Mobile phone", "cell phone"} in keys.values()


LABEL_MAPS = {
    "not a pair": (["align_oi"], "is not a pair"),
    "another dataset": ([["coco_2017_train", "map.json"]], "not in DATASETS.TRAIN"),
    "no file": ([["align_oi", "map.json"]], "does not exist"),
}


@pytest.mark.parametrize("case", LABEL_MAPS)
def test_wrong_label_maps_raise_before_training(case: str, joint: CfgNode) -> None:
    joint.DATASETS.LABEL_MAPS, message = LABEL_MAPS[case]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_train_loader(joint)


def test_a_label_map_of_another_dataset_raises(joint: CfgNode, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"zebra": 1}')
    joint.DATASETS.LABEL_MAPS = [["align_vg", str(tmp_path / "map.json")]]
    with pytest.raises(ValueError, match=r"align_vg.*none of its class names.*wineglass"):
        build_train_loader(joint)
