"""Which evaluator a data set gets: its metadata say it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from glipv2_d2.evaluation.captions import CaptionEvaluator
from glipv2_d2.evaluation.coco import AveragePrecisionEvaluator, load_fast_cocoeval
from glipv2_d2.evaluation.flickr30k import Flickr30kEvaluator
from glipv2_d2.evaluation.lvis import FixedLVISEvaluator, LimitedLVISEvaluator, load_fast_lvis
from glipv2_d2.evaluation.named_classes import NamedClassesEvaluator
from glipv2_d2.evaluation.phrasecut import PhraseCutEvaluator
from glipv2_d2.evaluation.refcoco import RefCOCOEvaluator
from glipv2_d2.evaluation.staging import StagedEvaluator
from glipv2_d2.evaluation.vqa import VQAEvaluator


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """The evaluator that a data set's ``evaluator_type`` names.

    LVIS counts ``TEST.DETECTIONS_PER_IMAGE`` detections of an image; -1 gives the "fixed AP".

    Args:
        output_folder: where results go; default ``OUTPUT_DIR/inference/DATASET``.

    Raises:
        ValueError: there is no evaluator for the data set, or not what it needs.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _EVALUATORS:
        raise ValueError(
            f"data set {dataset_name!r} has evaluator_type {kind!r} in its metadata; evaluators "
            f"exist for {evaluator_types()}: set it where the data set is registered"
        )
    folder = Path(output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name))
    return StagedEvaluator(lambda staging: _EVALUATORS[kind](cfg, dataset_name, staging), folder)


def missing_head(cfg: CfgNode, dataset_name: str) -> str | None:
    """Why a model of this config gives nothing that the data set's evaluator could measure."""
    key = _NEEDED_HEADS.get(MetadataCatalog.get(dataset_name).get("evaluator_type"))
    if key is None or cfg.MODEL[key].WEIGHT != 0:
        return None
    return f"the model has no head for it: MODEL.{key}.WEIGHT is {cfg.MODEL[key].WEIGHT:g}"


def _tasks(cfg: CfgNode) -> tuple[str, ...]:
    return ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)


def _coco(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    metadata = MetadataCatalog.get(dataset_name)
    has_file = metadata.get("json_file") is not None
    # COCO's own limit of 100 per image and class holds, whatever the model gives.
    evaluator = AveragePrecisionEvaluator(
        dataset_name,
        tasks=_tasks(cfg),
        output_dir=output_folder,
        fast_cocoeval=load_fast_cocoeval() if cfg.TEST.FAST_EVAL else None,
    )
    if not has_file:
        # Detectron2 wrote the ground truth into this evaluation's folder, which will be gone.
        del metadata.json_file
    return NamedClassesEvaluator(evaluator, metadata.get("thing_classes") or ())


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
            f"evaluating {dataset_name!r} needs the package lvis: pip install lvis"
        ) from error
    return NamedClassesEvaluator(
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


_EVALUATORS: dict[str, Callable[[CfgNode, str, str], DatasetEvaluator]] = {
    "coco": _coco,
    "lvis": _lvis,
    "flickr30k": _flickr30k,
    "refcoco": _refcoco,
    "phrasecut": _phrasecut,
    "vqa": _vqa,
    "captions": _captions,
}


# Of evaluators of texts, the part of MODEL that gives them.
_NEEDED_HEADS = {"vqa": "ANSWER", "captions": "CAPTION"}


def evaluator_types() -> list[str]:
    """What ``evaluator_type`` in the metadata of a data set may be."""
    return sorted(_EVALUATORS)
