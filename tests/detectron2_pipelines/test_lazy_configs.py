"""Python configs: the models of the YAML files, in a loop over Detectron2's own calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lazyconfig_train_net
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from helpers.models import tiny_bert_directory
from helpers.tiny_coco import write_coco

from glipv2_d2.engine.setup import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
YAML_OF = {
    "glip_swin_t": "glip/glip_swin_t",
    "glipv2_swin_t": "pretrain/glipv2_swin_t",
    "mask_rcnn_R50_FPN_text": "two_stage/mask_rcnn_R50_FPN_text",
}


def tiny_opts() -> list[Any]:
    """Options that make each of the models small."""
    return [
        *("MODEL.DEVICE", "cpu", "MODEL.SWIN.EMBED_DIM", 8, "MODEL.SWIN.DEPTHS", [1, 1, 1, 1]),
        *("MODEL.SWIN.NUM_HEADS", [1, 2, 2, 4], "MODEL.SWIN.WINDOW_SIZE", 4),
        *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.LANGUAGE_BACKBONE.MODEL", tiny_bert_directory()),
        *("MODEL.LANGUAGE_BACKBONE.WEIGHTS", "", "MODEL.FUSED_HEAD.NUM_BLOCKS", 1),
        *("MODEL.FUSED_HEAD.GROUP_NORM_GROUPS", 4, "MODEL.FUSED_HEAD.FUSION_DIM", 16),
        *("MODEL.FUSED_HEAD.FUSION_HEADS", 2, "MODEL.FUSED_HEAD.LANGUAGE_HEADS", 2),
        *("MODEL.FUSED_HEAD.LANGUAGE_FFN_DIM", 32, "MODEL.RESNETS.DEPTH", 18),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.ROI_BOX_HEAD.FC_DIM", 12),
        *("DATASETS.CUSTOM", []),
    ]


@pytest.mark.parametrize("name", YAML_OF)
def test_the_model_has_the_parameters_of_the_yaml_file(name: str) -> None:
    cfg = LazyConfig.load(str(CONFIGS / f"lazy/{name}.py"))
    cfg.settings.opts = tiny_opts()
    expected = build_model(load_config(CONFIGS / f"{YAML_OF[name]}.yaml", tiny_opts()))
    found = instantiate(cfg.model)
    shapes = {key: value.shape for key, value in expected.state_dict().items()}
    assert {key: value.shape for key, value in found.state_dict().items()} == shapes


@pytest.mark.parametrize("name", YAML_OF)
def test_the_loop_trains_and_evaluates(tmp_path: Path, name: str) -> None:
    annotations, images = write_coco(tmp_path / "data", num_images=2)
    dataset = f"lazy_{name}"
    data = {"name": dataset, "json": str(annotations), "images": str(images)}
    opts = [
        *tiny_opts(),
        *("DATASETS.CUSTOM", [data], "DATASETS.TRAIN", [dataset]),
        *("DATASETS.TEST", [dataset], "SOLVER.IMS_PER_BATCH", 1, "SEED", 1),
        *("DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TRAIN", [48], "INPUT.MIN_SIZE_TEST", 48),
    ]
    config = tmp_path / "tiny.py"
    source = (CONFIGS / f"lazy/{name}.py").read_text()
    config.write_text(f"{source}\nsettings.opts = {opts!r}\n")
    output = tmp_path / "output"
    overrides = [
        *(f"train.output_dir={output}", "train.max_iter=2", "train.device=cpu"),
        *("train.amp.enabled=False", "train.eval_period=2", "train.checkpointer.period=1"),
        "train.init_checkpoint=''",
    ]
    arguments = ["--config-file", str(config), *overrides]
    lazyconfig_train_net.main(default_argument_parser().parse_args(arguments))
    weights = output / "model_final.pth"
    assert "model" in torch.load(weights, weights_only=True)
    assert (output / "metrics.json").is_file()
    evaluation = [*arguments, f"train.init_checkpoint={weights}"]
    results = lazyconfig_train_net.main(
        default_argument_parser().parse_args(["--eval-only", *evaluation])
    )
    assert results is not None and "bbox" in results


@pytest.mark.parametrize(
    ("key", "node"),
    [("MODEL.WEIGHTS", "train.init_checkpoint"), ("SOLVER.MAX_ITER", "train.max_iter")],
)
def test_an_option_that_another_node_has_is_refused_with_its_name(key: str, node: str) -> None:
    cfg = LazyConfig.load(str(CONFIGS / "lazy/glip_swin_t.py"))
    cfg.settings.opts = [key, 5]
    with pytest.raises(Exception, match=f"settings.opts has {key}: set {node}"):
        instantiate(cfg.model)
