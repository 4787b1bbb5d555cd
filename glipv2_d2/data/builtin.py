"""Registers the built-in datasets in Detectron2's catalogs.

Their files are below the directory in the environment variable DETECTRON2_DATASETS (default:
``datasets``); ``datasets/README.md`` describes how to prepare them. Detectron2 itself registers
COCO. A dataset of another project with the same name takes precedence.
"""

from __future__ import annotations

import os

from detectron2.data import DatasetCatalog

from glipv2_d2.data.readers.coco import register_coco, register_coco_builtin
from glipv2_d2.data.readers.coco_captions import register_coco_captions
from glipv2_d2.data.readers.flickr30k import register_flickr30k_entities
from glipv2_d2.data.readers.flickr30k_captions import register_flickr30k_captions
from glipv2_d2.data.readers.gqa import register_gqa
from glipv2_d2.data.readers.grounding import register_goldg, register_phrase_boxes
from glipv2_d2.data.readers.imagenet_boxes import register_imagenet_boxes
from glipv2_d2.data.readers.lvis import register_lvis
from glipv2_d2.data.readers.objects365 import register_objects365
from glipv2_d2.data.readers.odinw import register_odinw
from glipv2_d2.data.readers.openimages import register_openimages
from glipv2_d2.data.readers.phrasecut import register_phrasecut
from glipv2_d2.data.readers.refcoco import register_refcoco
from glipv2_d2.data.readers.refer import register_refer
from glipv2_d2.data.readers.visual_genome import register_visual_genome
from glipv2_d2.data.readers.vqa import register_vqav2
from glipv2_d2.data.replaceable import make_replaceable

DRAWN_SPLITS = ("train", "val", "base", "novel")


def register_builtin(root: str) -> None:
    """Register all built-in datasets below ``root``."""
    register_drawn(root)
    register_coco_builtin()
    register_lvis(root)
    register_objects365(root)
    register_openimages(root)
    register_imagenet_boxes(root)
    register_visual_genome(root)
    register_odinw(root)
    register_flickr30k_entities(root)
    register_goldg(root)
    register_flickr30k_captions(root)
    register_refcoco(root)
    register_refer(root)
    register_phrasecut(root)
    register_vqav2(root)
    register_gqa(root)
    register_coco_captions(root)


def register_drawn(root: str) -> None:
    """Register the scenes ``drawn_<split>``, and their captions as ``drawn_<split>_captions``."""
    directory = os.path.join(root, "drawn")
    for split in DRAWN_SPLITS:
        files = (os.path.join(directory, f"{split}.json"), os.path.join(directory, split))
        register_coco(f"drawn_{split}", *files)
        register_phrase_boxes(f"drawn_{split}_captions", *files)


_others = set(DatasetCatalog.list())
register_builtin(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
make_replaceable(set(DatasetCatalog.list()) - _others)
