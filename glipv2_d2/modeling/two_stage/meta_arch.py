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
from glipv2_d2.layers.dtypes import full_precision
from glipv2_d2.modeling.heads.base import TEXT
from glipv2_d2.modeling.heads.roi_heads import mean_text
from glipv2_d2.modeling.language import LanguageBackbone, LanguageCache, build_language_backbone
from glipv2_d2.modeling.prompt_builder import PromptBuilder, build_prompt_builder
from glipv2_d2.modeling.two_stage.class_embeddings import ClassEmbeddings
from glipv2_d2.structures import Prompt, fields
from glipv2_d2.text.tokenizer import Tokenizer


@META_ARCH_REGISTRY.register()
class OpenVocabularyRCNN(GeneralizedRCNN, Configurable):
    """Mask or Cascade R-CNN that classifies regions by the text embeddings of class names.

    Not part of GLIP. Proposals are class-agnostic. The box predictors score each region against the
    embeddings of all classes of its image, which may take several prompts to encode. There is no
    fusion of image and text before that.

    Inputs and outputs are Detectron2's dicts, see :mod:`glipv2_d2.structures.fields`.
    """

    config_keys: ClassVar[dict[str, str]] = {
        "max_tokens": "MODEL.PROMPT.MAX_TOKENS",
        "language_cache_size": "MODEL.LANGUAGE_BACKBONE.CACHE_SIZE",
    }

    @configurable
    def __init__(
        self,
        *,
        language_backbone: LanguageBackbone,
        tokenizer: Tokenizer,
        prompts: PromptBuilder,
        language_cache_size: int = 0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            language_backbone: encodes the prompts of class names.
            tokenizer: of the language backbone.
            prompts: makes the prompts of an input.
            language_cache_size: number of prompts whose features are cached at inference; 0: none.
            kwargs: arguments of Detectron2's GeneralizedRCNN; ``roi_heads`` is one of
                :mod:`glipv2_d2.modeling.two_stage.roi_heads`.
        """
        super().__init__(**kwargs)
        self.language_backbone = language_backbone
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.language_cache = LanguageCache(language_cache_size)

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
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses by name in training, else one dict of results per image."""
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
        if detected_instances is None:
            class_embeddings = self.encode_classes(prompts_per_image)
            proposals, _ = self.propose(images, features, batched_inputs)
            detections, _ = self.roi_heads(images, features, proposals, None, class_embeddings)
        else:
            detected_instances = [instances.to(self.device) for instances in detected_instances]
            detections = self.roi_heads.forward_with_given_boxes(features, detected_instances)
        if not do_postprocess:
            return detections
        results = self._postprocess(detections, batched_inputs, images.image_sizes)
        for x, prompts, result in zip(batched_inputs, prompts_per_image, results, strict=True):
            if fields.CAPTION in x:
                result[fields.PHRASES] = prompts[0].phrases
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
        """Embed the classes of each image, over all of its prompts.

        A class embedding is the mean over the tokens of its name. Prompts that several images share
        are encoded once. Labels without tokens, which only captions may have, are left out.
        """
        prompt_of = {_key(prompt): prompt for prompts in prompts_per_image for prompt in prompts}
        tokens = self.tokenizer(list(prompt_of.values()))
        has_tokens = [positive_map.any(dim=1).tolist() for positive_map in tokens.positive_maps]
        tokens = tokens.to(self.device)
        text = self.language_cache(self.language_backbone, tokens)
        row_of = {key: row for row, key in enumerate(prompt_of)}

        def embed(prompt: Prompt) -> ClassEmbeddings:
            row = row_of[_key(prompt)]
            embeddings = mean_text(full_precision(text.hidden[row]), tokens.positive_maps[row])
            labels = [label for label, has_any in enumerate(has_tokens[row]) if has_any]
            return ClassEmbeddings(
                embeddings[labels], tuple(prompt.classes[label] for label in labels)
            )

        return [
            ClassEmbeddings.cat([embed(prompt) for prompt in prompts])
            for prompts in prompts_per_image
        ]


def _key(prompt: Prompt) -> tuple[Any, ...]:
    """The parts of a prompt that its label embeddings depend on."""
    return prompt.text, prompt.spans


def check_ground_truth(x: dict[str, Any], classes: ClassEmbeddings) -> None:
    """Raise a ValueError where an input has boxes of classes that its prompts do not have."""
    gt_classes = set(x[fields.INSTANCES].gt_classes.tolist())
    if missing := sorted(gt_classes - set(classes.classes)):
        raise ValueError(
            f"gt_classes {missing} of {x.get(fields.FILE_NAME, 'an image')!r} are not among the "
            f"classes of its prompts, {sorted(classes.classes)}: the mapper must drop such boxes "
            "or add their classes. Names without known words and duplicate names are left out of "
            "prompts"
        )
