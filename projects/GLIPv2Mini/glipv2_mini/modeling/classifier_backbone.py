"""A frozen ImageNet classifier as the backbone, with dense class embeddings beside its features.

The class probabilities at each location weight the text embeddings of the class names: the convex
combination of semantic embeddings of Norouzi et al., "Zero-Shot Learning by Convex Combination of
Semantic Embeddings" (ICLR 2014, eq. 2), computed densely. Every level of the pyramid has it as its
last channels. It lies in the space of the text features, so that
:class:`~glipv2_mini.modeling.classifier_score.ClassifierScore` can compare the two directly and
detect classes without box annotations. Our choice, not GLIP's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, Self, TypedDict, cast

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.nn import functional as F

from glipv2_d2.config import with_config_keys
from glipv2_d2.layers.checkpoint_prefixes import CheckpointPrefixes
from glipv2_d2.modeling.backbone.fpn import GroundingFPN, build_grounding_fpn
from glipv2_d2.modeling.backbone.timm_backbone import build_timm_classifier
from glipv2_d2.modeling.language import build_language_backbone
from glipv2_d2.text.prompts import class_prompt
from glipv2_d2.text.tokenizer import Tokenizer

_CONFIG_KEYS = {
    "classifier": "MODEL.TIMM.NAME",
    "name": "MODEL.TIMM.NAME",
    "weights": "MODEL.TIMM.WEIGHTS",
}

# Temperature of the softmax over classes: flatter than at training, so that objects of an unknown
# class also get the embeddings of similar classes (our choice).
TEMPERATURE = 2.0
NAMES_PER_PROMPT = 20
# Width of the average pooling at stride 32 before the classifier, per level: about the size of the
# objects of the level, with anchors of four strides.
WINDOW_PER_LEVEL = (1, 1, 3, 7, 15)
# Strides of the features c3, c4 and c5, the last of the classifier.
STRIDES = (8, 16, 32)


class FeatureInfo(TypedDict):
    """What timm states about a stage: its channels and its stride."""

    num_chs: int
    reduction: int


class TimmClassifier(Protocol):
    """The part of a timm model that :class:`ClassifierBackbone` uses; it is an ``nn.Module``."""

    feature_info: Sequence[FeatureInfo]
    num_features: int

    def forward_intermediates(
        self, x: Tensor, indices: list[int], *, output_fmt: str
    ) -> tuple[Tensor, list[Tensor]]: ...

    def get_classifier(self) -> nn.Linear: ...

    def to(self, *, memory_format: torch.memory_format) -> Self: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool) -> Self: ...


class ClassifierBackbone(Backbone, CheckpointPrefixes):
    """Features c3, c4 and c5 of a classifier; c5 includes the dense class embeddings.

    The classifier is frozen: it keeps its classes that are absent from the training data, and
    training needs neither its activations nor its gradients.
    """

    class_embeddings: Tensor

    def __init__(
        self,
        *,
        classifier: TimmClassifier,
        class_embeddings: Tensor,
        checkpoint_excluded: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            classifier: a timm model with a linear classifier.
            class_embeddings: (classes, D), a text embedding per class, of any norm.
            checkpoint_excluded: prefixes of weights that checkpoints omit.

        Raises:
            ValueError: the classifier has no features of strides 8, 16 and 32.
        """
        super().__init__()
        self.checkpoint_excluded = checkpoint_excluded
        self.classifier = classifier.to(memory_format=torch.channels_last).eval()
        self.classifier.requires_grad_(False)
        self.register_buffer("class_embeddings", F.normalize(class_embeddings, dim=-1), False)
        info_of_stride = {
            info["reduction"]: (i, info) for i, info in enumerate(classifier.feature_info)
        }
        if not info_of_stride.keys() >= set(STRIDES):
            raise ValueError(
                f"{type(classifier).__name__} has features of strides {sorted(info_of_stride)}, "
                f"not {STRIDES}: choose another classifier"
            )
        (c3, info3), (c4, info4) = info_of_stride[8], info_of_stride[16]
        self._indices = [c3, c4]
        self._out_features = ["c3", "c4", "c5"]
        self._out_feature_strides = dict(zip(self._out_features, STRIDES, strict=True))
        self._out_feature_channels = {
            "c3": info3["num_chs"],
            "c4": info4["num_chs"],
            "c5": classifier.num_features + class_embeddings.shape[1],
        }

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.classifier.eval()
        return self

    @torch.no_grad()
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {"c<k>": (N, C_k, H / 2^k, W / 2^k)}."""
        last, (c3, c4) = self.classifier.forward_intermediates(
            image.contiguous(memory_format=torch.channels_last),
            indices=self._indices,
            output_fmt="NCHW",
        )
        return {"c3": c3, "c4": c4, "c5": torch.cat([last, self.embed_classes(last)], dim=1)}

    def embed_classes(self, last: Tensor) -> Tensor:
        """(N, C, h, w) last features -> (N, D, h, w) class embeddings of norm up to sqrt(D).

        The classifier averages the features before its linear layer. Averaging and a linear layer
        commute, so the layer applies at every location.
        """
        logits = self.classifier.get_classifier()(last.permute(0, 2, 3, 1))
        probabilities = (logits / TEMPERATURE).softmax(dim=-1)
        embedding = (
            probabilities @ self.class_embeddings * math.sqrt(self.class_embeddings.shape[1])
        )
        return embedding.permute(0, 3, 1, 2)


class ClassifierFPN(GroundingFPN):
    """A pyramid whose last D channels are the class embeddings of a frozen classifier."""

    bottom_up: ClassifierBackbone

    def __init__(self, *, bottom_up: ClassifierBackbone, **kwargs: Any) -> None:
        """Arguments as of :class:`GroundingFPN`."""
        super().__init__(bottom_up=bottom_up, **kwargs)
        if len(self._out_features) != len(WINDOW_PER_LEVEL):
            raise ValueError(
                f"in_features is {list(kwargs['in_features'])}; the classifier's pyramid needs "
                "c3, c4 and c5"
            )
        for name in self._out_features:
            self._out_feature_channels[name] += bottom_up.class_embeddings.shape[1]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {"p<k>": (N, C + D, H / 2^k, W / 2^k)}."""
        features = self.bottom_up(image)
        last = features["c5"][:, : self.bottom_up.classifier.num_features]
        return {
            name: torch.cat([level, self._embed_classes(last, level.shape[-2:], window)], dim=1)
            for (name, level), window in zip(
                self.merge(features).items(), WINDOW_PER_LEVEL, strict=True
            )
        }

    @torch.no_grad()
    def _embed_classes(self, last: Tensor, size: torch.Size, window: int) -> Tensor:
        """(N, D, *size), class embeddings of windows of (N, C, h, w) features."""
        pooled = F.avg_pool2d(last, window, stride=1, padding=window // 2, count_include_pad=False)
        # The classifier runs at the lower of the two resolutions.
        if size[0] < pooled.shape[-2]:
            pooled = F.interpolate(pooled, size=size, mode="bilinear", align_corners=False)
        embeddings = self.bottom_up.embed_classes(pooled)
        return F.interpolate(embeddings, size=size, mode="bilinear", align_corners=False)


@BACKBONE_REGISTRY.register()
def build_timm_classifier_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GroundingFPN:
    """Build the frozen timm classifier of ``cfg.MODEL.TIMM`` with the FPN of ``cfg.MODEL.FPN``.

    The language backbone of the config embeds ImageNet-1k's class names.

    Raises:
        ValueError: the language backbone has random weights.
    """
    if not cfg.MODEL.LANGUAGE_BACKBONE.WEIGHTS:
        raise ValueError(
            "MODEL.LANGUAGE_BACKBONE.WEIGHTS is empty, but build_timm_classifier_fpn_backbone "
            "embeds class names before MODEL.WEIGHTS is loaded: set a pretrained one"
        )
    timm, embeddings = cfg.MODEL.TIMM, embed_imagenet_names(cfg)
    try:
        classifier = build_timm_classifier(
            name=timm.NAME, weights=timm.WEIGHTS, in_channels=input_shape.channels
        )
        bottom_up = ClassifierBackbone(
            classifier=cast("TimmClassifier", classifier),
            class_embeddings=embeddings,
            # Frozen weights that come from a package are not stored.
            checkpoint_excluded=("classifier.",) if timm.WEIGHTS else (),
        )
    except ValueError as error:
        raise with_config_keys(error, _CONFIG_KEYS) from error
    return build_grounding_fpn(cfg, bottom_up, ClassifierFPN)


@torch.no_grad()
def embed_imagenet_names(cfg: CfgNode) -> Tensor:
    """(1000, D), the mean token feature of the first name of every ImageNet-1k class."""
    info = ImageNetInfo()
    names = [info.index_to_description(i).split(",")[0] for i in range(info.num_classes())]
    language_backbone = build_language_backbone(cfg).eval()
    tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
    embeddings = []
    for start in range(0, len(names), NAMES_PER_PROMPT):
        prompt = class_prompt(
            names[start : start + NAMES_PER_PROMPT], separator=cfg.MODEL.PROMPT.SEPARATOR
        )
        tokens = tokenizer([prompt])
        weights = tokens.positive_maps[0].float()
        hidden = language_backbone(tokens).hidden[0]
        embeddings.append(weights @ hidden / weights.sum(dim=1, keepdim=True))
    return torch.cat(embeddings)
