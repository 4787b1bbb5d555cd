"""train_net.py with all pre-training losses."""

from __future__ import annotations

from pathlib import Path

import torch
import train_net
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_argument_parser
from helpers.models import tiny_cfg
from helpers.tiny_coco import write_coco

from glipv2_d2.modeling import GLIPv2


def test_the_heads_of_both_losses_are_trained(tmp_path: Path) -> None:
    name = "end_to_end_pretraining"
    register_coco_instances(name, {}, *map(str, write_coco(tmp_path / "data")))
    cfg = tiny_cfg(
        *("DATASETS.TRAIN", (name,), "DATASETS.TEST", (), "OUTPUT_DIR", str(tmp_path / "output")),
        *("INPUT.MIN_SIZE_TRAIN", (48,), "DATALOADER.NUM_WORKERS", 0, "SEED", 1),
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", ()),
        *("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.WARMUP_ITERS", 0),
        *("MODEL.INTER_IMAGE.WEIGHT", 1.0, "MODEL.MLM.WEIGHT", 1.0, "MODEL.MLM.PROB", 1.0),
    )
    (tmp_path / "config.yaml").write_text(cfg.dump())
    try:
        train_net.main(
            default_argument_parser().parse_args(
                ["--config-file", str(tmp_path / "config.yaml"), "SOLVER.WEIGHT_DECAY", "0.0"]
            )
        )
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    first, last = (
        torch.load(tmp_path / "output" / file, weights_only=True)["model"]
        for file in ("model_0000000.pth", "model_final.pth")
    )
    names = [name for name in last if name.startswith(GLIPv2.checkpoint_loss_only)]
    assert len(names) == 11
    assert [name for name in names if torch.equal(first[name], last[name])] == []
