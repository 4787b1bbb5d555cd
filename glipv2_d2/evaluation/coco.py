"""COCO's average precision."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from unittest import mock

from detectron2.evaluation import COCOEvaluator, coco_evaluation

logger = logging.getLogger(__name__)

# COCO's range of object areas of each metric, in pixels.
AREAS = {
    "AP": (0.0, 1e10),
    "AP50": (0.0, 1e10),
    "AP75": (0.0, 1e10),
    "APs": (0.0, 32.0**2),
    "APm": (32.0**2, 96.0**2),
    "APl": (96.0**2, 1e10),
}


class AveragePrecisionEvaluator(COCOEvaluator):
    """Detectron2's evaluator, with AP 0 instead of nan if nothing at all was detected.

    With nan, an average over several datasets would be nan.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        tasks: Sequence[str],
        output_dir: str,
        fast_cocoeval: type | None = None,
    ) -> None:
        """
        Args:
            tasks: "bbox" and "segm"; masks are evaluated only if all ground truth has them.
            fast_cocoeval: a class that replaces pycocotools' COCOeval.
        """
        super().__init__(
            dataset_name, tasks=tuple(tasks), output_dir=output_dir, use_fast_impl=False
        )
        if "segm" in tasks and not self._truth_has_masks():
            logger.info("masks are not evaluated: %r has boxes without masks", dataset_name)
            self._tasks = tuple(task for task in tasks if task != "segm")
        self._fast_cocoeval = fast_cocoeval
        self._use_fast_impl = fast_cocoeval is not None

    def _truth_has_masks(self) -> bool:
        return all(annotation.get("segmentation") for annotation in self._coco_api.anns.values())

    def _eval_predictions(
        self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None = None
    ) -> None:
        # Detectron2 has no argument for the class, only this module attribute.
        with mock.patch.object(coco_evaluation, "COCOeval_opt", self._fast_cocoeval):
            super()._eval_predictions(predictions, img_ids=img_ids)

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        if coco_eval is not None:
            return super()._derive_coco_results(coco_eval, iou_type, class_names)
        areas = [a["area"] for a in self._coco_api.anns.values() if not a.get("iscrowd", 0)]
        return {
            metric: 0.0 if any(low <= area <= high for area in areas) else float("nan")
            for metric, (low, high) in AREAS.items()
        }


def load_fast_cocoeval() -> type:
    """The COCOeval class of faster-coco-eval, a C++ implementation.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError as error:
        raise ValueError(
            "TEST.FAST_EVAL needs the package faster-coco-eval: pip install "
            "faster-coco-eval; or set it to False"
        ) from error
    return COCOeval_faster
