from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.stand_in import MeanColour, configure
from helpers.tiny_coco import write_coco
from helpers.torchrun import torchrun

from glipv2_cli import main as cli
from glipv2_d2.data.readers.coco import register_coco
from glipv2_d2.engine import benchmark_evaluation
from glipv2_d2.engine.setup import load_config
from glipv2_d2.evaluation import benchmarks
from glipv2_d2.evaluation.benchmarks import Benchmark
from glipv2_d2.modeling.input_checks import names_images

FIRST, SECOND, ABSENT = "benchmarked_first", "benchmarked_second", "benchmarked_absent"
# The stand-in detects a cat in the box that every image has. Of four images the first and the last
# contain a cat; the other two classes are not detected.
AP = 100 * (51 + 50 * 2 / 4) / 101 / 3


def evaluate(arguments: list[str]) -> int:
    return cli.main(["evaluate", *arguments])


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Arguments of the command; two small benchmarks replace the published ones."""
    for name in (FIRST, SECOND):
        register_coco(name, *map(str, write_coco(tmp_path / name)))
    register_coco(ABSENT, str(tmp_path / "nowhere.json"), str(tmp_path))
    metrics = ("bbox/AP", "bbox/AP50")
    table = {
        "two": Benchmark("two", ((FIRST,), (ABSENT, SECOND)), metrics, is_averaged=True),
        "none": Benchmark("none", ((ABSENT,),), metrics),
    }
    monkeypatch.setattr(benchmarks, "benchmarks", lambda: table)
    cfg = load_config().clone()
    cfg.defrost()
    configure(cfg, FIRST, str(tmp_path))
    config, weights = tmp_path / "config.yaml", tmp_path / "weights.pth"
    config.write_text(cfg.dump())
    torch.save({"model": MeanColour(cfg).state_dict()}, weights)
    model = ["--config", str(config), "--weights", str(weights)]
    yield [*model, "--output", str(tmp_path / "out")]
    for name in (FIRST, SECOND, ABSENT):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The datasets evaluated during the test."""
    names: list[str] = []
    build = benchmark_evaluation.build_test_loader

    def record(cfg: Any, dataset: str) -> Any:
        names.append(dataset)
        return build(cfg, dataset)

    monkeypatch.setattr(benchmark_evaluation, "build_test_loader", record)
    return names


def prompts_for(dataset: str, command: list[str]) -> str:
    """The path of a file with a prompt override for a class of this dataset."""
    path = Path(command[1]).with_name("prompts.json")
    path.write_text(json.dumps({dataset: {"cat": "small cat"}}))
    return str(path)


def report(command: list[str]) -> dict[str, Any]:
    return json.loads((Path(command[-1]) / "report.json").read_text())["benchmarks"]


