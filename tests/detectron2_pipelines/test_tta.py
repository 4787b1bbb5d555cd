"""Test-time augmentation: boxes, masks, captions, and how TEST.AUG switches it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from helpers.masks import masked_model
from helpers.models import random_image, tiny_cfg, tiny_model
from helpers.tiny_coco import write_coco
from helpers.two_stage import PHRASES, two_stage_cfg, two_stage_model
from torch import nn

from glipv2_d2.engine.benchmark_evaluation import ModelCache, _evaluate
from glipv2_d2.engine.test_time_augmentation import (
    GLIPv2WithTTA,
    View,
    augmented_views,
    build_tta_model,
    with_image,
)
from glipv2_d2.engine.train.trainer import Trainer
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.postprocess import DetectionsPerImage

NAMES = ["cat", "traffic light", "bat_(animal)"]
# Every candidate passes, so that random weights give detections to compare.
ALL = ("MODEL.GROUNDING.SCORE_THRESH", 0.0, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 20)
ONE_VIEW = ("TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.FLIP", False)
FLIPPED = ("TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.FLIP", True)
SCALED = ("TEST.AUG.MIN_SIZES", (48, 64, 96), "TEST.AUG.FLIP", True)
TEXT_HEADS = ("MODEL.ANSWER.WEIGHT", 1.0, "MODEL.ANSWER.ANSWERS", ["yes", "no"])


def run(model: nn.Module, **x: Any) -> dict[str, Any]:
    with torch.no_grad():
        (result,) = model([{"image": random_image(64, 80), "height": 32, "width": 40, **x}])
    return result


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    first, second = a["instances"], b["instances"]
    assert len(first) == len(second) > 0
    torch.testing.assert_close(first.pred_boxes.tensor, second.pred_boxes.tensor)
    torch.testing.assert_close(first.scores, second.scores)
    assert first.pred_classes.tolist() == second.pred_classes.tolist()
    assert first.has("pred_masks") == second.has("pred_masks")
    if first.has("pred_masks"):
        assert torch.equal(first.pred_masks, second.pred_masks)


@pytest.mark.parametrize("build", [tiny_model, masked_model])
@pytest.mark.parametrize("names", [NAMES, [f"thing {i}" for i in range(5)]], ids=["one", "chunks"])
def test_one_view_of_the_same_size_gives_the_results_of_the_model(
    build: Any, names: list[str]
) -> None:
    opts = (*ALL, "MODEL.PROMPT.MAX_CLASSES", 3)
    model = build(*opts)
    augmented = GLIPv2WithTTA(tiny_cfg(*opts, *ONE_VIEW), model)
    assert_same(run(augmented, classes=names), run(model, classes=names))


def brightest_box(image: torch.Tensor) -> list[float]:
    """XYXY with inclusive corners of the bright pixels."""
    rows, columns = (image.float().mean(dim=0) > 128).nonzero(as_tuple=True)
    return [float(x) for x in (columns.min(), rows.min(), columns.max(), rows.max())]


def finds_bright_pixels(model: GLIPv2, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the model detect the bright pixels of each view; returns the texts it encodes."""
    texts: list[str] = []
    seen: dict[str, list[torch.Tensor]] = {}
    encode = model.encode_images

    def encode_images(inputs: list[dict[str, Any]]) -> Any:
        seen["images"] = [x["image"] for x in inputs]
        return encode(inputs)

    def detect_boxes(_features: Any, fused: Any) -> list[DetectionsPerImage]:
        texts.extend(query.prompt.text for query in fused.queries)
        return [
            DetectionsPerImage(
                torch.tensor([brightest_box(seen["images"][query.image])]),
                torch.tensor([0.5]),
                torch.tensor([0]),
                torch.tensor([0]),
            )
            for query in fused.queries
        ]

    monkeypatch.setattr(model, "encode_images", encode_images)
    monkeypatch.setattr(model, "detect_boxes", detect_boxes)
    return texts


def bright_square() -> torch.Tensor:
    """An image of 64 x 80 that is bright in x 8..23, y 16..31."""
    image = torch.zeros(3, 64, 80, dtype=torch.uint8)
    image[:, 16:32, 8:24] = 255
    return image


