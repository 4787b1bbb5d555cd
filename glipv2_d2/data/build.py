"""Loaders of registered datasets, for training and evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler

from glipv2_d2.config import complete_config
from glipv2_d2.data.class_alignment import class_keys, load_label_maps
from glipv2_d2.data.custom import register_custom
from glipv2_d2.data.loading import (
    check_class_names,
    class_names_of,
    decorations_of,
    load_dataset,
    names_in_prompts,
)
from glipv2_d2.data.mapper import GroundingMapper
from glipv2_d2.data.multi_text_samples import merge_texts_per_image, split_texts
from glipv2_d2.data.record_store import RecordStore, StoredCaptions, StoredRecords
from glipv2_d2.data.registration import Record
from glipv2_d2.data.samplers import CompactRepeatFactorSampler, CompactTrainingSampler
from glipv2_d2.data.sanitize import sanitize_dataset
from glipv2_d2.data.stored_datasets import open_stores
from glipv2_d2.data.stream import TrainLoader
from glipv2_d2.structures import fields
from glipv2_d2.text.tokenizer import Tokenizer

# Whether each value of DATALOADER.SAMPLER_TRAIN repeats images of rare classes. In Detectron2 only
# the Weighted samplers apply DATASETS.TRAIN_REPEAT_FACTOR; here all of them do.
BALANCES_CLASSES = {
    "TrainingSampler": False,
    "WeightedTrainingSampler": False,
    "RepeatFactorTrainingSampler": True,
    "WeightedCategoryTrainingSampler": True,
}

# Text tasks of one image per evaluation batch; bounds the memory.
MAX_TEXTS_PER_BATCH = 16


def build_train_loader(
    cfg: CfgNode,
    *,
    mapper: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    augmentations: Sequence[T.Augmentation] | None = None,
) -> TrainLoader:
    """Build the endless training loader of all datasets in ``DATASETS.TRAIN``.

    Every dataset keeps its own class names; classes of several datasets that are one
    (``DATASETS.LABEL_MAPS``) are no negatives of each other.

    Args:
        mapper: record -> input dict, in place of the :class:`GroundingMapper` of the config.
        augmentations: of the GroundingMapper, in place of those of the config.

    Raises:
        ValueError: a dataset is not registered or has invalid records, a key is invalid, or both
            ``mapper`` and ``augmentations`` are given.
        FileNotFoundError: an annotation file or image directory does not exist.
    """
    if mapper is not None and augmentations is not None:
        raise ValueError("mapper and augmentations are both given: pass the latter to the mapper")
    cfg = complete_config(cfg)
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: give at least one registered dataset")
    for name in cfg.DATASETS.TRAIN:
        if name in MetadataCatalog and MetadataCatalog.get(name).get("evaluation_only"):
            raise ValueError(
                f"DATASETS.TRAIN has {name!r}, which is for evaluation only: remove it, or put it "
                "into DATASETS.TEST"
            )
    register_custom(cfg.DATASETS.CUSTOM)
    label_maps = load_label_maps(cfg)
    records_of = open_stores(cfg) if cfg.DATALOADER.RECORD_STORE else _records_in_memory(cfg)
    limit = cfg.DATALOADER.TEXTS_PER_IMAGE
    if limit < 1:
        raise ValueError(f"DATALOADER.TEXTS_PER_IMAGE is {limit}; it must be at least 1")
    factor_of = _repeat_factors(cfg)
    records_of = merge_texts_per_image(records_of, limit, factor_of)
    options = {} if augmentations is None else {"augmentations": augmentations}
    class_names = class_names_of(cfg.DATASETS.TRAIN)
    return TrainLoader(
        _joined(records_of),
        mapper=mapper
        or GroundingMapper(
            cfg,
            is_train=True,
            class_names=class_names,
            class_keys=class_keys(class_names, label_maps),
            decorations=decorations_of(records_of),
            captions=_captions_to_pack(records_of),
            **options,
        ),
        make_sampler=_sampler_factory(cfg, records_of, factor_of),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=training_seed(cfg),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
    )


def build_test_loader(
    cfg: CfgNode,
    dataset_name: str,
    *,
    mapper: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> DataLoader:
    """Build the evaluation loader of a dataset: every image once, one image per batch.

    The questions about an image are inputs of one batch and share its image tensor, up to
    :data:`MAX_TEXTS_PER_BATCH`.

    Args:
        mapper: record -> input dict, in place of the :class:`GroundingMapper` of the config.

    Raises:
        ValueError: the dataset is not registered.
        FileNotFoundError: an annotation file or image directory does not exist.
    """
    cfg = complete_config(cfg)
    register_custom(cfg.DATASETS.CUSTOM)
    records = load_dataset(dataset_name, filter_empty=False)
    mapper = mapper or GroundingMapper(
        cfg,
        is_train=False,
        class_names=class_names_of([dataset_name]),
        decorations=decorations_of([dataset_name]),
    )
    merged = merge_texts_per_image({dataset_name: records}, MAX_TEXTS_PER_BATCH, {})[dataset_name]
    return build_detection_test_loader(
        merged,
        mapper=mapper,
        sampler=InferenceSampler(len(merged)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=split_texts,
    )


def training_seed(cfg: CfgNode) -> int:
    """``SEED``, or if it is negative a random seed that all processes share."""
    return cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()


def _records_in_memory(cfg: CfgNode) -> dict[str, Sequence[Record]]:
    """The sanitized records of each dataset of ``DATASETS.TRAIN``."""
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    loaded = {name: load_dataset(name, filter_empty=filter_empty) for name in cfg.DATASETS.TRAIN}
    check_class_names(class_names_of(cfg.DATASETS.TRAIN), cfg.MODEL.PROMPT.SEPARATOR)
    tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
    records_of = {
        name: sanitize_dataset(
            records, name=name, class_names=names_in_prompts(name), tokenizer=tokenizer
        )
        for name, records in loaded.items()
    }
    for name, records in records_of.items():
        if not records:
            raise ValueError(f"dataset {name!r} has no usable training image: see the log above")
    return dict(records_of)


def _joined(records_of: Mapping[str, Sequence[Record]]) -> Sequence[Record]:
    """The records of all datasets; those of stores stay on the disk."""
    if any(isinstance(records, RecordStore) for records in records_of.values()):
        return StoredRecords(records_of.values())
    return list(itertools.chain.from_iterable(records_of.values()))


def _captions_to_pack(records_of: Mapping[str, Sequence[Record]]) -> dict[str, Sequence[str]]:
    """All captions of each dataset with ``pack_captions``, serialized to save memory."""
    return {
        name: StoredCaptions(records)
        if isinstance(records, RecordStore)
        else DatasetFromList([record[fields.CAPTION] for record in records], copy=False)
        for name, records in records_of.items()
        if MetadataCatalog.get(name).get("pack_captions")
    }


def _sampler_factory(
    cfg: CfgNode, records_of: Mapping[str, Sequence[Record]], factor_of: dict[str, float]
) -> Callable[[int], Sampler[int]]:
    """A function from a seed to the sampler over the records of all datasets.

    Raises:
        ValueError: ``DATALOADER.SAMPLER_TRAIN`` is unknown.
    """
    kind = cfg.DATALOADER.SAMPLER_TRAIN
    if kind not in BALANCES_CLASSES:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is {kind!r}; use one of {', '.join(BALANCES_CLASSES)}"
        )
    if not factor_of and not BALANCES_CLASSES[kind]:
        size = sum(map(len, records_of.values()))
        return lambda seed: CompactTrainingSampler(size, seed=seed)
    factors = []
    for name, records in records_of.items():
        per_image = torch.ones(len(records))
        # Class indices differ between datasets, and captions have none.
        if BALANCES_CLASSES[kind] and MetadataCatalog.get(name).get("thing_classes"):
            per_image = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
                records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
            )
        factors.append(per_image * factor_of.get(name, 1.0))
    repeat_factors = torch.cat(factors)
    return lambda seed: CompactRepeatFactorSampler(repeat_factors, seed=seed)


def _repeat_factors(cfg: CfgNode) -> dict[str, float]:
    """``DATASETS.TRAIN_REPEAT_FACTOR`` as dataset name -> factor, validated."""
    pairs = cfg.DATASETS.TRAIN_REPEAT_FACTOR
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(
                f"DATASETS.TRAIN_REPEAT_FACTOR: {pair!r} is not a pair of a dataset and a factor; "
                "write [[flickr30k_separate_train, 8], [mixed_train_no_coco, 4]]"
            )
        name, factor = pair
        if name not in cfg.DATASETS.TRAIN:
            raise ValueError(
                f"DATASETS.TRAIN_REPEAT_FACTOR has the dataset {name!r}, which is not in "
                f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}"
            )
        if not isinstance(factor, int | float) or not 0 < factor < float("inf"):
            raise ValueError(
                f"DATASETS.TRAIN_REPEAT_FACTOR: the factor of {name!r} is {factor!r}; use a "
                "number above 0 (0.5 samples half of the images per epoch, 8 each of them 8 times)"
            )
    return dict(pairs)
