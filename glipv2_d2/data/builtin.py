"""Every data set that this project knows, in Detectron2's catalogs.

They lie below the directory that the environment variable DETECTRON2_DATASETS names (default:
``datasets``); ``datasets/README.md`` says how they get there. COCO and LVIS are registered by
Detectron2 itself.
"""

from __future__ import annotations

import os

from glipv2_d2.data.readers.coco import register_coco
from glipv2_d2.data.readers.flickr30k import register_flickr30k_entities
from glipv2_d2.data.readers.grounding import register_goldg
from glipv2_d2.data.readers.lvis import register_lvis_minival
from glipv2_d2.data.readers.objects365 import register_objects365
from glipv2_d2.data.readers.odinw import register_odinw
from glipv2_d2.data.readers.openimages import register_openimages
from glipv2_d2.data.readers.phrasecut import register_phrasecut
from glipv2_d2.data.readers.refcoco import register_refcoco
from glipv2_d2.data.readers.visual_genome import register_visual_genome

STAMPS_SPLITS = ("train", "seen", "seen_new_cutouts", "novel")
DRAWN_SPLITS = ("train", "val")


def register_builtin(root: str) -> None:
    """Register everything below ``root``, each name once."""
    register_mini(root)
    register_lvis_minival(root)
    register_objects365(root)
    register_openimages(root)
    register_visual_genome(root)
    register_odinw(root)
    register_flickr30k_entities(root)
    register_goldg(root)
    register_refcoco(root)
    register_phrasecut(root)


def register_mini(root: str) -> None:
    """``mini_stamps_<split>`` and ``mini_drawn_<split>``."""
    for kind, splits in (("stamps", STAMPS_SPLITS), ("drawn", DRAWN_SPLITS)):
        for split in splits:
            directory = os.path.join(root, kind)
            register_coco(
                f"mini_{kind}_{split}",
                os.path.join(directory, f"{split}.json"),
                os.path.join(directory, split),
            )


register_builtin(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
