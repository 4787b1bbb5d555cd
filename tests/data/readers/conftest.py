from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import MetadataCatalog


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[[str, Any], str]:
    def write(name: str, content: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return str(path)

    return write


@pytest.fixture
def dataset_name() -> Iterator[str]:
    """A dataset name whose metadata are removed after the test."""
    yield "test_dataset"
    MetadataCatalog.pop("test_dataset", None)
