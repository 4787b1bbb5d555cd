"""The report of a fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glipv2_d2.engine.finetune.finetune_report import Comparison, FinetuneReport

NAN = float("nan")


def report(*base_sets: Comparison, absent: tuple[str, ...] = ()) -> FinetuneReport:
    before = {"AP": 10.0, "AP50": 20.0, "AP75": 5.0, "AP-cat": 12.0, "AP-dog": NAN}
    after = {"AP": 40.0, "AP50": 60.0, "AP75": 45.0, "AP-cat": 50.0, "AP-dog": 30.0}
    target = Comparison("pets_valid", before, after)
    return FinetuneReport({"policy": "full"}, target, list(base_sets), absent)


@pytest.fixture
def forgetting() -> FinetuneReport:
    return report(Comparison("coco_val", {"AP": 46.0}, {"AP": 41.5}), absent=("lvis_val",))


def test_changes_are_listed_per_class(forgetting: FinetuneReport) -> None:
    assert ["cat", "12.0", "50.0", "+38.0"] in forgetting.target.rows(["AP-cat"])


def test_a_class_without_a_value_has_no_change(forgetting: FinetuneReport) -> None:
    assert forgetting.target.rows(["AP-dog"]) == [["dog", "-", "30.0", "-"]]


def test_results_on_the_base_sets_are_in_the_text(forgetting: FinetuneReport) -> None:
    line = next(line for line in forgetting.text().splitlines() if "coco_val" in line)
    assert [cell.strip() for cell in line.strip("|").split("|")][1:] == ["46.0", "41.5", "-4.5"]


def test_absent_base_sets_are_listed(forgetting: FinetuneReport) -> None:
    assert "not on this machine: lvis_val" in forgetting.text()


def test_a_report_without_base_sets_states_it() -> None:
    assert "no dataset was selected" in report().text()


def test_the_json_file_contains_null_for_nan(forgetting: FinetuneReport, tmp_path: Path) -> None:
    forgetting.write(tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["target"]["after"]["AP"] == 40.0
    assert content["target"]["before"]["AP-dog"] is None


def test_the_markdown_file_is_the_text(forgetting: FinetuneReport, tmp_path: Path) -> None:
    forgetting.write(tmp_path)
    assert (tmp_path / "report.md").read_text() == forgetting.text()
    assert not list(tmp_path.glob("*.partial"))
