"""Built-in datasets that give way to another project's dataset of the same name.

Names of public datasets are used by many projects. A dataset that another project registered first
is kept (:func:`glipv2_d2.data.registration.register`); one that it registers later replaces the
built-in one, where Detectron2's catalogs would raise an AssertionError.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

logger = logging.getLogger(__name__)


@dataclass
class _Builtin:
    """A built-in dataset that has not been replaced.

    Attributes:
        load: its function in the catalog.
        keys: of its metadata, without those that were set again later.
    """

    load: Callable[[], Any]
    keys: set[str] = field(default_factory=set)


_builtin: dict[str, _Builtin] = {}
_register = DatasetCatalog.register


class ReplaceableMetadata(Metadata):
    """Metadata of a built-in dataset, whose values another project may set to others."""

    def __setattr__(self, key: str, value: Any) -> None:
        SimpleNamespace.__setattr__(self, key, value)
        if self.name in _builtin:
            _builtin[self.name].keys.discard(key)


def make_replaceable(names: Iterable[str]) -> None:
    """Let other projects register datasets under these registered names."""
    for name in names:
        values = MetadataCatalog.get(name).as_dict()
        MetadataCatalog[name] = ReplaceableMetadata(**values)
        _builtin[name] = _Builtin(DatasetCatalog[name], values.keys() - {"name"})


def is_builtin(name: str) -> bool:
    """Whether a built-in dataset has this name, which none of another project replaced."""
    return name in _builtin


def _register_in_place_of_builtin(name: str, func: Callable[[], Any]) -> None:
    """Detectron2's ``DatasetCatalog.register``, which also replaces a built-in dataset."""
    builtin = _builtin.pop(name, None)
    if builtin is not None and DatasetCatalog.data.get(name) is builtin.load:
        logger.info("another project's dataset %r replaces the built-in one", name)
        del DatasetCatalog[name]
        metadata = MetadataCatalog.get(name)
        for key in builtin.keys:
            delattr(metadata, key)
    _register(name, func)


DatasetCatalog.register = _register_in_place_of_builtin
