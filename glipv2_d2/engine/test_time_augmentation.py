"""Test-time augmentation: detections of resized and flipped copies of an image, merged.

``TEST.AUG`` has the settings, as in Detectron2. Answers and captions are not augmented.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import TransformList
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from glipv2_d2.data.caption_transforms import is_flipped, swap_left_right
from glipv2_d2.data.mapper import read_image
from glipv2_d2.evaluation.build import TTA_SUFFIX, requests_text
from glipv2_d2.modeling import GLIPv2
from glipv2_d2.modeling.heads.grounding_rpn import GroundingRPN
from glipv2_d2.modeling.input_checks import names_images
from glipv2_d2.modeling.postprocess import (
    ChunkDetections,
    DetectionsPerImage,
    PostprocessSettings,
    image_results,
    merge_detections,
)
from glipv2_d2.modeling.queries import describe_input, iterate_chunks
from glipv2_d2.modeling.two_stage import OpenVocabularyRCNN
from glipv2_d2.structures import FusedFeatures, fields

BATCH_SIZE = 3
"""Copies in one batch, as in Detectron2."""

Mapper = Callable[[dict[str, Any]], list[dict[str, Any]]]
"""As Detectron2's DatasetMapperTTA: resized and flipped copies of an input dict, which have their
``transforms``."""


@dataclass(frozen=True)
class View:
    """A resized and possibly flipped copy of an image.

    Attributes:
        input: its input dict.
        original_size: (height, width) of the image in pixels.
        is_flipped: the copy is mirrored.
    """

    input: dict[str, Any]
    original_size: tuple[int, int]
    is_flipped: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the copy in pixels."""
        height, width = self.input[fields.IMAGE].shape[-2:]
        return height, width

    def to_original(self, found: DetectionsPerImage) -> DetectionsPerImage:
        """Detections in the copy, in pixels of the image."""
        boxes = self._flip(found.boxes)
        return replace(found, boxes=_rescale(boxes, self.size, self.original_size))

    def from_original(self, found: DetectionsPerImage) -> DetectionsPerImage:
        """Detections in the image, in pixels of the copy."""
        boxes = _rescale(found.boxes, self.original_size, self.size)
        return replace(found, boxes=self._flip(boxes))

    def masks_in_original(self, masks: Tensor) -> Tensor:
        """(K, S, S) masks on the grids of boxes in the copy, on those of boxes in the image."""
        return masks.flip(-1) if self.is_flipped else masks

    def _flip(self, boxes: Tensor) -> Tensor:
        """(K, 4) boxes with inclusive corners in pixels of the copy, mirrored if it is."""
        if not self.is_flipped:
            return boxes
        x1, y1, x2, y2 = boxes.unbind(dim=-1)
        last = self.size[1] - 1
        return torch.stack([last - x2, y1, last - x1, y2], dim=-1)


def _rescale(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """As :func:`~glipv2_d2.modeling.postprocess.to_instances` scales inclusive corners."""
    scale_y, scale_x = new_size[0] / size[0], new_size[1] / size[1]
    return boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])


