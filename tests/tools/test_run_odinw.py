"""The driver of few-shot ODinW, on drawn data and a model that trains in milliseconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import run_odinw
from helpers.locked_folder import locked_by_another_process
from helpers.odinw_data import SETS, registered_below, write_base, write_release

from glipv2_d2.engine.odinw import job_run
from glipv2_d2.engine.odinw.job_run import JobTrainer, job_folder
from glipv2_d2.engine.odinw.jobs import Job, read_jobs

OPTS = ["--opts", "SOLVER.MAX_ITER", "6", "SOLVER.EARLY_STOP_PATIENCE", "2"]
OPTS += ["SOLVER.BASE_LR", "0.05", "SOLVER.IMS_PER_BATCH", "2"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("release")
    write_release(root)
    with registered_below(root):
        yield root


@pytest.fixture(scope="module", autouse=True)
def memory_is_not_freed() -> Iterator[None]:
    """Which takes longer than a job among the objects of the test suite."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_run, "free_memory", lambda: None)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_base(tmp_path_factory.mktemp("base"))


def run(base: list[str], output: Path, *arguments: str, sets: tuple[str, ...] = SETS) -> int:
    selection = ["--sets", *sets, "--shots", "1", "3", "--seeds", "3", "30"]
    return run_odinw.main([*selection, "--output", str(output), *arguments, *base, *OPTS])


