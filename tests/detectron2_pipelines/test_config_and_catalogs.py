"""Configs and dataset names beside those of other projects."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from helpers.models import tiny_cfg

from glipv2_d2 import add_glipv2_config, get_config, load_config
from glipv2_d2.data.build import build_train_loader
from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.data.registration import register
from glipv2_d2.data.replaceable import make_replaceable
from glipv2_d2.engine.train.param_groups import build_optimizer
from glipv2_d2.engine.train.trainer import Trainer


def add_other_config(cfg: CfgNode) -> None:
    """As Mask2Former and Detic do: some groups and keys have the names of ours."""
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    cfg.MODEL.SWIN = CfgNode({"PRETRAIN_IMG_SIZE": 224, "EMBED_DIM": 192, "DEPTHS": [2, 2, 18, 2]})
    cfg.MODEL.TIMM = CfgNode({"BASE_NAME": "resnet50", "OUT_LEVELS": (3, 4, 5)})


def test_the_keys_of_a_project_added_before_keep_their_values() -> None:
    cfg = get_cfg()
    add_other_config(cfg)
    add_glipv2_config(cfg)
    assert cfg.SOLVER.OPTIMIZER == "ADAMW"
    assert cfg.MODEL.SWIN.PRETRAIN_IMG_SIZE == 224
    assert cfg.MODEL.SWIN.EMBED_DIM == 192
    assert cfg.MODEL.SWIN.WINDOW_SIZE == 7
    assert cfg.MODEL.TIMM.BASE_NAME == "resnet50"
    assert cfg.MODEL.TIMM.OUT_INDICES == [2, 3, 4]


def test_adding_the_keys_again_changes_nothing() -> None:
    cfg = tiny_cfg("MODEL.PROMPT.MAX_CLASSES", 3)
    before = cfg.dump()
    add_glipv2_config(cfg)
    assert cfg.dump() == before


def test_a_model_is_built_after_a_project_has_replaced_a_group_of_keys() -> None:
    cfg = tiny_cfg()
    swin = {key: cfg.MODEL.SWIN[key] for key in ("EMBED_DIM", "DEPTHS", "NUM_HEADS", "WINDOW_SIZE")}
    cfg.MODEL.SWIN = CfgNode({"PRETRAIN_IMG_SIZE": 224, **swin})
    cfg.freeze()
    expected = build_model(tiny_cfg()).state_dict()
    assert build_model(cfg).state_dict().keys() == expected.keys()
    assert "FROZEN_STAGES" not in cfg.MODEL.SWIN


@pytest.mark.parametrize(("key", "value"), [("SWIN", "tiny"), ("TUNING", 3)])
def test_a_value_in_the_place_of_a_group_is_an_error_with_the_key(key: str, value: Any) -> None:
    cfg = get_cfg()
    cfg.MODEL[key] = value
    with pytest.raises(ValueError, match=f"MODEL.{key} is {value!r}, but this project has keys"):
        add_glipv2_config(cfg)


DOORS: dict[str, Callable[[CfgNode], Any]] = {
    "model": build_model,
    "trainer": Trainer,
    "mapper": lambda cfg: GroundingMapper(cfg, is_train=True),
    "loader": build_train_loader,
    "optimizer": lambda cfg: build_optimizer(cfg, build_model(tiny_cfg())),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_config_without_this_projects_keys_is_an_error_with_the_remedy(door: str) -> None:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "GLIPv2"
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = ("pipelines_train",)
    with pytest.raises(ValueError, match=r"has no key MODEL\..*call .*add_glipv2_config\(cfg\)"):
        DOORS[door](cfg)


@pytest.mark.parametrize("name", ["glip-t", "glipv2-l"])
def test_a_dumped_config_is_loaded_alike(name: str, tmp_path: Path) -> None:
    cfg = get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    # As plain values: aliases for equal lists may differ.
    assert yaml.safe_load(load_config(path).dump()) == yaml.safe_load(cfg.dump())


def records() -> list[dict[str, Any]]:
    return []


def theirs() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def builtin() -> Iterator[str]:
    """A dataset that is registered as the built-in ones are."""
    name = "pipelines_builtin"
    register(name, records, source_files=["a.json"], evaluator_type="coco")
    make_replaceable([name])
    yield name
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def test_a_dataset_registered_later_replaces_a_built_in_one(builtin: str) -> None:
    DatasetCatalog.register(builtin, theirs)
    MetadataCatalog.get(builtin).set(evaluator_type="lvis", json_file="b.json")
    assert DatasetCatalog[builtin] is theirs
    metadata = MetadataCatalog.get(builtin)
    assert (metadata.evaluator_type, metadata.json_file) == ("lvis", "b.json")
    assert "source_files" not in metadata.as_dict()


def test_its_metadata_may_be_set_before_the_dataset_is_registered(builtin: str) -> None:
    MetadataCatalog.get(builtin).set(evaluator_type="lvis", thing_classes=["cat"])
    DatasetCatalog.register(builtin, theirs)
    metadata = MetadataCatalog.get(builtin)
    assert (metadata.evaluator_type, metadata.thing_classes) == ("lvis", ["cat"])
    assert "source_files" not in metadata.as_dict()


def test_two_datasets_of_others_with_one_name_are_still_an_error(builtin: str) -> None:
    DatasetCatalog.register(builtin, theirs)
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register(builtin, theirs)


def test_names_of_others_are_kept_whether_they_come_before_or_after_the_import() -> None:
    script = """
from detectron2.data import DatasetCatalog, MetadataCatalog
def first(): return [1]
def later(): return [2]
DatasetCatalog.register("flickr30k_entities_val", first)
MetadataCatalog.get("flickr30k_entities_val").set(evaluator_type="coco")
DatasetCatalog.register("lvis_v1_minival", first)
import glipv2_d2
DatasetCatalog.register("refcoco_val", later)
MetadataCatalog.get("refcoco_val").set(evaluator_type="own", thing_classes=["a"])
names = ("flickr30k_entities_val", "lvis_v1_minival", "refcoco_val")
evaluator_type = MetadataCatalog.get("refcoco_val").evaluator_type
print([DatasetCatalog.get(name) for name in names], evaluator_type)
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[[1], [1], [2]] own"
