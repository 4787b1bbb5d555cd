"""Loaders: content of batches, reproducibility and resuming."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from helpers.tiny_coco import NAMES, write_coco

from glipv2_d2.data.build import build_test_loader, build_train_loader
from glipv2_d2.data.loading import load_dataset

Batch = list[dict[str, Any]]


def take(cfg: CfgNode, count: int, *, start: int = 0, seed: int | None = None) -> list[Batch]:
    loader = build_train_loader(cfg)
    loader.start_iteration = start
    if seed is not None:
        loader.seed = seed
    return list(itertools.islice(loader, count))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for x, y in zip(itertools.chain(*ours), itertools.chain(*theirs), strict=True):
        assert x["file_name"] == y["file_name"]
        assert x["prompt"] == y["prompt"]
        assert torch.equal(x["image"], y["image"])


def test_batches_of_a_plain_coco_dataset(cfg: CfgNode) -> None:
    [batch] = take(cfg, 1)
    assert len(batch) == 2
    for x in batch:
        # Image i has class i modulo 3.
        [gt_class] = x["instances"].gt_classes.tolist()
        assert gt_class == x["image_id"] % len(NAMES)
        assert gt_class in x["prompt"].classes


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_stream_equals_the_uninterrupted_one(cfg: CfgNode, num_workers: int) -> None:
    whole = take(cfg, 5)
    cfg.DATALOADER.NUM_WORKERS = num_workers
    assert_same(take(cfg, 2, start=3), whole[3:])


def test_another_seed_gives_another_order(cfg: CfgNode) -> None:
    order = [x["file_name"] for batch in take(cfg, 8) for x in batch]
    other = [x["file_name"] for batch in take(cfg, 8, seed=2) for x in batch]
    assert order != other


def test_seed_is_random_by_default(cfg: CfgNode) -> None:
    cfg.SEED = -1
    seeds = {build_train_loader(cfg).seed for _ in range(2)}
    assert len(seeds) == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_grouping_by_aspect_ratio_gives_full_batches(cfg: CfgNode, num_workers: int) -> None:
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    cfg.DATALOADER.NUM_WORKERS = num_workers
    for batch in take(cfg, 3):
        assert len(batch) == 2
        assert len({x["width"] > x["height"] for x in batch}) == 1


def test_images_of_a_batch_keep_their_own_class_names(
    cfg: CfgNode, tmp_path: Path, register: Callable[..., str]
) -> None:
    _, images = write_coco(tmp_path / "own")
    lists = [["cat", "dog"], ["bus", "cat", "car"], ["sea"], ["dog", "cat"]]

    def records() -> list[dict[str, Any]]:
        box = {"bbox": [4, 6, 20, 16], "bbox_mode": BoxMode.XYWH_ABS}
        return [
            {
                "file_name": str(images / f"{i}.png"),
                "image_id": i,
                "height": 48,
                "width": 48 + i,
                "classes": names,
                "annotations": [{**box, "category_id": len(names) - 1}],
            }
            for i, names in enumerate(lists)
        ]

    cfg.DATASETS.TRAIN = (register("own_lists", records),)
    cfg.SOLVER.IMS_PER_BATCH = 4
    [batch] = take(cfg, 1)
    assert len({tuple(x["classes"]) for x in batch}) > 1
    for x in batch:
        label = x["prompt"].classes.index(x["instances"].gt_classes.item())
        assert x["prompt"].phrases[label] == lists[x["image_id"]][-1]


def test_datasets_with_different_class_names_train_together(
    cfg: CfgNode, tmp_path: Path, register: Callable[..., str]
) -> None:
    source = write_coco(tmp_path / "second", names=("dog", "bus"))
    cfg.DATASETS.TRAIN = ("tiny_coco", register("second_coco", source))
    cfg.SOLVER.IMS_PER_BATCH = 8
    names = {"tiny_coco": list(NAMES), "second_coco": ["dog", "bus"]}
    [batch] = take(cfg, 1)
    assert {x["dataset_name"] for x in batch} == set(names)
    assert all(x["classes"] == names[x["dataset_name"]] for x in batch)


def test_captions_and_class_names_train_together(
    cfg: CfgNode, tmp_path: Path, register: Callable[..., str]
) -> None:
    _, images = write_coco(tmp_path / "captions", num_images=1)
    record = {
        "file_name": str(images / "0.png"),
        "height": 48,
        "width": 48,
        "caption": "a cat here",
        "annotations": [
            {"bbox": [4, 6, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "tokens_positive": [[0, 5]]}
        ],
    }
    cfg.DATASETS.TRAIN = (register("captions", lambda: [record]), "tiny_coco")
    cfg.SOLVER.IMS_PER_BATCH = 5
    [batch] = take(cfg, 1)
    by_caption = {"caption" in x: x["prompt"].text for x in batch}
    assert by_caption[True] == "a cat here"
    assert by_caption[False] != "a cat here"


def test_rare_classes_can_be_repeated(cfg: CfgNode) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    assert_same(take(cfg, 2, start=1), take(cfg, 3)[1:])


def test_unknown_sampler_raises(cfg: CfgNode) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = "Dice"
    with pytest.raises(ValueError, match="Dice"):
        build_train_loader(cfg)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_loads_every_image_once(cfg: CfgNode, num_workers: int) -> None:
    cfg.DATALOADER.NUM_WORKERS = num_workers
    batches = list(build_test_loader(cfg, "tiny_coco"))
    assert [x["image_id"] for batch in batches for x in batch] == [0, 1, 2, 3]
    assert all(x["classes"] == list(NAMES) for batch in batches for x in batch)


def test_unknown_dataset_raises_with_the_closest_name(tiny_coco: str) -> None:
    with pytest.raises(ValueError, match=r"tiny_cocoo.*'tiny_coco'"):
        load_dataset("tiny_cocoo", filter_empty=False)


def test_empty_datasets_train_raises(cfg: CfgNode) -> None:
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        build_train_loader(cfg)


@pytest.mark.parametrize("gone", ["annotations.json", "images"])
def test_missing_dataset_raises_with_path_and_remedy(
    gone: str, tmp_path: Path, register: Callable[..., str]
) -> None:
    annotations, images = write_coco(tmp_path / "lost")
    register("lost_coco", (annotations, images))
    (tmp_path / "lost" / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("lost_coco", filter_empty=False)
    for part in ("lost_coco", gone, "datasets/README.md", "DETECTRON2_DATASETS"):
        assert part in str(caught.value)
