"""The parts of the small model in graphs: ONNX with phrases that describe, and traced."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers.models import random_image
from mini_models import mini_cfg, mini_model, random_evidence_score
from PIL import Image

from glipv2_d2 import Predictor
from glipv2_d2.export.graphs import FixedNamesDetector
from glipv2_d2.export.onnx_export import export_onnx
from glipv2_d2.export.runtime import Detector
from glipv2_d2.modeling import class_evidence
from glipv2_mini.modeling import evidence_backbone, evidence_rpn, evidence_score
from glipv2_mini.text import phrases

LIKE_MINI = (
    *("MODEL.LANGUAGE_BACKBONE.NAME", "CorePhraseLanguageBackbone"),
    *("MODEL.LANGUAGE_BACKBONE.FREEZE", True, "MODEL.GROUNDING.SCORE_FUSED_TEXT", False),
    *("TEST.DETECTIONS_PER_IMAGE", 12, "MODEL.GROUNDING.SCORE_THRESH", 0.01),
)
NAMES = ["the small red dog on the left", "man in a blue shirt", "traffic light", "cup of tea"]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    with patch.object(evidence_rpn, "build_evidence_score", random_evidence_score):
        return Predictor(mini_cfg(*LIKE_MINI), device="cpu")


def test_onnx_graphs_detect_phrases_that_describe_as_the_model_does(
    predictor: Predictor, tmp_path: Path
) -> None:
    folder = export_onnx(predictor, tmp_path / "onnx", size=(64, 96))
    assert (folder / "phrase_parser.py").read_text() == Path(phrases.__file__).read_text()
    detector = Detector(folder, phrase_parser=phrases, num_threads=1)
    for seed in (1, 2):
        image = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        expected = predictor.predict(
            Image.fromarray(image), classes=NAMES, threshold=None
        ).instances
        found = detector.detect(Image.fromarray(image), NAMES, threshold=0.0)
        assert len(expected) == 12
        np.testing.assert_allclose(found.scores, expected.scores.numpy(), atol=1e-4)
        assert found.classes.tolist() == expected.pred_classes.tolist()
        boxes = expected.pred_boxes.tensor.numpy()
        np.testing.assert_allclose(found.boxes, boxes, atol=1e-2)


@pytest.mark.filterwarnings("ignore")
@torch.jit.optimized_execution(False)
@torch.no_grad()
def test_a_traced_model_is_right_on_other_images() -> None:
    graph = FixedNamesDetector(mini_model(*LIKE_MINI), NAMES).eval()
    traced = torch.jit.trace(graph, random_image(), check_trace=False)
    for seed in (1, 2):
        for found, expected in zip(
            traced(random_image(seed=seed)), graph(random_image(seed=seed)), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_the_forms_of_graphs_compute_the_same(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.export of the whole model takes too long for a test: see tests/product."""
    graph = FixedNamesDetector(predictor.model, NAMES).eval()
    expected = graph(random_image(64, 96, seed=3))
    for module in (class_evidence, evidence_backbone, evidence_score):
        monkeypatch.setattr(module, "is_tracing", lambda: True)
    for found, own in zip(graph(random_image(64, 96, seed=3)), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-3)
