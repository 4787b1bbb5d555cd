"""ONNX graphs and their runtime are equal to the model, or are not written."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from helpers.exports import tiny_predictor
from helpers.two_stage import two_stage_model
from PIL import Image

from glipv2_d2 import Predictor
from glipv2_d2.export import onnx_export
from glipv2_d2.export.graphs import outputs_of
from glipv2_d2.export.onnx_export import export_onnx
from glipv2_d2.export.runtime import Detections, Detector
from glipv2_d2.structures import Query, QueryKind
from glipv2_d2.text.prompts import class_prompts

HARD_NAMES = [
    "traffic_light",
    "zebra (animal)",
    "Café au lait",
    "cat",
    "Cat ",
    "person's-hat",
    "杯",
]


@pytest.fixture(scope="module")
def detector(exported: Path) -> Detector:
    return Detector(exported, num_threads=1)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def expected_detections(predictor: Predictor, image: np.ndarray, names: list[str]) -> Detections:
    """Of the model, with the image padded by another one, as in the graph."""
    x = predictor._make_input(image, {"classes": names})
    largest = {"image": torch.zeros(3, 64, 96), "classes": ["x"]}
    with torch.no_grad():
        found = predictor.model([x, largest])[0]["instances"]
    return Detections(
        found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy()
    )


@pytest.mark.parametrize("names", [["dog"], ["a fire hydrant", "person", "wine glass", "tv"]])
@torch.no_grad()
def test_boxes_and_logits_are_those_of_the_model_for_other_words_and_images(
    predictor: Predictor, detector: Detector, names: list[str]
) -> None:
    pixels, size = detector.network_input(Image.fromarray(photo(64, 96, seed=len(names))))
    assert size == (64, 96)
    model = predictor.model
    (prompt,) = class_prompts(names, model.query_builder.tokenizer)
    query = Query(0, QueryKind.DETECT, prompt)
    raw = torch.from_numpy(pixels) * model.pixel_std + model.pixel_mean
    fused = model.fuse_queries(model.encode_images([{"image": raw}]), [query])
    head = model.proposal_generator
    expected = outputs_of(head, head.predict(fused))
    outputs = detector.run(pixels, detector._prompt(names, range(len(names))))
    for found, own in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(found, own.numpy(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("shape", [(64, 96), (128, 192), (90, 60), (30, 70)])
def test_detections_are_those_of_the_model_in_pixels_of_the_photo(
    predictor: Predictor, detector: Detector, shape: tuple[int, int]
) -> None:
    with contextlib.ExitStack() as stack:
        if shape == (90, 60):
            # The config's 96 x 64 does not fit.
            resize = T.AugmentationList([T.Resize((64, 43))])
            stack.enter_context(patch.object(predictor, "augmentations", resize))
        expected = expected_detections(predictor, photo(*shape), HARD_NAMES)
    found = detector.detect(Image.fromarray(photo(*shape)), HARD_NAMES, threshold=0.0)
    assert len(expected.scores) >= 4
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert found.classes.tolist() == expected.classes.tolist()
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)


def test_the_default_threshold_is_that_of_the_model(detector: Detector) -> None:
    scores = detector.detect(Image.fromarray(photo(64, 96)), HARD_NAMES).scores
    middle = float(np.sort(scores)[len(scores) // 2])
    with patch.dict(detector.settings["detection"], display_score_thresh=middle):
        kept = detector.detect(Image.fromarray(photo(64, 96)), HARD_NAMES).scores
    assert kept.tolist() == [score for score in scores.tolist() if score >= middle]
    assert 0 < len(kept) < len(scores)


def test_images_of_another_size_are_refused(detector: Detector) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 64, 64\), .* exported for \(3, 64, 96\)"):
        detector.run(np.zeros((3, 64, 64), np.float32), detector.prompts(("cat",))[0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least one name"),
        ("cat", "pass a list"),
        (["cat", " "], "has no words"),
        (["杯"], "knows no word"),
        (["cat " * 300], "a prompt has room for 254"),
    ],
)
def test_invalid_names_are_an_error(detector: Detector, names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detector.detect(Image.new("RGB", (96, 64)), names)


def test_an_unreadable_image_is_an_error(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no\.jpg' is not an image"):
        detector.detect(tmp_path / "no.jpg", ["cat"])
    with pytest.raises(FileNotFoundError):
        detector.detect(tmp_path / "absent.jpg", ["cat"])


RUN = """
import runpy, sys
for name in ("torch", "torchvision", "transformers", "detectron2", "glipv2_d2"):
    sys.modules[name] = None
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_the_folder_runs_by_itself_without_torch(exported: Path, tmp_path: Path) -> None:
    Image.fromarray(photo(64, 96)).save(tmp_path / "photo.png")
    arguments = [str(exported / "detect.py"), str(tmp_path / "photo.png"), "dog, tv"]
    run = subprocess.run(
        [sys.executable, "-c", RUN, *arguments, "--threshold", "0"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0].startswith(("dog  0.", "tv  0."))
    assert " boxes in " in run.stderr


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("export.json", "{", ValueError, "is damaged"),
        ("export.json", '{"format": "onnx", "version": 99}', ValueError, "version 99"),
        ("export.json", '{"format": "onnx", "version": 2, "image": {}}', ValueError, "is damaged"),
        ("export.json", None, FileNotFoundError, "pass a folder of glipv2 export"),
        ("detector.onnx", None, FileNotFoundError, "export the model again"),
        ("detector.onnx", "no graph", ValueError, "cannot load"),
        ("tokenizer.json", None, FileNotFoundError, "export the model again"),
    ],
)
def test_a_damaged_folder_is_an_error(
    exported: Path,
    tmp_path: Path,
    file: str,
    content: str | None,
    error: type[Exception],
    message: str,
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(error, match=message):
        Detector(folder)


def test_graphs_that_differ_from_the_model_are_not_written(
    predictor: Predictor, exported: Path, tmp_path: Path
) -> None:
    bias = predictor.model.proposal_generator.centerness.bias
    with torch.no_grad():
        bias += 1
    try:
        with pytest.raises(ValueError, match="differ from the model in 100% of the centerness"):
            onnx_export.check_equal(predictor.model, exported)
    finally:
        with torch.no_grad():
            bias -= 1
    with (
        patch.object(onnx_export, "check_equal", side_effect=ValueError("differs")),
        patch.object(onnx_export, "_write_text_graph"),
        patch.object(onnx_export, "_write_detector_graph", return_value=[1]),
        pytest.raises(ValueError, match="differs"),
    ):
        export_onnx(predictor, tmp_path / "out", size=(64, 96))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_kept(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "own.txt").touch()
    with pytest.raises(ValueError, match="exists: choose another folder"):
        export_onnx(predictor, tmp_path, size=(64, 96))
    assert [path.name for path in tmp_path.iterdir()] == ["own.txt"]


def test_settings_name_model_and_size(exported: Path) -> None:
    settings = json.loads((exported / "export.json").read_text())
    assert settings["model"] == "tiny"
    assert (settings["image"]["height"], settings["image"]["width"]) == (64, 96)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.PROMPT.NUM_ORDERS", 2), "NUM_ORDERS is 2"),
        (("MODEL.PROMPT.SEPARATOR", " and "), "a separator with words"),
        (("TEST.PRECISION", "bf16"), "TEST.PRECISION is bf16"),
    ],
)
def test_what_cannot_be_exported_is_an_error_with_the_config_key(
    tmp_path: Path, opts: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(tiny_predictor(*opts), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_two_stage_model_is_an_error(predictor: Predictor, tmp_path: Path) -> None:
    with (
        patch.object(predictor, "model", two_stage_model()),
        pytest.raises(ValueError, match="OpenVocabularyRCNN, of which there is no export"),
    ):
        export_onnx(predictor, tmp_path / "out")
