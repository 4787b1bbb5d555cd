"""train_net.py with a tiny model on a dataset of drawn scenes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import train_net
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_argument_parser
from helpers.models import tiny_cfg
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glipv2_cli import main as cli
from glipv2_d2.data.drawn import write_drawn

ITERATIONS = 40  # Detectron2 writes metrics every 20


def run(*arguments: str) -> dict | None:
    return train_net.main(default_argument_parser().parse_args(list(arguments)))


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("end_to_end")
    for split, count in (("train", 16), ("val", 4)):
        file = write_drawn(root, split=split, num_images=count, size=96, seed=0)
        register_coco_instances(f"end_to_end_{split}", {}, str(file), str(root / split))
    cfg = tiny_cfg(
        *("DATASETS.TRAIN", ("end_to_end_train",), "DATASETS.TEST", ("end_to_end_val",)),
        *("INPUT.MIN_SIZE_TRAIN", (64, 96), "INPUT.MIN_SIZE_TEST", 96),
        *("DATALOADER.NUM_WORKERS", 0, "DATALOADER.ASPECT_RATIO_GROUPING", False),
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", ITERATIONS, "SOLVER.STEPS", ()),
        *("SOLVER.CHECKPOINT_PERIOD", 20, "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 0.003),
        *("SOLVER.EMA_DECAY", 0.9, "SEED", 1, "OUTPUT_DIR", str(root / "output")),
        # Low enough for a barely trained model to have detections.
        *("MODEL.GROUNDING.SCORE_THRESH", 0.001),
    )
    path = root / "tiny.yaml"
    path.write_text(cfg.dump())
    yield path
    for split in ("train", "val"):
        DatasetCatalog.remove(f"end_to_end_{split}")
        MetadataCatalog.remove(f"end_to_end_{split}")


@pytest.fixture(scope="module")
def trained(config_file: Path) -> Path:
    """The output folder of a complete run."""
    run("--config-file", str(config_file))
    return config_file.parent / "output"


def test_training_reduces_the_token_loss(trained: Path) -> None:
    lines = (trained / "metrics.json").read_text().splitlines()
    losses = [
        metrics["loss_token"] for metrics in map(json.loads, lines) if "loss_token" in metrics
    ]
    assert losses[-1] < 0.9 * losses[0]


def test_the_checkpoint_contains_the_training_state(trained: Path) -> None:
    checkpoint = torch.load(trained / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == ITERATIONS - 1
    assert {"model", "model_ema", "trainer"} <= checkpoint.keys()


@pytest.fixture(scope="module")
def evaluated(config_file: Path, trained: Path) -> dict:
    results = run(
        *("--config-file", str(config_file), "--eval-only"),
        *("MODEL.WEIGHTS", str(trained / "model_final.pth")),
    )
    assert results is not None
    return results


def test_evaluation_computes_coco_metrics(evaluated: dict) -> None:
    results = evaluated
    assert {"AP", "AP50"} <= results["bbox"].keys()
    assert 0 <= results["bbox"]["AP50"] <= 100


def test_pycocotools_scores_a_saved_prediction_as_evaluated(
    config_file: Path, trained: Path, evaluated: dict, tmp_path: Path
) -> None:
    root = config_file.parent
    arguments = [
        *("predict", str(root / "val"), "--ids-from", str(root / "val.json")),
        *("--config", str(config_file), "--weights", str(trained / "model_final.pth")),
        *("--threshold", "0", "--save", "coco", "--no-draw", "--output", str(tmp_path)),
    ]
    assert cli.main(arguments) == 0
    truth = COCO(str(root / "val.json"))
    score = COCOeval(truth, truth.loadRes(str(tmp_path / "coco_results.json")), "bbox")
    score.evaluate()
    score.accumulate()
    score.summarize()
    values = [100 * value for value in score.stats[:6]]
    keys = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    expected = [evaluated["bbox"][key] for key in keys]
    assert expected[0] > 0
    # COCOeval has -1 in place of nan for sizes without objects.
    assert values == pytest.approx([-100 if math.isnan(x) else x for x in expected], abs=1e-9)


def test_evaluation_writes_its_predictions(config_file: Path, trained: Path) -> None:
    run(
        *("--config-file", str(config_file), "--eval-only"),
        *("MODEL.WEIGHTS", str(trained / "model_final.pth")),
    )
    (file,) = trained.rglob("coco_instances_results.json")
    found = json.loads(file.read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= found[0].keys()
