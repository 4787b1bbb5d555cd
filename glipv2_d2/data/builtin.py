"""The data sets that this project can prepare, in Detectron2's catalogs.

They lie below the directory that the environment variable DETECTRON2_DATASETS names (default:
``datasets``). COCO and LVIS are registered by Detectron2 itself.
"""

from __future__ import annotations

import os

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

STAMPS_SPLITS = ("train", "seen", "seen_new_cutouts", "novel")
DRAWN_SPLITS = ("train", "val")


def register_builtin(root: str) -> None:
    """Register ``mini_stamps_<split>`` and ``mini_drawn_<split>`` below ``root``, once."""
    for kind, splits in (("stamps", STAMPS_SPLITS), ("drawn", DRAWN_SPLITS)):
        for split in splits:
            name = f"mini_{kind}_{split}"
            if name not in DatasetCatalog:
                directory = os.path.join(root, kind)
                register_coco_instances(
                    name, {}, f"{directory}/{split}.json", os.path.join(directory, split)
                )


register_builtin(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
