"""Detectron2's RetinaNet with classes given as text.

N: images. A_i: anchors of level i. K: closed classes. L: class names of an image. C: channels.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, detector_postprocess
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.class_embeddings import (
    ClassEmbeddings,
    check_ground_truth,
    embed_classes,
    num_columns,
)
from glipv2_d2.modeling.class_evidence import ClassEvidence, evidence_logits
from glipv2_d2.modeling.closed_set import build_closed_set_evidence, num_closed_classes
from glipv2_d2.modeling.heads.base import RegionWordScore
from glipv2_d2.modeling.heads.region_word_score import ResidualScore
from glipv2_d2.modeling.input_checks import check_inputs, names_images
from glipv2_d2.modeling.language import LanguageBackbone, LanguageCache, build_language_backbone
from glipv2_d2.modeling.prompt_builder import (
    PromptBuilder,
    build_prompt_builder,
    caption_phrases,
)
from glipv2_d2.structures import Prompt, TextFeatures, fields
from glipv2_d2.text.tokenizer import Tokenizer


class ClosedSetRetinaNetHead(RetinaNetHead):
    """Detectron2's head, which also returns the features that it classifies."""

    def forward(
        self, features: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Predict on the maps (N, C, H_i, W_i) of all levels.

        Returns:
            per level: features (N, C, H_i, W_i), class logits (N, anchors * K, H_i, W_i) and box
            deltas (N, anchors * 4, H_i, W_i).
        """
        regions = [self.cls_subnet(level) for level in features]
        deltas = [self.bbox_pred(self.bbox_subnet(level)) for level in features]
        return regions, [self.cls_score(level) for level in regions], deltas


@META_ARCH_REGISTRY.register()
class OpenVocabularyRetinaNet(RetinaNet, Configurable):
    """RetinaNet with its own classifier, whose classes are evidence for any class names.

    Not part of GLIP. The logit of a name at an anchor is that of its best evidence
    (:class:`ClassEvidence`) plus a region-word score, which is zero before training. A name that is
    one of the closed class names then has the classifier's probability of that class, within
    1e-5 .. 1 - 1e-6.

    The parameters have the names and shapes of Detectron2's, so that files of its model zoo load
    unchanged. Inputs and outputs are Detectron2's dicts, see :mod:`glipv2_d2.structures.fields`.
    """

    config_keys: ClassVar[dict[str, str]] = {
        "max_tokens": "MODEL.PROMPT.MAX_TOKENS",
        "language_cache_size": "MODEL.LANGUAGE_BACKBONE.CACHE_SIZE",
        "num_classes": "MODEL.RETINANET.NUM_CLASSES",
    }

    @configurable
    def __init__(
        self,
        *,
        head: ClosedSetRetinaNetHead,
        language_backbone: LanguageBackbone,
        tokenizer: Tokenizer,
        prompts: PromptBuilder,
        class_evidence: ClassEvidence,
        region_word: RegionWordScore,
        language_cache_size: int = 0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            head: classifies the K classes of ``class_evidence``.
            language_backbone: encodes the prompts of class names.
            tokenizer: of the language backbone.
            prompts: makes the prompts of an input.
            class_evidence: of the classes of ``head``.
            region_word: its scores for the features of ``head`` are added to the logits.
            language_cache_size: number of prompts whose features are cached at inference; 0: none.
            kwargs: arguments of Detectron2's RetinaNet; ``num_classes`` limits the class names in
                training.
        """
        super().__init__(head=head, **kwargs)
        self.language_backbone = language_backbone
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.class_evidence = class_evidence
        self.region_word = region_word
        self.language_cache = LanguageCache(language_cache_size)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        closed_set = cfg.MODEL.CLOSED_SET
        closed_cfg = cfg.clone()
        closed_cfg.defrost()
        closed_cfg.MODEL.RETINANET.NUM_CLASSES = num_closed_classes(
            closed_set.CLASS_NAMES, closed_set.DATASET
        )
        options = super().from_config(cfg)
        shapes: dict[str, ShapeSpec] = options["backbone"].output_shape()
        levels = [shapes[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
        language_backbone = build_language_backbone(cfg)
        tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
        if options["max_detections_per_image"] < 0:
            # Detectron2's RetinaNet has no value for "all", and would drop the last one.
            options["max_detections_per_image"] = sys.maxsize
        return options | {
            "head": ClosedSetRetinaNetHead(closed_cfg, levels),
            "language_backbone": language_backbone,
            "tokenizer": tokenizer,
            "prompts": build_prompt_builder(cfg, tokenizer),
            "class_evidence": build_closed_set_evidence(cfg, language_backbone, tokenizer),
            "region_word": ResidualScore(
                visual_dim=levels[0].channels, language_dim=language_backbone.width
            ),
            "language_cache_size": cfg.MODEL.LANGUAGE_BACKBONE.CACHE_SIZE,
        }

    @names_images
    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses by name in training, else one dict of results per image.

        Raises:
            ValueError: an input has ground truth of classes that its prompts do not have.
        """
        check_inputs(batched_inputs, needs_instances=self.training)
        if not self.training:
            return self.inference(batched_inputs)
        class_embeddings = self.encode_classes(
            [self.prompts.all_for_training(x) for x in batched_inputs]
        )
        for x, classes in zip(batched_inputs, class_embeddings, strict=True):
            check_ground_truth(x, classes)
        gt_instances = [x[fields.INSTANCES].to(self.device) for x in batched_inputs]
        images = self.preprocess_image(batched_inputs)
        features = self._features(images.tensor)
        logits, deltas = self.predict(features, class_embeddings)
        anchors = self.anchor_generator(features)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            with torch.no_grad():
                detections = self.detect(anchors, logits, deltas, images.image_sizes)
            self.visualize_training(batched_inputs, detections)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, logits, gt_labels, deltas, gt_boxes)

    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detect the classes of each input.

        Returns:
            per image, a dict with ``instances`` and, for a caption, its ``phrases``.
        """
        assert not self.training
        prompts_per_image = [self.prompts.for_inference(x) for x in batched_inputs]
        images = self.preprocess_image(batched_inputs)
        features = self._features(images.tensor)
        logits, deltas = self.predict(features, self.encode_classes(prompts_per_image))
        anchors = self.anchor_generator(features)
        detections = self.detect(anchors, logits, deltas, images.image_sizes)
        results = []
        for x, prompts, instances in zip(
            batched_inputs, prompts_per_image, detections, strict=True
        ):
            height, width = instances.image_size
            result: dict[str, Any] = {
                fields.INSTANCES: detector_postprocess(
                    instances, x.get(fields.HEIGHT, height), x.get(fields.WIDTH, width)
                )
            }
            if fields.CAPTION in x:
                result[fields.PHRASES] = caption_phrases(x, prompts[0])
            results.append(result)
        return results

    def detect(
        self,
        anchors: list[Boxes],
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """Detections per image in pixels of the network input.

        Args:
            anchors: per level.
            logits, deltas: of :meth:`predict`.
            image_sizes: (height, width) of the images without padding.
        """
        return [
            self.inference_single_image(
                anchors,
                [level[i].sigmoid() for level in logits],
                [level[i] for level in deltas],
                image_size,
            )
            for i, image_size in enumerate(image_sizes)
        ]

    def predict(
        self, features: Sequence[Tensor], class_embeddings: Sequence[ClassEmbeddings]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Score the class names of each image at every anchor.

        Args:
            features: (N, C, H_i, W_i) per level.
            class_embeddings: per image, its class names with their similarity.

        Returns:
            per level, logits (N, A_i, columns) of the class names in the columns of their indices,
            and box deltas (N, A_i, 4).

        Raises:
            ValueError: in training, a class index is ``num_classes`` or more.
        """
        columns = num_columns(
            class_embeddings, num_classes=self.num_classes, training=self.training
        )
        regions_per_level, class_logits, deltas = self.head(features)
        logits = []
        for regions, level in zip(regions_per_level, class_logits, strict=True):
            probs = full_precision(permute_to_N_HWA_K(level, self.class_evidence.num_classes))
            logits.append(
                torch.stack(
                    [
                        self._name_logits(regions[i], probs[i].sigmoid(), classes, columns)
                        for i, classes in enumerate(class_embeddings)
                    ]
                )
            )
        return logits, [permute_to_N_HWA_K(level, 4) for level in deltas]

    def encode_classes(
        self, prompts_per_image: Sequence[Sequence[Prompt]]
    ) -> list[ClassEmbeddings]:
        """Embed the classes of each image, see :func:`embed_classes`."""
        return embed_classes(
            prompts_per_image,
            tokenizer=self.tokenizer,
            language_backbone=self.language_backbone,
            language_cache=self.language_cache,
            device=self.device,
            class_evidence=self.class_evidence,
        )

    def _features(self, images: Tensor) -> list[Tensor]:
        features = self.backbone(images)
        return [features[name] for name in self.head_in_features]

    def _name_logits(
        self, regions: Tensor, class_probs: Tensor, classes: ClassEmbeddings, columns: int
    ) -> Tensor:
        """(C, H_i, W_i) features and (A_i, K) probabilities of an image -> (A_i, columns)."""
        logits = evidence_logits(ClassEvidence.best(class_probs, classes.closed_set_similarity))
        mask = torch.ones(1, len(classes.classes), dtype=torch.bool, device=regions.device)
        text = TextFeatures(classes.embeddings[None], mask)
        locations = regions.flatten(1).T  # (H_i * W_i, C)
        ((scores,),) = self.region_word([locations[None]], text)
        # The anchors of a location are consecutive and share its features.
        scores = scores.repeat_interleave(len(logits) // len(locations), dim=0)
        return classes.to_columns(logits + scores, columns)
