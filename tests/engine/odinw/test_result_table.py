"""Averages over sets and spreads over seeds."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from glipv2_d2.engine.odinw.job_run import ERROR_FILE, RESULT_FILE, job_folder
from glipv2_d2.engine.odinw.jobs import Job, job_list
from glipv2_d2.engine.odinw.result_table import make_rows, read_table

SETS = ("pothole", "PascalVOC")
JOBS = job_list(SETS, shots=[1], seeds=[3, 30, 300], policies=["full"])
# Of the two sets, per seed: averages 50, 53 and 53.
VALUES = {3: (40.0, 60.0), 30: (44.0, 62.0), 300: (42.0, 64.0)}
APS = {job: VALUES[job.seed][SETS.index(job.dataset)] for job in JOBS}


def write_result(output: Path, of: Job, ap: float | None, **changes: object) -> Path:
    path = job_folder(output, of) / RESULT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"job": asdict(of), "settings": "same", "test": {"AP": ap}, **changes}
    path.write_text(json.dumps(content))
    return path


def test_the_spread_is_that_of_the_averages_of_the_seeds() -> None:
    [row] = make_rows(JOBS, APS)
    assert dict(row.average.per_seed) == {3: 50.0, 30: 53.0, 300: 53.0}
    assert row.average.mean == pytest.approx(52.0)
    # The squared differences from 52 are 4, 1 and 1; their sum is divided by 2.
    assert row.average.std == pytest.approx(3**0.5)
    assert row.per_set["pothole"].text() == "42.0 ± 2.0"
    assert row.per_set["PascalVOC"].text() == "62.0 ± 2.0"
    assert (row.num_results, row.num_jobs) == (6, 6)


def test_nothing_is_averaged_over_missing_jobs() -> None:
    known = {job: ap for job, ap in APS.items() if job != JOBS[0]}
    [row] = make_rows(JOBS, known)
    assert row.average.mean is None and row.average.std is None
    assert dict(row.average.per_seed) == {3: None, 30: 53.0, 300: 53.0}
    assert row.per_set[JOBS[0].dataset].text() == "-"
    assert row.per_set["PascalVOC"].text() == "62.0 ± 2.0"
    assert row.num_results == 5


def test_one_seed_has_no_spread() -> None:
    jobs = [job for job in JOBS if job.seed == 3]
    [row] = make_rows(jobs, APS)
    assert row.average.text() == "50.0"


def test_policies_shots_and_benchmarks_are_not_averaged() -> None:
    others = [replace(JOBS[0], policy="prompt"), replace(JOBS[0], shots=3)]
    others.append(replace(JOBS[0], benchmark="odinw_35"))
    assert len(make_rows([*JOBS, *others], APS)) == 4


def test_the_table_has_averages_sets_and_the_missing_jobs(tmp_path: Path) -> None:
    for job, ap in APS.items():
        write_result(tmp_path, job, ap)
    more = job_list(SETS, shots=[3], seeds=[3], policies=["full"])
    (job_folder(tmp_path, more[0]) / ERROR_FILE).parent.mkdir(parents=True)
    (job_folder(tmp_path, more[0]) / ERROR_FILE).write_text("ValueError: no memory\nmore\n")
    table = read_table(tmp_path, [*JOBS, *more])
    text = table.text()
    assert "52.0 ± 1.7" in text and "3: 50.0, 30: 53.0, 300: 53.0" in text
    assert "2 of 8 jobs" in text
    assert f"`{more[0].name}`: failed: ValueError: no memory\n" in text
    assert f"`{more[1].name}`: not run" in text
    table.write(tmp_path)
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["rows"][0]["average"]["mean"] == pytest.approx(52.0)
    assert content["rows"][0]["per_set"]["pothole"]["per_seed"] == {"3": 40, "30": 44, "300": 42}
    assert content["rows"][1]["average"]["mean"] is None
    assert list(content["missing"]) == [job.name for job in more]


def test_the_list_of_missing_jobs_is_short_in_markdown_and_whole_in_json(tmp_path: Path) -> None:
    jobs = job_list(["35"], shots=[1, 3], seeds=[3], policies=["full"])
    table = read_table(tmp_path, jobs)
    assert table.text().count("- `full/") == 40 and "and 30 more" in table.text()
    table.write(tmp_path)
    assert len(json.loads((tmp_path / "table.json").read_text())["missing"]) == 70


def test_a_test_set_without_boxes_is_missing(tmp_path: Path) -> None:
    write_result(tmp_path, JOBS[0], None)
    assert read_table(tmp_path, JOBS[:1]).missing == {JOBS[0]: "no AP: its test set has no boxes"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"job": {}}', "null", "\x00"])
def test_a_damaged_result_is_named(tmp_path: Path, text: str) -> None:
    path = write_result(tmp_path, JOBS[0], 1.0)
    path.write_text(text)
    with pytest.raises(ValueError, match=r"result\.json' has no result .*delete it"):
        read_table(tmp_path, JOBS)


def test_the_result_of_another_job_is_named(tmp_path: Path) -> None:
    write_result(tmp_path, JOBS[0], 1.0, job=asdict(JOBS[1]))
    with pytest.raises(ValueError, match="result of another job"):
        read_table(tmp_path, JOBS)


def test_results_of_different_models_are_not_mixed(tmp_path: Path) -> None:
    write_result(tmp_path, JOBS[0], 1.0)
    write_result(tmp_path, JOBS[1], 1.0, settings="other")
    with pytest.raises(ValueError, match="2 different models or configs are mixed"):
        read_table(tmp_path, JOBS)
