"""The list of jobs of few-shot ODinW."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog

from glipv2_d2.engine.odinw.jobs import Job, job_list, read_jobs, write_jobs
from glipv2_d2.engine.shards import Part

SEEDS = (3, 30, 300)
ARGUMENTS: dict[str, Any] = {"shots": (1, 3, 5, 10), "seeds": SEEDS, "policies": ("full", "prompt")}


@pytest.mark.parametrize(
    ("sets", "count"), [(["13"], 13), (["35"], 35), (["pothole", "BCCD_BCCD.v3-raw.coco"], 2)]
)
def test_every_combination_is_listed_once(sets: list[str], count: int) -> None:
    jobs = job_list(sets, **ARGUMENTS)
    assert len(jobs) == len(set(jobs)) == len({job.name for job in jobs}) == count * 4 * 3 * 2
    assert {job.train_set for job in jobs} <= set(DatasetCatalog.list())


def test_parts_cover_each_job_once() -> None:
    jobs = job_list(["13"], **ARGUMENTS)
    parts = [Part.parse(f"{i}/5").of(jobs) for i in range(1, 6)]
    assert sorted(job.name for part in parts for job in part) == sorted(job.name for job in jobs)


def test_all_images_are_trained_on_with_one_seed() -> None:
    jobs = job_list(["pothole"], shots=(0,), seeds=(30, 3), policies=("full",))
    [job] = jobs
    assert (job.seed, job.train_set) == (30, "odinw_pothole_train")


def test_the_datasets_of_a_job_have_the_names_and_prompts_of_its_benchmark() -> None:
    in_13 = Job("odinw_13", "CottontailRabbits", "full", 3, 30, "full")
    assert in_13.train_set == "odinw_13_CottontailRabbits_train_3_30"
    assert in_13.test_set == "odinw_13_CottontailRabbits_test"
    in_35 = Job("odinw_35", "EgoHands_generic", "full", 3, 30, "full")
    assert in_35.validation_set == "odinw_EgoHands_generic_minival_prompted"


def test_the_few_shot_validation_set_has_shots_and_seed_of_the_job() -> None:
    job = Job("odinw_13", "EgoHands_generic", "full", 3, 30, "few_shot")
    assert job.validation_set == "odinw_EgoHands_generic_minival_3_30"
    assert Job("odinw_13", "pothole", "full", 3, 30, "full").name != job.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": ["potole"]}, "unknown set 'potole'; did you mean pothole"),
        ({"sets": ["Aquarium"]}, "did you mean Aquarium_Aquarium_Combined"),
        ({"sets": ["plantdoc_100x100"]}, "did you mean plantdoc_416x416"),
        ({"policies": ["prompts"]}, "unknown policy 'prompts'; did you mean prompt"),
        ({"policies": ["mask_heads"]}, "unknown policy 'mask_heads'"),
        ({"shots": [2]}, "unknown number of shots 2. Known are: 0, 1, 3, 5, 10"),
        ({"seeds": [31]}, "unknown seed 31; did you mean 3.* Known are: 3, 30, 300"),
        ({"seeds": []}, "no seed is selected"),
        ({"validation": "test"}, "unknown validation set 'test'"),
    ],
)
def test_an_unknown_value_is_answered_with_the_nearest(
    changes: dict[str, Any], message: str
) -> None:
    arguments = {"sets": ["13"], **ARGUMENTS, **changes}
    with pytest.raises(ValueError, match=message):
        job_list(arguments.pop("sets"), **arguments)


def test_a_written_list_is_read_again(tmp_path: Path) -> None:
    jobs = job_list(["13"], **ARGUMENTS, validation="few_shot")
    write_jobs(jobs, tmp_path)
    assert read_jobs(tmp_path) == jobs
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no job"),
        (b"\xff", r"jobs\.jsonl', line 1"),
        (b"[" * 100_000, r"jobs\.jsonl', line 1"),
        (b"[]", r"line 1: \[\] is not a job"),
    ],
)
def test_a_file_that_is_no_list_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "jobs.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_jobs(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "13"}, "line 2: unknown set '13'"),
        ({"dataset": "../../etc"}, "unknown set"),
        ({"benchmark": "odinw_35", "dataset": "x"}, "unknown set"),
        ({"benchmark": "odinw_14"}, "unknown benchmark 'odinw_14'; did you mean odinw_13"),
        ({"shots": "3"}, "shots is '3'; it must be of the type int"),
        ({"shots": True}, "shots is True"),
        ({"policy": ["full"]}, "policy is"),
        ({"more": 1}, "is not a job with the keys benchmark"),
    ],
)
def test_a_line_that_is_no_job_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    job = asdict(Job("odinw_13", "pothole", "full", 3, 30, "full"))
    lines = [json.dumps(job), json.dumps({**job, **changes})]
    (tmp_path / "jobs.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        read_jobs(tmp_path)


def test_a_list_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"jobs\.jsonl' does not exist"):
        read_jobs(tmp_path)
