"""Networks, losses and hyper-parameters of the training recipes."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from helpers.clip import vocabulary_directory
from helpers.no_memory import parameters_without_memory
from torch import nn

from glipv2_d2.data import builtin  # noqa: F401 - registers the data sets
from glipv2_d2.engine.finetune.policies import policy_names
from glipv2_d2.engine.finetune.recipes import MAX_EPOCHS, recipe
from glipv2_d2.engine.setup import load_config
from glipv2_d2.layers.checkpoint_prefixes import loss_only_prefixes

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for folder in ("pretrain", "finetune")
    for path in (CONFIGS / folder).glob("*.yaml")
    if not path.name.startswith("Base-")
)
PRETRAIN = [name for name in RECIPES if name.startswith("pretrain/")]
NOT_FOR_BOXES = ("mask_heads", "text_heads")
POLICIES_FOR_BOXES = [name for name in policy_names() if name not in NOT_FOR_BOXES]


@functools.cache
def load(name: str) -> CfgNode:
    # No weights are needed to build the network.
    opts = ["MODEL.LANGUAGE_BACKBONE.WEIGHTS", "", "MODEL.DEVICE", "meta"]
    if name.endswith("_clip.yaml"):
        # A stand-in of the same size: the package of the vocabulary is not installed.
        opts += ["MODEL.LANGUAGE_BACKBONE.MODEL", vocabulary_directory()]
    return load_config(CONFIGS / name, opts)


@functools.cache
def network(description: str) -> nn.Module:
    """The full-size model, with its parameters on the meta device."""
    cfg = load_config().clone()
    cfg.defrost()
    cfg.MODEL = CfgNode.load_cfg(description)
    with parameters_without_memory():
        return build_model(cfg)


def parameters(name: str) -> int:
    """Number of parameters at inference, without those of losses."""
    model_cfg = load(name).MODEL.clone()
    model_cfg.defrost()
    model_cfg.pop("TUNING")
    model = network(model_cfg.dump())
    of_losses = loss_only_prefixes(model)
    return sum(p.numel() for n, p in model.named_parameters() if not n.startswith(of_losses))


# 232 M of GLIPv2-T are published; 322 M and 430 M are those of Swin-B and Swin-L with 8 blocks.
SIZES = {"_t": 231_759_662, "_b": 321_851_748, "_l": 430_401_824}
WITH_BERT = tuple(SIZES)
# Of the text encoder with a language layer in each of 8 blocks: BERT's and CLIP's.
BERT = (30_522 + 512 + 2 + 2) * 768 + (12 + 8) * (4 * 768 * 769 + 2 * 768 * 3072 + 3072 + 5 * 768)
CLIP = (49_408 + 256 + 2) * 512 + (12 + 8) * (4 * 512 * 513 + 2 * 512 * 2048 + 2048 + 5 * 512)
# Per channel of the text: in each block three projections to 2048, a bias, layer norm and scale; in
# the region-word score a projection to 256 and a bias.
SIZES["_b_clip"] = SIZES["_b"] - BERT + CLIP + (512 - 768) * (8 * (3 * 2048 + 4) + 256 + 1)
# Four hourglasses of four bottlenecks, the deconvolution, the text projection, bias and scale.
BOTTLENECK = (256 * 128 + 128) + (9 * 128 * 128 + 128) + (128 * 256 + 256)
MASK_HEAD = 16 * BOTTLENECK + (4 * 256 * 256 + 256) + (768 * 256 + 256) + 768 + 1


@pytest.mark.parametrize("name", RECIPES)
def test_the_full_size_network_has_the_expected_number_of_parameters(name: str) -> None:
    kind = max((kind for kind in SIZES if f"_swin{kind}" in name), key=len)
    assert parameters(name) == SIZES[kind] + (MASK_HEAD if load(name).MODEL.MASK_ON else 0)


@pytest.mark.parametrize("name", RECIPES)
def test_the_datasets_of_a_recipe_are_registered(name: str) -> None:
    datasets = load(name).DATASETS
    custom = {entry["name"] for entry in datasets.CUSTOM}
    for dataset in (*datasets.TRAIN, *datasets.TEST):
        assert dataset in custom or dataset in DatasetCatalog


@pytest.mark.parametrize("name", PRETRAIN)
def test_pre_training_has_all_losses_and_the_second_phase_no_mlm(name: str) -> None:
    model = load(name).MODEL
    weights = [model.INTER_IMAGE.WEIGHT, model.MLM.WEIGHT]
    assert weights == [1.0, 0.0 if "phase2" in name else 1.0]


@pytest.mark.parametrize("policy", POLICIES_FOR_BOXES)
def test_the_odinw_config_of_a_policy_equals_its_recipe(policy: str) -> None:
    cfg = load(f"finetune/odinw_{policy}_glip_swin_t.yaml")
    for key, value in recipe(policy, few_shot=True).items():
        assert functools.reduce(getattr, key.split("."), cfg) == value, key


@pytest.mark.parametrize("policy", POLICIES_FOR_BOXES)
def test_odinw_is_trained_for_the_maximum_number_of_epochs(policy: str) -> None:
    cfg = load(f"finetune/odinw_{policy}_glip_swin_t.yaml")
    assert cfg.SOLVER.MAX_ITER == MAX_EPOCHS * cfg.TEST.EVAL_PERIOD


def test_the_full_dataset_has_less_patience_than_few_shots() -> None:
    few, full = recipe("full", few_shot=True), recipe("full", few_shot=False)
    keys = ("SOLVER.PLATEAU_PATIENCE", "SOLVER.EARLY_STOP_PATIENCE")
    assert [few[key] for key in keys] == [3, 8]
    assert [full[key] for key in keys] == [2, 4]


def test_the_recipe_for_masks_selects_by_mask_ap() -> None:
    assert recipe("mask_heads", few_shot=False)["SOLVER.BEST_METRIC"] == "segm/AP"


def test_mask_recipes_enable_masks_and_the_first_phase_trains_them_alone() -> None:
    policies = {
        Path(name).stem.split("_glipv2")[0]: load(name).MODEL.TUNING.NAME
        for name in RECIPES
        if load(name).MODEL.MASK_ON and "_prompt_" not in name
    }
    assert policies == {
        **dict.fromkeys(["coco_mask", "lvis_mask", "phrasecut"], "full"),
        **dict.fromkeys(["coco_mask_heads", "mask_heads"], "mask_heads"),
    }


@pytest.mark.parametrize("task", ["coco", "coco_mask", "lvis", "phrasecut"])
def test_prompt_tuning_on_a_task_is_that_of_odinw(task: str) -> None:
    cfg = load(f"finetune/{task}_prompt_glipv2_swin_t.yaml")
    policy = "prompt" if task == "phrasecut" else "class_prompt"
    odinw = load(f"finetune/odinw_{policy}_glip_swin_t.yaml")
    assert cfg.MODEL.TUNING == odinw.MODEL.TUNING
    for key in ("BASE_LR", "LANGUAGE_LR_FACTOR", "WEIGHT_DECAY"):
        assert cfg.SOLVER[key] == odinw.SOLVER[key]


@pytest.mark.parametrize("size", WITH_BERT)
def test_the_second_stage_trains_mask_heads_on_coco_lvis_and_phrasecut(size: str) -> None:
    cfg = load(f"finetune/mask_heads_glipv2_swin{size}.yaml")
    assert cfg.DATASETS.TRAIN == ("coco_2017_train", "lvis_v1_train", "phrasecut_train")
    assert cfg.MODEL.TUNING.NAME == "mask_heads"


def test_the_second_phase_has_the_datasets_of_the_first_without_captions() -> None:
    for size in WITH_BERT:
        first, second = (load(f"pretrain/glipv2_swin{size}{x}.yaml") for x in ("", "_phase2"))
        assert set(second.DATASETS.TRAIN) == {*first.DATASETS.TRAIN} - {"captions_train"}


NUM_ANSWERS = 3129
# As in projects/VQA and projects/Captioning.
LINEAR = 768 * 768 + 768
TEXT_HEADS = (768 + 1 + 2 * LINEAR + NUM_ANSWERS * 769) + (LINEAR + 2 * 768 + 30_522 * 769)


@pytest.mark.parametrize("size", WITH_BERT)
def test_the_joint_model_has_all_heads_and_datasets_of_every_task(
    size: str, tmp_path: Path
) -> None:
    answers = tmp_path / "answers.txt"
    answers.write_text("".join(f"{i}\n" for i in range(NUM_ANSWERS)))
    opts = ["MODEL.LANGUAGE_BACKBONE.WEIGHTS", "", "MODEL.DEVICE", "meta"]
    opts += ["MODEL.ANSWER.FILE", str(answers)]
    cfg = load_config(CONFIGS / "joint" / f"glipv2_swin{size}.yaml", opts)
    with parameters_without_memory():
        model = build_model(cfg)
    of_losses = loss_only_prefixes(model)
    kept = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(of_losses))
    assert kept == SIZES[size] + MASK_HEAD + TEXT_HEADS
    types = {MetadataCatalog.get(name).evaluator_type for name in cfg.DATASETS.TEST}
    assert types == {"coco", "lvis", "phrasecut", "vqa", "captions"}
    assert {*cfg.DATASETS.TRAIN} - {"captions_train"} <= set(DatasetCatalog)
