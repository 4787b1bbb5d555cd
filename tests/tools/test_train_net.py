"""Training, resuming after SIGKILL, evaluation, and config errors of tools/train_net.py."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.locked_folder import locked_by_another_process
from helpers.models import tiny_cfg, tiny_model
from helpers.stand_in import configure
from helpers.tiny_coco import write_coco
from helpers.torchrun import torchrun
from helpers.train_command import in_child, run, run_and_die
from helpers.two_processes import DETERMINISTIC

from glipv2_d2.checkpoint import save_weights
from glipv2_d2.engine.setup import load_config


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    annotations, images = write_coco(tmp_path / "tiny")
    cfg = load_config().clone()
    cfg.defrost()
    configure(cfg, "command_coco", str(tmp_path / "output"))
    cfg.DATASETS.CUSTOM = [
        {"name": "command_coco", "json": str(annotations), "images": str(images)}
    ]
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    return str(path)


@pytest.fixture
def all_losses_config_file(tmp_path: Path) -> str:
    """Config of a tiny GLIPv2 with every random component, and of its dataset."""
    annotations, images = write_coco(tmp_path / "all_losses")
    data = {"name": "all_losses_coco", "json": str(annotations), "images": str(images)}
    cfg = tiny_cfg(
        *("SEED", 3, "MODEL.INTER_IMAGE.WEIGHT", 1.0, "MODEL.MLM.WEIGHT", 1.0),
        *("DATASETS.CUSTOM", [data], "DATASETS.TRAIN", ("all_losses_coco",)),
        *("DATASETS.TEST", (), "DATALOADER.NUM_WORKERS", 0),
        *(
            "INPUT.MIN_SIZE_TRAIN",
            (48, 64),
            "SOLVER.IMS_PER_BATCH",
            4,
            "SOLVER.ACCUMULATION_STEPS",
            2,
        ),
        *("SOLVER.MAX_ITER", 7, "SOLVER.STEPS", (6,), "SOLVER.WARMUP_ITERS", 3),
        *("SOLVER.EMA_DECAY", 0.9, "SOLVER.CHECKPOINT_PERIOD", 3),
    )
    path = tmp_path / "all_losses.yaml"
    path.write_text(cfg.dump())
    return str(path)


def final(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "model_final.pth", weights_only=True)


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Keys at which two checkpoints are not bitwise equal."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [place]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{place}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [found for i, pair in pairs for found in differences(*pair, f"{place}/{i}")]
    return [] if a == b else [place]


@pytest.mark.parametrize("config", ["config_file", "all_losses_config_file"])
def test_resumed_run_has_the_same_final_checkpoint_as_an_uninterrupted_one(
    config: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(config)
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    assert in_child(run, "--config-file", path, "OUTPUT_DIR", str(uninterrupted)) == 0
    arguments = ("--config-file", path, "--resume", "OUTPUT_DIR", str(killed))
    assert in_child(run_and_die, *arguments) == -signal.SIGKILL
    assert (killed / "last_checkpoint").read_text() == "model_0000002.pth"
    assert in_child(run, *arguments) == 0
    checkpoint = final(killed)
    # Weights, averaged weights, and the trainer's state: optimizer, schedule, iteration, seed.
    assert checkpoint.keys() >= {"model", "model_ema", "trainer"}
    assert differences(checkpoint, final(uninterrupted)) == []


def test_two_processes_of_torchrun_train_the_same_weights_as_one_process(
    all_losses_config_file: str, tmp_path: Path
) -> None:
    start = tmp_path / "start.pth"
    save_weights(tiny_model("MODEL.INTER_IMAGE.WEIGHT", 1.0), start)
    arguments = (
        *("--config-file", all_losses_config_file, "MODEL.WEIGHTS", str(start)),
        *map(str, DETERMINISTIC),
        *("MODEL.LANGUAGE_BACKBONE.FREEZE", "True", "MODEL.MLM.WEIGHT", "0.0"),
        # The same images in every iteration, all padded to 64 x 64.
        *("DATALOADER.ASPECT_RATIO_GROUPING", "False"),
        *("INPUT.MIN_SIZE_TRAIN", "(60,)", "INPUT.RANDOM_FLIP", "none"),
        *("DATALOADER.PROMPT.SHUFFLE", "False", "DATALOADER.PROMPT.FULL_NEGATIVES_PROB", "1.0"),
        # AdamW turns gradients that are only rounding errors into large steps.
        *("SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.1", "SOLVER.MAX_ITER", "2"),
        "OUTPUT_DIR",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    assert in_child(run, *arguments, str(one)) == 0
    torchrun(run, *arguments, str(two))
    before, expected, shared = (
        torch.load(path, weights_only=True)["model"]
        for path in (start, one / "model_final.pth", two / "model_final.pth")
    )
    updated = {name for name, value in expected.items() if not torch.equal(value, before[name])}
    assert updated
    for name in updated:
        error = (shared[name] - expected[name]).norm()
        assert error <= 1e-3 * (expected[name] - before[name]).norm() + 1e-6, name


def test_eval_only_writes_results(config_file: str, tmp_path: Path) -> None:
    assert in_child(run, "--config-file", config_file, "--eval-only") == 0
    results = tmp_path / "output/inference/command_coco/coco_instances_results.json"
    assert len(json.loads(results.read_text())) == 4
    summary = json.loads((tmp_path / "output/results.json").read_text())
    assert {"AP", "AP50"} <= summary["command_coco"]["bbox"].keys()


def test_mistyped_key_is_rejected_with_a_suggestion(config_file: str) -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITERS.*SOLVER\.MAX_ITER"):
        run("--config-file", config_file, "SOLVER.MAX_ITERS", "3")


def test_a_second_training_in_the_folder_is_refused_before_it_writes(
    config_file: str, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    with (
        locked_by_another_process(output),
        pytest.raises(ValueError, match=rf"another training .*'{output}'"),
    ):
        run("--config-file", config_file)
    assert [path.name for path in output.iterdir()] == [".training.lock"]
