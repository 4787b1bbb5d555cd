"""The reference's golden numbers for text, and a shared tokenizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glipv2_d2.text import Tokenizer

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    return json.loads((ASSETS / "misc" / "misc.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def golden_model() -> dict[str, Any]:
    return json.loads((ASSETS / "tiny_T_s0" / "meta.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def golden_arrays() -> dict[str, np.ndarray]:
    with np.load(ASSETS / "tiny_T_s0" / "golden_eval.npz") as arrays:
        return {name: arrays[name] for name in arrays if name.startswith("demo/")}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer()
