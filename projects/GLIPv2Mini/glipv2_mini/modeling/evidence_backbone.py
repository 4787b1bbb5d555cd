"""A detector and a classifier with closed lists of classes, as a backbone with evidence.

NanoDet-g (:mod:`glipv2_mini.modeling.nanodet`) gives the maps, boxes and probabilities of COCO's
classes. An ImageNet classifier receives the best boxes, each cut out of the image. The channels of
every level hold both (:class:`EvidenceLevel`), so that the heads start from what the two networks
know. Our choice, not GLIP's.

N: images. H, W: size of the network input in pixels; h, w: of a level in locations. K: boxes cut
out of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from glipv2_d2.checkpoint import read_checkpoint
from glipv2_d2.layers.checkpoint_prefixes import CheckpointPrefixes
from glipv2_d2.layers.tracing import is_tracing
from glipv2_d2.modeling.backbone.timm_backbone import build_timm_classifier
from glipv2_mini.modeling.batch_norm_folding import fold_batch_norms
from glipv2_mini.modeling.colors import NUM_COLORS, colors_of_boxes
from glipv2_mini.modeling.int8_classifier import quantize_classifier, supports_int8
from glipv2_mini.modeling.nanodet import (
    FEATURE_CHANNELS,
    NUM_CLASSES,
    PIXEL_MEAN,
    PIXEL_STD,
    STRIDES,
    NanoDet,
    NanoDetLevel,
    boxes_of,
    build_nanodet_backbone,
)

NUM_IMAGENET_CLASSES = 1000
# Channels of a level beside the features.
EVIDENCE_CHANNELS = NUM_CLASSES + 4 + NUM_COLORS + 1 + NUM_IMAGENET_CLASSES

# Of the classifier: EfficientNet-Lite's own normalisation, R, G, B, and its input size.
CLASSIFIER_MEAN, CLASSIFIER_STD = 127.0, 128.0
CUTOUT_SIZE = 224
# Share of the longer side that is added around a box: context, and room for inexact boxes.
CUTOUT_MARGIN = 0.1
# Cut-outs per call of the classifier: larger batches leave the cache of a CPU.
CUTOUTS_PER_BATCH = {"cpu": 4}
# IoU above which the less probable of two boxes is not cut out.
CUTOUT_NMS_THRESH = 0.6


@dataclass(frozen=True)
class EvidenceLevel:
    """The parts of the last dimension of regions, or of the channels of a level.

    Attributes:
        features: (..., 128), of NanoDet's tower, or of the fused maps.
        class_probs: (..., 80), 0..1, of COCO's classes, independent of each other.
        distances: (..., 4), to the left, top, right and bottom of the box, in pixels of the network
            input.
        color_probs: (..., 11), of the box, of the colours in
            :data:`~glipv2_mini.modeling.colors.COLOR_NAMES`; they sum to 1.
        is_cut_out: (..., 1), 1 where the box was cut out and classified, else 0.
        class_logits: (..., 1000), of ImageNet's classes; zeros where ``is_cut_out`` is 0. (..., 0)
            of a model without cut-outs.
    """

    features: Tensor
    class_probs: Tensor
    distances: Tensor
    color_probs: Tensor
    is_cut_out: Tensor
    class_logits: Tensor

    @staticmethod
    def split(regions: Tensor, dim: int = -1) -> EvidenceLevel:
        """The parts of regions (..., 128 + 1096), or of a level with ``dim=1``, as views.

        Without cut-outs they have 128 + 96 channels.
        """
        sizes = (FEATURE_CHANNELS, NUM_CLASSES, 4, NUM_COLORS, 1)
        num_logits = regions.shape[dim] - sum(sizes)
        return EvidenceLevel(*regions.split((*sizes, num_logits), dim=dim))


class EvidenceBackbone(CheckpointPrefixes, Backbone):
    """The levels of NanoDet with the classified cut-outs of its best boxes.

    Only features and distances are differentiable: class probabilities are evidence.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        detector: NanoDet,
        classifier: nn.Module,
        num_cutouts: int,
        num_cutouts_train: int,
        int8_classifier: nn.Module | None = None,
        checkpoint_excluded: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            detector: the trunk.
            classifier: (N, 3, 224, 224), R, G, B -> (N, 1000) logits of ImageNet's classes.
            int8_classifier: takes its place on a CPU, except in recorded graphs.
            num_cutouts: boxes cut out of an image at inference; 0: none.
            num_cutouts_train: the same in training.
            checkpoint_excluded: prefixes of weights that checkpoints omit.

        Raises:
            ValueError: a number of cut-outs is negative.
        """
        super().__init__()
        if num_cutouts < 0 or num_cutouts_train < 0:
            raise ValueError(
                f"num_cutouts is {num_cutouts} and num_cutouts_train {num_cutouts_train}; "
                "neither may be negative"
            )
        self.detector = detector
        self.classifier = classifier.to(memory_format=torch.channels_last).eval()
        self.classifier.requires_grad_(False)
        self.int8_classifier = int8_classifier
        self.num_cutouts = num_cutouts
        self.num_cutouts_train = num_cutouts_train
        self.checkpoint_excluded = checkpoint_excluded
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), False)
        self._out_features = ["p3", "p4", "p5"]
        self._out_feature_strides = dict(zip(self._out_features, STRIDES, strict=True))
        channels = FEATURE_CHANNELS + EVIDENCE_CHANNELS
        self._out_feature_channels = dict.fromkeys(self._out_features, channels)

    @property
    def size_divisibility(self) -> int:
        return self.detector.size_divisibility

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.classifier.eval()
        if self.int8_classifier is not None:
            self.int8_classifier.eval()
        return self

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {"p<k>": (N, 128 + 1096, H / 2^k, W / 2^k)}, see :class:`EvidenceLevel`.

        Without cut-outs the levels have 128 + 96 channels.

        Args:
            image: as of :class:`~glipv2_mini.modeling.nanodet.NanoDet`.
        """
        levels = self.detector(image)
        num_locations = [math.prod(map(int, level.shape[-2:])) for level in levels.values()]
        evidence = self._box_evidence(image, {k: level.detach() for k, level in levels.items()})
        return {
            name: torch.cat([level, part.unflatten(2, level.shape[-2:]).to(level)], dim=1)
            for (name, level), part in zip(
                levels.items(), evidence.split(num_locations, dim=2), strict=True
            )
        }

    @torch.no_grad()
    def _box_evidence(self, image: Tensor, levels: dict[str, Tensor]) -> Tensor:
        """(N, 11 + 1 + 1000, locations of all levels): colours, and the classified cut-outs."""
        boxes = all_boxes(levels)
        pixels = self.rgb(image)
        colors = colors_of_boxes(pixels, boxes).transpose(1, 2)
        count = self.num_cutouts_train if self.training else self.num_cutouts
        # Whether a location is cut out, and its logits.
        num_channels = 1 + (NUM_IMAGENET_CLASSES if count > 0 else 0)
        classified = colors.new_zeros(len(image), num_channels, boxes.shape[1], dtype=torch.float32)
        if count > 0:
            cutouts, locations = best_boxes(levels, boxes, count, image.shape[-2:])
            logits = F.pad(self.classify(pixels, cutouts), (1, 0), value=1.0)
            rows_per_image = logits.split([len(x) for x in locations])
            classified = torch.stack(
                [
                    own.index_copy(1, index, rows.T)
                    for own, rows, index in zip(classified, rows_per_image, locations, strict=True)
                ]
            )
        return torch.cat([colors.to(classified), classified], dim=1)

    def rgb(self, image: Tensor) -> Tensor:
        """Normalised B, G, R -> R, G, B in 0..255."""
        return (image * self.pixel_std + self.pixel_mean).flip(1)

    def classify(self, pixels: Tensor, boxes_per_image: Sequence[Tensor]) -> Tensor:
        """Logits of ImageNet's classes for boxes cut out of the images.

        Args:
            pixels: (N, 3, H, W), R, G, B in 0..255.
            boxes_per_image: (K, 4) each, XYXY in pixels of the network input.

        Returns:
            (all boxes, 1000).
        """
        classifier = self.classifier
        if self.int8_classifier is not None and _is_float32_on_cpu(pixels) and not is_tracing():
            classifier = self.int8_classifier
            # A change of a coordinate by rounding would change some of the levels.
            boxes_per_image = [boxes.round() for boxes in boxes_per_image]
        height, width = pixels.shape[-2:]
        limit = pixels.new_tensor([width, height, width, height])
        pixels = (pixels - CLASSIFIER_MEAN) / CLASSIFIER_STD
        enlarged = [
            torch.minimum(enlarge(boxes, CUTOUT_MARGIN).clamp(min=0), limit)
            for boxes in boxes_per_image
        ]
        cutouts = roi_align(
            pixels, enlarged, output_size=CUTOUT_SIZE, sampling_ratio=2, aligned=True
        )
        cutouts = cutouts.contiguous(memory_format=torch.channels_last)
        batch_size = CUTOUTS_PER_BATCH.get(cutouts.device.type, max(1, len(cutouts)))
        if is_tracing():
            batch_size = max(1, len(cutouts))  # a graph repeats the classifier for every batch
        return torch.cat([classifier(batch).float() for batch in cutouts.split(batch_size)])


