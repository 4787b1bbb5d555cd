"""Detectron2's Generalized R-CNN with classes given as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_roi_heads
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from glipv2_d2.config import Configurable, configurable
from glipv2_d2.modeling.class_embeddings import (
    ClassEmbeddings,
    check_ground_truth,
    embed_classes,
)
from glipv2_d2.modeling.class_evidence import ClassEvidence
from glipv2_d2.modeling.closed_set import build_closed_set_evidence
from glipv2_d2.modeling.heads.base import TEXT
from glipv2_d2.modeling.input_checks import check_inputs, names_images
from glipv2_d2.modeling.language import LanguageBackbone, LanguageCache, build_language_backbone
from glipv2_d2.modeling.prompt_builder import (
    PromptBuilder,
    build_prompt_builder,
    caption_phrases,
)
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.text.tokenizer import Tokenizer


@META_ARCH_REGISTRY.register()
class OpenVocabularyRCNN(GeneralizedRCNN, Configurable):
    """Mask or Cascade R-CNN that classifies regions by the text embeddings of class names.

    Not part of GLIP. Proposals are class-agnostic. The box predictors score each region against the
    embeddings of all classes of its image, which may take several prompts to encode. There is no
    fusion of image and text before that. With ``class_evidence`` the detector keeps the classifier
    of its closed list of classes, which scores other names by the similarity of their embeddings.

    Inputs and outputs are Detectron2's dicts, see :mod:`glipv2_d2.structures.fields`.
    """

    config_keys: ClassVar[dict[str, str]] = {
        "max_tokens": "MODEL.PROMPT.MAX_TOKENS",
        "language_cache_size": "MODEL.LANGUAGE_BACKBONE.CACHE_SIZE",
        "class_evidence": "MODEL.CLOSED_SET.CLASS_NAMES",
    }

    @configurable
    def __init__(
        self,
        *,
        language_backbone: LanguageBackbone,
        tokenizer: Tokenizer,
        prompts: PromptBuilder,
        language_cache_size: int = 0,
        class_evidence: ClassEvidence | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            language_backbone: encodes the prompts of class names.
            tokenizer: of the language backbone.
            prompts: makes the prompts of an input.
            language_cache_size: number of prompts whose features are cached at inference; 0: none.
            class_evidence: of the classes of a closed-set detector, for ``roi_heads`` that use it.
            kwargs: arguments of Detectron2's GeneralizedRCNN; ``roi_heads`` is one of
                :mod:`glipv2_d2.modeling.two_stage`.

        Raises:
            ValueError: ``roi_heads`` uses ``class_evidence``, which is None, or the reverse.
        """
        super().__init__(**kwargs)
        if self.roi_heads.uses_class_evidence != (class_evidence is not None):
            raise ValueError(
                f"class_evidence is {class_evidence}, but roi_heads is a "
                f"{type(self.roi_heads).__name__}: pass it to ClosedSetROIHeads or "
                "ClosedSetCascadeROIHeads only"
            )
        self.language_backbone = language_backbone
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.language_cache = LanguageCache(language_cache_size)
        self.class_evidence = class_evidence

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        language_backbone = build_language_backbone(cfg)
        shapes = backbone.output_shape()
        tokenizer = Tokenizer(cfg.MODEL.LANGUAGE_BACKBONE.MODEL, cfg.MODEL.PROMPT.MAX_TOKENS)
        return {
            "backbone": backbone,
            "language_backbone": language_backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "roi_heads": build_roi_heads(
                cfg, {**shapes, TEXT: ShapeSpec(channels=language_backbone.width)}
            ),
            "tokenizer": tokenizer,
            "prompts": build_prompt_builder(cfg, tokenizer),
            "language_cache_size": cfg.MODEL.LANGUAGE_BACKBONE.CACHE_SIZE,
            "class_evidence": build_closed_set_evidence(cfg, language_backbone, tokenizer),
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @names_images
    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses by name in training, else one dict of results per image."""
        check_inputs(batched_inputs, needs_instances=self.training)
        return self.losses(batched_inputs) if self.training else self.inference(batched_inputs)

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Losses of the proposal generator and the ROI heads, as Detectron2's.

        Raises:
            ValueError: an input has ground truth of classes that its prompts do not have.
        """
        class_embeddings = self.encode_classes(
            [self.prompts.all_for_training(x) for x in batched_inputs]
        )
        for x, classes in zip(batched_inputs, class_embeddings, strict=True):
            check_ground_truth(x, classes)
        gt_instances = [x[fields.INSTANCES].to(self.device) for x in batched_inputs]
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self.propose(images, features, batched_inputs, gt_instances)
        _, losses = self.roi_heads(images, features, proposals, gt_instances, class_embeddings)
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return losses | proposal_losses

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[Any]:
        """Detect the classes of each input.

        Args:
            detected_instances: per image, known boxes and classes; only masks are predicted then.
            do_postprocess: rescale the results to the size that the input requests.

        Returns:
            per image, a dict with ``instances`` and, for a caption, its ``phrases``; without
            ``do_postprocess`` the Instances alone.
        """
        assert not self.training
        prompts_per_image = [self.prompts.for_inference(x) for x in batched_inputs]
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        class_embeddings = self.encode_classes(prompts_per_image)
        if detected_instances is None:
            proposals, _ = self.propose(images, features, batched_inputs)
            detections, _ = self.roi_heads(images, features, proposals, None, class_embeddings)
        else:
            detected_instances = [instances.to(self.device) for instances in detected_instances]
            detections = self.roi_heads.forward_with_given_boxes(
                features, detected_instances, class_embeddings
            )
        if not do_postprocess:
            return detections
        results = self._postprocess(detections, batched_inputs, images.image_sizes)
        for x, prompts, result in zip(batched_inputs, prompts_per_image, results, strict=True):
            if fields.CAPTION in x:
                result[fields.PHRASES] = caption_phrases(x, prompts[0])
        return results

    def propose(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        batched_inputs: list[dict[str, Any]],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Generate proposals and, with ground truth, losses; or take the inputs' ``proposals``."""
        if self.proposal_generator is None:
            return [x["proposals"].to(self.device) for x in batched_inputs], {}
        return self.proposal_generator(images, features, gt_instances)

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
