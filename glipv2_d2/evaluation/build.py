"""Build the evaluator of a dataset from its metadata."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from glipv2_d2.config import complete_config
from glipv2_d2.evaluation.captions import CaptionEvaluator
from glipv2_d2.evaluation.class_mapping import ClassMappingEvaluator
from glipv2_d2.evaluation.coco import AveragePrecisionEvaluator, load_fast_cocoeval
from glipv2_d2.evaluation.flickr30k import Flickr30kEvaluator
from glipv2_d2.evaluation.grounded_text import GroundedCaptionEvaluator, GroundedVQAEvaluator
from glipv2_d2.evaluation.lvis import FixedLVISEvaluator, LimitedLVISEvaluator, load_fast_lvis
from glipv2_d2.evaluation.phrasecut import PhraseCutEvaluator
from glipv2_d2.evaluation.refcoco import RefCOCOEvaluator
from glipv2_d2.evaluation.staging import StagedEvaluator
from glipv2_d2.evaluation.vqa import VQAEvaluator

TTA_SUFFIX = "_TTA"
"""Ends the names of results with test-time augmentation, as in Detectron2's train_net."""


class NoEvaluatorError(ValueError, NotImplementedError):
    """A dataset has no known ``evaluator_type``.

    A NotImplementedError, by which Detectron2's trainer skips the dataset.
    """


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Build the evaluator for the ``evaluator_type`` in a dataset's metadata.

    LVIS counts at most ``TEST.DETECTIONS_PER_IMAGE`` detections per image; -1 selects "fixed AP".

    Args:
        output_folder: for result files; default ``OUTPUT_DIR/inference/DATASET``.

    Raises:
        NoEvaluatorError: no evaluator exists for the dataset.
        ValueError: a package that it needs is missing.
    """
    cfg = complete_config(cfg)
    if reason := no_evaluator(dataset_name):
        raise NoEvaluatorError(reason)
    kind = MetadataCatalog.get(dataset_name).evaluator_type
    folder = Path(output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name))
    return StagedEvaluator(lambda staging: _EVALUATORS[kind](cfg, dataset_name, staging), folder)


def no_evaluator(dataset_name: str) -> str | None:
    """Explain why a dataset has no evaluator; None if it has one."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind in _EVALUATORS:
        return None
    return (
        f"dataset {dataset_name!r} has the evaluator_type {kind!r} in its metadata; it must be one "
        f"of {evaluator_types()}: set it where the dataset is registered, e.g. "
        f"MetadataCatalog.get({dataset_name!r}).evaluator_type = 'coco'"
    )


def missing_head(cfg: CfgNode, dataset_name: str) -> str | None:
    """Explain which head a model of this config lacks for a dataset; None if it lacks none."""
    key = _NEEDED_HEADS.get(MetadataCatalog.get(dataset_name).get("evaluator_type"))
    if key is None or cfg.MODEL[key].WEIGHT != 0:
        return None
    return f"the model has no head for this task: MODEL.{key}.WEIGHT is {cfg.MODEL[key].WEIGHT:g}"


def requests_text(dataset_name: str) -> bool:
    """Whether the evaluator of a dataset reads answers or captions."""
    return MetadataCatalog.get(dataset_name).get("evaluator_type") in _NEEDED_HEADS


def _tasks(cfg: CfgNode) -> tuple[str, ...]:
    return ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)


def _coco(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    # COCO's limit of 100 detections per image and class applies.
    evaluator = AveragePrecisionEvaluator(
        dataset_name,
        tasks=_tasks(cfg),
        output_dir=output_folder,
        fast_cocoeval=load_fast_cocoeval() if cfg.TEST.FAST_EVAL else None,
    )
    metadata = MetadataCatalog.get(dataset_name)
    return ClassMappingEvaluator(evaluator, metadata.get("thing_classes") or ())


def _lvis(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    max_detections = cfg.TEST.DETECTIONS_PER_IMAGE
    evaluator_class = FixedLVISEvaluator if max_detections < 0 else LimitedLVISEvaluator
    try:
        evaluator = evaluator_class(
            dataset_name,
            tasks=_tasks(cfg),
            output_dir=output_folder,
            max_dets_per_image=max_detections,
            fast_lvis=load_fast_lvis() if cfg.TEST.FAST_EVAL else None,
        )
    except ImportError as error:
        raise ValueError(
            f"evaluating {dataset_name!r} needs the package lvis: pip install 'glipv2_d2[lvis]'"
        ) from error
    return ClassMappingEvaluator(
        evaluator, MetadataCatalog.get(dataset_name).get("thing_classes") or ()
    )


def _flickr30k(_cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return Flickr30kEvaluator(dataset_name, output_folder)


def _refcoco(_cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return RefCOCOEvaluator(dataset_name, output_folder)


def _phrasecut(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return PhraseCutEvaluator(dataset_name, output_folder, cfg.TEST.PHRASECUT_SCORE_THRESH)


def _vqa(_cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return VQAEvaluator(dataset_name, output_folder)


def _captions(_cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return CaptionEvaluator(dataset_name, output_folder)


def _grounded_vqa(_cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return GroundedVQAEvaluator(dataset_name, output_folder)


def _grounded_captions(_cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    return GroundedCaptionEvaluator(dataset_name, output_folder)


_EVALUATORS: dict[str, Callable[[CfgNode, str, str], DatasetEvaluator]] = {
    "coco": _coco,
    "lvis": _lvis,
    "flickr30k": _flickr30k,
    "refcoco": _refcoco,
    "phrasecut": _phrasecut,
    "vqa": _vqa,
    "captions": _captions,
    "grounded_vqa": _grounded_vqa,
    "grounded_captions": _grounded_captions,
}


# evaluator_type -> the config node of the head that it requires.
_NEEDED_HEADS = {
    "vqa": "ANSWER",
    "captions": "CAPTION",
    "grounded_vqa": "ANSWER",
    "grounded_captions": "CAPTION",
}


def evaluator_types() -> list[str]:
    """Valid values of ``evaluator_type`` in the metadata of a dataset."""
    return sorted(_EVALUATORS)
