"""Every benchmark that is here is evaluated once, in one process or two, and told in one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import evaluate_all
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.stand_in import MeanColour, configure
from helpers.tiny_coco import write_coco
from helpers.torchrun import torchrun

from glipv2_d2.data.readers.coco import register_coco
from glipv2_d2.engine.setup import load_config
from glipv2_d2.evaluation import benchmarks
from glipv2_d2.evaluation.benchmarks import Benchmark

FIRST, SECOND, ABSENT = "benchmarked_first", "benchmarked_second", "benchmarked_absent"
# The stand-in finds a cat at the place where every image shows something. Of four images the first
# and the last show a cat; of the other two classes nothing is found.
AP = 100 * (51 + 50 * 2 / 4) / 101 / 3


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Arguments of the tool, with two small benchmarks in place of the published ones."""
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
    yield [str(config), str(weights), "--output", str(tmp_path / "out")]
    for name in (FIRST, SECOND, ABSENT):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The data sets that are evaluated, as long as the test runs."""
    names: list[str] = []
    build = evaluate_all.build_test_loader

    def counted(cfg: Any, dataset: str) -> Any:
        names.append(dataset)
        return build(cfg, dataset)

    monkeypatch.setattr(evaluate_all, "build_test_loader", counted)
    return names


def prompts_for(dataset: str, command: list[str]) -> str:
    """The path of a file that has words for a class of this data set."""
    path = Path(command[0]).with_name("prompts.json")
    path.write_text(json.dumps({dataset: {"cat": "small cat"}}))
    return str(path)


def report(command: list[str]) -> dict[str, Any]:
    return json.loads((Path(command[-1]) / "report.json").read_text())["benchmarks"]


def test_what_is_here_is_evaluated_and_the_rest_is_named(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_all.main(command) == 0
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


def test_what_is_evaluated_already_is_not_evaluated_again(
    command: list[str], evaluated: list[str]
) -> None:
    evaluate_all.main(command)
    first = report(command)
    assert evaluated == [FIRST, SECOND]
    assert evaluate_all.main(command) == 0
    assert evaluated == [FIRST, SECOND]
    assert report(command) == first


@pytest.mark.parametrize("changed", ["weights", "settings", "data"])
def test_with_other_weights_settings_or_data_it_is_evaluated_again(
    changed: str, command: list[str], evaluated: list[str], tmp_path: Path
) -> None:
    evaluate_all.main([*command, "--only", "two"])
    again = [*command, "--only", "two"]
    if changed == "weights":
        state = torch.load(command[1])
        state["model"]["frozen"] += 1
        torch.save(state, command[1])
    elif changed == "settings":
        again += ["--opts", "INPUT.MIN_SIZE_TEST", "40"]
    else:
        for name in (FIRST, SECOND):
            path = tmp_path / name / "annotations.json"
            path.write_text(path.read_text() + " ")
    evaluate_all.main(again)
    assert evaluated == [FIRST, SECOND] * 2


def test_a_run_that_was_stopped_goes_on_behind_its_last_data_set(
    command: list[str], evaluated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as stopped:
        run = evaluate_all.inference_on_dataset

        def run_first(*args: Any) -> Any:
            if evaluated[-1] == SECOND:
                raise KeyboardInterrupt
            return run(*args)

        stopped.setattr(evaluate_all, "inference_on_dataset", run_first)
        with pytest.raises(KeyboardInterrupt):
            evaluate_all.main(command)
    assert report(command)["two"]["datasets"].keys() == {FIRST}
    assert evaluate_all.main(command) == 0
    assert evaluated == [FIRST, SECOND, SECOND]
    assert report(command)["two"]["datasets"].keys() == {FIRST, SECOND}


def test_a_data_set_that_fails_does_not_stop_the_others(command: list[str], tmp_path: Path) -> None:
    (tmp_path / FIRST / "images" / "1.png").unlink()
    assert evaluate_all.main(command) == evaluate_all.FAILED
    datasets = report(command)["two"]["datasets"]
    assert datasets[FIRST]["failed"] and "1.png" in datasets[FIRST]["reason"]
    assert datasets[SECOND]["results"]["bbox"]["AP"] == pytest.approx(AP)


@pytest.mark.parametrize(
    ("kind", "key"), [("vqa", "MODEL.ANSWER.WEIGHT"), ("captions", "MODEL.CAPTION.WEIGHT")]
)
def test_what_a_model_has_no_head_for_is_left_out_with_the_reason(
    kind: str, key: str, command: list[str], evaluated: list[str]
) -> None:
    metadata = MetadataCatalog.get(FIRST)
    del metadata.evaluator_type
    metadata.evaluator_type = kind
    assert evaluate_all.main(command) == 0
    assert evaluated == [SECOND]
    first = report(command)["two"]["datasets"][FIRST]
    assert key in first["reason"] and not first["failed"]


def test_where_nothing_is_here_the_command_says_so(command: list[str]) -> None:
    assert evaluate_all.main([*command, "--only", "none"]) == evaluate_all.NOT_DONE


def test_two_processes_give_the_same_numbers(command: list[str]) -> None:
    alone = [*command[:-1], f"{command[-1]}_alone"]
    evaluate_all.main(alone)
    assert torchrun(evaluate_all.main, command, start_method="fork") == [0, 0]
    assert report(command) == report(alone)


def test_a_list_tells_what_is_here(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_all.main(["--list"]) == 0
    rows = capsys.readouterr().out
    assert FIRST in rows and "not here" in rows and "nowhere.json" in "".join(rows.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda command: [*command, "--only", "two_"], "did you mean two"),
        (lambda command: command[:1], "WEIGHTS"),
        (lambda command: [command[0], "no.pth", *command[2:]], "no.pth"),
        (lambda command: [*command, "--prompts", "no.json"], "no.json"),
        (lambda command: [*command, "--prompts", prompts_for("benchmarked_frist", command)], FIRST),
    ],
)
def test_mistakes_are_answered_before_anything_runs(
    change: Callable[[list[str]], list[str]],
    message: str,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluate_all.main(change(command)) == evaluate_all.NOT_DONE
    assert message in capsys.readouterr().err
