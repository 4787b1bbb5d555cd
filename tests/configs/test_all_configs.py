"""Every config file can be loaded, and states the command that uses it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from glipv2_d2.config import add_glipv2_config

CONFIGS = Path(__file__).parents[2] / "configs"
ARCHITECTURES = {
    "closed_set/mask_rcnn_R50_FPN_coco.yaml": "OpenVocabularyRCNN",
    "closed_set/retinanet_R50_FPN_coco.yaml": "OpenVocabularyRetinaNet",
}
ALL = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))


def load(name: str) -> CfgNode:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_file(str(CONFIGS / name))
    return cfg


@pytest.mark.parametrize("name", ALL)
def test_config_is_loaded_and_builds_one_of_our_models(name: str) -> None:
    architecture = load(name).MODEL.META_ARCHITECTURE
    default = "OpenVocabularyRCNN" if name.startswith("two_stage/") else "GLIPv2"
    assert architecture == ARCHITECTURES.get(name, default)


@pytest.mark.parametrize("name", [name for name in ALL if not Path(name).name.startswith("Base-")])
def test_header_has_the_command(name: str) -> None:
    lines = (CONFIGS / name).read_text().splitlines()
    header = itertools.takewhile(lambda line: line.startswith("#"), lines)
    assert any(f"configs/{name}" in line for line in header)


@pytest.mark.parametrize("name", ALL)
def test_learning_rate_steps_are_within_the_schedule(name: str) -> None:
    solver = load(name).SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        assert list(solver.STEPS) == sorted(set(solver.STEPS))
        assert all(0 < step < solver.MAX_ITER for step in solver.STEPS)


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("glip/")])
def test_glip_configs_decay_at_67_and_89_percent(name: str) -> None:
    solver = load(name).SOLVER
    assert list(solver.STEPS) == [round(0.67 * solver.MAX_ITER), round(0.89 * solver.MAX_ITER)]


def test_sizes_of_the_glip_networks_are_the_published_ones() -> None:
    tiny, no_fusion, large = (
        load(f"glip/glip_swin_{size}.yaml").MODEL for size in ("t", "t_a", "l")
    )
    assert [m.FUSED_HEAD.NUM_BLOCKS for m in (tiny, no_fusion, large)] == [6, 6, 8]
    assert [m.FUSED_HEAD.NAME for m in (tiny, no_fusion, large)] == [
        "FusedDynamicHead",
        "DynamicHead",
        "FusedDynamicHead",
    ]
    assert [m.SWIN.EMBED_DIM for m in (tiny, no_fusion, large)] == [96, 96, 192]
    assert [m.SWIN.WINDOW_SIZE for m in (tiny, no_fusion, large)] == [7, 7, 12]


def test_lvis_is_evaluated_in_chunks_and_coco_with_one_prompt() -> None:
    lvis = load("zero_shot/lvis_glip_swin_t.yaml")
    coco = load("zero_shot/coco_glip_swin_t.yaml")
    assert (lvis.MODEL.PROMPT.MAX_CLASSES, coco.MODEL.PROMPT.MAX_CLASSES) == (40, 0)
    assert lvis.TEST.DETECTIONS_PER_IMAGE == -1
