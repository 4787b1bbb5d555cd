"""What holds for every test: no network, no display, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os

# Before transformers, huggingface_hub or matplotlib are imported: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch

# It holds no tests; searched for doctests, it would be imported again under a second name.
collect_ignore = ["helpers"]

# Helpers are imported by name; collecting their doctests would import them a second time.
collect_ignore_glob = ["helpers/*"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect, not skip: a skip would say that something is wrong with the machine."""
    if torch.cuda.is_available():
        return
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=needs_gpu)
    items[:] = [item for item in items if not item.get_closest_marker("gpu")]
