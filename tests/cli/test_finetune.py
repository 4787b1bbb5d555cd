"""``glipv2 finetune`` with a model that trains in milliseconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.locked_folder import locked_by_another_process
from helpers.stand_in import MeanColour, configure
from helpers.tiny_coco import NAMES, write_coco

from glipv2_cli import finetune
from glipv2_cli.main import main
from glipv2_d2 import Predictor
from glipv2_d2.checkpoint import save_weights
from glipv2_d2.data import custom
from glipv2_d2.engine.finetune.finetune_trainer import FinetuneTrainer
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
    forget_datasets()


def forget_datasets() -> None:
    """As in a new process."""
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
    return ["--config", str(tmp_path / "base.yaml"), "--weights", str(tmp_path / "base.pth")]


def run(folder: Path, base: list[str], output: Path, *arguments: str) -> int:
    return finetune.main(["--data", str(folder), "--output", str(output), *base, *arguments])


def report_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "report.json").read_text())


def test_output_has_a_delta_reports_and_a_model_that_knows_its_classes(
    folder: Path, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    options = ["--policy", "text_only", "--shots", "1", "--epochs", "0.2", "--export", "one_file"]
    assert run(folder, base, output, *options) == 0
    assert set(read_delta(output / "delta.pth").tensors) == {"language_backbone.weight"}
    report = report_of(output)
    assert report["target"]["dataset"] == "pets_valid"
    assert {f"AP-{name}" for name in NAMES} <= report["target"]["after"].keys()
    assert report["absent_base_sets"] == ["absent_set"]
    # There is no test split.
    assert report["notes"][-1].startswith("pets_valid also chose the weights: expect lower")
    # Every image has one box of one of the three classes.
    assert report["about"]["training images"] == 3
    printed = capsys.readouterr().out
    assert (output / "report.md").read_text() in printed
    # pycocotools' tables are in the log.
    assert "Average Precision" not in printed
    assert "data:image/jpeg;base64," in (output / "report.html").read_text()
    image = folder / "valid" / "0.png"
    for source in (output, output / "output.safetensors"):
        predictor = Predictor(source, device="cpu")
        assert predictor.class_names == list(NAMES)
        # Of the best F1 on the validation images: all scores are 0.9.
        assert predictor.threshold == pytest.approx(0.9, abs=0.002)
        assert predictor.predict(image).labels == [NAMES[0]]
        places = ["--output", str(tmp_path / f"predicted_{source.name}")]
        assert main(["predict", str(image), "--model", str(source), *places]) == 0
        assert f"1  {NAMES[0]}" in capsys.readouterr().out
        places = ["--output", str(tmp_path / f"labels_{source.name}")]
        assert main(["label", "--images", str(image), "--model", str(source), *places]) == 0
        assert f"1  {NAMES[0]}" in capsys.readouterr().out


def test_epochs_count_images(folder: Path, base: list[str], tmp_path: Path) -> None:
    assert run(folder, base, tmp_path / "output", "--epochs", "2", "--batch", "6") == 0
    assert report_of(tmp_path / "output")["about"]["iterations"] == 4


def test_minutes_end_a_training(folder: Path, base: list[str], tmp_path: Path) -> None:
    # Less than what is reserved for the report: one iteration.
    assert run(folder, base, tmp_path / "output", "--minutes", "0.01") == 0
    assert report_of(tmp_path / "output")["about"]["iterations"] == 1


def test_a_terminated_training_is_resumed(
    folder: Path, base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, arguments = tmp_path / "output", ["--epochs", "2"]
    run_step = FinetuneTrainer.run_step

    def terminated_in_the_fifth(self: FinetuneTrainer) -> None:
        run_step(self)
        self.was_terminated = self.iter == 4

    monkeypatch.setattr(FinetuneTrainer, "run_step", terminated_in_the_fifth)
    assert run(folder, base, output, *arguments) == finetune.TERMINATED
    # Of the evaluation after three iterations.
    predictor = Predictor(output, device="cpu")
    assert predictor.class_names == list(NAMES)
    assert predictor.threshold == pytest.approx(0.9, abs=0.002)
    monkeypatch.setattr(FinetuneTrainer, "run_step", run_step)
    before = (output / "before/measured.json").stat().st_mtime_ns
    assert run(folder, base, output, "--resume", *arguments) == 0
    assert (output / "before/measured.json").stat().st_mtime_ns == before
    forget_datasets()
    uninterrupted = tmp_path / "uninterrupted"
    assert run(folder, base, uninterrupted, *arguments) == 0
    resumed, other = (read_delta(path / "delta.pth").tensors for path in (output, uninterrupted))
    assert resumed.keys() == other.keys()
    assert all(torch.equal(resumed[name], other[name]) for name in resumed)


def test_an_interrupted_first_epoch_leaves_a_delta(
    folder: Path, base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: FinetuneTrainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FinetuneTrainer, "_evaluate", interrupt)
    output = tmp_path / "output"
    assert run(folder, base, output, "--epochs", "1") == finetune.INTERRUPTED
    assert Predictor(output, device="cpu").class_names == list(NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "ful"], "--policy is 'ful'; choose one of"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--batch", "-1"], "--batch is -1"),
        (["--policy", "lora", "--export", "one_file"], "cannot be one file"),
        (["--writer", "mlflow"], "pip install mlflow"),
        (["--num-gpus", "9"], "--num-gpus is 9"),
    ],
)
def test_invalid_arguments_are_named(
    folder: Path,
    base: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run(folder, base, tmp_path / "output", *arguments) == finetune.FAILED
    assert message in capsys.readouterr().err
    assert not (tmp_path / "output" / "delta.pth").exists()


def test_an_unknown_model_is_answered_with_the_nearest_names(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, ["--model", "glipv2-mnii"], tmp_path / "output") == finetune.FAILED
    assert "did you mean glipv2-mini" in capsys.readouterr().err


def test_folder_of_unknown_layout_is_reported(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", base, tmp_path / "output") == finetune.FAILED
    printed = capsys.readouterr().err
    for searched in ("_annotations.coco.json", "result.json", "data.yaml"):
        assert searched in printed


def test_a_second_training_in_the_folder_is_refused_before_it_writes(
    folder: Path, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    with locked_by_another_process(output):
        assert run(folder, base, output) == finetune.FAILED
    assert "error: another training (process" in capsys.readouterr().err
    assert [path.name for path in output.iterdir()] == [".training.lock"]


def test_a_model_is_not_trained_into_its_own_folder(
    folder: Path, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    assert run(folder, base, output, "--epochs", "0.2") == 0
    assert run(folder, ["--model", str(output)], output) == finetune.FAILED
    assert "choose another output folder" in capsys.readouterr().err
    forget_datasets()
    again = tmp_path / "again"
    assert run(folder, ["--model", str(output)], again, "--epochs", "0.2") == 0
    assert Predictor(again, device="cpu").class_names == list(NAMES)


def test_an_installed_package_is_not_needed_by_the_script() -> None:
    script = Path(__file__).parents[2] / "tools" / "finetune.py"
    assert "from glipv2_cli.finetune import main" in script.read_text()
