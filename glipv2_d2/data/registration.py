"""Putting a data set into Detectron2's catalogs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

Record = dict[str, Any]

LEARNED_BY_READING = ("thing_classes", "thing_dataset_id_to_contiguous_id")
"""Metadata that readers set."""


def register(
    name: str, read: Callable[[], list[Record]], *, source_files: Sequence[str], **metadata: Any
) -> None:
    """Register a data set, unless its name is taken already.

    Args:
        read: gives the records. It runs when the data set is first asked for.
        source_files: annotation files and image directories that must be there. Where one is
            missing, the loaders say so with the way to prepare the data set.
        metadata: such as ``evaluator_type``, which chooses the evaluator; ``pack_captions``, to
            mix other captions of the data set into a training prompt; ``decorations``, per class
            what a prompt says for it.
    """
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, read)
    MetadataCatalog.get(name).set(source_files=tuple(source_files), **metadata)


def missing_paths(name: str) -> list[str]:
    """The annotation files and image directories of a registered data set that are not there."""
    metadata = MetadataCatalog.get(name)
    # Detectron2's own data sets have these two.
    own = (metadata.get("json_file"), metadata.get("image_root"))
    paths = metadata.get("source_files", own)
    return [path for path in paths if path and not PathManager.exists(path)]


def register_first(name: str, num_records: int) -> None:
    """Register ``<name>_<num_records>``: the first images or questions of a registered data set.

    For tables of many runs. It has no annotation file of its own: Detectron2's COCOEvaluator then
    takes the ground truth from the records.
    """
    register_part(name, f"{name}_{num_records}", lambda records: records[:num_records])


def register_part(name: str, part: str, choose: Callable[[list[Record]], list[Record]]) -> None:
    """Register, under the name ``part``, some of the records of a registered data set."""
    metadata = MetadataCatalog.get(name)

    def read() -> list[Record]:
        records = DatasetCatalog.get(name)
        learned = {key: metadata.get(key) for key in LEARNED_BY_READING if metadata.get(key)}
        MetadataCatalog.get(part).set(**learned)
        return choose(records)

    register(part, read, source_files=metadata.source_files, evaluator_type=metadata.evaluator_type)
