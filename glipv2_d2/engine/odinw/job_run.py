"""Running one job of few-shot ODinW: training, and the result of its best weights on the test set.

An interrupted training is resumed in the folder of its job. ``result.json`` is the result, and
``error.txt`` the error of a job that failed.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng

from glipv2_d2.data.loading import class_names_of, load_dataset
from glipv2_d2.data.registration import missing_paths
from glipv2_d2.engine.finetune.finetune_trainer import FinetuneTrainer
from glipv2_d2.engine.finetune.job import evaluate
from glipv2_d2.engine.finetune.training_config import training_config, until_no_gain
from glipv2_d2.engine.odinw.jobs import Job, job_from
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.shards import digest
from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.messages import quote
from glipv2_d2.model_folder import DELTA_FILE

JOBS_FOLDER = "jobs"
RESULT_FILE = "result.json"
ERROR_FILE = "error.txt"
TEST_FOLDER = "test"

METRIC = "AP"

# Keys of a config that do not change its results.
_OF_THE_MACHINE = ("MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", "")
_MAX_NAMED = 3


@dataclass(frozen=True)
class OdinwRun:
    """What all jobs of an output folder share.

    Attributes:
        config, weights: files of the base model.
        opts: config overrides, with precedence over the recipes.
        output: folder of all jobs.
        keep_files: keep the delta and the detections on the test set of each job.
    """

    config: str
    weights: str
    opts: tuple[str, ...]
    output: Path
    keep_files: bool = False

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What results depend on besides their job; equal on all machines.

        Raises:
            FileNotFoundError: the weights do not exist.
        """
        if not os.path.isfile(self.weights):
            raise FileNotFoundError(
                f"the weights of the base model, {self.weights!r}, do not exist: pass --weights"
            )
        cfg = load_config(self.config, [*self.opts, *_OF_THE_MACHINE])
        return {
            "weights": os.path.basename(self.weights),
            "bytes of the weights": os.path.getsize(self.weights),
            "digest of the config": digest([cfg.dump()]),
        }


class JobTrainer(FinetuneTrainer):
    """Writes the delta after the training only."""

    def write_delta(self) -> None:
        """Not at each new best value, as the delta of a job is no result."""


def job_folder(output: Path, job: Job) -> Path:
    return output / JOBS_FOLDER / job.name


def absent_data(jobs: Iterable[Job]) -> dict[Job, str]:
    """The jobs with a dataset that is not on this machine, and the first missing file of each."""
    first_missing: dict[str, str | None] = {}
    absent = {}
    for job in jobs:
        for name in (job.train_set, job.validation_set, job.test_set):
            if name not in first_missing:
                first_missing[name] = next(iter(missing_paths(name)), None)
            if (path := first_missing[name]) is not None:
                absent[job] = path
                break
    return absent


def check_data(absent: dict[Job, str], num_jobs: int) -> None:
    """
    Raises:
        FileNotFoundError: data are absent.
    """
    if not absent:
        return
    paths = list(dict.fromkeys(absent.values()))
    others = f" and {len(paths) - _MAX_NAMED} others" if len(paths) > _MAX_NAMED else ""
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")
    raise FileNotFoundError(
        f"{len(absent)} of {num_jobs} jobs have no data: missing are "
        f"{', '.join(map(repr, paths[:_MAX_NAMED]))}{others}. odinw/download.py of "
        "github.com/microsoft/GLIP downloads the release; arrange it as in datasets/README.md, set "
        f"the environment variable DETECTRON2_DATASETS (now {root!r}), or run the other jobs with "
        "--skip-missing"
    )


def job_config(run: OdinwRun, job: Job) -> CfgNode:
    """The config of a job's training.

    Raises:
        FileNotFoundError, ValueError: data or config cannot be used.
    """
    records = load_dataset(job.train_set, filter_empty=True)
    return training_config(
        run.config,
        run.opts,
        policy=job.policy,
        shots=job.shots,
        num_images=len(records),
        num_classes=len(class_names_of([job.train_set])[job.train_set]),
        schedule=until_no_gain,
        fixed={
            "MODEL.WEIGHTS": run.weights,
            "DATASETS.TRAIN": (job.train_set,),
            "DATASETS.TRAIN_REPEAT_FACTOR": [],
            "DATASETS.TEST": (job.validation_set,),
            "OUTPUT_DIR": str(job_folder(run.output, job)),
            "SEED": job.seed,
        },
    )


def run_job(run: OdinwRun, job: Job) -> None:
    """Train, or continue an interrupted training, and write the result.

    Call it with the lock of the job's folder.

    Raises:
        FileNotFoundError, ValueError: data, weights or config cannot be used.
        Terminated: after SIGTERM.
    """
    folder = job_folder(run.output, job)
    (folder / ERROR_FILE).unlink(missing_ok=True)
    result = _train_and_test(run, job)
    atomic_write(folder / RESULT_FILE, dump_json(result, indent=1))
    free_memory()
    remove_checkpoints(folder)
    if not run.keep_files:
        (folder / DELTA_FILE).unlink(missing_ok=True)
        shutil.rmtree(folder / TEST_FOLDER, ignore_errors=True)


def _train_and_test(run: OdinwRun, job: Job) -> dict[str, Any]:
    """The content of the result's file."""
    cfg = job_config(run, job)
    seed_all_rng(job.seed)
    trainer = JobTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    output = job_folder(run.output, job) / TEST_FOLDER
    results, _ = evaluate(cfg, trainer.checkpointer.model, [job.test_set], output)
    best = trainer.best_metric_hook
    return {
        "job": asdict(job),
        "settings": digest([dump_json(run.settings)]),
        "test_set": job.test_set,
        "test": results[job.test_set],
        "validation_set": job.validation_set,
        "best_validation": None if best is None else best.best,
        "iterations": trainer.iter + 1,
    }


def free_memory() -> None:
    """Free the model of the last job: its trainer and hooks refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def remove_checkpoints(folder: Path) -> None:
    """Remove what a finished job no longer needs: gigabytes per job."""
    for path in (*folder.glob("model_*.pth"), folder / "last_checkpoint"):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / "inference", ignore_errors=True)


@dataclass(frozen=True)
class JobResult:
    """The result of a job.

    Attributes:
        settings: hash of :attr:`OdinwRun.settings`.
        ap: box AP (0..100) on the test set; nan if it has no boxes.
    """

    job: Job
    settings: str
    ap: float


def read_result(output: Path, job: Job) -> JobResult | None:
    """The result of a job; None if it has none yet.

    Raises:
        ValueError: the file is damaged, or the result of another job.
    """
    path = job_folder(output, job) / RESULT_FILE
    try:
        content = json.loads(path.read_bytes())
        found, settings, value = job_from(content["job"]), content["settings"], content["test"]
        ap = float("nan") if value[METRIC] is None else float(value[METRIC])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"'{path}' has no result ({type(error).__name__}: {error}): delete it to run the job "
            "again"
        ) from error
    if found != job or not isinstance(settings, str):
        raise ValueError(
            f"'{path}' has the result of another job, {quote(content['job'])}: delete it to run "
            "this one"
        )
    return JobResult(job, settings, ap)


def error_of(output: Path, job: Job) -> str | None:
    """The error of the last try of a job; None without."""
    try:
        text = (job_folder(output, job) / ERROR_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    return text.strip().partition("\n")[0]
