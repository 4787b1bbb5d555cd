"""Every recipe takes its first steps on small files in the published formats, with a tiny network.

Config, datasets, readers, mapper, losses, trainer and evaluators are those of the recipe; sizes of
network, images and batch are not, and a higher learning rate makes every gradient visible.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from helpers.clip import tiny_clip_directory
from helpers.models import TINY_SIZES, tiny_bert_directory
from helpers.published_data import write_all
from helpers.recipes import (
    RECIPES,
    FirstSteps,
    first_steps,
    recipe_config,
    registered_below,
    write_base,
)

from glipv2_d2.engine.parameter_prefixes import (
    LANGUAGE_BACKBONE,
    PREDICTION_LAYERS,
    ROI_HEADS,
)

TINY = (
    *TINY_SIZES,
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "MODEL.ROI_MASK_HEAD.NUM_HOURGLASSES", 1),
    *("MODEL.CAPTION.BEAM_SIZE", 2, "MODEL.CAPTION.MAX_LENGTH", 6),
    *("MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 3),
    *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 96),
    *("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96),
    *("SOLVER.MAX_ITER", 3, "SOLVER.ACCUMULATION_STEPS", 1),
    # Weight decay would also move what has no gradient.
    *("SOLVER.BASE_LR", 0.01, "SOLVER.WEIGHT_DECAY", 0.0),
)

# Names that start with one of these, or contain it, are trained by the policy alone.
OF_POLICY = {
    "mask_heads": (ROI_HEADS,),
    "linear_probe": PREDICTION_LAYERS,
    "text_only": (LANGUAGE_BACKBONE,),
    "prompt": ("language_backbone.table",),
    "class_prompt": ("language_backbone.table",),
    "lora": (".lora_A.", ".lora_B."),
}

# The softmax after them does not depend on them; images of 64 pixels have objects of the first of
# the five levels only.
WITHOUT_GRADIENT = ("key.bias", "attention.bias", *(f"level_scales.{i}" for i in range(1, 5)))
WITHOUT_BOXES = ("vqav2_train", "vqav2_val", "coco_captions_karpathy_")
# Text is read before the last DyConv, and not from boxes.
OF_BOXES = (
    *("fused_head.blocks.0.dynamic_conv.", "proposal_generator."),
    *("attention.language_value.", "attention.visual_out.", "fusion.gamma_visual"),
)

# Task and metric by evaluator type, and those of masks.
METRICS = {
    "coco": {("bbox", "AP")},
    "lvis": {("bbox", "APr")},
    "phrasecut": {("phrasecut_bbox", "mIoU")},
    "flickr30k": {("grounding", "R@1")},
    "vqa": {("vqa", "accuracy")},
    "captions": {("captions", "CIDEr")},
    "grounded_vqa": {("vqa", "accuracy"), ("grounding", "answer-R@1")},
    "grounded_captions": {("captions", "CIDEr"), ("grounding", "F1_all")},
}
OF_MASKS = {
    "coco": {("segm", "AP")},
    "lvis": {("segm", "APr")},
    "phrasecut": {("phrasecut_segm", "mIoU")},
}
LOSSES = {
    "INTER_IMAGE": "loss_inter_image",
    "MLM": "loss_mlm",
    "ANSWER": "loss_answer",
    "CAPTION": "loss_caption",
}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which ``datasets`` has every published file of the recipes."""
    root = tmp_path_factory.mktemp("recipes")
    write_all(root / "datasets")
    return root


@pytest.fixture
def datasets(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Java takes seconds to start, and is not everywhere.
    monkeypatch.setattr("shutil.which", lambda _: None)
    # Configs name files below datasets/.
    monkeypatch.chdir(data_root)
    with registered_below("datasets"):
        yield


def means_to_train(cfg: CfgNode, name: str) -> bool:
    """Whether the recipe trains a parameter of this name."""
    if cfg.MODEL.TUNING.NAME in OF_POLICY:
        return any(part in name for part in OF_POLICY[cfg.MODEL.TUNING.NAME])
    if cfg.MODEL.MLM.WEIGHT == 0 and name.startswith("loss_heads.masked_language."):
        return False
    is_frozen = name.startswith(("backbone.bottom_up.patch_embed.", "backbone.bottom_up.layers.0."))
    return not (cfg.MODEL.SWIN.FROZEN_STAGES == 2 and is_frozen)


def expected_metrics(cfg: CfgNode) -> dict[str, set[tuple[str, str]]]:
    """Task and metric of each test set; a test set of VQAv2 is evaluated by its server."""
    metrics = {}
    for name in cfg.DATASETS.TEST:
        kind = MetadataCatalog.get(name).evaluator_type
        metrics[name] = METRICS[kind] | (OF_MASKS.get(kind, set()) if cfg.MODEL.MASK_ON else set())
    metrics.pop("vqav2_test-dev", None)
    return metrics


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.usefixtures("datasets")
def test_the_first_steps_train_what_the_recipe_means_to_and_give_its_metrics(
    recipe: str, tmp_path: Path
) -> None:
    encoder = tiny_clip_directory() if "_clip" in recipe else tiny_bert_directory()
    # Enough for a sample of each dataset.
    batch_size = 8 if "pretrain" in recipe or "joint" in recipe else 3
    opts = [*TINY, "MODEL.LANGUAGE_BACKBONE.MODEL", encoder, "SOLVER.IMS_PER_BATCH", batch_size]
    cfg = recipe_config(recipe, tmp_path, opts)
    write_base(cfg)
    steps = first_steps(cfg)
    check_parameters(cfg, steps)
    check_losses(cfg, steps)
    for dataset, expected in expected_metrics(cfg).items():
        found = {(task, key) for task, metrics in steps.results[dataset].items() for key in metrics}
        assert expected <= found
    if "vqav2_test-dev" in cfg.DATASETS.TEST:
        assert (tmp_path / "inference" / "vqav2_test-dev" / "vqa_results.json").is_file()


def check_parameters(cfg: CfgNode, steps: FirstSteps) -> None:
    assert steps.trained == {name for name in steps.parameters if means_to_train(cfg, name)}
    # No other tensor has other bits, and only known ones have no gradient.
    assert steps.moved <= steps.trained
    has_boxes = not all(name.startswith(WITHOUT_BOXES) for name in cfg.DATASETS.TRAIN)
    excepted = WITHOUT_GRADIENT if has_boxes else (*WITHOUT_GRADIENT, *OF_BOXES)
    unmoved = steps.trained - steps.moved
    assert {name for name in unmoved if not any(part in name for part in excepted)} == set()


def check_losses(cfg: CfgNode, steps: FirstSteps) -> None:
    if cfg.MODEL.TUNING.NAME == "mask_heads":
        assert steps.losses.keys() == {"loss_mask"}
    else:
        expected = {name for key, name in LOSSES.items() if cfg.MODEL[key].WEIGHT > 0}
        expected |= {"loss_mask"} if cfg.MODEL.MASK_ON else set()
        assert steps.losses.keys() == {"loss_token", "loss_box", "loss_centerness", *expected}
        assert all(steps.losses[name] > 0 for name in expected)