@pytest.mark.parametrize("opts", [FLIPPED, ("TEST.AUG.MIN_SIZES", (64, 128, 256))])
def test_boxes_of_all_views_fall_on_the_object(
    opts: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    finds_bright_pixels(model, monkeypatch)
    augmented = GLIPv2WithTTA(tiny_cfg(*opts), model)
    x = {"image": bright_square(), "classes": NAMES}
    with torch.no_grad():
        (result,) = augmented([x])
    # One box: those of the views overlap, and the NMS keeps one of them.
    (box,) = result["instances"].pred_boxes.tensor
    assert (box - torch.tensor([8.0, 16.0, 24.0, 32.0])).abs().max() < 1.0
    flipped = augmented._merged_boxes(
        [view for view in views_of(augmented, x) if view.is_flipped and view.size == (64, 80)], 1
    )[0]
    assert flipped.boxes.tolist() == [[8.0, 16.0, 23.0, 31.0]]


def views_of(augmented: GLIPv2WithTTA, x: dict[str, Any]) -> list[View]:
    return augmented_views(with_image(x, "BGR"), augmented.tta_mapper)


def test_left_and_right_are_exchanged_in_captions_of_flipped_views_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    texts = finds_bright_pixels(model, monkeypatch)
    augmented = GLIPv2WithTTA(tiny_cfg(*FLIPPED), model)
    x = {"image": bright_square(), "caption": "a Left dog, a cat", "phrases": [[(0, 10)]]}
    with torch.no_grad():
        (result,) = augmented([x])
    assert sorted(texts) == ["a Left dog, a cat", "a Right dog, a cat"]
    assert result["phrases"] == ["a Left dog"]
    assert x["caption"] == "a Left dog, a cat"


def test_class_names_are_kept_in_flipped_views(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    texts = finds_bright_pixels(model, monkeypatch)
    with torch.no_grad():
        GLIPv2WithTTA(tiny_cfg(*FLIPPED), model)([{"image": bright_square(), "classes": ["left"]}])
    assert texts == ["left", "left"]


def test_masks_are_the_mean_over_views_in_the_frame_of_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = masked_model()
    finds_bright_pixels(model, monkeypatch)
    # The left half of the object: in a flipped view, the right half of the box.
    seen: list[torch.Tensor] = []

    def predict_masks(_fused: Any, detections: list[DetectionsPerImage]) -> list[Any]:
        masked = []
        for found in detections:
            mask = torch.zeros(len(found), 28, 28)
            half = mask[..., 14:] if found.boxes[0, 0] > 40 else mask[..., :14]
            half.fill_(1.0)
            seen.append(found.boxes)
            masked.append(replace(found, masks=mask))
        return masked

    monkeypatch.setattr(model.roi_heads, "predict_masks", predict_masks)
    with torch.no_grad():
        (result,) = GLIPv2WithTTA(tiny_cfg(*FLIPPED), model)(
            [{"image": bright_square(), "classes": NAMES}]
        )
    assert [boxes.tolist() for boxes in seen] == [
        [[8.0, 16.0, 23.0, 31.0]],
        [[56.0, 16.0, 71.0, 31.0]],
    ]
    rows, columns = result["instances"].pred_masks[0].nonzero(as_tuple=True)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (8, 15, 16, 31)


def test_limits_hold_for_the_merged_detections() -> None:
    opts = (*ALL, "MODEL.PROMPT.MAX_CLASSES", 1, "TEST.DETECTIONS_PER_IMAGE", 7)
    augmented = GLIPv2WithTTA(tiny_cfg(*opts, *SCALED), masked_model(*opts))
    assert len(run(augmented, classes=NAMES)["instances"]) == 7


def test_two_stage_detections_of_one_view_are_those_of_the_model() -> None:
    opts = (*PHRASES, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 6)
    model = two_stage_model(*opts)
    augmented = build_tta_model(two_stage_cfg(*opts, *ONE_VIEW), model)
    plain = run(model, classes=NAMES)
    assert_same(run(augmented, classes=NAMES), plain)


def test_two_stage_model_augments_captions_and_more_names_than_the_config_has() -> None:
    opts = (*PHRASES, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    augmented = build_tta_model(two_stage_cfg(*opts, *SCALED), two_stage_model(*opts))
    names = [f"thing {i}" for i in range(12)]
    assert run(augmented, classes=names)["instances"].pred_classes.max() > 7
    caption = {"caption": "a left dog", "phrases": [[(0, 10)]]}
    assert run(augmented, **caption)["phrases"] == ["a left dog"]


def test_questions_are_refused() -> None:
    model = tiny_model(*TEXT_HEADS)
    augmented = build_tta_model(tiny_cfg(*TEXT_HEADS, *FLIPPED), model)
    with pytest.raises(ValueError, match=r"answer or a caption.*TEST\.AUG\.ENABLED"):
        run(augmented, question="is it a cat?")


@pytest.mark.parametrize("sizes", [(), (0,), (64, -1)])
def test_sizes_that_are_not_positive_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"TEST\.AUG\.MIN_SIZES"):
        GLIPv2WithTTA(tiny_cfg("TEST.AUG.MIN_SIZES", sizes), tiny_model())


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear.*TEST\.AUG\.ENABLED"):
        build_tta_model(tiny_cfg(), nn.Linear(1, 1))


@pytest.fixture
def cfg(tmp_path: Path) -> Any:
    names = ("tta_first", "tta_second")
    for name in names:
        register_coco_instances(name, {}, *map(str, write_coco(tmp_path / name, num_images=2)))
    yield tiny_cfg(
        *(*ALL, *FLIPPED, "TEST.AUG.ENABLED", True, "OUTPUT_DIR", str(tmp_path / "output")),
        *("DATASETS.TEST", names[:1], "DATALOADER.NUM_WORKERS", 0),
    )
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_evaluation_has_the_results_without_and_with_augmentation(cfg: CfgNode) -> None:
    results = Trainer.test(cfg, build_model(cfg).eval())
    assert results.keys() == {"bbox", "bbox_TTA"}
    stored = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())
    assert stored["tta_first"].keys() == {"bbox", "bbox_TTA"}
    folder = Path(cfg.OUTPUT_DIR) / "inference_TTA/tta_first"
    assert (folder / "coco_instances_results.json").is_file()


def test_results_of_several_datasets_have_the_names_of_detectron2s_train_net(cfg: CfgNode) -> None:
    cfg.DATASETS.TEST = ("tta_first", "tta_second")
    results = Trainer.test(cfg, build_model(cfg).eval())
    assert set(results) == {"tta_first", "tta_second", "tta_first_TTA", "tta_second_TTA"}
    assert Trainer.test_with_TTA(cfg, build_model(cfg).eval()).keys() == {
        "tta_first_TTA",
        "tta_second_TTA",
    }


def test_evaluate_all_has_both_results(cfg: CfgNode) -> None:
    assert _evaluate(cfg, "tta_first", ModelCache()).keys() == {"bbox", "bbox_TTA"}


def test_evaluation_keeps_the_mode_of_the_model(cfg: CfgNode) -> None:
    model = build_model(cfg).train()
    Trainer.test(cfg, model)
    assert model.training and model.backbone.training
    model.eval()
    Trainer.test(cfg, model)
    assert not model.training


def test_training_augments_the_last_evaluation_only(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg.merge_from_list(
        [
            *("DATASETS.TRAIN", ("tta_first",), "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 1),
            *("TEST.EVAL_PERIOD", 1, "INPUT.MIN_SIZE_TRAIN", (48,)),
        ]
    )
    enabled: list[bool] = []

    def record(cfg: CfgNode, _model: nn.Module) -> dict[str, Any]:
        enabled.append(cfg.TEST.AUG.ENABLED)
        return {}

    monkeypatch.setattr(Trainer, "test", staticmethod(record))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert enabled == [False, True]


@pytest.mark.parametrize("kind", ["vqa", "captions"])
def test_datasets_of_text_are_refused_before_the_evaluation(cfg: CfgNode, kind: str) -> None:
    metadata = MetadataCatalog.get("tta_first")
    del metadata.evaluator_type
    metadata.evaluator_type = kind
    with pytest.raises(ValueError, match=r"'tta_first' requests answers or captions"):
        Trainer.test(cfg, build_model(cfg).eval())