def test_available_datasets_are_evaluated_and_missing_ones_listed(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(command) == 0
    two = report(command)["two"]
    assert two["datasets"].keys() == {FIRST, SECOND}
    for dataset in two["datasets"].values():
        assert dataset["results"]["bbox"]["AP"] == pytest.approx(AP)
    assert two["summary"] == pytest.approx({"average": AP, "median": AP})
    missing = report(command)["none"]["datasets"][ABSENT]
    assert missing["results"] is None
    assert str(tmp_path / "nowhere.json") in missing["reason"]
    markdown = (Path(command[-1]) / "report.md").read_text()
    printed = capsys.readouterr().out
    for text in (f"AP {AP:.2f}", f"average {AP:.2f}", "nowhere.json"):
        assert text in markdown
        assert text in "".join(line.strip() for line in printed.splitlines())


def test_the_terminal_has_the_table_and_the_log_the_rest(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert evaluate([*command, "--only", "two"]) == 0
    printed = capfd.readouterr()
    assert len(printed.out.splitlines()) < 15 and len(printed.err.splitlines()) < 15
    assert "4/4" in printed.err and "Average Precision" not in printed.out
    log = (Path(command[-1]) / "log.txt").read_text()
    assert "Evaluating benchmarked_first" in log and "Average Precision" in log


def test_stored_results_are_reused(command: list[str], evaluated: list[str]) -> None:
    evaluate(command)
    first = report(command)
    assert evaluated == [FIRST, SECOND]
    assert evaluate(command) == 0
    assert evaluated == [FIRST, SECOND]
    assert report(command) == first


@pytest.mark.parametrize("changed", ["weights", "settings", "data"])
def test_change_of_weights_settings_or_data_discards_stored_results(
    changed: str, command: list[str], evaluated: list[str], tmp_path: Path
) -> None:
    evaluate([*command, "--only", "two"])
    second = [*command, "--only", "two"]
    if changed == "weights":
        state = torch.load(command[3])
        state["model"]["frozen"] += 1
        torch.save(state, command[3])
    elif changed == "settings":
        second += ["--opts", "INPUT.MIN_SIZE_TEST", "40"]
    else:
        for name in (FIRST, SECOND):
            path = tmp_path / name / "annotations.json"
            path.write_text(path.read_text() + " ")
    evaluate(second)
    assert evaluated == [FIRST, SECOND] * 2


def test_interrupted_run_resumes_after_its_last_dataset(
    command: list[str], evaluated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as interrupted:
        run = benchmark_evaluation.inference_on_dataset

        def run_first(*args: Any) -> Any:
            if evaluated[-1] == SECOND:
                raise KeyboardInterrupt
            return run(*args)

        interrupted.setattr(benchmark_evaluation, "inference_on_dataset", run_first)
        assert evaluate(command) == cli.INTERRUPTED
    assert report(command)["two"]["datasets"].keys() == {FIRST}
    assert evaluate(command) == 0
    assert evaluated == [FIRST, SECOND, SECOND]
    assert report(command)["two"]["datasets"].keys() == {FIRST, SECOND}


def test_failing_dataset_does_not_stop_the_others(command: list[str], tmp_path: Path) -> None:
    (tmp_path / FIRST / "images" / "1.png").unlink()
    assert evaluate(command) == 1
    datasets = report(command)["two"]["datasets"]
    assert datasets[FIRST]["failed"] and "1.png" in datasets[FIRST]["reason"]
    assert datasets[SECOND]["results"]["bbox"]["AP"] == pytest.approx(AP)


def test_an_error_of_the_model_is_reported_with_its_image(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(MeanColour, "forward", names_images(fail))
    assert evaluate(command) == 1
    reason = report(command)["two"]["datasets"][FIRST]["reason"]
    assert reason.startswith("failed: RuntimeError: out of memory; images of the batch: ")
    assert reason.endswith("0.png'")


def test_augmentation_that_the_model_does_not_support_is_a_failure(command: list[str]) -> None:
    opts = ["--only", "two", "--opts", "TEST.AUG.ENABLED", "True"]
    assert evaluate([*command, *opts]) == 1
    for dataset in report(command)["two"]["datasets"].values():
        assert dataset["failed"] and "TEST.AUG.ENABLED" in dataset["reason"]


@pytest.mark.parametrize(
    ("kind", "key"), [("vqa", "MODEL.ANSWER.WEIGHT"), ("captions", "MODEL.CAPTION.WEIGHT")]
)
def test_task_without_head_is_skipped_with_a_reason(
    kind: str, key: str, command: list[str], evaluated: list[str]
) -> None:
    metadata = MetadataCatalog.get(FIRST)
    del metadata.evaluator_type
    metadata.evaluator_type = kind
    assert evaluate(command) == 0
    assert evaluated == [SECOND]
    first = report(command)["two"]["datasets"][FIRST]
    assert key in first["reason"] and not first["failed"]


def test_exit_status_without_available_data(command: list[str]) -> None:
    assert evaluate([*command, "--only", "none"]) == 2


def test_two_processes_give_the_same_results(command: list[str]) -> None:
    single = [*command[:-1], f"{command[-1]}_single"]
    evaluate(single)
    assert torchrun(evaluate, command, start_method="fork") == [0, 0]
    assert report(command) == report(single)


def test_list_shows_which_datasets_are_available(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(["--list"]) == 0
    rows = capsys.readouterr().out
    assert (
        FIRST in rows
        and "available" in rows
        and "missing: " in rows
        and "nowhere.json" in "".join(rows.split())
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda command: [*command, "--only", "two_"], "did you mean two"),
        (lambda command: command[:2], "WEIGHTS"),
        (lambda command: [*command[:3], "no.pth", *command[4:]], "no.pth"),
        (lambda command: [*command, "--prompts", "no.json"], "no.json"),
        (lambda command: [*command, "--prompts", prompts_for("benchmarked_frist", command)], FIRST),
    ],
)
def test_invalid_arguments_are_rejected_before_the_evaluation(
    change: Callable[[list[str]], list[str]],
    message: str,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluate(change(command)) == 2
    assert message in capsys.readouterr().err
