"""glipv2-mini: a GLIPv2 small enough for a laptop, as a project on top of :mod:`glipv2_d2`."""

from __future__ import annotations

import os
from pathlib import Path

from glipv2_d2.projects import Project, ProjectModel, config_directory
from glipv2_mini.config import add_mini_config

__all__ = ["PROJECT", "add_mini_config", "register"]


def register() -> None:
    """Register the model parts, datasets and benchmarks of the project. Call it once."""
    from glipv2_d2.evaluation.benchmarks import register_benchmarks
    from glipv2_mini import modeling as _modeling  # noqa: F401 - registers the model parts
    from glipv2_mini.benchmarks import mini_benchmarks
    from glipv2_mini.data.builtin import register_datasets

    register_datasets(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
    register_benchmarks(mini_benchmarks)


_PACKAGE = Path(__file__).parent

MODELS = {
    "glipv2-mini": ProjectModel(
        config=config_directory(_PACKAGE) / "glipv2_mini.yaml",
        weights=_PACKAGE / "assets" / "glipv2_mini.pth",
    )
}

PROJECT = Project("glipv2_mini", register, add_mini_config, MODELS)