class GLIPv2WithTTA(nn.Module):
    """A GLIPv2 with test-time augmentation; its inputs and outputs are those of the model.

    The boxes of all views are merged by the model's NMS. Masks are then predicted for the merged
    boxes in every view, and averaged. In a flipped view, "left" and "right" are exchanged in
    captions and in prompts of free text, as in training; class names are kept.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Mapper | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """
        Args:
            model: a GLIPv2.
            tta_mapper: default: Detectron2's ``DatasetMapperTTA`` of ``TEST.AUG``.
            batch_size: views in one batch.

        Raises:
            ValueError: the model or the settings do not support it.
        """
        super().__init__()
        model = _without_wrapper(model)
        if not isinstance(model, GLIPv2):
            raise ValueError(f"GLIPv2WithTTA augments a GLIPv2, not a {type(model).__name__}")
        if not isinstance(model.proposal_generator, GroundingRPN):
            raise ValueError(
                "test-time augmentation merges the boxes of a GroundingRPN, but the "
                f"proposal generator is a {type(model.proposal_generator).__name__}: set "
                "TEST.AUG.ENABLED to False"
            )
        self.model = model
        self.input_format: Literal["BGR", "RGB"] = cfg.INPUT.FORMAT
        self.tta_mapper = tta_mapper or build_tta_mapper(cfg)
        self.batch_size = batch_size
        self.train(model.training)

    @names_images
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One dict of results per image.

        Raises:
            ValueError: an input requests an answer or a caption.
        """
        return [self._inference_one_image(x) for x in batched_inputs]

    def _inference_one_image(self, x: dict[str, Any]) -> dict[str, Any]:
        assert not self.model.training, "test-time augmentation is for models in evaluation mode"
        x = with_image(x, self.input_format)
        if self.model.query_builder.text_queries([x]) or x.get(fields.GROUND):
            raise ValueError(
                f"{describe_input(x)} requests an answer or a caption, which test-time "
                "augmentation does not support: set TEST.AUG.ENABLED to False"
            )
        views = augmented_views(x, self.tta_mapper)
        queries = self.model.query_builder.localized_queries([x], [{}])
        detections_per_query = self._merged_boxes(views, len(queries))
        chunks: list[ChunkDetections] = []
        for query, found in zip(queries, detections_per_query, strict=True):
            kept = self.model.keep_best(found, query, chunks)
            chunks.append(ChunkDetections(query, kept))
        if self.model.roi_heads is not None:
            chunks = self._with_masks(views, chunks)
        return image_results(x, chunks, views[0].original_size, self.model.max_detections_per_image)

    def _merged_boxes(self, views: Sequence[View], num_queries: int) -> list[DetectionsPerImage]:
        """Per query, the detections of all views in pixels of the image."""
        settings = _postprocess_settings(self.model)
        parts: list[list[DetectionsPerImage]] = [[] for _ in range(num_queries)]
        for batch in self._batches(views):
            features = self.model.encode_images([view.input for view in batch])
            for k, fused in enumerate(self._fused_queries(batch, features)):
                detections = self.model.detect_boxes(features, fused)
                for view, found in zip(batch, detections, strict=True):
                    parts[k].append(view.to_original(found))
        return [merge_detections(part, views[0].original_size, settings) for part in parts]

    def _with_masks(
        self, views: Sequence[View], chunks: Sequence[ChunkDetections]
    ) -> list[ChunkDetections]:
        """The detections with the means of their masks in all views."""
        assert self.model.roi_heads is not None
        masks_per_chunk: list[list[Tensor]] = [[] for _ in chunks]
        for batch in self._batches(views):
            features = self.model.encode_images([view.input for view in batch])
            for k, fused in enumerate(self._fused_queries(batch, features)):
                found = [view.from_original(chunks[k].detections) for view in batch]
                with_masks = self.model.roi_heads.predict_masks(fused, found)
                for view, of_view in zip(batch, with_masks, strict=True):
                    assert of_view.masks is not None
                    masks_per_chunk[k].append(view.masks_in_original(of_view.masks))
        return [
            ChunkDetections(
                chunk.query, replace(chunk.detections, masks=torch.stack(masks).mean(dim=0))
            )
            for chunk, masks in zip(chunks, masks_per_chunk, strict=True)
        ]

    def _batches(self, views: Sequence[View]) -> Iterator[Sequence[View]]:
        for first in range(0, len(views), self.batch_size):
            yield views[first : first + self.batch_size]

    def _fused_queries(self, views: Sequence[View], features: Any) -> Iterator[FusedFeatures]:
        """Chunk by chunk, the fused features of each view."""
        inputs = [view.input for view in views]
        queries = self.model.query_builder.localized_queries(inputs, [{}] * len(inputs))
        for chunk in iterate_chunks(queries):
            yield self.model.fuse_queries(features, chunk)


class OpenVocabularyRCNNWithTTA(GeneralizedRCNNWithTTA):
    """Detectron2's test-time augmentation for any number of class names, and for captions."""

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Mapper | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Arguments as those of :class:`GLIPv2WithTTA`; ``model`` is an OpenVocabularyRCNN."""
        super().__init__(cfg, model, tta_mapper or build_tta_mapper(cfg), batch_size)
        self.train(self.model.training)

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One dict of results per image."""
        inputs = [with_image(x, self.model.input_format) for x in batched_inputs]
        results = super().__call__(inputs)
        for x, result in zip(inputs, results, strict=True):
            if fields.CAPTION in x:
                result[fields.PHRASES] = self.model.prompts.for_inference(x)[0].phrases
        return results

    def _get_augmented_inputs(
        self, x: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], list[TransformList]]:
        augmented, transforms = super()._get_augmented_inputs(x)
        return [
            mirror_caption(y) if is_flipped(of_view) else y
            for y, of_view in zip(augmented, transforms, strict=True)
        ], transforms

    def _merge_detections(
        self,
        all_boxes: Tensor,
        all_scores: list[Tensor],
        all_classes: list[Tensor],
        shape_hw: tuple[int, int],
    ) -> Instances:
        """Detectron2's, whose number of classes is that of the config."""
        num_classes = 1 + max((int(c) for c in all_classes), default=0)
        scores = all_boxes.new_zeros(len(all_boxes), num_classes + 1)  # the last: background
        if len(all_boxes):
            columns = torch.stack(all_classes)
            scores[torch.arange(len(columns)), columns] = torch.stack(all_scores).to(scores)
        merged, _ = fast_rcnn_inference_single_image(
            all_boxes,
            scores,
            shape_hw,
            1e-8,
            self.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            self.cfg.TEST.DETECTIONS_PER_IMAGE,
        )
        return merged


