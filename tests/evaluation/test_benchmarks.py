"""Benchmarks refer to registered datasets, and their results are summarised correctly."""

from __future__ import annotations

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.data.readers.odinw import odinw_datasets
from glipv2_d2.engine.setup import load_config
from glipv2_d2.evaluation.benchmark_table import Outcome, Report, to_json, to_text
from glipv2_d2.evaluation.benchmarks import Benchmark, benchmarks, first_available, select
from glipv2_d2.evaluation.build import evaluator_types

ALL = benchmarks()


@pytest.mark.parametrize("name", ALL)
def test_every_dataset_is_registered_and_has_an_evaluator(name: str) -> None:
    for dataset in (dataset for group in ALL[name].datasets for dataset in group):
        assert dataset in DatasetCatalog
        assert MetadataCatalog.get(dataset).evaluator_type in evaluator_types()


@pytest.mark.parametrize("name", ALL)
def test_settings_are_valid_config_keys(name: str) -> None:
    opts = [item for pair in ALL[name].settings for item in pair]
    cfg = load_config(opts=opts)
    for key, value in ALL[name].settings:
        node = cfg
        for part in key.split("."):
            node = node[part]
        assert node == value


def test_odinw_uses_prompts_for_the_datasets_of_glips_configs() -> None:
    prompted = {
        f"odinw_{key}_{entry['evaluated_on']}_prompted"
        for key, entry in odinw_datasets().items()
        if "prompt" in entry
    }
    for name, count, expected in (
        ("odinw_13", 13, set()),
        ("odinw_13_prompted", 13, prompted),
        ("odinw_35", 35, prompted),
    ):
        names = [dataset for (dataset,) in ALL[name].datasets]
        assert len(set(names)) == count
        assert {dataset for dataset in names if dataset.endswith("_prompted")} == expected


def test_an_unknown_benchmark_raises_an_error_with_close_matches() -> None:
    with pytest.raises(ValueError, match=r"'odinw13'; did you mean odinw_13"):
        select(["odinw13"])


def test_selected_benchmarks_are_in_the_order_of_the_table() -> None:
    assert [benchmark.name for benchmark in select(["lvis_val", "coco"])] == ["coco", "lvis_val"]


def test_the_first_dataset_with_all_files_is_selected(tmp_path: pytest.TempPathFactory) -> None:
    MetadataCatalog.get("absent_one").set(source_files=(str(tmp_path), str(tmp_path / "no")))
    MetadataCatalog.get("present_one").set(source_files=(str(tmp_path),))
    try:
        assert first_available(("absent_one", "present_one")) == "present_one"
        assert first_available(("absent_one",)) is None
    finally:
        MetadataCatalog.remove("absent_one")
        MetadataCatalog.remove("present_one")


AVERAGED = Benchmark("many", (("a",), ("b",), ("c",), ("d",)), ("bbox/AP",), is_averaged=True)


def outcome(dataset: str, ap: float | None) -> Outcome:
    return Outcome(dataset, {"bbox": {"AP": ap}})


def test_average_and_median_are_over_the_available_datasets() -> None:
    outcomes = (
        outcome("a", 10.0),
        outcome("b", 20.0),
        outcome("c", 60.0),
        Outcome("d", reason="-"),
    )
    report = Report(AVERAGED, outcomes)
    assert report.summary == {"average": 30, "median": 20}
    assert to_json([report])["many"]["summary"] == {"average": 30, "median": 20}
    text = to_text([report], "github")
    assert "all (3 of 4)" in text
    assert "average 30.00, median 20.00" in text


def test_a_dataset_without_a_result_is_excluded_from_the_average() -> None:
    report = Report(AVERAGED, (outcome("a", 10.0), outcome("b", None)))
    assert report.summary["average"] == 10
    assert "all (1 of 2)" in to_text([report], "github")


def test_many_missing_datasets_share_a_row() -> None:
    outcomes = tuple(Outcome(name, reason=f"missing: {name}.json") for name in "abcd")
    report = Report(AVERAGED, outcomes)
    assert report.summary == {}
    [row] = to_text([report], "github").splitlines()[2:]
    assert "4 others" in row and "a.json" in row


def test_each_row_has_results_or_a_reason() -> None:
    benchmark = Benchmark("one", (("a",), ("b",)), ("bbox/AP", "bbox/AP50", "segm/AP"))
    outcomes = (
        Outcome("a", {"bbox": {"AP": 1.0, "AP50": 2.0, "APs": 3.0}}),
        Outcome("b", reason="missing: datasets/b.json"),
    )
    first, second = to_text([Report(benchmark, outcomes)], "github").splitlines()[2:]
    cells = [cell.strip() for cell in first.split("|")[1:-1]]
    assert cells == ["one", "a", "bbox: AP 1.00, AP50 2.00"]
    assert "missing: datasets/b.json" in second
