"""The recipes name the networks, losses and hyper-parameters that they should."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import nn

from glipv2_d2.checkpoint.writing import optional_prefixes
from glipv2_d2.data import builtin  # noqa: F401 - registers the data sets
from glipv2_d2.engine.policies import policy_names
from glipv2_d2.engine.recipes import MAX_EPOCHS, recipe
from glipv2_d2.engine.setup import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for folder in ("pretrain", "finetune")
    for path in (CONFIGS / folder).glob("*.yaml")
    if not path.name.startswith("Base-")
)
PRETRAIN = [name for name in RECIPES if name.startswith("pretrain/")]


@functools.cache
def load(name: str) -> CfgNode:
    # Weights come from elsewhere.
    opts = ["MODEL.LANGUAGE_BACKBONE.WEIGHTS", "", "MODEL.DEVICE", "meta"]
    return load_config(CONFIGS / name, opts)


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """New parameters go to the meta device; unlike under torch.device("meta"), tensors that
    constructors compute with are real."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


@functools.cache
def network(description: str) -> nn.Module:
    """The full-size model, without memory for its weights."""
    cfg = load_config().clone()
    cfg.defrost()
    cfg.MODEL = CfgNode.load_cfg(description)
    with parameters_without_memory():
        return build_model(cfg)


def parameters(name: str) -> int:
    """Of the network that answers, without the heads of losses."""
    model_cfg = load(name).MODEL.clone()
    model_cfg.defrost()
    model_cfg.pop("TUNING")
    model = network(model_cfg.dump())
    optional = optional_prefixes(model)
    return sum(p.numel() for n, p in model.named_parameters() if not n.startswith(optional))


# GLIPv2-T's 232 M are published; 322 M and 430 M are those of Swin-B and Swin-L with 8 blocks.
SIZES = {"_t": 231_759_662, "_b": 321_851_748, "_l": 430_401_824}


@pytest.mark.parametrize("name", RECIPES)
def test_the_full_size_network_is_built_with_as_many_parameters(name: str) -> None:
    kind = next(kind for kind in SIZES if f"_swin{kind}" in name)
    assert parameters(name) == SIZES[kind]


@pytest.mark.parametrize("name", RECIPES)
def test_the_data_sets_of_a_recipe_are_registered(name: str) -> None:
    datasets = load(name).DATASETS
    custom = {entry["name"] for entry in datasets.CUSTOM}
    for dataset in (*datasets.TRAIN, *datasets.TEST):
        assert dataset in custom or dataset in DatasetCatalog


@pytest.mark.parametrize("name", PRETRAIN)
def test_pre_training_has_all_losses_and_the_second_phase_no_masked_words(name: str) -> None:
    model = load(name).MODEL
    weights = [model.INTER_IMAGE.WEIGHT, model.MLM.WEIGHT]
    assert weights == [1.0, 0.0 if "phase2" in name else 1.0]


@pytest.mark.parametrize("policy", policy_names())
def test_the_odinw_config_of_a_policy_is_its_recipe(policy: str) -> None:
    cfg = load(f"finetune/odinw_{policy}_glip_swin_t.yaml")
    for key, value in recipe(policy, few_shot=True).items():
        assert functools.reduce(getattr, key.split("."), cfg) == value, key


@pytest.mark.parametrize("policy", policy_names())
def test_odinw_is_trained_for_at_most_the_papers_epochs(policy: str) -> None:
    cfg = load(f"finetune/odinw_{policy}_glip_swin_t.yaml")
    assert cfg.SOLVER.MAX_ITER == MAX_EPOCHS * cfg.TEST.EVAL_PERIOD


def test_all_data_have_less_patience_than_few_shots() -> None:
    few, all_data = recipe("full", few_shot=True), recipe("full", few_shot=False)
    keys = ("SOLVER.PLATEAU_PATIENCE", "SOLVER.EARLY_STOP_PATIENCE")
    assert [few[key] for key in keys] == [3, 8]
    assert [all_data[key] for key in keys] == [2, 4]