def build_tta_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model with the test-time augmentation of ``TEST.AUG``.

    Raises:
        ValueError: the model, the settings or a dataset of ``DATASETS.TEST`` do not support it.
    """
    model = _without_wrapper(model)
    check_tta_datasets(cfg.DATASETS.TEST)
    if isinstance(model, GLIPv2):
        return GLIPv2WithTTA(cfg, model)
    if isinstance(model, OpenVocabularyRCNN):
        return OpenVocabularyRCNNWithTTA(cfg, model)
    raise ValueError(
        f"test-time augmentation does not support a {type(model).__name__}, only GLIPv2 and "
        "OpenVocabularyRCNN: set TEST.AUG.ENABLED to False"
    )


def check_tta_datasets(names: Sequence[str]) -> None:
    """Raise a ValueError where a dataset has questions or captions, which are not augmented."""
    for name in names:
        if requests_text(name):
            raise ValueError(
                f"dataset {name!r} requests answers or captions, which test-time augmentation "
                "does not support: set TEST.AUG.ENABLED to False, or remove the dataset"
            )


def with_suffix(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results of an evaluation under the names of test-time augmentation.

    >>> with_suffix({"bbox": {"AP": 12.5}})
    {'bbox_TTA': {'AP': 12.5}}
    """
    return {f"{name}{TTA_SUFFIX}": value for name, value in results.items()}


def build_tta_mapper(cfg: CfgNode) -> DatasetMapperTTA:
    """Detectron2's mapper of ``TEST.AUG``.

    Raises:
        ValueError: a size is missing or not positive.
    """
    sizes, max_size = cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE
    if len(sizes) == 0 or min(*sizes, max_size) < 1:
        raise ValueError(
            f"TEST.AUG.MIN_SIZES is {tuple(sizes)} and TEST.AUG.MAX_SIZE {max_size}: set at least "
            "one size, in pixels, and only positive ones"
        )
    return DatasetMapperTTA(cfg)


def augmented_views(x: dict[str, Any], mapper: Mapper) -> list[View]:
    """The copies of an input with an image."""
    height, width = x[fields.IMAGE].shape[-2:]
    views = []
    for y in mapper(x):
        flipped = is_flipped(y.pop("transforms"))
        views.append(View(mirror_caption(y) if flipped else y, (height, width), flipped))
    return views


def with_image(x: dict[str, Any], image_format: Literal["BGR", "RGB"]) -> dict[str, Any]:
    """The input with the image of its ``file_name`` if it has none, and with a result's size."""
    x = dict(x)
    if fields.IMAGE not in x:
        pixels = read_image(x[fields.FILE_NAME], image_format)
        x[fields.IMAGE] = torch.as_tensor(pixels.transpose(2, 0, 1).copy())
    height, width = x[fields.IMAGE].shape[-2:]
    # The mapper works on numpy arrays.
    return {fields.HEIGHT: height, fields.WIDTH: width, **x, fields.IMAGE: x[fields.IMAGE].cpu()}


def mirror_caption(x: dict[str, Any]) -> dict[str, Any]:
    """The input with "left" and "right" exchanged in its caption or its prompt of free text."""
    x = dict(x)
    if fields.CAPTION in x and fields.PHRASES in x:
        x[fields.CAPTION], x[fields.PHRASES] = swap_left_right(x[fields.CAPTION], x[fields.PHRASES])
    if fields.PROMPT in x and not x[fields.PROMPT].is_class_list:
        prompt = x[fields.PROMPT]
        text, spans = swap_left_right(prompt.text, prompt.spans)
        nouns = swap_left_right(prompt.text, [prompt.nouns])[1][0]
        x[fields.PROMPT] = replace(
            prompt, text=text, spans=tuple(map(tuple, spans)), nouns=tuple(nouns)
        )
    return x


def _without_wrapper(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _postprocess_settings(model: GLIPv2) -> PostprocessSettings:
    assert isinstance(model.proposal_generator, GroundingRPN)
    return model.proposal_generator.postprocess
