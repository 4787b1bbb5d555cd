"""COCO's average precision."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from unittest import mock

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.structures import BoxMode
from pycocotools.coco import COCO

from glipv2_d2.data.coco_fields import parse_size
from glipv2_d2.data.coco_truth import coco_api, mask_or_box_area, read_truth
from glipv2_d2.structures import fields

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
        metadata = MetadataCatalog.get(dataset_name)
        has_file = metadata.get("json_file") is not None
        truth = ground_truth(dataset_name)
        # Detectron2 has no arguments for the ground truth and the class, only module attributes.
        with mock.patch.multiple(
            coco_evaluation, COCO=lambda _: truth, convert_to_coco_json=lambda *_, **__: None
        ):
            super().__init__(dataset_name, tasks=None, output_dir=output_dir, use_fast_impl=False)
        if not has_file:
            # The name of the file that Detectron2 would have written.
            del metadata.json_file
        self._tasks: tuple[str, ...] = tuple(tasks)
        self._box_truth = truth
        self._mask_truth = truth
        if "segm" in tasks:
            self._set_mask_truth(dataset_name)
        self._fast_cocoeval = fast_cocoeval
        self._use_fast_impl = fast_cocoeval is not None

    def _set_mask_truth(self, dataset_name: str) -> None:
        """Evaluate masks without the boxes that have none, or not at all if no box has one."""
        annotations = self._box_truth.anns.values()
        num_masks = sum(_has_mask(a, self._box_truth) for a in annotations)
        if num_masks == 0:
            logger.info("masks are not evaluated: %r has none", dataset_name)
            self._tasks = tuple(task for task in self._tasks if task != "segm")
        elif num_masks < len(annotations):
            logger.warning(
                "masks of %r: %d of %d boxes have no mask, and detections in them are ignored",
                dataset_name,
                len(annotations) - num_masks,
                len(annotations),
            )
            self._mask_truth = coco_api(_with_regions_for_masks(self._box_truth))

    def _eval_predictions(
        self, predictions: list[dict[str, Any]], img_ids: Sequence[int] | None = None
    ) -> None:
        with mock.patch.object(coco_evaluation, "COCOeval_opt", self._fast_cocoeval):
            tasks = self._tasks
            for task in tasks:
                self._tasks = (task,)
                self._coco_api = self._mask_truth if task == "segm" else self._box_truth
                # Detectron2 changes the category ids of the detections in place.
                copies = [
                    {**x, "instances": [dict(found) for found in x["instances"]]}
                    for x in predictions
                ]
                super()._eval_predictions(copies, img_ids=img_ids)
            self._tasks = tasks

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


def ground_truth(dataset_name: str) -> COCO:
    """The truth of a registered dataset for pycocotools: that of its file or of its records.

    Its categories are the classes in the metadata, if a loader has set them.

    Raises:
        FileNotFoundError, ValueError: the annotation file cannot be used.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("json_file") is None:
        content = coco_from_records(dataset_name)
    else:
        content = read_truth(metadata.json_file).to_coco()
    ids = metadata.get("thing_dataset_id_to_contiguous_id")
    if ids:
        names = metadata.thing_classes
        content["categories"] = [{"id": i, "name": names[index]} for i, index in ids.items()]
    return coco_api(content)


def coco_from_records(dataset_name: str) -> dict[str, Any]:
    """The records of a registered dataset in COCO's format."""
    records = DatasetCatalog.get(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    ids = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    id_of = {index: category_id for category_id, index in ids.items()}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, record in enumerate(records):
        size = parse_size(record)
        image = {fields.HEIGHT: size[0], fields.WIDTH: size[1]} if size else {}
        image_id = record.get(fields.IMAGE_ID, number)
        images.append({**image, "id": image_id, "file_name": record.get(fields.FILE_NAME)})
        for annotation in record.get("annotations") or ():
            box = BoxMode.convert(
                [float(x) for x in annotation["bbox"]], annotation["bbox_mode"], BoxMode.XYWH_ABS
            )
            category_id = id_of.get(annotation["category_id"], annotation["category_id"])
            segmentation = annotation.get("segmentation")
            mask = {} if segmentation is None else {"segmentation": segmentation}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                    "area": mask_or_box_area(box, segmentation, size),
                    **mask,
                }
            )
    categories = [
        {"id": id_of.get(i, i), "name": name} for i, name in enumerate(metadata.thing_classes)
    ]
    content = {"info": {}, "images": images, "categories": categories}
    return {**content, "annotations": annotations} if annotations else content


def _has_mask(annotation: dict[str, Any], truth: COCO) -> bool:
    # Polygons are rasterized in the size of the image.
    return bool(annotation.get("segmentation")) and "height" in truth.imgs[annotation["image_id"]]


def _with_regions_for_masks(truth: COCO) -> dict[str, Any]:
    """The truth with a crowd that fills the box in place of each box without a mask."""
    annotations = []
    for annotation in truth.anns.values():
        if _has_mask(annotation, truth):
            annotations.append(annotation)
        elif "height" in truth.imgs[annotation["image_id"]]:
            x, y, w, h = annotation["bbox"]
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotations.append({**annotation, "segmentation": [corners], "iscrowd": 1})
    return {**truth.dataset, "annotations": annotations}


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
