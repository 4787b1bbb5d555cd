"""ROI heads: a mask for every box, of class names and of phrases alike.

N: queries, each with the features of its image. G: ground truths, K: boxes, L: labels of one query.
T: tokens. D: width of the text features. S: side of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ROIAlign, ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, build_mask_head, build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks, pairwise_iou
from fvcore.nn import weight_init
from torch import Tensor, nn

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.box_coder import to_exclusive
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.layers.tracing import boxes_of, is_exporting
from glipv2_d2.modeling.heads.base import TEXT
from glipv2_d2.modeling.heads.grounding_rpn import gt_positive_map
from glipv2_d2.modeling.heads.mask_heads import REGION
from glipv2_d2.modeling.losses.mask import mask_loss
from glipv2_d2.modeling.postprocess import DetectionsPerImage
from glipv2_d2.structures import FusedFeatures, TextFeatures, gt_instances_of

FEATURES = ("fused", "fpn")
"""The maps that regions can be pooled from: after or before fusion."""


@ROI_HEADS_REGISTRY.register()
class GroundingROIHeads(nn.Module, Configurable):
    """Masks as products of pixels with the text that the box is scored against (GLIPv2 paper, 3.1).

    Built by Detectron2's ROI_HEADS_REGISTRY with the pyramid's shapes plus
    ``ShapeSpec(channels=D)`` under "text". Subclasses replace :meth:`predict_masks` and
    :meth:`losses`.
    """

    config_keys: ClassVar[dict[str, str]] = {
        "features": "MODEL.ROI_MASK_HEAD.FEATURES",
        "max_regions_per_image": "MODEL.ROI_MASK_HEAD.MAX_REGIONS_PER_IMAGE",
        "in_features": "MODEL.ROI_HEADS.IN_FEATURES",
    }

    @configurable
    def __init__(
        self,
        *,
        entry: nn.Module,
        pooler: ROIPooler,
        mask_head: nn.Module,
        in_features: Sequence[str],
        features: str,
        matcher: Matcher,
        max_regions_per_image: int,
        loss_weight: float,
    ) -> None:
        """
        Args:
            entry: projects a map to the channels of a region.
            pooler: pools boxes from the projected maps of ``in_features``.
            mask_head: called like :class:`~glipv2_d2.modeling.heads.mask_heads.HourglassMaskHead`.
            in_features: names of levels, finest first.
            features: one of :data:`FEATURES`.
            matcher: matches boxes to ground truth.
            max_regions_per_image: limit of boxes with a mask loss; a random subset beyond it.
            loss_weight: factor of the loss.

        Raises:
            ValueError: an argument is out of its range.
        """
        super().__init__()
        if features not in FEATURES:
            raise ValueError(f"features is {features!r}; choose one of {FEATURES}")
        if max_regions_per_image < 1:
            raise ValueError(
                f"max_regions_per_image is {max_regions_per_image}; it must be at least 1"
            )
        self.entry = entry
        self.pooler = pooler
        self.mask_head = mask_head
        self.in_features = list(in_features)
        self.features = features
        self.matcher = matcher
        self.max_regions_per_image = max_regions_per_image
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        heads, mask = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_MASK_HEAD
        unknown = [name for name in heads.IN_FEATURES if name not in input_shape]
        if unknown:
            raise ValueError(
                f"in_features has {unknown}; the levels are "
                f"{[name for name in input_shape if name != TEXT]}"
            )
        levels = [input_shape[name] for name in heads.IN_FEATURES]
        side = mask.POOLER_RESOLUTION
        region = ShapeSpec(channels=mask.CONV_DIM, height=side, width=side)
        return {
            "entry": build_entry(levels[0].channels, mask.CONV_DIM),
            "mask_head": build_mask_head(cfg, {REGION: region, TEXT: input_shape[TEXT]}),
            "pooler": ROIPooler(
                output_size=side,
                scales=[1 / level.stride for level in levels],
                sampling_ratio=mask.POOLER_SAMPLING_RATIO,
                pooler_type=mask.POOLER_TYPE,
            ),
            "in_features": heads.IN_FEATURES,
            "features": mask.FEATURES,
            "matcher": Matcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS),
            "max_regions_per_image": mask.MAX_REGIONS_PER_IMAGE,
            "loss_weight": mask.LOSS_WEIGHT,
        }

    def predict_masks(
        self, fused: FusedFeatures, detections: Sequence[DetectionsPerImage]
    ) -> list[DetectionsPerImage]:
        """The detections of each query with their masks.

        Raises:
            ValueError: in torch.export, as Detectron2's ROIPooler needs the number of detections.
        """
        if is_exporting():
            raise ValueError(
                "torch.export does not support masks: set MODEL.MASK_ON to False, or use "
                "torch.jit.trace"
            )
        text_per_query = [
            mean_text(hidden, positive_map)[found.labels]
            for hidden, positive_map, found in zip(
                normalized(fused.region_text), fused.tokens.positive_maps, detections, strict=True
            )
        ]
        boxes = [to_exclusive(found.boxes) for found in detections]
        masks = self.mask_logits(self._maps(fused), boxes, text_per_query).sigmoid()
        # Not by numbers of detections, which a tracer would record as constants.
        query_of = torch.cat([torch.full_like(x.labels, i) for i, x in enumerate(detections)])
        return [replace(found, masks=masks[query_of == i]) for i, found in enumerate(detections)]

    def losses(
        self, fused: FusedFeatures, detections: Sequence[DetectionsPerImage]
    ) -> dict[str, Tensor]:
        """``loss_mask`` of ground-truth boxes and of detections that match one.

        Args:
            fused: queries with ``gt_boxes`` (Detectron2's corners) and ``gt_masks`` in pixels of
                the network input, ``gt_classes`` of the prompt, and ``gt_has_mask`` (G,) bool where
                some ground truths have no mask.
            detections: per query.
        """
        boxes, targets, text_per_query = [], [], []
        gt_instances = gt_instances_of(fused.queries)
        for i, (hidden, found, instances) in enumerate(
            zip(normalized(fused.region_text), detections, gt_instances, strict=True)
        ):
            boxes_per_image, matched = self.sample_regions(found, instances)
            gt_tokens = gt_positive_map(
                fused.tokens.positive_maps[i],
                fused.tokens.prompts[i].classes,
                instances.gt_classes,
            )
            boxes.append(boxes_per_image)
            text_per_query.append(mean_text(hidden, gt_tokens)[matched])
            if len(matched) > 0:
                side = 2 * self.pooler.output_size[0]
                targets.append(crop_masks(instances.gt_masks, matched, boxes_per_image, side))
        logits = self.mask_logits(self._maps(fused), boxes, text_per_query)
        target = torch.cat(targets) if targets else torch.zeros_like(logits)
        return {"loss_mask": self.loss_weight * mask_loss(logits, target)}

    def _maps(self, fused: FusedFeatures) -> dict[str, Tensor]:
        return fused.fused_features if self.features == "fused" else fused.features

    def mask_logits(
        self,
        maps: dict[str, Tensor],
        boxes_per_query: Sequence[Tensor],
        text_per_query: Sequence[Tensor],
    ) -> Tensor:
        """Mask logits of the boxes of all queries.

        Args:
            maps: the pyramid of each query.
            boxes_per_query: (K, 4), Detectron2's corners.
            text_per_query: (K, D), see :func:`mean_text`.

        Returns:
            (sum of K, S, S) logits.
        """
        # ROIAlign casts the boxes to the dtype of its maps: in half precision they move by pixels.
        levels = [full_precision(self.entry(maps[name])) for name in self.in_features]
        regions = self.pooler(levels, [boxes_of(boxes) for boxes in boxes_per_query])
        return self.mask_head(regions, torch.cat(list(text_per_query)))

    @torch.no_grad()
    def sample_regions(
        self, found: DetectionsPerImage, instances: Instances
    ) -> tuple[Tensor, Tensor]:
        """Sample the boxes with a mask loss of one image, and match them to ground truth.

        The released code takes a thousand detections of any score; we take those of inference,
        whatever their label (our choice). A box that matches a ground truth without a mask is left
        out.

        Returns:
            (R, 4) boxes, Detectron2's corners, and (R,) the ground truth of each.
        """
        gt_boxes = instances.gt_boxes.tensor
        has_mask = has_masks(instances)
        own = has_mask.nonzero().squeeze(1)
        if len(own) == 0:
            return gt_boxes[:0], own
        found_boxes = to_exclusive(found.boxes)
        matched, is_match = self.matcher(pairwise_iou(instances.gt_boxes, Boxes(found_boxes)))
        is_positive = (is_match == 1) & has_mask[matched]
        boxes = torch.cat([gt_boxes[own], found_boxes[is_positive].to(gt_boxes)])
        matched = torch.cat([own, matched[is_positive]])
        if len(boxes) > self.max_regions_per_image:
            # Boxes of the ground truth first.
            order = torch.cat([random_order(own), len(own) + random_order(matched[len(own) :])])
            sampled = order[: self.max_regions_per_image]
            boxes, matched = boxes[sampled], matched[sampled]
        return boxes, matched


def build_grounding_roi_heads(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_dim: int
) -> GroundingROIHeads | None:
    """The heads of ``cfg.MODEL.ROI_HEADS``; None where ``cfg.MODEL.MASK_ON`` is not set.

    Args:
        input_shape: shapes of the pyramid, all levels of one width.
        language_dim: D.
    """
    if not cfg.MODEL.MASK_ON:
        return None
    return build_roi_heads(cfg, {**input_shape, TEXT: ShapeSpec(channels=language_dim)})


def build_entry(visual_dim: int, dim: int) -> nn.Module:
    """A projection of maps to the width of a region; the identity where the widths agree.

    The projection could follow the pooling (both are linear), but overlapping boxes have many more
    locations together than the maps.
    """
    if visual_dim == dim:
        return nn.Identity()
    entry = Conv2d(visual_dim, dim, kernel_size=1)
    weight_init.c2_msra_fill(entry)
    return entry


def normalized(text: TextFeatures) -> Tensor:
    """(N, T, D) L2-normalised features, at least float32."""
    return F.normalize(full_precision(text.hidden), dim=-1)


def mean_text(text: Tensor, positive_map: Tensor) -> Tensor:
    """The mean of the tokens that spell each label.

    Args:
        text: (T, D).
        positive_map: (L, T) bool.

    Returns:
        (L, D); zeros for a label without tokens.
    """
    weights = positive_map.to(text.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    with torch.autocast(text.device.type, enabled=False):
        # Rows of padding are undefined, and zero times infinity is NaN.
        return weights @ text.masked_fill(~positive_map.any(dim=0)[:, None], 0)


def has_masks(instances: Instances) -> Tensor:
    """(G,) bool, whether each ground truth has a mask (and not a placeholder)."""
    if instances.has("gt_has_mask"):
        return instances.gt_has_mask
    return torch.full_like(instances.gt_classes, instances.has("gt_masks"), dtype=torch.bool)


def random_order(rows: Tensor) -> Tensor:
    return torch.randperm(len(rows), device=rows.device)


def crop_masks(masks: PolygonMasks | BitMasks, matched: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The part of a mask inside each box, resampled to a grid.

    Args:
        masks: masks of G ground truths, in pixels of the network input.
        matched: (R,) index of each box's mask.
        boxes: (R, 4), Detectron2's corners.

    Returns:
        (R, side, side) bool.
    """
    if isinstance(masks, PolygonMasks):
        return masks[matched].crop_and_resize(boxes, side)
    # BitMasks.crop_and_resize would copy the mask for every box.
    rois = torch.cat([matched[:, None].to(boxes), boxes], dim=1)
    align = ROIAlign((side, side), spatial_scale=1.0, sampling_ratio=0, aligned=True)
    return align(masks.tensor[:, None].to(boxes.dtype), rois)[:, 0] >= 0.5
