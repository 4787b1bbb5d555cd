"""What is done box by box: masks, of class names and of phrases alike.

N: images and their prompts. G: ground truths, K: boxes, L: labels of one image. T: tokens. D: width
of the words. S: side of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ROIAlign, ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, build_mask_head, build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks, pairwise_iou
from fvcore.nn import weight_init
from torch import Tensor, nn

from glipv2_d2.layers.box_coder import to_exclusive
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.heads.grounding_rpn import LANGUAGE, gt_positive_map
from glipv2_d2.modeling.heads.mask_heads import REGION
from glipv2_d2.modeling.losses.mask import mask_loss
from glipv2_d2.modeling.postprocess import DetectionsPerImage
from glipv2_d2.structures import TextFeatures, TokenBatch

MAPS = ("fused", "fpn")
"""Which maps boxes may be cut from: with the words in them, or as the FPN gave them."""


@ROI_HEADS_REGISTRY.register()
class GroundingROIHeads(nn.Module):
    """A mask for every box, matched with the words that the box's score was (GLIPv2 paper, 3.1).

    Others may take its place by name: they are built with the pyramid's shapes plus
    ``ShapeSpec(channels=D)`` under "language", and called as :meth:`forward` is.
    """

    @configurable
    def __init__(
        self,
        *,
        entry: nn.Module,
        pooler: ROIPooler,
        mask_head: nn.Module,
        in_features: Sequence[str],
        maps: str,
        matcher: Matcher,
        max_regions_per_image: int,
        loss_weight: float,
    ) -> None:
        """
        Args:
            entry: brings a map to the channels of a region.
            pooler: cuts boxes out of such maps, of ``in_features``.
            mask_head: called as :class:`~glipv2_d2.modeling.heads.mask_heads.HourglassMaskHead` is.
            in_features: names of levels, finest first.
            maps: one of MAPS.
            matcher: says which boxes show which ground truth.
            max_regions_per_image: of which masks are learned, a random choice where there are more.
            loss_weight: factor of the loss.

        Raises:
            ValueError: a value is none that it may have.
        """
        super().__init__()
        if maps not in MAPS:
            raise ValueError(f"MODEL.ROI_MASK_HEAD.MAPS is {maps!r}; choose one of {MAPS}")
        if max_regions_per_image < 1:
            raise ValueError(
                f"MODEL.ROI_MASK_HEAD.MAX_REGIONS_PER_IMAGE is {max_regions_per_image}; "
                "it must be at least 1"
            )
        self.entry = entry
        self.pooler = pooler
        self.mask_head = mask_head
        self.in_features = list(in_features)
        self.maps = maps
        self.matcher = matcher
        self.max_regions_per_image = max_regions_per_image
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        heads, mask = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_MASK_HEAD
        unknown = [name for name in heads.IN_FEATURES if name not in input_shape]
        if unknown:
            raise ValueError(
                f"MODEL.ROI_HEADS.IN_FEATURES names {unknown}; the levels are "
                f"{[name for name in input_shape if name != LANGUAGE]}"
            )
        levels = [input_shape[name] for name in heads.IN_FEATURES]
        side = mask.POOLER_RESOLUTION
        region = ShapeSpec(channels=mask.CONV_DIM, height=side, width=side)
        return {
            "entry": build_entry(levels[0].channels, mask.CONV_DIM),
            "mask_head": build_mask_head(cfg, {REGION: region, LANGUAGE: input_shape[LANGUAGE]}),
            "pooler": ROIPooler(
                output_size=side,
                scales=[1 / level.stride for level in levels],
                sampling_ratio=mask.POOLER_SAMPLING_RATIO,
                pooler_type=mask.POOLER_TYPE,
            ),
            "in_features": heads.IN_FEATURES,
            "maps": mask.MAPS,
            "matcher": Matcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS),
            "max_regions_per_image": mask.MAX_REGIONS_PER_IMAGE,
            "loss_weight": mask.LOSS_WEIGHT,
        }

    def forward(
        self,
        features: dict[str, Tensor],
        fused_features: dict[str, Tensor],
        words: TextFeatures,
        tokens: TokenBatch,
        detections: Sequence[DetectionsPerImage],
        gt_instances: Sequence[Instances] | None = None,
    ) -> tuple[list[DetectionsPerImage], dict[str, Tensor]]:
        """Give detections their masks, or with ground truth: learn.

        Args:
            features, fused_features: of N images, before and after fusion.
            words: (N, T, D), those that regions are scored against.
            tokens: which tokens spell which label.
            detections: per image, of its prompt.
            gt_instances: per image, ``gt_boxes`` (Detectron2's corners) and ``gt_masks`` in pixels
                of the network input, ``gt_classes``, classes of the image's prompt, and
                ``gt_has_mask`` (G,) bool where not every mask is one.

        Returns:
            the detections with masks and no losses; or no detections and ``loss_mask``.
        """
        maps = fused_features if self.maps == "fused" else features
        if gt_instances is not None:
            return [], self.losses(maps, words, tokens, detections, gt_instances)
        words_per_image = [
            mean_words(hidden, positive_map)[found.labels]
            for hidden, positive_map, found in zip(
                normalized(words), tokens.positive_maps, detections, strict=True
            )
        ]
        boxes = [to_exclusive(found.boxes) for found in detections]
        masks = self.mask_logits(maps, boxes, words_per_image).sigmoid()
        masks_per_image = masks.split([len(found) for found in detections])
        with_masks = [
            replace(found, masks=masks)
            for found, masks in zip(detections, masks_per_image, strict=True)
        ]
        return with_masks, {}

    def losses(
        self,
        maps: dict[str, Tensor],
        words: TextFeatures,
        tokens: TokenBatch,
        detections: Sequence[DetectionsPerImage],
        gt_instances: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """``loss_mask`` of boxes of the ground truth and of detections that show it."""
        boxes, targets, words_per_image = [], [], []
        for i, (hidden, found, instances) in enumerate(
            zip(normalized(words), detections, gt_instances, strict=True)
        ):
            boxes_per_image, matched = self.choose_regions(found, instances)
            gt_tokens = gt_positive_map(
                tokens.positive_maps[i], tokens.prompts[i].classes, instances.gt_classes
            )
            boxes.append(boxes_per_image)
            words_per_image.append(mean_words(hidden, gt_tokens)[matched])
            if len(matched) > 0:
                side = 2 * self.pooler.output_size[0]
                targets.append(crop_masks(instances.gt_masks, matched, boxes_per_image, side))
        logits = self.mask_logits(maps, boxes, words_per_image)
        target = torch.cat(targets) if targets else torch.zeros_like(logits)
        return {"loss_mask": self.loss_weight * mask_loss(logits, target)}

    def mask_logits(
        self,
        maps: dict[str, Tensor],
        boxes_per_image: Sequence[Tensor],
        words_per_image: Sequence[Tensor],
    ) -> Tensor:
        """Masks of the boxes of all images together.

        Args:
            boxes_per_image: (K, 4), Detectron2's corners.
            words_per_image: (K, D), see :func:`mean_words`.

        Returns:
            (sum of K, S, S) logits.
        """
        # ROIAlign rounds the boxes to the type of its maps: half a mantissa misses by pixels.
        levels = [full_precision(self.entry(maps[name])) for name in self.in_features]
        regions = self.pooler(levels, [Boxes(boxes) for boxes in boxes_per_image])
        return self.mask_head(regions, torch.cat(list(words_per_image)))

    @torch.no_grad()
    def choose_regions(
        self, found: DetectionsPerImage, instances: Instances
    ) -> tuple[Tensor, Tensor]:
        """The boxes of one image to learn masks of, and what they show.

        The released code takes a thousand detections of any score; ours are those of inference, and
        what they are called does not matter, either (our choice). A box that shows a ground truth
        without a mask is left out.

        Returns:
            (R, 4) boxes, Detectron2's corners, and (R,) the ground truth of each.
        """
        gt_boxes = instances.gt_boxes.tensor
        has_mask = which_have_masks(instances)
        own = has_mask.nonzero().squeeze(1)
        if len(own) == 0:
            return gt_boxes[:0], own
        found_boxes = to_exclusive(found.boxes)
        matched, is_match = self.matcher(pairwise_iou(instances.gt_boxes, Boxes(found_boxes)))
        shows_mask = (is_match == 1) & has_mask[matched]
        boxes = torch.cat([gt_boxes[own], found_boxes[shows_mask].to(gt_boxes)])
        matched = torch.cat([own, matched[shows_mask]])
        if len(boxes) > self.max_regions_per_image:
            # Boxes of the ground truth first.
            order = torch.cat([random_order(own), len(own) + random_order(matched[len(own) :])])
            chosen = order[: self.max_regions_per_image]
            boxes, matched = boxes[chosen], matched[chosen]
        return boxes, matched


def build_grounding_roi_heads(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_dim: int
) -> nn.Module | None:
    """The heads of ``cfg.MODEL.ROI_HEADS``; None where ``cfg.MODEL.MASK_ON`` is not set.

    Args:
        input_shape: of the pyramid, all levels of one width.
        language_dim: D.
    """
    if not cfg.MODEL.MASK_ON:
        return None
    return build_roi_heads(cfg, {**input_shape, LANGUAGE: ShapeSpec(channels=language_dim)})


def build_entry(visual_dim: int, dim: int) -> nn.Module:
    """Maps -> maps of the width of a region; the released head is as wide as its maps.

    As both are linear, this convolution could as well follow the pooling; but boxes overlap, and
    have many more places together than the maps.
    """
    if visual_dim == dim:
        return nn.Identity()
    entry = Conv2d(visual_dim, dim, kernel_size=1)
    weight_init.c2_msra_fill(entry)
    return entry


def normalized(words: TextFeatures) -> Tensor:
    """(N, T, D) words of length 1, at least float32."""
    return F.normalize(full_precision(words.hidden), dim=-1)


def mean_words(words: Tensor, positive_map: Tensor) -> Tensor:
    """The mean of the words that spell each label.

    Args:
        words: (T, D).
        positive_map: (L, T) bool.

    Returns:
        (L, D); zeros for a label without tokens.
    """
    weights = positive_map.to(words.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    with torch.autocast(words.device.type, enabled=False):
        # Rows of padding have no meaning, and zero times infinity is none.
        return weights @ words.masked_fill(~positive_map.any(dim=0)[:, None], 0)


def which_have_masks(instances: Instances) -> Tensor:
    """(G,) bool, whose mask is one, and no stand-in for a mask that its file does not have."""
    if instances.has("gt_has_mask"):
        return instances.gt_has_mask
    return torch.full_like(instances.gt_classes, instances.has("gt_masks"), dtype=torch.bool)


def random_order(rows: Tensor) -> Tensor:
    return torch.randperm(len(rows), device=rows.device)


def crop_masks(masks: PolygonMasks | BitMasks, matched: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The part of a mask that each box shows, on a grid.

    Args:
        masks: of G ground truths, in pixels of the network input.
        matched: (R,) the mask of each box.
        boxes: (R, 4), Detectron2's corners.

    Returns:
        (R, side, side) bool.
    """
    if isinstance(masks, PolygonMasks):
        return masks[matched].crop_and_resize(boxes, side)
    # As BitMasks.crop_and_resize, which would want a copy of the mask for every box.
    rois = torch.cat([matched[:, None].to(boxes), boxes], dim=1)
    align = ROIAlign((side, side), spatial_scale=1.0, sampling_ratio=0, aligned=True)
    return align(masks.tensor[:, None].to(boxes.dtype), rois)[:, 0] >= 0.5
