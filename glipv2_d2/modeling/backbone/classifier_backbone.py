"""A frozen image classifier that also says, at every place, which of its classes it sees there.

A detector trained on a few hundred names can only learn how those look. An ImageNet classifier
knows a thousand more. Its class probabilities at a location, each class standing for the text
embedding of its name, are a vector in the space of the words that the detector is asked about: the
convex combination of semantic embeddings of Norouzi et al., "Zero-Shot Learning by Convex
Combination of Semantic Embeddings" (ICLR 2014, eq. 2), computed densely. Every level of the pyramid
carries it as its last channels, so that a score can compare it with the words directly
(:class:`~glipv2_d2.modeling.heads.region_word.ClassifierScore`) and names that no box was
ever drawn for are found, too. Our choice, not GLIP's.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn import functional as F

from glipv2_d2.modeling.backbone.fpn import GroundingFPN, build_grounding_fpn
from glipv2_d2.modeling.backbone.timm_backbone import build_timm_classifier
from glipv2_d2.modeling.language import build_language_backbone
from glipv2_d2.text.prompts import class_prompt
from glipv2_d2.text.tokenizer import Tokenizer

# Probabilities are taken from logits divided by this: flatter than at training, so that classes
# near a thing that the classifier does not know are heard, too (our choice).
TEMPERATURE = 2.0
NAMES_PER_PROMPT = 20
# Cells of stride 32 whose mean the classifier is asked about, per level: about as wide as the
# things that the level finds with anchors of four strides.
WINDOW_PER_LEVEL = (1, 1, 3, 7, 15)
# Strides of the features that are given: c3, c4, and the classifier's last.
STRIDES = (8, 16, 32)


class ClassifierBackbone(Backbone):
    """Features c3, c4 and, for c5, the classifier's last features with the words it sees.

    The classifier is frozen: it keeps what it knows about things that are not in the training data,
    and training needs neither its activations nor its gradients.
    """

    class_embeddings: Tensor

    def __init__(
        self,
        *,
        classifier: Any,
        class_embeddings: Tensor,
        checkpoint_excluded: tuple[str, ...] = (),
    ) -> None:
        """
        Args:
            classifier: a timm model with ``forward_intermediates`` and a linear classifier.
            class_embeddings: (classes, D), a text embedding per class, of any length.
            checkpoint_excluded: prefixes of weights that checkpoints leave out.

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
                f"not {STRIDES}: choose another MODEL.TIMM.NAME"
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
        return {"c3": c3, "c4": c4, "c5": torch.cat([last, self.words_seen(last)], dim=1)}

    def words_seen(self, last: Tensor) -> Tensor:
        """(N, C, h, w) last features -> (N, D, h, w) embeddings of length up to sqrt(D).

        The classifier averages the features before its linear layer. As averaging and a linear
        layer commute, the layer can be asked at every place.
        """
        places = last.permute(0, 2, 3, 1)
        logits = self.classifier.get_classifier()(places)
        probabilities = (logits / TEMPERATURE).softmax(dim=-1)
        embedding = (
            probabilities @ self.class_embeddings * math.sqrt(self.class_embeddings.shape[1])
        )
        return embedding.permute(0, 3, 1, 2)


class ClassifierFPN(GroundingFPN):
    """A pyramid whose last D channels are the words that a frozen classifier sees there."""

    bottom_up: ClassifierBackbone

    def __init__(self, *, bottom_up: ClassifierBackbone, **kwargs: Any) -> None:
        """Arguments as of :class:`GroundingFPN`."""
        super().__init__(bottom_up=bottom_up, **kwargs)
        if len(self._out_features) != len(WINDOW_PER_LEVEL):
            raise ValueError(
                f"MODEL.FPN.IN_FEATURES is {list(kwargs['in_features'])}; the classifier's pyramid "
                "needs c3, c4 and c5"
            )
        for name in self._out_features:
            self._out_feature_channels[name] += bottom_up.class_embeddings.shape[1]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> {"p<k>": (N, C + D, H / 2^k, W / 2^k)}."""
        features = self.bottom_up(image)
        last = features["c5"][:, : self.bottom_up.classifier.num_features]
        return {
            name: torch.cat([level, self._words_at(last, level.shape[-2:], window)], dim=1)
            for (name, level), window in zip(
                self.merge(features).items(), WINDOW_PER_LEVEL, strict=True
            )
        }

    @torch.no_grad()
    def _words_at(self, last: Tensor, size: torch.Size, window: int) -> Tensor:
        """(N, D, *size), the words seen in windows of (N, C, h, w) features."""
        seen = F.avg_pool2d(last, window, stride=1, padding=window // 2, count_include_pad=False)
        coarser = size[0] < seen.shape[-2]
        # The classifier is asked at the fewer of the places.
        if coarser:
            seen = F.interpolate(seen, size=size, mode="bilinear", align_corners=False)
        words = self.bottom_up.words_seen(seen)
        return F.interpolate(words, size=size, mode="bilinear", align_corners=False)


@BACKBONE_REGISTRY.register()
def build_timm_classifier_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GroundingFPN:
    """Build the frozen timm classifier of ``cfg.MODEL.TIMM`` with the FPN of ``cfg.MODEL.FPN``.

    Its class names are ImageNet-1k's, embedded by the language backbone of the config.

    Raises:
        ValueError: the language backbone is random, and so the embeddings would mean nothing.
    """
    if not cfg.MODEL.LANGUAGE_BACKBONE.WEIGHTS:
        raise ValueError(
            "MODEL.LANGUAGE_BACKBONE.WEIGHTS is empty, but build_timm_classifier_fpn_backbone "
            "embeds its class names before MODEL.WEIGHTS is read: name a pretrained one"
        )
    classifier = build_timm_classifier(
        name=cfg.MODEL.TIMM.NAME, weights=cfg.MODEL.TIMM.WEIGHTS, in_channels=input_shape.channels
    )
    bottom_up = ClassifierBackbone(
        classifier=classifier,
        class_embeddings=embed_imagenet_names(cfg),
        # Frozen weights that the config fetches again need not be stored.
        checkpoint_excluded=("classifier.",) if cfg.MODEL.TIMM.WEIGHTS else (),
    )
    return build_grounding_fpn(cfg, bottom_up, ClassifierFPN)


@torch.no_grad()
def embed_imagenet_names(cfg: CfgNode) -> Tensor:
    """(1000, D), the mean of the words' features for the first name of every ImageNet-1k class."""
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
