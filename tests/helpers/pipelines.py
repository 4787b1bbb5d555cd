"""Configs and parts of a stock Detectron2 script on the drawn data."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T

TRAIN, VAL = "pipelines_train", "pipelines_val"


def for_two_steps(cfg: CfgNode, output: Path) -> CfgNode:
    """The config with a training of two iterations on the drawn data, without evaluation."""
    cfg.SEED = 3
    cfg.OUTPUT_DIR = str(output)
    cfg.DATASETS.TRAIN = (TRAIN,)
    cfg.DATASETS.TEST = ()
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    # The masks of drawn scenes are run-length encoded.
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = 2
    cfg.SOLVER.STEPS = ()
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    return cfg


def written_metrics(cfg: CfgNode) -> dict[str, Any]:
    """The last line of metrics.json."""
    return json.loads((Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()[-1])


def own_mapper(record: dict[str, Any]) -> dict[str, Any]:
    """As in Detectron2's tutorial on data loaders."""
    record = copy.deepcopy(record)
    image = detection_utils.read_image(record["file_name"], format="BGR")
    aug_input = T.AugInput(image)
    transforms = T.AugmentationList([T.Resize((64, 64))])(aug_input)
    record["image"] = torch.from_numpy(aug_input.image.transpose(2, 0, 1).copy())
    for annotation in record["annotations"]:
        del annotation["segmentation"]
    annotations = [
        detection_utils.transform_instance_annotations(annotation, transforms, (64, 64))
        for annotation in record.pop("annotations")
    ]
    record["instances"] = detection_utils.annotations_to_instances(annotations, (64, 64))
    return record
