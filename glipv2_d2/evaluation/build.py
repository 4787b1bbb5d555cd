"""Which evaluator a data set gets: its metadata say it."""

from __future__ import annotations

import contextlib
import heapq
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, LVISEvaluator
from detectron2.utils import comm

from glipv2_d2.structures import fields

# Masks are predicted in none of the models yet.
TASKS = ("bbox",)

FIXED_AP_LIMIT = 10_000


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | None = None
) -> DatasetEvaluator:
    """Detectron2's evaluator for a data set of ``evaluator_type`` "coco" or "lvis".

    LVIS counts ``TEST.DETECTIONS_PER_IMAGE`` detections of an image; -1 gives the "fixed AP".

    Args:
        output_folder: where results go; default ``OUTPUT_DIR/inference/DATASET``.

    Raises:
        ValueError: there is no evaluator for the data set, or not what it needs.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind not in _EVALUATORS:
        raise ValueError(
            f"data set {dataset_name!r} has evaluator_type {kind!r} in its metadata; evaluators "
            f"exist for {sorted(_EVALUATORS)}: set it where the data set is registered"
        )
    folder = Path(output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name))
    return NamedClassesEvaluator(
        lambda staging: _EVALUATORS[kind](dataset_name, staging, cfg.TEST.DETECTIONS_PER_IMAGE),
        class_names=metadata.get("thing_classes") or (),
        output_folder=folder,
    )


def _coco(dataset_name: str, output_folder: str, _max_detections: int) -> DatasetEvaluator:
    metadata = MetadataCatalog.get(dataset_name)
    has_file = metadata.get("json_file") is not None
    # COCO's own limit of 100 per image and class holds, whatever the model gives.
    evaluator = COCOEvaluator(dataset_name, tasks=TASKS, output_dir=output_folder)
    if not has_file:
        # Detectron2 wrote the ground truth into this evaluation's folder, which will be gone.
        del metadata.json_file
    return evaluator


def _lvis(dataset_name: str, output_folder: str, max_detections: int) -> DatasetEvaluator:
    evaluator_class = FixedLVISEvaluator if max_detections < 0 else LVISEvaluator
    try:
        return evaluator_class(
            dataset_name,
            tasks=TASKS,
            output_dir=output_folder,
            max_dets_per_image=max_detections,
        )
    except ImportError as error:
        raise ValueError(
            f"evaluating {dataset_name!r} needs the package lvis: pip install lvis"
        ) from error


_EVALUATORS: dict[str, Callable[[str, str, int], DatasetEvaluator]] = {
    "coco": _coco,
    "lvis": _lvis,
}


class FixedLVISEvaluator(LVISEvaluator):
    """LVIS's "fixed AP" (GLIP spec 18): no limit per image, but one per class over all images."""

    def _eval_predictions(self, predictions: list[dict[str, Any]]) -> None:
        super()._eval_predictions(best_per_class(predictions, FIXED_AP_LIMIT))


def best_per_class(predictions: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The ``limit`` detections of highest score of each class, all images together.

    Args:
        predictions: per image ``{"image_id": ..., "instances": [detections in COCO's format]}``.

    Returns:
        The same without the other detections.
    """
    by_class = defaultdict(list)
    for prediction in predictions:
        for detection in prediction["instances"]:
            by_class[detection["category_id"]].append(detection)
    kept = {
        id(detection)
        for detections in by_class.values()
        for detection in heapq.nlargest(limit, detections, key=lambda d: d["score"])
    }
    return [
        {**prediction, "instances": [d for d in prediction["instances"] if id(d) in kept]}
        for prediction in predictions
    ]


class NamedClassesEvaluator(DatasetEvaluator):
    """Gives an evaluator predictions in the data set's classes, and keeps its files whole.

    A prediction's class indexes the list that its image was asked; where that is the image's own
    (``classes``), it is found by name in the data set's. Files appear in the output folder when
    all of them are written.
    """

    def __init__(
        self,
        make_evaluator: Callable[[str], DatasetEvaluator],
        *,
        class_names: Sequence[str],
        output_folder: Path,
    ) -> None:
        """
        Args:
            make_evaluator: a folder for its files -> the evaluator.
            class_names: of the data set.
            output_folder: of the evaluation; made if need be.
        """
        self.class_names = list(class_names)
        self.output_folder = output_folder
        self.staging = output_folder.with_name(f".{output_folder.name}.partial")
        if comm.is_main_process():
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir(parents=True)
        comm.synchronize()
        self.evaluator = make_evaluator(str(self.staging))

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        renamed = [self._rename(x, output) for x, output in zip(inputs, outputs, strict=True)]
        self.evaluator.process(inputs, renamed)

    def _rename(self, x: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
        if fields.PHRASES in output:
            raise ValueError(
                f"the image {x.get(fields.FILE_NAME)!r} was asked a caption, whose phrases are not "
                "the classes that its data set is evaluated on: ask 'classes', or nothing"
            )
        asked = x.get(fields.CLASSES)
        if asked is None or list(asked) == self.class_names:
            return output
        unknown = [name for name in asked if name not in self.class_names]
        if unknown:
            raise ValueError(
                f"the image {x.get(fields.FILE_NAME)!r} was asked {unknown}, which are not among "
                "the names that its data set is evaluated on"
            )
        to_dataset = torch.tensor([self.class_names.index(name) for name in asked])
        instances = output[fields.INSTANCES].to("cpu")
        renamed = type(instances)(instances.image_size, **instances.get_fields())
        renamed.pred_classes = to_dataset[instances.pred_classes]
        return {**output, fields.INSTANCES: renamed}

    def evaluate(self) -> Any:
        with numpy_float_alias():
            results = self.evaluator.evaluate()
        if comm.is_main_process():
            self._publish()
        return results

    def _publish(self) -> None:
        self.output_folder.mkdir(parents=True, exist_ok=True)
        for path in self.staging.iterdir():
            os.replace(path, self.output_folder / path.name)
        self.staging.rmdir()


@contextlib.contextmanager
def numpy_float_alias() -> Iterator[None]:
    """``np.float`` as long as the evaluation runs: the package lvis still says it."""
    if hasattr(np, "float"):
        yield
        return
    np.float = float  # type: ignore[attr-defined]  # noqa: NPY001
    try:
        yield
    finally:
        del np.float  # type: ignore[attr-defined]  # noqa: NPY001
