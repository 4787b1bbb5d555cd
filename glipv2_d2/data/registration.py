"""Registering datasets in Detectron2's catalogs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

Record = dict[str, Any]

READER_METADATA = ("thing_classes", "thing_dataset_id_to_contiguous_id")
"""Metadata keys that a reader sets when it loads the records."""


@dataclass(frozen=True)
class StreamedRecords:
    """Loads all records at once, as Detectron2's catalog does, or one by one with ``iterate``."""

    iterate: Callable[[], Iterator[Record]]

    def __call__(self) -> list[Record]:
        return list(self.iterate())


def register(
    name: str, load: Callable[[], list[Record]], *, source_files: Sequence[str], **metadata: Any
) -> None:
    """Register a dataset, unless its name is already registered.

    Args:
        load: returns the records; called on first use of the dataset. For a dataset that may be
            larger than the memory, :class:`StreamedRecords`.
        source_files: annotation files and image directories that the dataset needs. Loaders check
            them and report a missing one together with how to prepare the dataset.
        metadata: such as ``evaluator_type``, which selects the evaluator; ``pack_captions``, to
            add other captions of the dataset to a training prompt; ``decorations``, the prompt
            text of each class; ``find_files``, a function that returns source files which are
            found in others; ``evaluation_only``, which makes training on it an error.
    """
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(source_files=tuple(source_files), **metadata)


def replace_loader(name: str, load: Callable[[], list[Record]]) -> None:
    """Load a dataset that Detectron2 registered with another function; its metadata are kept.

    A dataset that another project registered in its place is left as it is.
    """
    if DatasetCatalog[name].__module__.startswith("detectron2."):
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, load)


def source_paths(name: str) -> list[str]:
    """The annotation files and image directories of a registered dataset, as far as known."""
    metadata = MetadataCatalog.get(name)
    # Detectron2's own datasets have these two keys.
    own = (metadata.get("json_file"), metadata.get("image_root"))
    return [path for path in metadata.get("source_files", own) if path]


def missing_paths(name: str) -> list[str]:
    """The annotation files and image directories of a registered dataset that do not exist."""
    return [path for path in source_paths(name) if not PathManager.exists(path)]


def register_first(name: str, num_records: int) -> None:
    """Register ``<name>_<num_records>``: the first images or questions of a registered dataset.

    It has no annotation file, so Detectron2's COCOEvaluator takes the ground truth from the
    records.
    """
    register_subset(name, f"{name}_{num_records}", lambda records: records[:num_records])


def register_subset(name: str, subset: str, select: Callable[[list[Record]], list[Record]]) -> None:
    """Register a subset of the records of a registered dataset, under the name ``subset``."""
    metadata = MetadataCatalog.get(name)

    def load() -> list[Record]:
        records = DatasetCatalog.get(name)
        set_by_reader = {key: metadata.get(key) for key in READER_METADATA if metadata.get(key)}
        MetadataCatalog.get(subset).set(**set_by_reader)
        return select(records)

    # Another project may have registered the dataset, without these.
    kind = metadata.get("evaluator_type")
    register(
        subset,
        load,
        source_files=metadata.get("source_files", ()),
        **({} if kind is None else {"evaluator_type": kind}),
    )
