"""``glipv2 train`` with a model that trains in milliseconds."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.locked_folder import locked_by_another_process
from helpers.stand_in import configure
from helpers.tiny_coco import write_coco

from glipv2_cli import main as cli
from glipv2_cli import train
from glipv2_d2.data import custom
from glipv2_d2.engine.setup import load_config

DATASET = "glipv2_train_coco"


@pytest.fixture(autouse=True)
def without_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loggers as in a new process: Detectron2's setup_logger of earlier tests changes them."""
    for name in ("detectron2", "fvcore", "glipv2_d2"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


@pytest.fixture
def config(tmp_path: Path) -> Iterator[str]:
    annotations, images = write_coco(tmp_path / "tiny")
    cfg = load_config().clone()
    cfg.defrost()
    configure(cfg, DATASET, str(tmp_path / "output"))
    cfg.DATASETS.CUSTOM = [{"name": DATASET, "json": str(annotations), "images": str(images)}]
    cfg.TEST.EVAL_PERIOD = 4
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    yield str(path)
    if DATASET in DatasetCatalog:
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.pop(DATASET, None)
        custom._registered.pop(DATASET)


def test_the_terminal_has_progress_and_results_and_the_log_the_rest(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    assert cli.main(["train", "--config", config]) == 0
    printed = capsys.readouterr()
    results, written = printed.out.splitlines()
    assert results.startswith(f"{DATASET}, bbox: AP ") and "AP50 " in results
    assert "AP-" not in results
    assert written == f"wrote to {output}: results.json, model_final.pth, log.txt"
    assert "8/8" in printed.err and printed.err.count("\n") < 5
    log = (output / "log.txt").read_text()
    for text in ("Saving checkpoint to", "total_loss", "Average Precision", "META_ARCHITECTURE"):
        assert text in log
    assert str(output) == load_config(output / "config.yaml").OUTPUT_DIR

    # As tools/train_net.py, it continues and evaluates.
    assert cli.main(["train", "--config", config, "--resume", "SOLVER.MAX_ITER", "10"]) == 0
    state = torch.load(output / "model_final.pth", weights_only=True)
    assert state["iteration"] == 9
    capsys.readouterr()
    assert cli.main(["train", "--config", config, "--resume", "--eval-only"]) == 0
    results, written = capsys.readouterr().out.splitlines()
    stored = json.loads((output / "results.json").read_text())[DATASET]["bbox"]
    assert f"AP {stored['AP']:.1f}" in results
    assert written == f"wrote to {output}: results.json, log.txt"


def test_errors_are_one_line(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--config", "missing.yaml"]) == 2
    assert "error: config file 'missing.yaml' does not exist" in capsys.readouterr().err
    assert cli.main(["train", "--config", config, "SOLVER.MAX_ITR", "10"]) == 2
    assert "SOLVER.MAX_ITER" in capsys.readouterr().err
    with locked_by_another_process(tmp_path / "output"):
        assert cli.main(["train", "--config", config]) == 2
    assert "error: another training (process" in capsys.readouterr().err
    assert not (tmp_path / "output" / "log.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--model m A 1", "--config-file m.yaml A 1 MODEL.WEIGHTS m.pth"),
        ("--config-file c A 1", "--config-file c A 1"),
        ("--config c --precision bf16", "--config-file c TEST.PRECISION bf16"),
        ("--weights w.pth", "--config-file glipv2-mini.yaml MODEL.WEIGHTS w.pth"),
    ],
)
def test_arguments_of_a_model_become_detectron2s(
    arguments: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model_files(args: argparse.Namespace) -> tuple[str, str]:
        if args.config is not None:
            return args.config, args.weights or ""
        return f"{args.model}.yaml", args.weights or f"{args.model}.pth"

    monkeypatch.setattr(train, "model_files", model_files)
    assert train.translate(arguments.split()) == expected.split()


def test_every_command_is_listed() -> None:
    assert set(cli.MODULES) | {"setup-detectron2"} == set(cli.COMMANDS)
