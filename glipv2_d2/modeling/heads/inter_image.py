"""L_inter: regions and tokens before fusion, projected and compared across images (training only).

N: images and their prompts. A: anchors of all levels. T: tokens. R: regions and W: tokens that take
part, of all images of the process.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import Tensor, nn

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.heads.base import LossHead
from glipv2_d2.modeling.losses.inter_image import NO_NAME, NamedVectors, inter_image_loss
from glipv2_d2.structures import (
    DenseTargets,
    FusedFeatures,
    Prompt,
    TokenBatch,
    gt_instances_of,
)
from glipv2_d2.text.names import normalized_name

# As in CLIP (arXiv:2103.00020, section 2.5): logits are at most 100.
MIN_TEMPERATURE = 0.01


class InterImageHead(LossHead, Configurable):
    """Contrasts features at positive anchors with the tokens of all images.

    Both come from before fusion: afterwards they depend on each other (GLIPv2 paper, section 3.2;
    the released code takes fused tokens). Only tokens of captions and class names take part, not
    separators and special tokens (our choice).
    """

    config_keys: ClassVar[dict[str, str]] = {"temperature": "MODEL.INTER_IMAGE.TEMPERATURE"}

    @configurable
    def __init__(
        self,
        *,
        visual_dim: int,
        language_dim: int,
        dim: int,
        max_regions_per_image: int,
        temperature: float,
        weight: float,
    ) -> None:
        """
        Args:
            visual_dim: C, channels of every level.
            language_dim: D, width of the text features.
            dim: E, width of the space in which they are compared.
            max_regions_per_image: limit of positive anchors; a random subset beyond it.
            temperature: initial temperature of the softmax (our choice: CLIP's).
            weight: factor of the loss.

        Raises:
            ValueError: the temperature is below its minimum.
        """
        super().__init__()
        if temperature < MIN_TEMPERATURE:
            raise ValueError(f"temperature is {temperature}; it must be at least {MIN_TEMPERATURE}")
        self.max_regions_per_image = max_regions_per_image
        self.weight = weight
        self.region_projection = nn.Linear(visual_dim, dim)
        self.word_projection = nn.Linear(language_dim, dim)
        self.log_temperature = nn.Parameter(torch.tensor([math.log(temperature)]))

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_dim: int
    ) -> dict[str, Any]:
        settings = cfg.MODEL.INTER_IMAGE
        return {
            "visual_dim": next(iter(input_shape.values())).channels,
            "language_dim": language_dim,
            "dim": settings.DIM,
            "max_regions_per_image": settings.MAX_REGIONS_PER_IMAGE,
            "temperature": settings.TEMPERATURE,
            "weight": settings.WEIGHT,
        }

    def losses(self, fused: FusedFeatures, targets: DenseTargets) -> dict[str, Tensor]:
        """``loss_inter_image``, in float32 also under autocast."""
        features, tokens, text = fused.features, fused.tokens, fused.text
        image, anchor = self.sample_regions(targets.matched_idxs)
        word_image, word_token = contrasted_tokens(tokens).nonzero(as_tuple=True)
        gt_names, token_names = name_ids(tokens, gt_instances_of(fused.queries))
        region_names = [
            names[matched[anchor[image == i]]]
            for i, (names, matched) in enumerate(zip(gt_names, targets.matched_idxs, strict=True))
        ]
        locations = torch.cat([level.flatten(2).transpose(1, 2) for level in features.values()], 1)
        with torch.autocast(locations.device.type, enabled=False):
            loss = inter_image_loss(
                NamedVectors(
                    self._project(self.region_projection, locations[image, anchor]),
                    image,
                    torch.cat(region_names),
                ),
                NamedVectors(
                    self._project(self.word_projection, text.hidden[word_image, word_token]),
                    word_image,
                    token_names[word_image, word_token],
                ),
                # Only pairs within an image are used.
                targets.token_targets[image, anchor][:, word_token] > 0,
                self.log_temperature.exp().clamp(min=MIN_TEMPERATURE),
            )
        return {"loss_inter_image": self.weight * loss}

    def sample_regions(self, matched_idxs: Tensor) -> tuple[Tensor, Tensor]:
        """Positive anchors of (N, A): the image (R,), ascending, and the anchor (R,) of each."""
        anchors_per_image = []
        for matched in matched_idxs:
            anchors = (matched >= 0).nonzero().squeeze(1)
            if len(anchors) > self.max_regions_per_image:
                order = torch.randperm(len(anchors), device=anchors.device)
                anchors = anchors[order[: self.max_regions_per_image]]
            anchors_per_image.append(anchors)
        images = [torch.full_like(anchors, i) for i, anchors in enumerate(anchors_per_image)]
        return torch.cat(images), torch.cat(anchors_per_image)

    @staticmethod
    def _project(projection: nn.Module, vectors: Tensor) -> Tensor:
        return F.normalize(projection(full_precision(vectors)), dim=-1)


def build_inter_image_head(
    cfg: CfgNode, input_shape: dict[str, ShapeSpec], language_dim: int
) -> InterImageHead | None:
    """The head of ``cfg.MODEL.INTER_IMAGE``; None where its weight is 0.

    Args:
        input_shape: shapes of the pyramid, all levels of one width.
        language_dim: D.
    """
    if cfg.MODEL.INTER_IMAGE.WEIGHT == 0:
        return None
    return InterImageHead(cfg, input_shape, language_dim)


def contrasted_tokens(tokens: TokenBatch) -> Tensor:
    """(N, T) bool: the tokens of class names in a list of them, all words in other prompts."""
    is_word = tokens.is_word
    for i, (prompt, positive_map) in enumerate(
        zip(tokens.prompts, tokens.positive_maps, strict=True)
    ):
        if prompt.is_class_list:
            is_word[i] &= positive_map.any(dim=0)
    return is_word


def name_ids(tokens: TokenBatch, gt_instances: Sequence[Instances]) -> tuple[list[Tensor], Tensor]:
    """Ids of the class names of ground truths and tokens, comparable between images.

    Returns:
        per image the id of each ground truth (G,), and the id of each token (N, T); int64, NO_NAME
        for captions and for tokens without a label.
    """
    token_names = torch.full_like(tokens.input_ids, NO_NAME)
    gt_names = [torch.full_like(instances.gt_classes, NO_NAME) for instances in gt_instances]
    for i, (prompt, instances) in enumerate(zip(tokens.prompts, gt_instances, strict=True)):
        if not prompt.is_class_list:
            continue
        ids = token_names.new_tensor(label_name_ids(prompt))
        labels, positions = tokens.positive_maps[i].nonzero(as_tuple=True)
        token_names[i, positions] = ids[labels]
        is_label = instances.gt_classes[:, None] == ids.new_tensor(prompt.classes)  # (G, labels)
        gt_names[i] = ids[is_label.int().argmax(dim=1)]  # the first, where a class has several
    return gt_names, token_names


def label_name_ids(prompt: Prompt) -> list[int]:
    """An id per label, the same for the same key or class name in every process and run."""
    keys = prompt.label_keys or [normalized_name(phrase) for phrase in prompt.phrases]
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    # 63 bits: a tensor's integers have a sign, and NO_NAME is negative.
    return [int.from_bytes(digest, "big") >> 1 for digest in digests]
