"""glipv2 label --captions, and training on its output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import train_net
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from helpers.caption_data import write_images
from helpers.models import tiny_cfg

from glipv2_cli import main as cli
from glipv2_d2.checkpoint import save_weights

CAPTIONS = ["a dog on the sofa", "two cats near a red car", "it rains", "a man rides the horse"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tiny model with high scores, and five captioned images of which one is broken."""
    monkeypatch.chdir(tmp_path)
    cfg = tiny_cfg(
        *("OUTPUT_DIR", str(tmp_path / "trained"), "DATALOADER.NUM_WORKERS", 0, "SEED", 1),
        *("MODEL.GROUNDING.PRIOR_PROB", 0.9, "MODEL.GROUNDING.DETECTIONS_PER_PROMPT", 5),
        *("INPUT.MIN_SIZE_TRAIN", (48,), "DATASETS.TEST", ()),
        *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ()),
    )
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    save_weights(build_model(cfg), tmp_path / "weights.pth")
    images = write_images(tmp_path / "set", 5)
    (images / "4.png").write_bytes(b"not an image")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(5)],
        "annotations": [
            {"image_id": i, "caption": caption} for i, caption in enumerate([*CAPTIONS, "a tree"])
        ],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    before = set(DatasetCatalog.list())
    yield tmp_path
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def label(folder: Path) -> Callable[..., int]:
    def run(*arguments: str) -> int:
        return cli.main(
            [
                *("label", "--config", str(folder / "config.yaml")),
                *("--weights", str(folder / "weights.pth")),
                *("--captions", str(folder / "captions.json")),
                *("--images", str(folder / "set" / "images")),
                *("--output", str(folder / "labelled")),
                *arguments,
            ]
        )

    return run


def config_in(printed: str) -> str:
    return printed.partition("to train on it:")[2].partition("wrote ")[0]


def test_labels_of_two_processes_have_no_defects_and_can_be_trained_on(
    label: Callable[..., int], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label("--processes", "2", "--shard-size", "2") == 0
    printed = capsys.readouterr().out
    assert "3 of 5 captions have boxes, 15 in all" in printed
    assert "skipped: 1 images could not be read, first: 4.png" in printed
    lines = (folder / "labelled" / "labels.jsonl").read_text().splitlines()
    assert [json.loads(line)["image"] for line in lines] == ["0.png", "1.png", "3.png"]

    # The printed config is all that training needs.
    student = folder / "student.yaml"
    student.write_text(f"_BASE_: config.yaml\n{config_in(printed)}")
    assert cli.main(["check-data", "--config", str(student)]) == 0
    train_net.main(default_argument_parser().parse_args(["--config-file", str(student)]))
    [metrics] = (folder / "trained" / "metrics.json").read_text().splitlines()
    assert json.loads(metrics)["total_loss"] > 0


def test_exit_status_without_boxes_over_the_threshold(
    label: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert label("--threshold", "0.99") == 1
    assert "3 captions had no box over the threshold" in capsys.readouterr().out


def test_exit_status_of_invalid_arguments(
    label: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert label("--weights", "no.pth") == 2
    assert "no.pth" in capsys.readouterr().err
