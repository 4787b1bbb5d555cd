"""The published networks, built from their configs, have GLIP's keys, shapes and parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import Tensor

import glipv2_d2.modeling  # noqa: F401  (registers the model's parts)
from glipv2_d2.checkpoint import from_glip, to_glip
from glipv2_d2.checkpoint.glip_names import WRAPPER
from glipv2_d2.config import add_glipv2_config

CONFIGS = Path(__file__).parents[2] / "configs"
UNUSED = {"module.rpn.head.cls_logits.weight", "module.rpn.head.cls_logits.bias"}


@pytest.mark.parametrize(
    ("config", "table", "parameters"),
    [
        ("glip/glip_swin_t.yaml", "keys/keys_glip_T.tsv.gz", 231_759_662),
        ("glip/glip_swin_t_a.yaml", "keys/keys_glip_A.tsv.gz", 151_409_966),
    ],
)
def test_parameters_match_the_published_model(
    read_keys: Callable[[str], dict[str, Tensor]], config: str, table: str, parameters: int
) -> None:
    cfg = get_cfg()
    add_glipv2_config(cfg)
    cfg.merge_from_file(str(CONFIGS / config))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters

    published = read_keys(table)
    _, account = from_glip(published)
    buffers = {WRAPPER + name for name in account.recomputed}
    assert {name: tuple(value.shape) for name, value in to_glip(model.state_dict()).items()} == {
        name: tuple(value.shape)
        for name, value in published.items()
        if name not in UNUSED | buffers
    }
