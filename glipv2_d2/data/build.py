"""Registered data sets -> loaders."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import (
    InferenceSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch.utils.data import DataLoader, Sampler

from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.data.sanitize import sanitize_dataset
from glipv2_d2.data.stream import TrainLoader
from glipv2_d2.structures import fields


def build_train_loader(cfg: CfgNode) -> TrainLoader:
    """Endless batches of the data sets ``DATASETS.TRAIN`` together, each with its own names.

    Raises:
        ValueError, FileNotFoundError: a data set is not registered, not there, or not sound.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name at least one registered data set")
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    loaded = {name: load_dataset(name, filter_empty=filter_empty) for name in cfg.DATASETS.TRAIN}
    class_names = _class_names(cfg.DATASETS.TRAIN)
    mapper = GroundingMapper(cfg, is_train=True, class_names=class_names)
    records = []
    for name, dataset in loaded.items():
        records += sanitize_dataset(
            dataset, name=name, class_names=class_names[name], tokenizer=mapper.tokenizer
        )
    return TrainLoader(
        records,
        mapper=mapper,
        make_sampler=_sampler_factory(cfg, records),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Every image of a data set once, one per batch.

    Raises:
        ValueError, FileNotFoundError: the data set is not registered or not there.
    """
    records = load_dataset(dataset_name, filter_empty=False)
    class_names = _class_names([dataset_name])
    return build_detection_test_loader(
        records,
        mapper=GroundingMapper(cfg, is_train=False, class_names=class_names),
        sampler=InferenceSampler(len(records)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def load_dataset(name: str, *, filter_empty: bool) -> list[dict[str, Any]]:
    """The records of a registered data set, each with its ``dataset_name``.

    Args:
        filter_empty: leave out images that have nothing but crowd annotations.

    Raises:
        ValueError: it is not registered.
        FileNotFoundError: its annotations or images are not where it says.
    """
    if name not in DatasetCatalog:
        close = difflib.get_close_matches(name, DatasetCatalog.list())
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "register it first"
        raise ValueError(f"data set {name!r} is not registered: {hint}")
    _check_paths(name)
    records = get_detection_dataset_dicts([name], filter_empty=filter_empty)
    return [{**record, fields.DATASET_NAME: name} for record in records]


def _check_paths(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    for path in (metadata.get("json_file"), metadata.get("image_root")):
        if path and not PathManager.exists(path):
            root = os.environ.get("DETECTRON2_DATASETS", "datasets")
            raise FileNotFoundError(
                f"data set {name!r}: {path!r} does not exist. Prepare it with the command in "
                "datasets/README.md, or set the environment variable DETECTRON2_DATASETS to the "
                f"directory that holds it (now {root!r})"
            )


def _class_names(dataset_names: Sequence[str]) -> dict[str, list[str]]:
    """Of loaded data sets: many learn their names by being loaded. None for caption data."""
    return {name: MetadataCatalog.get(name).get("thing_classes") or [] for name in dataset_names}


def _sampler_factory(cfg: CfgNode, records: list[dict[str, Any]]) -> Callable[[int], Sampler[int]]:
    """A function from a seed to the sampler ``DATALOADER.SAMPLER_TRAIN``."""
    kind = cfg.DATALOADER.SAMPLER_TRAIN
    if kind == "TrainingSampler":
        size = len(records)
        return lambda seed: TrainingSampler(size, seed=seed)
    if kind == "RepeatFactorTrainingSampler":
        repeat_factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return lambda seed: RepeatFactorTrainingSampler(repeat_factors, seed=seed)
    raise ValueError(
        f"DATALOADER.SAMPLER_TRAIN is {kind!r}; use TrainingSampler or RepeatFactorTrainingSampler"
    )
