"""ODinW: the table of datasets is complete, and its class names replace those of the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.data.readers.coco import read_coco
from glipv2_d2.data.readers.odinw import (
    CLASSES_OF_13,
    benchmark_names,
    odinw_datasets,
    register_split,
    split_name,
)
from glipv2_d2.engine.setup import load_config
from glipv2_d2.evaluation.build import build_evaluator
from glipv2_d2.text.names import check_names

SETS = odinw_datasets()


@pytest.mark.parametrize(("benchmark", "count"), [("odinw_13", 13), ("odinw_35", 35)])
def test_all_datasets_of_a_benchmark_are_registered(benchmark: str, count: int) -> None:
    names = benchmark_names(benchmark)
    assert len(set(names)) == count
    assert set(names) <= set(DatasetCatalog.list())


def test_odinw_13_has_its_own_class_names() -> None:
    rabbits, mushrooms = CLASSES_OF_13
    names = benchmark_names("odinw_13")
    assert f"odinw_13_{rabbits}_val" in names and f"odinw_13_{mushrooms}_val" in names
    assert f"odinw_{rabbits}_val" in benchmark_names("odinw_35")
    assert CLASSES_OF_13[rabbits] == ["Cottontail-Rabbit"]
    assert all(len(SETS[key]["classes"]) == len(CLASSES_OF_13[key]) for key in CLASSES_OF_13)


def test_unknown_benchmark_raises() -> None:
    with pytest.raises(ValueError, match="odinw_14"):
        benchmark_names("odinw_14")


@pytest.mark.parametrize("key", SETS)
def test_class_names_are_valid(key: str) -> None:
    assert check_names(SETS[key]["classes"])


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pothole_train_3_30", "pothole/train/fewshot_train_shot3_seed30.json"),
        ("pothole_val_10_300", "pothole/valid/fewshot_val_shot10_seed300.json"),
        # As in configs/odinw_13 of microsoft/GLIP.
        ("EgoHands_generic_val_1_3", "EgoHands/generic/valid/fewshot_val_shot1_seed3.json"),
        (
            "EgoHands_generic_minival_1_3",
            "EgoHands/generic/mini_val/fewshot_minival_shot1_seed3.json",
        ),
        ("pistols_export_val_5_3", "pistols/export/fewshot_val_shot5_seed3.json"),
    ],
)
def test_few_shot_files_are_in_the_folder_of_their_split(name: str, file: str) -> None:
    [path] = MetadataCatalog.get(f"odinw_{name}").source_files
    assert path.endswith(f"/odinw/{file}") or path == f"datasets/odinw/{file}"


@pytest.mark.parametrize("benchmark", ["odinw_13", "odinw_35"])
def test_every_split_of_a_benchmark_is_registered(benchmark: str) -> None:
    names = {
        split_name(key, split, benchmark)
        for key, entry in SETS.items()
        if benchmark in entry["benchmarks"]
        for split in ("train_10_3", f"{entry['evaluated_on']}_1_300", "train", "test")
    }
    assert names <= set(DatasetCatalog.list())
    assert ("odinw_pothole_test_prompted" in names) == (benchmark == "odinw_35")


def test_glip_prompt_is_a_separate_dataset() -> None:
    plain = MetadataCatalog.get("odinw_Packages_Raw_val")
    prompted = MetadataCatalog.get("odinw_Packages_Raw_val_prompted")
    assert plain.get("decorations") is None
    assert ["".join(d) for d in prompted.decorations] == ["there is a package on the porch"]
    assert plain.source_files == prompted.source_files


def test_prompts_have_one_text_per_class() -> None:
    with_prompt = [entry for entry in SETS.values() if "prompt" in entry]
    assert len(with_prompt) == 4
    assert all(len(entry["prompt"]) == len(entry["classes"]) for entry in with_prompt)


def test_class_names_of_the_table_replace_those_of_the_file(
    write_json: Callable[[str, Any], str], tmp_path: Path, dataset_name: str
) -> None:
    box = {"image_id": 1, "bbox": [1, 1, 2, 2]}
    path = write_json(
        "a.json",
        {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}],
            "categories": [{"id": 1, "name": "Cottontail-Rabbit"}, {"id": 2, "name": "more"}],
            "annotations": [{**box, "id": 1, "category_id": 1}],
        },
    )
    [record] = read_coco(path, str(tmp_path), dataset_name, class_names=["rabbit"])
    assert MetadataCatalog.get(dataset_name).thing_classes == ["rabbit"]
    assert record["annotations"][0]["category_id"] == 0


def test_dataset_can_be_evaluated_repeatedly(
    write_json: Callable[[str, Any], str], tmp_path: Path, dataset_name: str
) -> None:
    path = write_json(
        "set/a.json",
        {
            "images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}],
            "categories": [{"id": 1, "name": "rabbit"}, {"id": 2, "name": "not in the table"}],
            "annotations": [{"id": 1, "image_id": 1, "bbox": [1, 1, 2, 2], "category_id": 1}],
        },
    )
    register_split(dataset_name, path, ["hare"])
    DatasetCatalog.get(dataset_name)
    for _ in range(2):
        # The second evaluation must not use the first one's cached file.
        evaluator = build_evaluator(load_config(), dataset_name, str(tmp_path / "results"))
        evaluator.reset()
        evaluator.evaluate()
    DatasetCatalog.remove(dataset_name)
