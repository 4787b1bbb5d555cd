"""A tiny model as ONNX graphs, exported once."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.exports import SIZE, tiny_predictor

from glipv2_d2 import Predictor
from glipv2_d2.export.onnx_export import export_onnx


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    return tiny_predictor()


@pytest.fixture(scope="session")
def exported(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "onnx"
    return export_onnx(predictor, folder, size=SIZE, name="tiny")
