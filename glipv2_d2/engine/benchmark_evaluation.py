"""Evaluation of a model on the published benchmarks, resumable by dataset."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate
from torch import nn

from glipv2_d2.data.build import build_test_loader
from glipv2_d2.data.checks import Progress, no_progress
from glipv2_d2.data.prompt_overrides import Overrides, load_prompt_overrides, override_prompts
from glipv2_d2.data.registration import missing_paths
from glipv2_d2.engine.finetune.tuning import load_model
from glipv2_d2.engine.precision import round_weights
from glipv2_d2.engine.setup import load_config
from glipv2_d2.engine.test_time_augmentation import (
    build_tta_model,
    check_tta_datasets,
    with_suffix,
)
from glipv2_d2.evaluation import BackgroundEvaluator, build_evaluator, missing_head
from glipv2_d2.evaluation.benchmark_table import (
    Outcome,
    Report,
    Results,
    to_json,
    to_text,
)
from glipv2_d2.evaluation.benchmarks import Benchmark, first_available
from glipv2_d2.file_writing import atomic_write, dump_json, without_nan

logger = logging.getLogger(__name__)

REPORT_FILE = "report.json"
TABLE_FILE = "report.md"

_RESULT_KEYS = ("MODEL", "INPUT", "TEST")
"""Config sections that results depend on."""


@dataclass(frozen=True)
class EvaluationRun:
    """Arguments of an evaluation on several benchmarks.

    Attributes:
        config: a YAML file.
        opts: config overrides; they have precedence over the settings of a benchmark.
        weights: a checkpoint.
        output: folder of results and reports.
        prompts: prompt overrides per dataset and class.
        progress: wraps the loader of a dataset, with tqdm's arguments.
    """

    config: str
    opts: tuple[str, ...]
    weights: str
    output: Path
    prompts: Overrides
    progress: Progress = no_progress

    def cfg_for(self, benchmark: Benchmark) -> CfgNode:
        settings = [item for pair in benchmark.settings for item in pair]
        paths = ["MODEL.WEIGHTS", self.weights, "OUTPUT_DIR", str(self.output)]
        return load_config(self.config, [*settings, *self.opts, *paths])

    def results_file(self, dataset: str) -> Path:
        return self.output / "results" / f"{dataset}.json"


class ModelCache:
    """Keeps the last model, which most benchmarks share."""

    def __init__(self) -> None:
        self._settings = ""
        self._model: nn.Module | None = None

    def load(self, cfg: CfgNode) -> nn.Module:
        settings = "".join(cfg[section].dump() for section in _RESULT_KEYS)
        if self._model is None or settings != self._settings:
            self._model = None  # frees its memory before the next model is loaded
            self._model, self._settings = load_model(cfg), settings
            round_weights(self._model, cfg)
        return self._model


def evaluate_benchmarks(run: EvaluationRun, benchmarks: Sequence[Benchmark]) -> list[Report]:
    """Evaluate the available datasets that have no stored results.

    The report is written to ``run.output`` after each dataset. Stored results are reused if
    weights, config and data are unchanged. Call it in every process of a distributed run.
    """
    digests = {name: _file_digest(path) for name, path in _weight_files(run).items()}
    models = ModelCache()
    outcomes: dict[str, list[Outcome]] = {benchmark.name: [] for benchmark in benchmarks}
    for benchmark in benchmarks:
        for alternatives in benchmark.datasets:
            outcomes[benchmark.name].append(
                _evaluate_first_available(run, benchmark, alternatives, digests, models)
            )
            reports = [Report(b, tuple(outcomes[b.name])) for b in benchmarks]
            if comm.is_main_process():
                _write_report(run, reports)
    return reports


def _weight_files(run: EvaluationRun) -> dict[str, str]:
    cfg = load_config(run.config, run.opts)
    files = {"weights": run.weights, "delta": cfg.MODEL.TUNING.DELTA}
    return {name: path for name, path in files.items() if path}


def _file_digest(path: str) -> str:
    with open(PathManager.get_local_path(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _evaluate_first_available(
    run: EvaluationRun,
    benchmark: Benchmark,
    alternatives: Sequence[str],
    digests: dict[str, str],
    models: ModelCache,
) -> Outcome:
    """The outcome of the first dataset of ``alternatives`` whose files exist."""
    dataset = first_available(alternatives)
    if dataset is None:
        return Outcome(alternatives[0], reason=f"missing: {missing_paths(alternatives[0])[0]}")
    if dataset in run.prompts:
        override_prompts(dataset, run.prompts[dataset])
    cfg = run.cfg_for(benchmark)
    if reason := missing_head(cfg, dataset):
        return Outcome(dataset, reason=reason)
    key = _results_key(cfg, dataset, digests)
    path = run.results_file(dataset)
    # All processes use what the main process reads.
    stored = comm.all_gather(_read_stored(path, key))[0]
    if stored is not None:
        return Outcome(dataset, stored)
    logger.info("Evaluating %s of benchmark %s", dataset, benchmark.name)
    try:
        start = time.perf_counter()
        results = _evaluate(cfg, dataset, models, run.progress)
    # A broken dataset must not stop the evaluation of the others.
    except Exception as error:
        # One process cannot continue alone: the others would wait for it.
        if comm.get_world_size() > 1:
            raise
        logger.exception("%s could not be evaluated", dataset)
        reason = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        return Outcome(dataset, reason=f"failed: {reason}", failed=True)
    if comm.is_main_process():
        seconds = round(time.perf_counter() - start, 1)
        _write_json(path, {"key": key, "results": results, "seconds": seconds})
    comm.synchronize()
    return Outcome(dataset, results)


def _results_key(cfg: CfgNode, dataset: str, digests: dict[str, str]) -> str:
    """A hash of everything that the results depend on."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = cfg.MODEL.WEIGHTS = cfg.MODEL.TUNING.DELTA = ""
    metadata = MetadataCatalog.get(dataset)
    default = (metadata.get("json_file"), metadata.get("image_root"))
    files = [
        path for path in metadata.get("source_files", default) if path and Path(path).is_file()
    ]
    content = {
        "weights": digests,
        "config": [cfg[section].dump() for section in _RESULT_KEYS],
        "prompts": metadata.get("decorations"),
        "files": [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in files],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_stored(path: Path, key: str) -> Results | None:
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["key"] != key:
        logger.info("%s belongs to other weights, settings or data: evaluating again", path)
        return None
    return stored["results"]


def _evaluate(
    cfg: CfgNode, dataset: str, models: ModelCache, progress: Progress = no_progress
) -> Results:
    if cfg.TEST.AUG.ENABLED:
        check_tta_datasets([dataset])
    folder = str(Path(cfg.OUTPUT_DIR) / "inference" / dataset)
    # Loading the dataset sets its class names, which the evaluator needs.
    loader = build_test_loader(cfg, dataset)
    evaluator = BackgroundEvaluator(build_evaluator(cfg, dataset, folder))
    model = models.load(cfg)
    augmented_model = build_tta_model(cfg, model) if cfg.TEST.AUG.ENABLED else None
    # None in processes other than the main one.
    results = inference_on_dataset(model, progress(loader, desc=dataset), evaluator) or {}
    if augmented_model is not None:
        folder = str(Path(cfg.OUTPUT_DIR) / "inference_TTA" / dataset)
        evaluator = BackgroundEvaluator(build_evaluator(cfg, dataset, folder))
        batches = progress(loader, desc=f"{dataset}, augmented")
        results |= with_suffix(inference_on_dataset(augmented_model, batches, evaluator) or {})
    return without_nan(results)


def _write_report(run: EvaluationRun, reports: Sequence[Report]) -> None:
    content = {"config": run.config, "weights": run.weights, "opts": list(run.opts)}
    _write_json(run.output / REPORT_FILE, {**content, "benchmarks": to_json(reports)})
    title = f"{run.weights} with {run.config}\n\n"
    atomic_write(run.output / TABLE_FILE, title + to_text(reports, "github") + "\n")


def _write_json(path: Path, content: Any) -> None:
    atomic_write(path, dump_json(content, indent=1))


def availability_table(benchmarks: Sequence[Benchmark]) -> str:
    """A table with a row per dataset: whether its files exist, or the first missing path."""
    rows = []
    for benchmark in benchmarks:
        for alternatives in benchmark.datasets:
            available = first_available(alternatives)
            status = "available" if available else f"missing: {missing_paths(alternatives[0])[0]}"
            rows.append((benchmark.name, available or alternatives[0], status))
    return tabulate(rows, ("benchmark", "dataset", ""), tablefmt="simple")


def read_prompt_overrides(path: Path) -> Overrides:
    """Read prompt overrides of registered datasets.

    Raises:
        FileNotFoundError, ValueError: the file cannot be used, or a dataset is not registered.
    """
    overrides = load_prompt_overrides(path)
    for name in overrides:
        if name not in DatasetCatalog:
            close = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
            hint = f": did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"'{path}' has prompts of {name!r}, which is not registered{hint}")
    return overrides
