"""MODEL.EVIDENCE.DETECTOR_WEIGHTS: the file of tools/convert_nanodet.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_backbone
from mini_models import mini_cfg
from torch import Tensor

from glipv2_d2.checkpoint import save_state
from glipv2_d2.engine.setup import load_config
from glipv2_mini.modeling.evidence_backbone import EvidenceBackbone
from glipv2_mini.modeling.nanodet import PIXEL_MEAN, PIXEL_STD, NanoDet

CONFIG = Path(__file__).parents[2] / "configs" / "glipv2_mini.yaml"


def build(weights: Path | str) -> EvidenceBackbone:
    return build_backbone(
        mini_cfg(
            *("MODEL.BACKBONE.NAME", "build_evidence_backbone", "INPUT.FORMAT", "BGR"),
            *("MODEL.PIXEL_MEAN", list(PIXEL_MEAN), "MODEL.PIXEL_STD", list(PIXEL_STD)),
            *("MODEL.EVIDENCE.DETECTOR_WEIGHTS", str(weights)),
        )
    )


def nanodet_weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return NanoDet().state_dict()


def test_the_detector_has_the_weights_of_the_file(tmp_path: Path) -> None:
    weights = nanodet_weights()
    save_state(weights, tmp_path / "nanodet_g.pth", torch.float16)
    loaded = build(tmp_path / "nanodet_g.pth").detector.state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], x.half().float()) for name, x in weights.items())


def test_a_loaded_detector_stays_frozen(tmp_path: Path) -> None:
    save_state(nanodet_weights(), tmp_path / "nanodet_g.pth")
    assert not any(p.requires_grad for p in build(tmp_path / "nanodet_g.pth").parameters())


def test_a_missing_file_raises_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth(.|\n)*MODEL.EVIDENCE.DETECTOR_WEIGHTS"):
        build(tmp_path / "none.pth")


@pytest.mark.parametrize(
    "change", ["one too few", "one too many", "another shape", "a whole model"]
)
def test_weights_of_another_model_raise_with_the_key(tmp_path: Path, change: str) -> None:
    weights = nanodet_weights()
    if change == "one too few":
        del weights["stem.weight"]
    elif change == "one too many":
        weights["stem.scale"] = torch.ones(1)
    elif change == "another shape":
        weights["stem.weight"] = torch.zeros(1)
    else:
        weights = {f"backbone.detector.{name}": x for name, x in weights.items()}
    save_state(weights, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="MODEL.EVIDENCE.DETECTOR_WEIGHTS .*convert_nanodet"):
        build(tmp_path / "other.pth")


def test_the_weights_come_with_the_model_by_default() -> None:
    cfg = load_config(CONFIG)
    assert cfg.MODEL.WEIGHTS == cfg.MODEL.EVIDENCE.DETECTOR_WEIGHTS == ""
