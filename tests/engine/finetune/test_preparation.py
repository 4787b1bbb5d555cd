"""The configs of a fine-tuning."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.stand_in import configure
from helpers.tiny_coco import NAMES, write_coco

from glipv2_d2.data import custom, replaceable
from glipv2_d2.engine.finetune.finetune_trainer import MAX_LIMITED_ITERATIONS
from glipv2_d2.engine.finetune.job import FinetuneJob
from glipv2_d2.engine.finetune.preparation import FinetuneArguments, prepare
from glipv2_d2.engine.setup import load_config
from glipv2_d2.model_zoo import ModelFiles

Prepare = Callable[..., FinetuneJob]


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[Prepare]:
    """Twelve training images in batches of four, and a config with a recipe."""
    for split, count in (("train", 12), ("valid", 3)):
        write_coco(tmp_path / "pets" / split, num_images=count)
    cfg = load_config().clone()
    cfg.defrost()
    configure(cfg, "absent_set", str(tmp_path / "unused"))
    cfg.MODEL.TUNING.RECIPE = ["MODEL.MASK_ON", True, "SOLVER.BASE_LR", 0.5]
    (tmp_path / "base.yaml").write_text(cfg.dump())
    files = ModelFiles(tmp_path / "base.yaml", tmp_path / "base.pth")
    arguments = FinetuneArguments(tmp_path / "pets", "base", files, tmp_path / "output")
    yield lambda **changes: prepare(replace(arguments, **changes))
    for name in [name for name in DatasetCatalog if name.startswith("pets_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
        custom._registered.pop(name)


def test_a_folder_with_the_name_of_a_builtin_dataset_is_another_dataset(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaceable, "_builtin", {"pets_valid": None})
    assert prepared().target == "pets_folder_valid"


def test_the_recipe_of_the_policy_is_used(prepared: Prepare) -> None:
    solver = prepared(policy="prompt", opts=["SOLVER.GAMMA", "0.5"]).cfg.SOLVER
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.GAMMA) == (0.05, 0.25, 0.5)
    assert solver.MAX_ITER == 200 * 3
    assert solver.EARLY_STOP_PATIENCE > 0


def test_published_shots_are_used_where_they_are(prepared: Prepare, tmp_path: Path) -> None:
    train = tmp_path / "pets" / "train" / "annotations.json"
    content = json.loads(train.read_text())
    # Not the sample of this seed.
    chosen = {9, 10, 11}
    few = {
        **content,
        "images": [image for image in content["images"] if image["id"] in chosen],
        "annotations": [a for a in content["annotations"] if a["image_id"] in chosen],
    }
    sampled = prepared(shots=1, seed=3)
    assert trained_ids(sampled) != chosen
    assert sampled.notes == ["--shots 1: 3 images, sampled from the training images with seed 3"]
    published = train.with_name("fewshot_train_shot1_seed3.json")
    published.write_text(json.dumps(few))
    job = prepared(shots=1, seed=3)
    assert job.notes == [f"--shots 1: 3 images, of the published split '{published.name}'"]
    assert trained_ids(job) == chosen
    assert (
        prepared(shots=1, seed=30)
        .notes[0]
        .endswith("sampled from the training images with seed 30")
    )

    published.write_text(json.dumps({**few, "categories": [{"id": 10, "name": "dog"}]}))
    with pytest.raises(ValueError, match=r"fewshot_train_shot1_seed3.json' has the classes"):
        prepared(shots=1, seed=3)


def trained_ids(job: FinetuneJob) -> set[int]:
    (entry,) = (e for e in job.cfg.DATASETS.CUSTOM if e["name"] == "pets_train")
    return {image["id"] for image in json.loads(Path(entry["json"]).read_text())["images"]}


def test_the_recipe_of_the_model_changes_that_of_full_and_the_model_before(
    prepared: Prepare,
) -> None:
    job = prepared(policy="full")
    assert job.cfg.SOLVER.BASE_LR == 0.5
    # Before and after are the same model.
    assert job.cfg.MODEL.MASK_ON and job.base_cfg.MODEL.MASK_ON
    assert prepared(policy="prompt").cfg.MODEL.MASK_ON
    assert prepared(opts=["SOLVER.BASE_LR", "0.25"]).cfg.SOLVER.BASE_LR == 0.25


@pytest.mark.parametrize(
    ("epochs", "batch", "iterations", "period"),
    [(1, None, 3, 3), (2, 6, 4, 2), (0.5, None, 2, 2), (100, None, 300, 15), (1, 7, 2, 2)],
)
def test_epochs_count_images(
    prepared: Prepare, epochs: float, batch: int | None, iterations: int, period: int
) -> None:
    cfg = prepared(epochs=epochs, batch=batch).cfg
    assert (iterations, period) == (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD)
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR"
    assert cfg.SOLVER.EARLY_STOP_PATIENCE == 0


def test_a_time_limit_leaves_the_length_open(prepared: Prepare) -> None:
    job = prepared(minutes=2)
    assert (job.seconds, job.cfg.SOLVER.MAX_ITER) == (120, MAX_LIMITED_ITERATIONS)


def test_classes_and_datasets_are_those_of_the_folder(prepared: Prepare) -> None:
    job = prepared(base_sets=["another_absent_set"])
    assert job.class_names == list(NAMES)
    assert (job.target, job.selection_set) == ("pets_valid", "pets_valid")
    assert job.absent_base_sets == ["another_absent_set"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1, "minutes": 1}, "exclude each other"),
        ({"minutes": -1}, "--minutes is -1"),
        ({"epochs": math.nan}, "--epochs is nan"),
        ({"minutes": math.inf}, "--minutes is inf"),
        ({"batch": 0}, "--batch is 0"),
    ],
)
def test_invalid_numbers_are_named(
    prepared: Prepare, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(**changes)


@pytest.mark.parametrize("key", ["annotations", "images"])
def test_an_empty_training_set_is_named(prepared: Prepare, tmp_path: Path, key: str) -> None:
    path = tmp_path / "pets/train/annotations.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": [], key: []}))
    with pytest.raises(ValueError, match="no boxes to train on|lists no image"):
        prepared()
