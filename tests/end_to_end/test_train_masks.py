"""train_net.py with mask heads, on scenes with RLE masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import train_net
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_argument_parser
from helpers.masks import MASKS
from helpers.models import tiny_cfg

from glipv2_d2.data.drawn import write_drawn

NAME = "end_to_end_masks"


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masks")
    annotations = write_drawn(root, split="train", num_images=4, size=96, seed=0)
    register_coco_instances(NAME, {}, str(annotations), str(root / "train"))
    cfg = tiny_cfg(
        *MASKS,
        *("DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "SEED", 1),
        *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64),
        *("DATALOADER.NUM_WORKERS", 0, "DATALOADER.ASPECT_RATIO_GROUPING", False),
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", ()),
        *("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.WARMUP_ITERS", 0, "SOLVER.WEIGHT_DECAY", 0.0),
        *("OUTPUT_DIR", str(root / "output"), "MODEL.GROUNDING.SCORE_THRESH", 0.001),
        *("MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 20),
    )
    path = root / "config.yaml"
    path.write_text(cfg.dump())
    yield path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture(scope="module")
def output(config_file: Path) -> Path:
    """The output folder of a training with a final evaluation."""
    arguments = ["--config-file", str(config_file)]
    train_net.main(default_argument_parser().parse_args(arguments))
    return config_file.parent / "output"


def test_every_parameter_of_the_mask_head_is_trained(output: Path) -> None:
    first, last = (
        torch.load(output / file, weights_only=True)["model"]
        for file in ("model_0000000.pth", "model_final.pth")
    )
    names = [name for name in last if name.startswith("roi_heads.")]
    assert names
    assert [name for name in names if torch.equal(first[name], last[name])] == []


def test_evaluation_measures_boxes_and_masks(output: Path) -> None:
    metrics = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    assert "bbox/AP50" in metrics
    assert 0 <= metrics["segm/AP50"] <= 100


def test_results_have_a_mask_for_every_box(output: Path) -> None:
    (file,) = output.rglob("coco_instances_results.json")
    rows = json.loads(file.read_text())
    assert rows
    assert all({"bbox", "segmentation", "score"} <= row.keys() for row in rows)