@pytest.fixture(scope="module")
def finished(release: Path, base: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    assert run(base, output) == 0
    return output


def table(output: Path) -> dict:
    return json.loads((output / "table.json").read_text())


def test_results_and_averages_are_written(finished: Path) -> None:
    jobs = read_jobs(finished)
    assert len(jobs) == 8
    results = [json.loads((job_folder(finished, job) / "result.json").read_text()) for job in jobs]
    # Not all alike: the test below compares them.
    assert len({result["test"]["AP"] for result in results}) > 2
    assert results[0]["test_set"] == jobs[0].test_set
    content = table(finished)
    assert [(row["shots"], row["num_results"]) for row in content["rows"]] == [(1, 4), (3, 4)]
    averages = [row["average"] for row in content["rows"]]
    of_seed_3 = [
        x["test"]["AP"] for x in results if x["job"]["shots"] == 1 and x["job"]["seed"] == 3
    ]
    assert averages[0]["per_seed"]["3"] == pytest.approx(sum(of_seed_3) / 2)
    assert averages[0]["std"] is not None
    assert content["missing"] == {}


def test_a_finished_job_keeps_its_result_and_logs_only(finished: Path) -> None:
    folder = job_folder(finished, read_jobs(finished)[0])
    names = {path.name for path in folder.iterdir()}
    assert {"result.json", "log.txt", "metrics.json"} <= names
    assert not [name for name in names if name.endswith(".pth") or name in ("test", "inference")]


def test_a_job_that_was_killed_is_resumed_with_the_same_table(
    release: Path,
    finished: Path,
    base: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_step, steps = JobTrainer.run_step, []

    def killed(trainer: JobTrainer) -> None:
        run_step(trainer)
        steps.append(trainer.iter)
        if len(steps) == 17:
            # As SIGKILL, in the third job after its first checkpoint: none is written.
            raise SystemExit("killed")

    monkeypatch.setattr(JobTrainer, "run_step", killed)
    with pytest.raises(SystemExit):
        run(base, tmp_path)
    monkeypatch.setattr(JobTrainer, "run_step", run_step)
    done = [x for x in read_jobs(tmp_path) if (job_folder(tmp_path, x) / "result.json").exists()]
    assert 0 < len(done) < 8
    left = job_folder(tmp_path, done[0]) / "model_final.pth"
    left.write_bytes(b"of a process that was killed after the result")
    times = [(job_folder(tmp_path, job) / "result.json").stat().st_mtime_ns for job in done]
    started: list[int] = []
    resume_or_load = JobTrainer.resume_or_load

    def resumed(trainer: JobTrainer, resume: bool = True) -> None:
        resume_or_load(trainer, resume)
        started.append(trainer.start_iter)

    monkeypatch.setattr(JobTrainer, "resume_or_load", resumed)
    assert run(base, tmp_path) == 0
    assert started[0] > 0 and len(started) == 8 - len(done)
    assert times == [(job_folder(tmp_path, x) / "result.json").stat().st_mtime_ns for x in done]
    assert table(tmp_path) == table(finished)
    assert not left.exists()


def test_a_terminated_command_has_its_exit_code_and_no_failed_job(
    release: Path, base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_step = JobTrainer.run_step

    def terminated(trainer: JobTrainer) -> None:
        run_step(trainer)
        # As its handler of SIGTERM.
        trainer.was_terminated = True

    monkeypatch.setattr(JobTrainer, "run_step", terminated)
    assert run(base, tmp_path) == run_odinw.TERMINATED
    assert not list(tmp_path.rglob("result.json")) and not list(tmp_path.rglob("error.txt"))


def test_a_part_runs_its_jobs_only(
    release: Path, finished: Path, base: list[str], tmp_path: Path
) -> None:
    assert run(base, tmp_path, "--part", "2/4") == 0
    jobs = read_jobs(tmp_path)
    assert jobs == read_jobs(finished)
    done = [job for job in jobs if (job_folder(tmp_path, job) / "result.json").exists()]
    assert done == jobs[1::4]
    assert len(table(tmp_path)["missing"]) == 6


def test_the_table_of_copied_folders_is_written_without_a_model(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(finished / "jobs", tmp_path / "jobs")
    shutil.copy(finished / "jobs.jsonl", tmp_path)
    assert run_odinw.main(["--output", str(tmp_path), "--table-only"]) == 0
    assert table(tmp_path) == table(finished)
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out


def test_a_job_of_another_process_is_left_to_it(
    release: Path, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--sets", "pothole", "--shots", "1", "--seeds", "3", "--output", str(tmp_path)]
    job = Job("odinw_13", "pothole", "full", 1, 3, "full")
    with locked_by_another_process(job_folder(tmp_path, job)):
        assert run_odinw.main([*arguments, *base, *OPTS]) == 1
    assert list(table(tmp_path)["missing"]) == [job.name]
    assert "in progress: another training (process" in capsys.readouterr().out


def test_a_failed_job_is_listed_and_the_others_run(
    release: Path, base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_config = job_run.job_config

    def fail(of: job_run.OdinwRun, job: Job):
        if job.dataset == "pothole":
            raise ValueError("no\nmemory")
        return job_config(of, job)

    monkeypatch.setattr(job_run, "job_config", fail)
    arguments = ["--sets", *SETS, "--shots", "1", "--seeds", "3", "--output", str(tmp_path)]
    assert run_odinw.main([*arguments, *base, *OPTS]) == 1
    [reason] = table(tmp_path)["missing"].values()
    assert reason.startswith("failed: ValueError: no")
    assert table(tmp_path)["rows"][0]["num_results"] == 1
    assert "Traceback" in next(tmp_path.rglob("*pothole/log.txt")).read_text()


def test_absent_data_are_named_with_the_remedy(
    release: Path, base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(base, tmp_path, sets=(*SETS, "Packages_Raw")) == 2
    message = capsys.readouterr().err
    for part in (
        "4 of 12 jobs have no data",
        "fewshot_train_shot1_seed3.json",
        "odinw/download.py",
    ):
        assert part in message
    assert not list(tmp_path.iterdir())


def test_jobs_without_data_are_skipped_on_request_and_listed(
    release: Path, base: list[str], tmp_path: Path
) -> None:
    arguments = ["--sets", "pothole", "Packages_Raw", "--shots", "0", "--output", str(tmp_path)]
    assert run_odinw.main([*arguments, "--skip-missing", *base, *OPTS]) == 1
    [(name, reason)] = table(tmp_path)["missing"].items()
    assert "Packages_Raw" in name and reason.startswith("no data: ")


def test_the_few_shot_validation_set_selects_the_weights(
    release: Path, base: list[str], tmp_path: Path
) -> None:
    arguments = ["--sets", "pothole", "--shots", "1", "--seeds", "30", "--output", str(tmp_path)]
    assert (
        run_odinw.main([*arguments, "--validation", "few_shot", "--keep-files", *base, *OPTS]) == 0
    )
    [path] = tmp_path.rglob("result.json")
    assert json.loads(path.read_text())["validation_set"] == "odinw_pothole_val_1_30"
    assert (path.parent / "delta.pth").is_file()
    assert list((path.parent / "test").rglob("coco_instances_results.json"))


def test_another_model_is_refused_in_the_same_folder(
    release: Path, finished: Path, base: list[str], capsys: pytest.CaptureFixture
) -> None:
    selection = ["--sets", *SETS, "--output", str(finished), "--shots", "1", "--seeds", "3"]
    assert run_odinw.main([*selection, *base, *OPTS, "SOLVER.GAMMA", "0.5"]) == 2
    assert "digest of the config was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--part", "3/2"], "'3/2' is not a part"),
        (["--sets", "potole"], "did you mean pothole"),
        (["--policies", "ful"], "did you mean full"),
        (["--sets", "pothole", "--shots", "1", "--seeds", "3", "--weights", "no.pth"], "'no.pth'"),
    ],
)
def test_invalid_arguments_are_named(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    assert run_odinw.main(["--output", str(tmp_path / "output"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "output").exists()
