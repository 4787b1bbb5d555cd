from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import finetune
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.locked_folder import locked_by_another_process
from helpers.stand_in import MeanColour, configure
from helpers.tiny_coco import NAMES, write_coco

from glipv2_d2.checkpoint import save_weights
from glipv2_d2.data import custom
from glipv2_d2.engine.finetune.job import FinetuneArguments, prepare
from glipv2_d2.engine.finetune.tuning import read_delta
from glipv2_d2.engine.setup import load_config


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Roboflow's layout with twelve training images."""
    for split, count in (("train", 12), ("valid", 3)):
        annotations, images = write_coco(tmp_path / "pets" / split, num_images=count)
        for image in images.iterdir():
            shutil.move(image, annotations.parent)
        annotations.rename(annotations.parent / "_annotations.coco.json")
    yield tmp_path / "pets"
    for name in [name for name in DatasetCatalog if name.startswith("pets_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
        custom._registered.pop(name)


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    """The arguments for the stand-in model and its weights."""
    cfg = load_config().clone()
    cfg.defrost()
    configure(cfg, "absent_set", str(tmp_path / "unused"))
    (tmp_path / "base.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    save_weights(MeanColour(cfg), tmp_path / "base.pth")
    return ["--config-file", str(tmp_path / "base.yaml"), "--weights", str(tmp_path / "base.pth")]


def run(folder: Path, base: list[str], output: Path, *arguments: str) -> int:
    places = ["--data", str(folder), "--output", str(output)]
    return finetune.main([*places, *base, *arguments, "SOLVER.MAX_ITER", "2"])


def test_output_has_a_delta_and_a_report(
    folder: Path, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    assert run(folder, base, output, "--policy", "text_only", "--shots", "1") == 0
    assert set(read_delta(output / "delta.pth").tensors) == {"language_backbone.weight"}
    report = json.loads((output / "report.json").read_text())
    assert report["target"]["dataset"] == "pets_valid"
    assert {f"AP-{name}" for name in NAMES} <= report["target"]["after"].keys()
    assert report["absent_base_sets"] == ["absent_set"]
    # Every image has one box of one of the three classes.
    assert report["about"]["training images"] == 3
    assert (output / "report.md").read_text() in capsys.readouterr().out


def test_recipe_of_the_policy_is_used(folder: Path, base: list[str]) -> None:
    output = folder.parent / "output"
    places = ["--data", str(folder), "--output", str(output), *base]
    args = finetune.parse_args([*places, "--policy", "prompt", "SOLVER.GAMMA", "0.5"])
    solver = prepare(FinetuneArguments(**vars(args))).cfg.SOLVER
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.GAMMA) == (0.05, 0.25, 0.5)
    # Twelve images in batches of four.
    assert solver.MAX_ITER == 200 * 3


def test_folder_of_unknown_layout_is_reported(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", base, tmp_path / "output") == 1
    assert "_annotations.coco.json" in capsys.readouterr().err


def test_the_default_model_is_part_of_the_repository() -> None:
    args = finetune.parse_args(["--data", "folder"])
    assert Path(args.config_file).is_file()
    assert Path(args.weights).is_file()


def test_a_second_training_in_the_folder_is_refused_before_it_writes(
    folder: Path, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    with locked_by_another_process(output):
        assert run(folder, base, output) == 1
    assert "error: another training (process" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == [".training.lock"]
