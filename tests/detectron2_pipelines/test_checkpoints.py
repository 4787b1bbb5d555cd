"""Detectron2's DetectionCheckpointer on this project's models, and its files in ours."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from helpers.closed_set import plain_detector, text_prompted, tiny_encoder
from helpers.models import tiny_cfg, tiny_model
from helpers.two_stage import two_stage_model
from torch import nn

from glipv2_d2.checkpoint import GLIPv2Checkpointer, read_checkpoint, save_weights, to_glip
from glipv2_d2.layers.checkpoint_prefixes import full_state_dict

FROZEN = (
    *("MODEL.LANGUAGE_BACKBONE.MODEL", tiny_encoder()),
    *("MODEL.LANGUAGE_BACKBONE.WEIGHTS", tiny_encoder()),
    *("MODEL.LANGUAGE_BACKBONE.FREEZE", True),
)
ENCODER = "language_backbone."


@pytest.fixture(scope="module")
def saved() -> nn.Module:
    """The model whose weights the files have."""
    return tiny_model("MODEL.INTER_IMAGE.WEIGHT", 1.0, *FROZEN)


@pytest.fixture
def other() -> nn.Module:
    """The same model with other weights."""
    torch.manual_seed(1)
    return build_model(tiny_cfg("MODEL.INTER_IMAGE.WEIGHT", 1.0, *FROZEN))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def assert_loaded(model: nn.Module, expected: nn.Module) -> None:
    values = model.state_dict()
    for name, value in expected.state_dict().items():
        assert torch.equal(values[name], value), name


def test_a_file_of_this_project_loads_without_a_warning(
    saved: nn.Module, other: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_weights(saved, tmp_path / "model.pth")
    DetectionCheckpointer(other).load(str(tmp_path / "model.pth"))
    assert_loaded(other, saved)
    assert warnings(caplog) == []


def test_a_saved_file_leaves_out_the_frozen_encoder(saved: nn.Module, tmp_path: Path) -> None:
    DetectionCheckpointer(saved, str(tmp_path)).save("model")
    stored = read_checkpoint(tmp_path / "model.pth")["model"]
    assert not [name for name in stored if name.startswith(ENCODER)]
    assert stored.keys() == saved.state_dict().keys()
    left_out = full_state_dict(saved).keys() - stored.keys()
    assert left_out and all(name.startswith(ENCODER) for name in left_out)


def test_strict_loading_accepts_a_file_without_the_frozen_encoder(
    saved: nn.Module, other: nn.Module
) -> None:
    other.load_state_dict(saved.state_dict(), strict=True)
    assert_loaded(other, saved)


def test_the_encoder_of_a_full_file_is_loaded(saved: nn.Module, other: nn.Module) -> None:
    weights = {name: torch.full_like(v, 0.5) for name, v in full_state_dict(saved).items()}
    other.load_state_dict(weights)
    encoder = [v for name, v in full_state_dict(other).items() if name.startswith(ENCODER)]
    assert all(torch.equal(value, torch.full_like(value, 0.5)) for value in encoder)


def test_a_file_without_loss_heads_loads_without_a_warning(
    saved: nn.Module, other: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {n: v for n, v in saved.state_dict().items() if not n.startswith("loss_heads.")}
    torch.save({"model": weights}, tmp_path / "released.pth")
    DetectionCheckpointer(other).load(str(tmp_path / "released.pth"))
    assert torch.equal(
        other.state_dict()["fused_head.blocks.0.fusion.gamma_visual"],
        weights["fused_head.blocks.0.fusion.gamma_visual"],
    )
    assert warnings(caplog) == []


@pytest.fixture(scope="module")
def glip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's weights as a GLIP file, with a buffer and a head that only GLIP has."""
    path = tmp_path_factory.mktemp("glip") / "glip.pth"
    weights = to_glip(tiny_model().state_dict())
    weights["module.rpn.head.cls_logits.bias"] = torch.zeros(80)
    weights["module.rpn.anchor_generator.cell_anchors.0"] = torch.zeros(1, 4)
    torch.save({"model": weights, "iteration": 3}, path)
    return path


def test_a_glip_file_is_recognised_and_converted(
    glip_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    model = build_model(tiny_cfg())
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(model).load(str(glip_file))
    assert_loaded(model, tiny_model())
    assert "GLIP names" in caplog.text
    assert warnings(caplog) == []


def test_a_glip_file_of_another_size_is_one_error(glip_file: Path) -> None:
    model = build_model(tiny_cfg("MODEL.FUSED_HEAD.NUM_BLOCKS", 2))
    with pytest.raises(
        ValueError, match=r"(?s)GLIP names.*missing in the file.*fused_head.blocks.1"
    ):
        DetectionCheckpointer(model).load(str(glip_file))


def test_default_predictor_detects_with_a_glip_file(glip_file: Path, cfg: CfgNode) -> None:
    cfg.MODEL.WEIGHTS = str(glip_file)
    cfg.MODEL.GROUNDING.SCORE_THRESH = 0.0
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN
    image = torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8).numpy()
    instances = DefaultPredictor(cfg)(image)["instances"]
    assert len(instances) > 0
    assert instances.image_size == (64, 64)


def test_the_error_for_a_detectors_file_names_the_matching_by_shape(tmp_path: Path) -> None:
    detector = plain_detector("class-specific")
    DetectionCheckpointer(detector, str(tmp_path)).save("detector")
    path = str(tmp_path / "detector.pth")
    model = two_stage_model("MODEL.ROI_HEADS.NUM_CLASSES", 6)
    with pytest.raises(ValueError, match=r"append \?matching_heuristics=True"):
        GLIPv2Checkpointer(model).load(path)
    GLIPv2Checkpointer(model).load(f"{path}?matching_heuristics=True")
    values, expected = model.state_dict(), detector.state_dict()
    shared = [
        name
        for name, value in expected.items()
        if name in values and values[name].shape == value.shape
    ]
    assert {name.partition(".")[0] for name in shared} == {
        *("backbone", "proposal_generator", "roi_heads")
    }
    for name in shared:
        assert torch.equal(values[name], expected[name]), name


@pytest.mark.parametrize("kind", ["class-specific", "RetinaNet"])
def test_a_closed_set_detectors_file_loads_as_it_is(kind: str, tmp_path: Path) -> None:
    detector = plain_detector(kind)
    DetectionCheckpointer(detector, str(tmp_path)).save("detector")
    model = text_prompted(kind)
    DetectionCheckpointer(model).load(str(tmp_path / "detector.pth"))
    values = model.state_dict()
    assert all(torch.equal(values[name], v) for name, v in detector.state_dict().items())
