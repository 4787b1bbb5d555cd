"""Registered data sets -> loaders."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import (
    InferenceSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler

from glipv2_d2.data.custom import register_custom
from glipv2_d2.data.joined_texts import join_texts, texts_apart
from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.data.registration import missing_paths
from glipv2_d2.data.sanitize import sanitize_dataset
from glipv2_d2.data.stream import TrainLoader
from glipv2_d2.structures import fields
from glipv2_d2.text.prompts import Decoration, check_names
from glipv2_d2.text.tokenizer import Tokenizer

# Whether DATALOADER.SAMPLER_TRAIN repeats images of rare classes. Detectron2 has a second pair of
# names for samplers that heed DATASETS.TRAIN_REPEAT_FACTOR; here all of them do.
BALANCES_CLASSES = {
    "TrainingSampler": False,
    "WeightedTrainingSampler": False,
    "RepeatFactorTrainingSampler": True,
    "WeightedCategoryTrainingSampler": True,
}

# Of one image in evaluation; each needs memory of its own.
MAX_TEXTS_PER_BATCH = 16


def build_train_loader(cfg: CfgNode) -> TrainLoader:
    """Endless batches of the data sets ``DATASETS.TRAIN`` together, each with its own names.

    Raises:
        ValueError, FileNotFoundError: a data set is not registered, not there, or not sound.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name at least one registered data set")
    register_custom(cfg.DATASETS.CUSTOM)
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    loaded = {name: load_dataset(name, filter_empty=filter_empty) for name in cfg.DATASETS.TRAIN}
    class_names = _class_names(cfg.DATASETS.TRAIN)
    _check_class_names(class_names, cfg.MODEL.PROMPT.SEPARATOR)
    tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
    sane = {
        name: sanitize_dataset(
            records, name=name, class_names=class_names[name], tokenizer=tokenizer
        )
        for name, records in loaded.items()
    }
    for name, records in sane.items():
        if not records:
            raise ValueError(f"no image of data set {name!r} can be trained on: see the log above")
    limit = cfg.DATALOADER.TEXTS_PER_IMAGE
    if limit < 1:
        raise ValueError(f"DATALOADER.TEXTS_PER_IMAGE is {limit}; it must be at least 1")
    factor_of = _repeat_factors(cfg)
    sane = join_texts(sane, limit, factor_of)
    mapper = GroundingMapper(
        cfg,
        is_train=True,
        class_names=class_names,
        decorations=_decorations(sane),
        captions=_captions_to_pack(sane),
    )
    return TrainLoader(
        [record for records in sane.values() for record in records],
        mapper=mapper,
        make_sampler=_sampler_factory(cfg, sane, factor_of),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Every image of a data set once, one per batch.

    A batch has all questions about an image, as inputs of the same image tensor, up to a limit.

    Raises:
        ValueError, FileNotFoundError: the data set is not registered or not there.
    """
    register_custom(cfg.DATASETS.CUSTOM)
    records = load_dataset(dataset_name, filter_empty=False)
    mapper = GroundingMapper(
        cfg,
        is_train=False,
        class_names=_class_names([dataset_name]),
        decorations=_decorations([dataset_name]),
    )
    joined = join_texts({dataset_name: records}, MAX_TEXTS_PER_BATCH, {})[dataset_name]
    return build_detection_test_loader(
        joined,
        mapper=mapper,
        sampler=InferenceSampler(len(joined)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=texts_apart,
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
    for path in missing_paths(name):
        root = os.environ.get("DETECTRON2_DATASETS", "datasets")
        raise FileNotFoundError(
            f"data set {name!r}: {path!r} does not exist. Prepare it with the command in "
            "datasets/README.md, or set the environment variable DETECTRON2_DATASETS to the "
            f"directory that holds it (now {root!r})"
        )


def _class_names(dataset_names: Sequence[str]) -> dict[str, list[str]]:
    """Of loaded data sets: many learn their names by being loaded. None for caption data."""
    return {name: MetadataCatalog.get(name).get("thing_classes") or [] for name in dataset_names}


def _check_class_names(class_names: dict[str, list[str]], separator: str) -> None:
    """Raise now what would stop the training when an image happens to ask a name."""
    for dataset_name, names in class_names.items():
        try:
            if names:
                check_names(names, separator)
        except ValueError as error:
            raise ValueError(f"data set {dataset_name!r}: {error}") from error


def _decorations(dataset_names: Iterable[str]) -> dict[str, list[Decoration]]:
    """Of the data sets that have their own words for their classes."""
    found = {name: MetadataCatalog.get(name).get("decorations") for name in dataset_names}
    return {name: decorations for name, decorations in found.items() if decorations}


def _captions_to_pack(
    records_of: dict[str, list[dict[str, Any]]],
) -> dict[str, Sequence[str]]:
    """All captions of the data sets whose captions are packed, in one block of memory each."""
    return {
        name: DatasetFromList([record[fields.CAPTION] for record in records], copy=False)
        for name, records in records_of.items()
        if MetadataCatalog.get(name).get("pack_captions")
    }


def _sampler_factory(
    cfg: CfgNode, records_of: dict[str, list[dict[str, Any]]], factor_of: dict[str, float]
) -> Callable[[int], Sampler[int]]:
    """A function from a seed to the sampler of all data sets together.

    Raises:
        ValueError: ``DATALOADER.SAMPLER_TRAIN`` is wrong.
    """
    kind = cfg.DATALOADER.SAMPLER_TRAIN
    if kind not in BALANCES_CLASSES:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {kind!r}; use one of {', '.join(BALANCES_CLASSES)}"
        )
    if not factor_of and not BALANCES_CLASSES[kind]:
        size = sum(map(len, records_of.values()))
        return lambda seed: TrainingSampler(size, seed=seed)
    factors = []
    for name, records in records_of.items():
        per_image = torch.ones(len(records))
        # The classes of one data set are not those of another, and captions have none.
        if BALANCES_CLASSES[kind] and MetadataCatalog.get(name).get("thing_classes"):
            per_image = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
            )
        factors.append(per_image * factor_of.get(name, 1.0))
    repeat_factors = torch.cat(factors)
    return lambda seed: RepeatFactorTrainingSampler(repeat_factors, seed=seed)


def _repeat_factors(cfg: CfgNode) -> dict[str, float]:
    """``DATASETS.TRAIN_REPEAT_FACTOR`` as a table, checked."""
    pairs = cfg.DATASETS.TRAIN_REPEAT_FACTOR
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(
                f"DATASETS.TRAIN_REPEAT_FACTOR: {pair!r} is no pair of a name and a factor; write "
                "[[flickr30k_separate_train, 8], [mixed_train_no_coco, 4]]"
            )
        name, factor = pair
        if name not in cfg.DATASETS.TRAIN:
            raise ValueError(
                f"DATASETS.TRAIN_REPEAT_FACTOR names {name!r}, which is not in DATASETS.TRAIN "
                f"{tuple(cfg.DATASETS.TRAIN)}"
            )
        if not isinstance(factor, int | float) or not 0 < factor < float("inf"):
            raise ValueError(
                f"DATASETS.TRAIN_REPEAT_FACTOR: the factor of {name!r} is {factor!r}; use a "
                "number over 0 (0.5 sees half of the images in each round, 8 all of them 8 times)"
            )
    return dict(pairs)
