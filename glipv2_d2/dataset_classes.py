"""The class names of inputs that have none: those in the metadata of the config's datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog


class DatasetClasses:
    """Finds the class names of an input dict by its dataset.

    Only this project's loaders name the dataset of an input. Where the datasets have different
    class names, that of another input is found by its ``file_name``.
    """

    def __init__(self, dataset_names: Sequence[str], key: str) -> None:
        """
        Args:
            dataset_names: registered datasets that the inputs may belong to.
            key: the config key that lists them, for errors.
        """
        self.dataset_names = tuple(dataset_names)
        self.key = key
        self._dataset_of_file: dict[str, str | None] | None = None

    def __call__(self, x: dict[str, Any]) -> Sequence[str]:
        """The class names of an input dict or record.

        Raises:
            ValueError: there is no dataset, its metadata has no class names, or the dataset of the
                input is unknown and matters.
        """
        names = self.dataset_names
        if x.get("dataset_name") in names:
            return class_names_of(x["dataset_name"])
        if not names:
            raise ValueError(
                f"the input has no 'classes', 'caption' or 'prompt', and {self.key} is empty: pass "
                "class names"
            )
        classes = class_names_of(names[0])
        for other in names[1:]:
            # The metadata of a dataset that is not loaded yet has no class names.
            if list(MetadataCatalog.get(other).get("thing_classes", classes)) != list(classes):
                return class_names_of(self._dataset_of(x, other))
        return classes

    def _dataset_of(self, x: dict[str, Any], other: str) -> str:
        """The dataset that has the image of an input; ``other`` differs from the first one."""
        if self._dataset_of_file is None:
            self._dataset_of_file = _index_files(self.dataset_names)
        file_name = x.get("file_name")
        found = self._dataset_of_file.get(file_name) if file_name is not None else None
        if found is None:
            raise ValueError(
                f"the input has no 'classes', and the datasets {self.dataset_names[0]!r} and "
                f"{other!r} have different class names, but its file_name {file_name!r} is not in "
                "just one of them: use this project's loaders (tools/train_net.py), which set the "
                "class names of every image, or pass 'classes'"
            )
        return found


def class_names_of(dataset_name: str) -> Sequence[str]:
    """The class names in the metadata of a dataset, which is loaded if only that sets them.

    Raises:
        ValueError: it has none.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if not metadata.get("thing_classes") and dataset_name in DatasetCatalog:
        DatasetCatalog.get(dataset_name)
    classes: Sequence[str] | None = metadata.get("thing_classes")
    if not classes:
        raise ValueError(f"dataset {dataset_name!r} has no thing_classes in its metadata")
    return classes


def _index_files(dataset_names: Sequence[str]) -> dict[str, str | None]:
    """The image files of registered datasets -> their dataset; None if several have the file."""
    dataset_of: dict[str, str | None] = {}
    for name in dataset_names:
        if name in DatasetCatalog:
            for file_name in {record["file_name"] for record in DatasetCatalog.get(name)}:
                dataset_of[file_name] = None if file_name in dataset_of else name
    return dataset_of
