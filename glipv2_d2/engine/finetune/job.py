"""Fine-tuning on a folder of data: training, and evaluation before and after it."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from glipv2_d2.data.coco_truth import read_truth
from glipv2_d2.engine.finetune.finetune_report import Comparison, FinetuneReport
from glipv2_d2.engine.finetune.finetune_trainer import FinetuneTrainer, OnProgress
from glipv2_d2.engine.finetune.report_html import ReportFiles
from glipv2_d2.engine.finetune.report_numbers import best_threshold, read_detections
from glipv2_d2.engine.finetune.time_plan import TimeLimit
from glipv2_d2.engine.finetune.tuning import load_model
from glipv2_d2.engine.train.trainer import Trainer
from glipv2_d2.evaluation.thresholds import display_threshold
from glipv2_d2.file_writing import atomic_write, dump_json
from glipv2_d2.model_folder import DELTA_FILE, write_tuned_config

SECONDS_OF_REPORT = 15.0
"""Reserved for the report, and for loading the best weights."""

BEFORE, AFTER = "before", "after"
"""Folders of the results of the base and of the fine-tuned model."""

RESULTS_FILE = "measured.json"
DETECTIONS_FILE = "coco_instances_results.json"

TASK = "bbox"
Results = dict[str, dict[str, float]]
"""Metric -> value, per dataset."""


@dataclass(frozen=True)
class FinetuneJob:
    """A validated fine-tuning; :func:`~glipv2_d2.engine.finetune.preparation.prepare` makes it.

    Attributes:
        base: the base model as a description of the result names it: a name or a file.
        base_cfg: config of the base model, with the new datasets.
        cfg: config of the training.
        class_names: of the data, in the order of their ids.
        about: description -> value, for the report: model, data, policy.
        notes: what the user should know about the data.
        selection_set: the dataset that selects the weights.
        target: the dataset of the report.
        base_sets, absent_base_sets: datasets of the base with and without files on this machine.
        seconds: time limit of all; None: ``cfg`` sets the number of iterations.
        resume: continue an interrupted training.
    """

    base: str
    base_cfg: CfgNode
    cfg: CfgNode
    class_names: list[str]
    about: dict[str, Any]
    notes: Sequence[str]
    selection_set: str
    target: str
    base_sets: list[str]
    absent_base_sets: list[str]
    seconds: float | None
    resume: bool

    @property
    def output(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def datasets(self) -> list[str]:
        """Those that are evaluated before and after the training."""
        return list(dict.fromkeys([self.target, self.selection_set, *self.base_sets]))

    def run(
        self, *, started: float | None = None, on_progress: OnProgress | None = None
    ) -> FinetuneReport | None:
        """Evaluate the base, train, and evaluate the result.

        Args:
            started: on the clock of ``time.monotonic``, when the time limit began; default: now.
            on_progress: see :class:`FinetuneTrainer`.

        Returns:
            The report; None in other processes than the main one.
        """
        started = time.monotonic() if started is None else started
        if not self.resume and comm.is_main_process():
            for folder in (BEFORE, AFTER):
                shutil.rmtree(self.output / folder, ignore_errors=True)
            for file in (DELTA_FILE, "metrics.json"):
                (self.output / file).unlink(missing_ok=True)
        before, seconds = self._before()
        trainer = self._trainer(started, seconds, on_progress)
        trainer.resume_or_load(resume=self.resume)
        if comm.is_main_process():
            # Before the first delta, so that none is without it.
            self.describe()
        trainer.train()
        after = self._after(trainer.checkpointer.model)
        if not comm.is_main_process():
            return None
        self.describe()
        target, *base_sets = [
            Comparison(name, before[name], after[name]) for name in (self.target, *self.base_sets)
        ]
        about = {**self.about, **self._training_numbers(trainer, time.monotonic() - started)}
        notes = [*self.notes]
        if self.selection_set == self.target:
            notes.append(
                f"{self.target} also chose the weights: expect lower results on new images, and "
                "add a test split to measure them"
            )
        return FinetuneReport(about, target, base_sets, self.absent_base_sets, notes)

    def report_files(self) -> ReportFiles:
        """The files of the HTML report, when :meth:`run` has ended."""
        entries = {entry["name"]: entry for entry in self.cfg.DATASETS.CUSTOM}
        target = entries[self.target]
        return ReportFiles(
            truth=Path(target["json"]),
            images=Path(target["images"]),
            before=self._inference(BEFORE, self.target),
            after=self._inference(AFTER, self.target),
            metrics=self.output / "metrics.json",
            threshold=self.threshold(),
        )

    def describe(self) -> None:
        """Write what ``Predictor(output)`` needs beside the delta."""
        write_tuned_config(
            self.base_cfg,
            self.output,
            base=self.base,
            class_names=self.class_names,
            threshold=self.threshold(),
        )

    def threshold(self) -> float:
        """The score with the best F1 on the selection set; without detections the base's."""
        (truth,) = (e["json"] for e in self.cfg.DATASETS.CUSTOM if e["name"] == self.selection_set)
        found = read_detections(self._inference(AFTER, self.selection_set))
        if not found:
            return display_threshold(self.base_cfg)
        # Rounded down: the box that has it is kept.
        return math.floor(1000 * best_threshold(read_truth(truth), found)) / 1000

    def _inference(self, state: str, dataset: str) -> Path:
        """The detections of an evaluation before or after the training."""
        return self.output / state / "inference" / dataset / DETECTIONS_FILE

    def _before(self) -> tuple[Results, dict[str, float]]:
        """Results and seconds of the base per dataset, those of an interrupted run if it has."""
        path = self.output / BEFORE / RESULTS_FILE
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            stored = json.loads(path.read_bytes()) if self.resume else {}
            if stored.keys() >= set(self.datasets):
                results = {name: with_nan(x["results"]) for name, x in stored.items()}
                return results, {name: float(x["seconds"]) for name, x in stored.items()}
        model = load_model(self.base_cfg)
        results, seconds = evaluate(self.base_cfg, model, self.datasets, path.parent)
        content = {
            name: {"results": results[name], "seconds": seconds[name]} for name in self.datasets
        }
        if comm.is_main_process():
            atomic_write(path, dump_json(content, indent=1))
        return results, seconds

    def _trainer(
        self, started: float, seconds: Mapping[str, float], on_progress: OnProgress | None
    ) -> FinetuneTrainer:
        others = [name for name in self.datasets if name != self.selection_set]
        after_training = SECONDS_OF_REPORT + sum(seconds[name] for name in others)
        limit = None
        if self.seconds is not None:
            limit = TimeLimit(started + self.seconds, after_training)
        trainer = FinetuneTrainer(
            self.cfg,
            limit=limit,
            evaluation_seconds=seconds[self.selection_set],
            after_training=after_training,
            on_best=lambda: self._keep_best(trainer),
            on_progress=on_progress,
        )
        return trainer

    def _keep_best(self, trainer: FinetuneTrainer) -> None:
        """Keep the results of the best evaluation, which the next one would replace."""
        if self.cfg.TEST.AUG.ENABLED:
            # Those of the training are without it.
            return
        name = self.selection_set
        kept = self._inference(AFTER, name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        detections = self.output / "inference" / name / DETECTIONS_FILE
        if detections.is_file():
            shutil.copyfile(detections, kept)
        results = {name: dict(trainer._last_eval_results[TASK])}
        atomic_write(self.output / AFTER / RESULTS_FILE, dump_json(results, indent=1))
        self.describe()

    def _after(self, model: nn.Module) -> Results:
        """Results of the best weights, which the model has."""
        path = self.output / AFTER / RESULTS_FILE
        results: Results = {}
        with contextlib.suppress(FileNotFoundError):
            results = {k: with_nan(v) for k, v in json.loads(path.read_bytes()).items()}
        # All processes evaluate the same: they share the folder, or have no results.
        missing = comm.all_gather([name for name in self.datasets if name not in results])[0]
        return results | evaluate(self.cfg, model, missing, path.parent)[0]

    def _training_numbers(self, trainer: FinetuneTrainer, seconds: float) -> dict[str, Any]:
        delta = self.output / DELTA_FILE
        trained = [p.numel() for p in trainer.model.parameters() if p.requires_grad]
        iterations = min(trainer.iter + 1, trainer.max_iter)
        return {
            "trained parameters": f"{sum(trained):,}",
            "iterations": iterations,
            "minutes in all": f"{seconds / 60:.1f}",
            "delta": delta,
            "delta, MiB": f"{delta.stat().st_size / 2**20:.2f}",
            "test-time augmentation": "yes" if self.cfg.TEST.AUG.ENABLED else "no",
            "weights chosen on": self.selection_set,
        }


def with_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    """Metrics that were read from JSON, which has null in place of nan."""
    return {key: float("nan") if value is None else value for key, value in values.items()}


def evaluate(
    cfg: CfgNode, model: nn.Module, datasets: Sequence[str], output: Path
) -> tuple[Results, dict[str, float]]:
    """Box APs (none but in the main process) and seconds of the evaluation, per dataset.

    With ``TEST.AUG.ENABLED`` the APs are those with test-time augmentation.
    """
    results: Results = {}
    seconds: dict[str, float] = {}
    task = f"{TASK}_TTA" if cfg.TEST.AUG.ENABLED else TASK
    for dataset in datasets:
        start = time.monotonic()
        dataset_cfg = cfg.clone()
        dataset_cfg.defrost()
        dataset_cfg.DATASETS.TEST = (dataset,)
        dataset_cfg.OUTPUT_DIR = str(output)
        output.mkdir(parents=True, exist_ok=True)
        results[dataset] = dict(Trainer.test(dataset_cfg, model).get(task, {}))
        seconds[dataset] = time.monotonic() - start
    return results, seconds
