"""Class-agnostic region proposals: the boxes of the detector, whatever their class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.config import with_config_keys
from glipv2_d2.layers.box_coder import to_exclusive
from glipv2_d2.modeling.postprocess import DetectionsPerImage, PostprocessSettings, detect_labels
from glipv2_d2.modeling.text_tasks import QueryEncoder
from glipv2_d2.structures import ImageFeatures, Prompt, Query, QueryKind
from glipv2_mini.modeling.evidence_backbone import EvidenceLevel
from glipv2_mini.modeling.evidence_rpn import EvidenceRPN
from glipv2_mini.modeling.regions import Regions

# A level of the pyramid, and its stride.
_LEVEL, _STRIDE = 4, 16


class RegionProposer:
    """Keeps the best boxes of an :class:`EvidenceRPN` by their most probable class.

    A detector that is trained on many classes also detects objects of other classes by what all
    objects share. The proposals are the same in training and evaluation, without gradients. Their
    fused features come from a class-agnostic prompt.
    """

    config_keys: ClassVar[dict[str, str]] = {
        "prompt": "MODEL.REGION_ENCODER.PROMPT",
        "nms_thresh": "MODEL.REGION_ENCODER.NMS_THRESH",
        "detections_per_prompt": "MODEL.REGION_ENCODER.NUM_REGIONS",
        "pre_nms_topk": "MODEL.GROUNDING.PRE_NMS_TOPK",
        "aggregation": "MODEL.GROUNDING.SCORE_AGGREGATION",
    }

    def __init__(self, *, prompt: str, pooler: ROIPooler, settings: PostprocessSettings) -> None:
        """
        Args:
            prompt: the class-agnostic prompt.
            pooler: pools boxes from the pyramid to one vector each.
            settings: number of regions, and the NMS threshold.

        Raises:
            ValueError: the prompt is empty.
        """
        if not prompt.strip():
            raise ValueError(f"prompt is {prompt!r}; set a noun phrase such as 'an object'")
        text = prompt.strip()
        self.prompt = Prompt(text, (((0, len(text)),),), (0,), is_class_list=True)
        self.pooler = pooler
        self.settings = settings

    def __call__(self, encoder: QueryEncoder, features: ImageFeatures) -> Regions:
        """The regions of N images.

        Args:
            features: of the N images; they receive the gradients of the pooled features.

        Raises:
            TypeError: the proposal generator is not an EvidenceRPN.
        """
        head = encoder.proposal_generator
        if not isinstance(head, EvidenceRPN):
            raise TypeError(f"region proposals need an EvidenceRPN, not {type(head).__name__}")
        num_images = len(features.image_sizes)
        queries = [Query(i, QueryKind.DETECT, self.prompt) for i in range(num_images)]
        with torch.no_grad(), _evaluating(encoder.language_backbone, encoder.fused_head, head):
            tokens = encoder.tokenize(queries)
            fused = encoder.fuse(features, queries, tokens, encoder.encode_text(tokens))
            scores = head.score_objects(head.predict(fused), fused)
            detections = [
                self._limit(detect_labels(own, size, self.settings, head.box_coder))
                for own, size in zip(scores, fused.image_sizes, strict=True)
            ]
        boxes = [
            _relative_boxes(x, size)
            for x, size in zip(detections, features.image_sizes, strict=True)
        ]
        return Regions(
            self._pool(features.levels, detections),
            self._pad(_at_locations(fused.fused_features, detections)),
            self._pad(boxes),
        )

    def _limit(self, detections: DetectionsPerImage) -> DetectionsPerImage:
        # Detection keeps ties with the last one.
        return detections[torch.arange(len(detections))[: self.settings.detections_per_prompt]]

    def _pool(self, levels: dict[str, Tensor], detections: Sequence[DetectionsPerImage]) -> Tensor:
        """(N, R, C), the mean of each box in the level of its size."""
        boxes = [Boxes(to_exclusive(x.boxes)) for x in detections]
        features = [EvidenceLevel.split(level, dim=1).features for level in levels.values()]
        pooled = self.pooler(features, boxes).flatten(1)
        return self._pad(pooled.split([len(b) for b in boxes]))

    def _pad(self, rows_per_image: Sequence[Tensor]) -> Tensor:
        limit = self.settings.detections_per_prompt
        return torch.stack([F.pad(rows, (0, 0, 0, limit - len(rows))) for rows in rows_per_image])


def build_region_proposer(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> RegionProposer:
    """The proposer of ``cfg.MODEL.REGION_ENCODER``."""
    settings, grounding = cfg.MODEL.REGION_ENCODER, cfg.MODEL.GROUNDING
    pooler = ROIPooler(
        output_size=1,
        scales=[1 / level.stride for level in input_shape.values()],
        sampling_ratio=2,
        pooler_type="ROIAlignV2",
        # A box is pooled from the level whose anchor has about its size.
        canonical_box_size=int(grounding.ANCHOR_SCALE * _STRIDE),
        canonical_level=_LEVEL,
    )
    try:
        limits = PostprocessSettings(
            score_thresh=0.0,
            pre_nms_topk=grounding.PRE_NMS_TOPK,
            nms_thresh=settings.NMS_THRESH,
            detections_per_prompt=settings.NUM_REGIONS,
            aggregation=grounding.SCORE_AGGREGATION,
        )
        return RegionProposer(prompt=settings.PROMPT, pooler=pooler, settings=limits)
    except ValueError as error:
        raise with_config_keys(error, RegionProposer.config_keys) from error


def _at_locations(
    levels: dict[str, Tensor], detections: Sequence[DetectionsPerImage]
) -> list[Tensor]:
    """Per image (K, C), the features at the location of each detection."""
    locations = torch.cat([level.flatten(2) for level in levels.values()], dim=2)
    return [own[:, x.locations].T for own, x in zip(locations, detections, strict=True)]


def _relative_boxes(detections: DetectionsPerImage, image_size: tuple[int, int]) -> Tensor:
    """(K, 5), see :class:`~glipv2_mini.modeling.regions.Regions`."""
    height, width = image_size
    boxes = to_exclusive(detections.boxes)
    sizes = boxes[:, 2:] - boxes[:, :2]
    centers = boxes[:, :2] + sizes / 2
    relative = torch.cat([centers, sizes], dim=1) / boxes.new_tensor([width, height] * 2)
    return torch.cat([relative, detections.scores[:, None].to(relative)], dim=1)


@contextmanager
def _evaluating(*modules: nn.Module) -> Iterator[None]:
    """Set modules to evaluation mode, and restore the mode of every part afterwards."""
    in_training = [[part for part in module.modules() if part.training] for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for parts in in_training:
            for part in parts:
                part.training = True
