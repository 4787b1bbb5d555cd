from __future__ import annotations

import pytest
from helpers.models import tiny_model

from glipv2_d2.checkpoint import save_weights


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of the tiny model's weights."""
    path = tmp_path_factory.mktemp("base") / "base.pth"
    save_weights(tiny_model(), path)
    return str(path)
