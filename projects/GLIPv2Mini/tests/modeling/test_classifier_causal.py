"""The causal tests of the core, with the fused head of a classifier pyramid."""

from __future__ import annotations

import pytest
from helpers.shared_tests import shared_tests
from modeling.fusion import test_causal
from modeling.fusion.test_causal import (
    TEXT_DIM,
    VISUAL_DIM,
    Pyramid,
    build,
    random_features,
    text,  # noqa: F401 - a fixture
)

from glipv2_mini.modeling import ClassifierFusedDynamicHead

globals().update(shared_tests(test_causal, "head"))


@pytest.fixture
def head() -> ClassifierFusedDynamicHead:
    return build(ClassifierFusedDynamicHead)


@pytest.fixture
def features() -> Pyramid:
    return random_features(VISUAL_DIM + TEXT_DIM)
