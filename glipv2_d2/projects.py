"""Projects: installed packages that add model parts, datasets and config keys to the core.

A package announces its :class:`Project` by an entry point of the group ``glipv2_d2.projects``::

    entry_points={"glipv2_d2.projects": ["my_project = my_package:PROJECT"]}

A config then names the parts of the project like those of the core, and no module to import.
"""

from __future__ import annotations

import importlib.metadata
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.config import CfgNode

GROUP = "glipv2_d2.projects"


@dataclass(frozen=True)
class ProjectModel:
    """The files of a model that a project ships: its config and its weights."""

    config: Path
    weights: Path


@dataclass(frozen=True)
class Project:
    """What a project adds to the core.

    Attributes:
        name: for messages.
        register: puts model parts into the registries and datasets into the catalogs. Called once.
        add_config: adds the keys of the project to a config, in place.
        models: name -> files of the models that ``Predictor`` builds by this name.
    """

    name: str
    register: Callable[[], None]
    add_config: Callable[[CfgNode], None]
    models: Mapping[str, ProjectModel] = field(default_factory=dict)


_lock = threading.RLock()
_loading: list[str] = []
_loaded: dict[str, Project] = {}


def load_projects() -> list[Project]:
    """Load and register every installed project; later calls return the same list.

    Raises:
        ImportError: an entry point cannot be loaded, or needs the config of the projects to load.
        TypeError: an entry point is not a :class:`Project`.
    """
    with _lock:
        for entry_point in importlib.metadata.entry_points(group=GROUP):
            if entry_point.value in _loading:
                raise ImportError(
                    f"project {entry_point.name!r} builds a config while it is being loaded: move "
                    "that call out of its import and its register()"
                )
            if entry_point.value not in _loaded:
                _loading.append(entry_point.value)
                try:
                    _loaded[entry_point.value] = _load(entry_point)
                finally:
                    _loading.pop()
        return list(_loaded.values())


def add_project_configs(cfg: CfgNode) -> None:
    """Add the keys of every installed project to ``cfg``, in place."""
    for project in load_projects():
        project.add_config(cfg)


def config_directory(package: Path) -> Path:
    """``configs/`` of a package: a part of it in a wheel, beside it in a checkout."""
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _load(entry_point: importlib.metadata.EntryPoint) -> Project:
    where = f"entry point {entry_point.name!r} = {entry_point.value!r} of the group {GROUP!r}"
    try:
        project = entry_point.load()
    except Exception as error:
        raise ImportError(f"{where} cannot be loaded: {error}") from error
    if not isinstance(project, Project):
        raise TypeError(f"{where} is a {type(project).__name__}, not a {Project.__qualname__}")
    try:
        project.register()
    except Exception as error:
        raise ImportError(f"{where} cannot be registered: {error}") from error
    return project
