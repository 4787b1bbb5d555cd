"""Evaluation with Detectron2's loaders and trainers; test sets without an evaluator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    inference_on_dataset,
)
from detectron2.modeling import build_model
from helpers.pipelines import TRAIN, VAL, written_metrics
from torch import nn

from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.engine.train.trainer import Trainer

Register = Callable[..., str]


@pytest.fixture
def model(cfg: CfgNode) -> nn.Module:
    cfg.MODEL.GROUNDING.SCORE_THRESH = 0.0
    cfg.MODEL.GROUNDING.DETECTIONS_PER_PROMPT = 5
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATASETS.TEST = (VAL,)
    torch.manual_seed(0)
    return build_model(cfg).eval()


@pytest.fixture
def without_evaluator(cfg: CfgNode, registered: Register) -> str:
    """The drawn data as a tutorial registers its own: without an evaluator_type."""
    del cfg
    records = DatasetCatalog.get(VAL)
    return registered(
        "pipelines_tutorial", records, thing_classes=MetadataCatalog.get(VAL).thing_classes
    )


def test_results_are_written_to_the_given_folder(cfg: CfgNode, model: nn.Module) -> None:
    folder = Path(cfg.OUTPUT_DIR) / "results"
    evaluator = Trainer.build_evaluator(cfg, VAL, str(folder))
    results = inference_on_dataset(model, build_detection_test_loader(cfg, VAL), evaluator)
    assert "AP" in results["bbox"]
    assert json.loads((folder / "coco_instances_results.json").read_text())


def test_evaluators_of_both_projects_agree(cfg: CfgNode, model: nn.Module, tmp_path: Path) -> None:
    both = DatasetEvaluators(
        [Named("ours", Trainer.build_evaluator(cfg, VAL)), Named("theirs", COCOEvaluator(VAL))]
    )
    results = inference_on_dataset(model, build_detection_test_loader(cfg, VAL), both)
    assert results["ours"]["AP50"] == pytest.approx(results["theirs"]["AP50"], nan_ok=True)


class Named(DatasetEvaluator):
    """Results of an evaluator for boxes under a name of its own."""

    def __init__(self, name: str, evaluator: DatasetEvaluator) -> None:
        self.name = name
        self.evaluator = evaluator

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        self.evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        return {self.name: self.evaluator.evaluate()["bbox"]}


def test_a_test_set_without_an_evaluator_is_reported_before_training_and_skipped_after_it(
    cfg: CfgNode, without_evaluator: str, caplog: pytest.LogCaptureFixture
) -> None:
    cfg.DATASETS.TEST = (without_evaluator, VAL)
    trainer = Trainer(cfg)
    assert f"{without_evaluator!r} has the evaluator_type None" in caplog.text
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())
    assert results[without_evaluator] == {}
    assert "AP" in results[VAL]["bbox"]


def test_an_unknown_test_set_is_an_error_before_training(cfg: CfgNode) -> None:
    cfg.DATASETS.TEST = ("pipelines_vla",)
    with pytest.raises(ValueError, match=f"did you mean '{VAL}'"):
        Trainer(cfg)


def test_detectron2s_trainer_evaluates_with_this_projects_evaluators(cfg: CfgNode) -> None:
    class WithEvaluators(DefaultTrainer):
        @classmethod
        def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
            return Trainer.build_evaluator(cfg, dataset_name)

    cfg.SOLVER.MAX_ITER = 1
    cfg.DATASETS.TEST = (VAL,)
    trainer = WithEvaluators(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert "bbox/AP" in written_metrics(cfg)


@pytest.fixture
def other_names(cfg: CfgNode, registered: Register) -> str:
    """A test set with other class names and other images than the drawn ones."""
    del cfg
    records = [{**record, "annotations": []} for record in DatasetCatalog.get(TRAIN)]
    return registered("pipelines_other_names", records, thing_classes=["zebra"])


@pytest.mark.parametrize("mapper", ["detectron2", "ours"])
def test_test_sets_with_different_class_names_keep_theirs_in_detectron2s_loader(
    cfg: CfgNode, other_names: str, mapper: str
) -> None:
    cfg.DATASETS.TEST = (VAL, other_names)
    cfg.INPUT.MIN_SIZE_TEST = 64
    model = build_model(cfg).eval()
    prompts: dict[str, set[str]] = {}
    localized_queries = model.query_builder.localized_queries

    def record(inputs: Any, outputs: Any) -> Any:
        queries = localized_queries(inputs, outputs)
        prompts.setdefault(name, set()).update(query.prompt.text for query in queries)
        return queries

    model.query_builder.localized_queries = record
    ours = GroundingMapper(cfg, is_train=False) if mapper == "ours" else None
    for name in cfg.DATASETS.TEST:
        loader = build_detection_test_loader(cfg, name, mapper=ours)
        with torch.no_grad():
            for batch in loader:
                model(batch)
    assert prompts[other_names] == {"zebra"}
    assert prompts[VAL] == {". ".join(MetadataCatalog.get(VAL).thing_classes)}


def test_an_image_of_two_test_sets_with_different_class_names_is_an_error(
    cfg: CfgNode, registered: Register
) -> None:
    records = [{**record, "annotations": []} for record in DatasetCatalog.get(VAL)]
    name = registered("pipelines_same_images", records, thing_classes=["zebra"])
    cfg.DATASETS.TEST = (VAL, name)
    model = build_model(cfg).eval()
    (batch, *_) = build_detection_test_loader(cfg, name)
    with pytest.raises(ValueError, match="different class names, but its file_name .* is not in"):
        model(batch)
