"""The configs, datasets and tables of the small model."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from glipv2_d2.engine.setup import load_config
from glipv2_d2.evaluation.benchmarks import benchmarks
from glipv2_d2.evaluation.build import evaluator_types
from glipv2_mini.benchmarks import mini_benchmarks

PROJECT = Path(__file__).parents[1]
ROOT = PROJECT.parents[1]
CONFIGS = sorted(PROJECT.glob("configs/*.yaml"))
TABLES = sorted(PROJECT.glob("tables/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_has_its_command_and_registered_datasets(path: Path) -> None:
    assert f"--config-file {path.relative_to(ROOT)}" in path.read_text()
    cfg = load_config(path)
    assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= set(DatasetCatalog)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_recipe_for_fine_tuning_has_known_keys_and_trains_the_detector(path: Path) -> None:
    tuned = load_config(path, load_config(path).MODEL.TUNING.RECIPE)
    assert tuned.MODEL.EVIDENCE.LEARNS_BOXES and not tuned.MODEL.EVIDENCE.FREEZE_DETECTOR


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_names_a_config_and_registered_datasets(path: Path) -> None:
    table = yaml.safe_load(path.read_text())
    load_config(ROOT / table["config"])
    assert {column["dataset"] for column in table["columns"]} <= set(DatasetCatalog)


@pytest.mark.parametrize("benchmark", mini_benchmarks(), ids=lambda benchmark: benchmark.name)
def test_a_benchmark_is_in_the_table_and_its_datasets_have_an_evaluator(benchmark) -> None:
    load_config()
    assert benchmarks()[benchmark.name] == benchmark
    for dataset in (name for group in benchmark.datasets for name in group):
        assert MetadataCatalog.get(dataset).evaluator_type in evaluator_types()
