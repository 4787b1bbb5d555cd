"""The results of a fine-tuning with test-time augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from helpers.models import tiny_cfg, tiny_model
from helpers.tiny_coco import write_coco
from torch import nn

from glipv2_d2.engine.finetune.job import evaluate
from glipv2_d2.engine.train.trainer import Trainer

NAME = "augmented_set"


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    register_coco_instances(NAME, {}, *map(str, write_coco(tmp_path / "data", num_images=2)))
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_a_fine_tuned_model_is_evaluated_with_augmentation(dataset: str, tmp_path: Path) -> None:
    cfg = tiny_cfg(
        *("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (48,), "DATALOADER.NUM_WORKERS", 0)
    )
    results, seconds = evaluate(cfg, tiny_model(), [dataset], tmp_path)
    assert results[dataset].keys() >= {"AP", "AP50"}
    assert seconds.keys() == {dataset}
    assert (tmp_path / "inference_TTA" / dataset / "coco_instances_results.json").is_file()


@pytest.mark.parametrize(("is_augmented", "expected"), [(True, 2.0), (False, 1.0)])
def test_results_are_those_with_augmentation_if_it_is_enabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_augmented: bool, expected: float
) -> None:
    both = {"bbox": {"AP": 1.0}, "bbox_TTA": {"AP": 2.0}}
    monkeypatch.setattr(Trainer, "test", staticmethod(lambda _cfg, _model: both))
    cfg = tiny_cfg("TEST.AUG.ENABLED", is_augmented)
    results, _ = evaluate(cfg, nn.Identity(), [NAME], tmp_path)
    assert results == {NAME: {"AP": expected}}
