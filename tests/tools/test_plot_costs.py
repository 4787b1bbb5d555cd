from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import plot_costs
import pytest
from helpers.models import tiny_cfg
from PIL import Image


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings that would have been measured, each with a second per class name."""
    settings = []

    def measure(_argv: Any, setting: dict[str, Any]) -> dict[str, float]:
        settings.append(setting)
        return {"seconds": float(setting["num_classes"]), "bytes": 1e7 * setting["side"]}

    monkeypatch.setattr(plot_costs, "measure", measure)
    return settings


def arguments(folder: Path) -> list[str]:
    return ["--output", str(folder), "--num-classes", "5", "80", "--sides", "400", "800"]


def test_every_setting_is_measured_once_and_plotted(
    tmp_path: Path, measured: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot_costs.main(arguments(tmp_path)) == 0
    assert [(x["num_classes"], x["side"]) for x in measured[::2]] == [
        (5, 400),
        (80, 400),
        (80, 800),
    ]
    assert [x["model"] for x in measured[:2]] == [plot_costs.OURS, plot_costs.THEIRS]
    with Image.open(tmp_path / "costs.png") as image:
        assert image.size == (800, 560)
    assert f"wrote {tmp_path / 'costs.png'}" in capsys.readouterr().out


def test_every_measurement_is_inside_the_plot(measured: list[dict[str, Any]]) -> None:
    args = plot_costs.get_parser().parse_args([])
    rows = [
        {**setting, **plot_costs.measure([], setting)} for setting in plot_costs.settings_of(args)
    ]
    for axes in plot_costs.plot(rows, args).axes:
        low, high = axes.get_ylim()
        values = [y for line in axes.lines for y in line.get_ydata()]
        assert values and low < min(values) and max(values) < high


def test_a_second_run_measures_what_is_missing(
    tmp_path: Path, measured: list[dict[str, Any]]
) -> None:
    plot_costs.main(arguments(tmp_path))
    del measured[:]
    plot_costs.main([*arguments(tmp_path), "--sides", "400", "1200"])
    assert [(x["num_classes"], x["side"]) for x in measured] == [(80, 1200)] * 2


def test_a_setting_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_cfg().dump())
    argv = ["--config", str(config), "--threads", "1"]
    setting = {"model": plot_costs.OURS, "num_classes": 5, "side": 64}
    result = plot_costs.measure(argv, setting)
    assert 0 < result["seconds"] < 60
    assert 1e8 < result["bytes"] < 1e10


def test_the_time_of_more_prompts_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose prompt takes a second of a counted clock."""
    clock = [0.0]

    class Counted:
        def __init__(self, names: list[str], _device: Any) -> None:
            self.prompts = list(range(len(names) // 10))

        def __call__(self, _inputs: Any) -> None:
            clock[0] += len(self.prompts)

    monkeypatch.setattr(plot_costs, "GroundingDino", Counted)
    monkeypatch.setattr(plot_costs.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(plot_costs, "keep_freed_memory", lambda: False)
    args = plot_costs.get_parser().parse_args(["--max-prompts", "4"])
    setting = {"model": plot_costs.THEIRS, "num_classes": 70, "side": 64}
    assert plot_costs.measure_here(args, setting)["seconds"] == pytest.approx(7)


def test_a_failed_setting_is_an_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "out of memory\n")
    monkeypatch.setattr(plot_costs.subprocess, "run", lambda *_, **__: failed)
    assert plot_costs.main(arguments(tmp_path)) == 2
    assert "'side': 400} failed: out of memory" in capsys.readouterr().err


def test_results_are_stored_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[dict[str, Any]]
) -> None:
    first = plot_costs.measure

    def fail_third(*arguments: Any) -> dict[str, float]:
        if len(measured) == 2:
            raise ChildProcessError("third")
        return first(*arguments)

    monkeypatch.setattr(plot_costs, "measure", fail_third)
    assert plot_costs.main(arguments(tmp_path)) == 2
    assert len(json.loads((tmp_path / "costs.json").read_text())) == 2
