"""train_net.py on a small open-vocabulary Mask R-CNN, evaluated on novel classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import train_net
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_argument_parser
from helpers.two_stage import CASCADE, two_stage_cfg

from glipv2_d2 import Predictor
from glipv2_d2.data.drawn import base_cutouts, novel_cutouts, write_drawn

SPLITS = {"base": (6, base_cutouts), "novel": (3, novel_cutouts)}


def run(*arguments: str) -> dict | None:
    return train_net.main(default_argument_parser().parse_args(list(arguments)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("two_stage")
    for split, (count, load_cutouts) in SPLITS.items():
        file = write_drawn(
            root, split=split, num_images=count, size=96, seed=0, load_cutouts=load_cutouts
        )
        register_coco_instances(f"two_stage_{split}", {}, str(file), str(root / split))
    yield root
    for split in SPLITS:
        DatasetCatalog.remove(f"two_stage_{split}")
        MetadataCatalog.remove(f"two_stage_{split}")


@pytest.fixture(scope="module", params=["standard", "cascade"])
def trained(data: Path, request: pytest.FixtureRequest) -> Path:
    """The config file of a run of three iterations; its output folder is beside it."""
    folder = data / request.param
    cfg = two_stage_cfg(
        *("DATASETS.TRAIN", ("two_stage_base",), "DATASETS.TEST", ("two_stage_novel",)),
        *("INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MIN_SIZE_TEST", 96),
        *("INPUT.MASK_FORMAT", "bitmask", "MODEL.ROI_HEADS.NUM_CLASSES", 20),
        *("DATALOADER.NUM_WORKERS", 0, "DATALOADER.ASPECT_RATIO_GROUPING", False),
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 3, "SOLVER.STEPS", ()),
        *("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.WARMUP_ITERS", 0, "SOLVER.WEIGHT_DECAY", 0.0),
        *("SEED", 1, "OUTPUT_DIR", str(folder / "output")),
        # Low enough for a barely trained model to have detections.
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, *(CASCADE if "cascade" in folder.name else ())),
    )
    folder.mkdir()
    path = folder / "tiny.yaml"
    path.write_text(cfg.dump())
    run("--config-file", str(path))
    return path


def test_training_updates_all_parts(trained: Path) -> None:
    first, last = (
        torch.load(trained.parent / "output" / file, weights_only=True)["model"]
        for file in ("model_0000000.pth", "model_final.pth")
    )
    unchanged = {name for name, value in last.items() if torch.equal(value, first[name])}
    parts = {name.partition(".")[0] for name in last.keys() - unchanged}
    assert parts == {"backbone", "language_backbone", "proposal_generator", "roi_heads"}
    # Only buffers, and levels from which no region of these small images is pooled, may stay.
    assert not [name for name in unchanged if name.startswith("roi_heads.")]


def test_novel_classes_can_be_evaluated(trained: Path) -> None:
    weights = str(trained.parent / "output" / "model_final.pth")
    results = run("--config-file", str(trained), "--eval-only", "MODEL.WEIGHTS", weights)
    assert 0 <= results["bbox"]["AP50"] <= 100
    (file,) = trained.parent.rglob("coco_instances_results.json")
    found = json.loads(file.read_text())
    assert {row["category_id"] for row in found} == set(range(1, 9))


def test_the_predictor_accepts_any_class_name(trained: Path, data: Path) -> None:
    predictor = Predictor(trained, trained.parent / "output" / "model_final.pth", device="cpu")
    image = next((data / "novel").glob("*.jpg"))
    prediction = predictor.predict(image, classes=["a thing", "purple heart", "red circle"])
    assert set(prediction.labels) == {"a thing", "purple heart", "red circle"}
    assert prediction.instances.pred_masks.shape == (len(prediction), 96, 96)
    assert prediction.instances.scores.diff().max() <= 0
