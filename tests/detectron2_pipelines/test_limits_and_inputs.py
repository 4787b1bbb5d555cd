"""Limits of detection under the names of Detectron2's keys, and inputs that cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.structures import Instances
from helpers.closed_set import text_prompted
from helpers.models import random_image, tiny_cfg, tiny_model
from helpers.pipelines import TRAIN, written_metrics
from helpers.text_tasks import CAPTIONING
from helpers.two_stage import two_stage_model

from glipv2_d2 import Predictor
from glipv2_d2.data.readers.grounding import register_grounding

NAMES = ["cat", "dog", "cow"]
EVERYTHING = ("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 50)


def detect(model: torch.nn.Module) -> Instances:
    with torch.no_grad():
        return model([{"image": random_image(), "classes": NAMES}])[0]["instances"]


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_the_limit_of_an_image_caps_one_prompt_at_its_best_detections(limit: int) -> None:
    everything = detect(tiny_model(*EVERYTHING))
    capped = detect(tiny_model(*EVERYTHING, "TEST.DETECTIONS_PER_IMAGE", limit))
    assert len(everything) > 7
    assert torch.equal(capped.scores, everything.scores[:limit])
    assert torch.equal(capped.pred_boxes.tensor, everything.pred_boxes.tensor[:limit])


def test_the_limit_of_an_image_caps_a_two_stage_model() -> None:
    options = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0)
    assert len(detect(two_stage_model(*options, "TEST.DETECTIONS_PER_IMAGE", 4))) == 4


def test_retinanet_without_a_limit_keeps_its_last_detection() -> None:
    options = ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 50)
    model = text_prompted("RetinaNet", *options, "TEST.DETECTIONS_PER_IMAGE", -1)
    unlimited = detect(model)
    model.max_detections_per_image = 9999
    assert len(unlimited) == len(detect(model)) > 0


def test_a_tutorials_score_threshold_is_answered_once_by_the_key_to_use(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As Detectron2's demo sets them."""
    keys = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.RETINANET.SCORE_THRESH_TEST")
    tiny_model(*(x for key in keys for x in (key, 0.5)))
    (message,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert all(f"{key} is 0.5: set MODEL.GROUNDING.SCORE_THRESH" in message for key in keys)


def test_configs_with_detectron2s_thresholds_are_not_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiny_model()
    two_stage_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.7)
    assert [r for r in caplog.records if r.levelno == logging.WARNING] == []


def test_a_tutorials_score_threshold_works_in_a_two_stage_model() -> None:
    everything = detect(two_stage_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0))
    assert len(everything) > 0
    assert len(detect(two_stage_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.999))) == 0


# Inputs


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def remove(x: dict[str, Any]) -> dict[str, Any]:
        if name in x:
            return {key: value for key, value in x.items() if key != name}
        fields = {k: v for k, v in x["instances"].get_fields().items() if k != name}
        return {**x, "instances": Instances(x["instances"].image_size, **fields)}

    return remove


@pytest.mark.parametrize("kind", ["cfg", "two_stage"])
@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("image", "needs an 'image', a tensor"),
        ("instances", "instances"),
        ("gt_boxes", "have no 'gt_boxes', only"),
        ("gt_classes", "have no 'gt_classes', only"),
    ],
)
def test_a_mapper_without_a_needed_field_is_an_error_with_the_field(
    kind: str, field: str, message: str, request: pytest.FixtureRequest
) -> None:
    cfg = request.getfixturevalue(kind)
    model = build_model(cfg).train()
    mapper = DatasetMapper(cfg, is_train=True)
    inputs = [without(field)(mapper(record)) for record in DatasetCatalog.get(TRAIN)[:1]]
    with pytest.raises(ValueError, match=message) as caught:
        model(inputs)
    assert DatasetCatalog.get(TRAIN)[0]["file_name"] in str(caught.value)


def test_a_config_of_another_proposal_generator_is_an_error_with_the_key() -> None:
    cfg = tiny_cfg("MODEL.PROPOSAL_GENERATOR.NAME", "RPN")
    with pytest.raises(TypeError, match=r"MODEL\.PROPOSAL_GENERATOR\.NAME RPN.*GroundingRPN"):
        build_model(cfg)


def test_the_predictor_rejects_a_closed_set_model_with_the_key() -> None:
    cfg = tiny_cfg("MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    with pytest.raises(ValueError, match=r"META_ARCHITECTURE is GeneralizedRCNN.*closed_set"):
        Predictor(cfg)


def text_records(**fields: Any) -> list[dict[str, Any]]:
    records = DatasetCatalog.get(TRAIN)
    return [
        {**{k: v for k, v in record.items() if k != "annotations"}, **fields} for record in records
    ]


def test_detectron2s_trainer_trains_text_tasks(cfg: CfgNode, registered: Any) -> None:
    cfg.merge_from_list(["MODEL.ANSWER.WEIGHT", 1.0, "MODEL.ANSWER.ANSWERS", ["yes", "no"]])
    cfg.merge_from_list(list(CAPTIONING))
    records = text_records(question="is it red?", answers={"yes": 1.0})
    records += text_records(target_captions=["a picture"])
    cfg.DATASETS.TRAIN = (registered("pipelines_text", records),)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert written_metrics(cfg)["total_loss"] > 0


def test_questions_without_an_answer_head_are_an_error_with_the_key(
    cfg: CfgNode, registered: Any
) -> None:
    records = text_records(question="is it red?", answers={"yes": 1.0})
    cfg.DATASETS.TRAIN = (registered("pipelines_questions", records),)
    model = build_model(cfg).train()
    with pytest.raises(ValueError, match=r"no answer head.*config: MODEL\.ANSWER\.WEIGHT"):
        model(next(iter(build_detection_train_loader(cfg))))


def test_captions_with_boxes_need_this_projects_mapper(cfg: CfgNode, drawn: Any) -> None:
    name = "pipelines_grounding"
    if name not in DatasetCatalog:
        register_grounding(name, str(drawn / f"{TRAIN}.json"), str(drawn / TRAIN))
    cfg.DATASETS.TRAIN = (name,)
    model = build_model(cfg).train()
    with pytest.raises(ValueError, match=r"no 'phrases'.*GroundingMapper\(cfg, is_train=True\)"):
        model(next(iter(build_detection_train_loader(cfg))))