def _is_float32_on_cpu(pixels: Tensor) -> bool:
    return pixels.device.type == "cpu" and pixels.dtype == torch.float32


def all_boxes(levels: dict[str, Tensor]) -> Tensor:
    """(N, A, 4), the boxes of all locations of NanoDet's levels, not clipped."""
    parts = [NanoDetLevel.split(level) for level in levels.values()]
    return torch.cat(
        [boxes_of(x.distances, stride) for x, stride in zip(parts, STRIDES, strict=True)], dim=1
    )


def best_boxes(
    levels: dict[str, Tensor], boxes: Tensor, count: int, image_size: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Per image the (K, 4) boxes of the most probable objects, and their locations (K,)."""
    parts = [NanoDetLevel.split(level) for level in levels.values()]
    scores = torch.cat([x.class_probs.amax(dim=1).flatten(1) for x in parts], dim=1)
    height, width = image_size
    boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    locations = [
        _first(nms(own.float(), score.float(), CUTOUT_NMS_THRESH), score, count)
        for own, score in zip(boxes, scores, strict=True)
    ]
    return [own[index] for own, index in zip(boxes, locations, strict=True)], locations


def _first(kept: Tensor, scores: Tensor, count: int) -> Tensor:
    """The first of the indices that NMS keeps; at most ``count``, but of a recorded graph exactly.

    The number in its first image would be a constant of the graph. Missing ones repeat the best,
    which changes no evidence.
    """
    if is_tracing():
        kept = torch.cat([kept, scores.argmax().expand(count)])
    return kept[:count]


def enlarge(boxes: Tensor, share: float) -> Tensor:
    """XYXY boxes (K, 4) with ``share`` of their longer side added on every side.

    >>> enlarge(torch.tensor([[10.0, 20.0, 30.0, 60.0]]), 0.1).tolist()
    [[6.0, 16.0, 34.0, 64.0]]
    """
    margin = share * (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True)
    return torch.cat([boxes[:, :2] - margin, boxes[:, 2:] + margin], dim=1)


def load_detector(detector: NanoDet, path: str) -> None:
    """Load a file of ``tools/convert_nanodet.py``.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is a file of another model.
    """
    weights = read_checkpoint(path, key="MODEL.EVIDENCE.DETECTOR_WEIGHTS")["model"]
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"MODEL.EVIDENCE.DETECTOR_WEIGHTS '{path}' is not NanoDet-g: pass the file that "
            f"tools/convert_nanodet.py writes ({error})"
        ) from error


@BACKBONE_REGISTRY.register()
def build_evidence_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> EvidenceBackbone:
    """Build NanoDet-g with the timm classifier of ``cfg.MODEL.TIMM`` on its best boxes."""
    classifier = build_timm_classifier(
        name=cfg.MODEL.TIMM.NAME, weights=cfg.MODEL.TIMM.WEIGHTS, in_channels=input_shape.channels
    )
    int8_classifier = None
    if cfg.MODEL.TIMM.WEIGHTS:
        if cfg.MODEL.EVIDENCE.INT8_CLASSIFIER and supports_int8():
            int8_classifier = quantize_classifier(classifier)
        # They come from a package and are not stored, so that parameters may change their names.
        fold_batch_norms(classifier.eval())
    detector = build_nanodet_backbone(cfg, input_shape)
    if cfg.MODEL.EVIDENCE.DETECTOR_WEIGHTS:
        load_detector(detector, cfg.MODEL.EVIDENCE.DETECTOR_WEIGHTS)
    return EvidenceBackbone(
        detector=detector,
        classifier=classifier,
        num_cutouts=cfg.MODEL.EVIDENCE.NUM_CUTOUTS,
        num_cutouts_train=cfg.MODEL.EVIDENCE.NUM_CUTOUTS_TRAIN,
        int8_classifier=int8_classifier,
        # Frozen weights that come from a package are not stored.
        checkpoint_excluded=("classifier.", "int8_classifier.") if cfg.MODEL.TIMM.WEIGHTS else (),
    )
