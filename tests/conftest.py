"""What holds for every test: no network, no display, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os

# Before transformers, huggingface_hub or matplotlib are imported: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import sys
from collections.abc import Iterator

import pytest
import torch

# It holds no tests; searched for doctests, it would be imported again under a second name.
collect_ignore = ["helpers"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what does not exist here; a skip would suggest a fault."""
    absent = [item for item in items if _needs_missing_gpu(item) or _has_no_case(item)]
    config.hook.pytest_deselected(items=absent)
    items[:] = [item for item in items if item not in absent]


def _needs_missing_gpu(item: pytest.Item) -> bool:
    return item.get_closest_marker("gpu") is not None and not torch.cuda.is_available()


def _has_no_case(item: pytest.Item) -> bool:
    """A test over stored stages of which the golden directories have none."""
    marker = item.get_closest_marker("skip")
    return marker is not None and "empty parameter set" in marker.kwargs.get("reason", "")


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
